"""Settings of the slow path. Imports no torch, so that workers may hold them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Compression = Literal["int8_rows", "int8_dynamic", "int8_static", "fp16", "pruned", "distilled"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0.0, lt=0.5)]
Rate = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ExamplesOf = Literal["events", "requests", "both"]
Loss = Literal["auto", "full_softmax", "sampled_softmax", "gbce", "bce", "in_batch"]


class GateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a challenger must show before it is published.

    `min_ndcg_gain`: mean paired difference in NDCG@10 that must be exceeded, against popularity, the champion
    and, where it is known, the blend of the online models.
    `ndcg_tolerance`: the lower end of that difference's 95 % interval must lie above minus this (decision
    0018).
    `max_loss_new_users` / `max_loss_new_items`: NDCG@10 that may be lost on users with at most 5 events and
    on items with fewer than 5 in the training part, against the champion, or what else would be served;
    looked at from `min_slice_events` events on.
    `max_loss_coverage`: share of its distinct items over all lists of ten that may be lost.
    `parity_tolerance`: largest absolute difference between ONNX Runtime's scores and PyTorch's on golden
    inputs.
    `latency_budget_ms`: median of one call with 16 users and 200 candidates each.
    `max_scored_pairs`: events x items scored for each model; with a large catalogue the newest events are
    taken.
    """

    min_ndcg_gain: float = 0.0
    ndcg_tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    max_loss_new_users: Annotated[float, msgspec.Meta(ge=0)] = 0.02
    max_loss_new_items: Annotated[float, msgspec.Meta(ge=0)] = 0.02
    max_loss_coverage: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    min_slice_events: Positive = 200
    parity_tolerance: Annotated[float, msgspec.Meta(gt=0)] = 1e-4
    latency_budget_ms: Annotated[float, msgspec.Meta(gt=0)] = 100.0
    bootstrap_samples: Positive = 1000
    max_scored_pairs: Positive = 400_000_000


class HeadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several heads over a network (`serving.training.networks.heads`).

    `event_types`: what it learns from; none named is all. `kind`: "next" predicts the item, "value" the value
    (rating, dwell seconds) that events of these types carry. `loss_weight` counts in training, `score_weight`
    in the score that is served.
    """

    name: str
    event_types: tuple[str, ...] = ()
    kind: Literal["next", "value"] = "next"
    loss_weight: Annotated[float, msgspec.Meta(ge=0.0)] = 1.0
    score_weight: float = 1.0


class CompressionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is published instead of the float32 graph, where it loses little.

    `candidates`: tried in this order; none is float32. "distilled" and "pruned" train again.
    `max_ndcg_loss`: share of NDCG@10 that may be lost; the upper end of the 95 % interval must be below it.
    `size_weight`: how much a smaller file counts, a faster call counts the rest: what is chosen has the
    smallest size_ratio^w * latency_ratio^(1 - w), and below `least_gain`, else float32 stays.
    `calibration_users`: training histories whose ranges `int8_static` takes over.
    `sparsity`: share of the weights that `pruned` sets to zero, over `pruning_epochs` of training.
    """

    candidates: tuple[Compression, ...] = ("int8_rows", "int8_static")
    max_ndcg_loss: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.01
    size_weight: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.25
    least_gain: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.9
    calibration_users: Positive = 128
    sparsity: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.8
    pruning_epochs: Positive = 4


class TrainerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network is trained. Defaults are those that measured best for the time on MovieLens-100K
    (decision 0003).

    A training loop ends after `max_cpu_seconds` of each thread, so that on a busy machine it trains as much,
    only later, and by the wall clock after `max_seconds`. Two runs of one seed agree while neither binds.
    `slice_fraction` / `slice_max_events`: the newest interactions, held out for the gate, whichever is fewer.
    `validation_fraction`: the newest part of what is left, for early stopping.
    `window_stride`: positions that one window learns; below `history_length`, windows overlap and see more
    before each.
    `average_decay`: what is judged and kept is the running mean of the weights, that keeps so much of itself
    at each step; 0 keeps the last. `warm_up_steps`: the learning rate rises over so many.
    `spectral_start`: item vectors start from co-visitation's eigenvectors instead of random ones.
    `shuffle_ties`: events of one user and time stand in a fresh order in each epoch.
    `hidden_share`: items that a batch treats as never seen, so that their content has to do.
    `device`: "auto" is a GPU where PyTorch sees one. `precision`: on a GPU, "auto" is bf16 where it has it,
    else fp16; a CPU computes in fp32.
    `max_interactions`: the newest so many are kept and trained on, which bounds the trainer's memory.
    `head_examples`: newest events whose lists are kept, to fit the head that joins in the online features and
    to judge rankers as they will be served; 0 trains none. `head_min_examples`: fewer that the network was
    not fitted on train none, too.
    `examples`: for which lists events count as examples. "events": those made upon the user's event before
    (`trigger.events`), with no time in between; "requests": those asked for just before the event; "both":
    half of the events each.
    `loss`: "auto" is the network's own. `full_softmax_limit`: above this vocabulary, sampled softmax with
    `negatives` draws a batch replaces the full one. `negatives_per_target`: draws of "bce" and "gbce";
    `gbce_calibration`: 0 is plain cross-entropy, 1 undoes its overconfidence (Petrov and Macdonald 2023).
    `score_heads`: what is predicted, and how it is weighed; none is one head for all event types.
    `adversarial`: "apr" trains on item vectors perturbed by `adversarial_epsilon`, "irgan" on negatives that
    a small network proposes, either with `adversarial_weight` beside the loss.
    `ensemble`: networks whose mean opinion is taught to `network`; none is training on the log alone.
    `distillation_weight`: how much their opinion counts against the log, softened by
    `distillation_temperature`.
    """

    network: str = "transformer"
    history_length: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 50
    dim: Annotated[int, msgspec.Meta(ge=4, le=1024)] = 64
    blocks: Annotated[int, msgspec.Meta(ge=1, le=24)] = 2
    heads: Positive = 2
    dropout: Rate = 0.2
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    average_decay: Rate = 0.995
    warm_up_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    spectral_start: bool = True
    shuffle_ties: bool = True
    batch_windows: Positive = 32
    window_stride: Positive = 50
    max_epochs: Positive = 60
    patience: Positive = 4
    max_cpu_seconds: Annotated[float, msgspec.Meta(gt=0)] = 25.0
    max_seconds: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    hidden_share: Annotated[float, msgspec.Meta(ge=0.0, le=0.5)] = 0.02
    seed: int = 7
    threads: Positive = 1
    device: Device = "auto"
    precision: Precision = "auto"
    max_interactions: Positive = 20_000_000
    min_count: Positive = 2
    min_interactions: Positive = 1000
    slice_fraction: Fraction = 0.05
    slice_max_events: Positive = 2000
    validation_fraction: Fraction = 0.05
    head_examples: Annotated[int, msgspec.Meta(ge=0)] = 20_000
    head_min_examples: Positive = 300
    examples: ExamplesOf = "both"
    loss: Loss = "auto"
    full_softmax_limit: Positive = 20_000
    negatives: Positive = 1024
    negatives_per_target: Positive = 32
    gbce_calibration: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.75
    score_heads: tuple[HeadSettings, ...] = ()
    adversarial: Literal["none", "apr", "irgan"] = "none"
    adversarial_weight: Annotated[float, msgspec.Meta(ge=0.0)] = 1.0
    adversarial_epsilon: Annotated[float, msgspec.Meta(gt=0.0)] = 0.5
    ensemble: tuple[str, ...] = ()
    distillation_weight: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.5
    distillation_temperature: Annotated[float, msgspec.Meta(gt=0.0)] = 2.0
    gate: GateSettings = GateSettings()
    compression: CompressionSettings = CompressionSettings()
