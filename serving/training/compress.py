"""Smaller and faster graphs of a trained ranker, what each loses, and the cheapest that loses little.

A graph of fewer bits or weights is measured as it will serve: its file, its calls beside the float32 graph's
in one process, and its NDCG@10 on the same events, with a paired interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import msgspec
import numpy as np

from serving.ranker.inputs import RankerInputs
from serving.ranker.session import RankerSession
from serving.registry.onnx_checks import check_onnx
from serving.training.calibration import training_calls
from serving.training.compress_judge import Float64, Judge, catalogue_judge
from serving.training.dataset import Int64, LogSplit
from serving.training.ensemble import distil
from serving.training.export import Export, Golden, exported
from serving.training.fused import ExportedRanker
from serving.training.prune import prune
from serving.training.settings import Compression, TrainerSettings
from serving.training.slim import slim
from serving.training.train import TrainedNetwork

__all__ = ["FLOAT32", "Candidate", "Compressed", "compress_best", "paired_loss"]

FLOAT32 = "fp32"
_ROUNDS = 60
_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One graph, and how it compares with float32: `size_ratio` and `latency_ratio` are its share of the file
    and of the time, `ndcg_loss` the share of NDCG@10 that it loses, between `low` and `high` with 95 %."""

    kind: str
    size_bytes: int
    ndcg_at_10: float
    size_ratio: float = 1.0
    latency_ratio: float = 1.0
    ndcg_loss: float = 0.0
    low: float = 0.0
    high: float = 0.0
    cost: float = 1.0
    verdict: str = ""
    """Why it was taken or not."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """What is to be published: the graph, how it computes, its own golden scores, and all that were tried."""

    model: bytes
    precision: str
    golden: Golden
    table: tuple[Candidate, ...]

    def figures(self) -> dict[str, dict[str, float]]:
        """The table's numbers by kind, for a manifest."""
        names = [f.name for f in fields(Candidate) if f.name not in ("kind", "verdict")]
        return {c.kind: {name: float(getattr(c, name)) for name in names} for c in self.table if c.size_bytes}


@dataclass(frozen=True, slots=True)
class Source:
    """What a compressed graph is made from: the trained ranker, its float32 file, and its data."""

    ranker: ExportedRanker
    export: Export
    model: bytes
    split: LogSplit
    settings: TrainerSettings

    def calls(self) -> list[RankerInputs]:
        """Calibration calls."""
        return training_calls(self.split, self.settings, self.settings.compression.calibration_users)


def compress_best(
    source: Source, judge: Judge | None = None, progress: Callable[[str], None] | None = None
) -> Compressed:
    """Make and measure every candidate of the settings, and take the cheapest that loses little.

    `judge` measures quality; default: the whole vocabulary ranked for the newest events. A candidate that
    can't be made stands in the table with the reason. The float32 graph stays where none is allowed and
    cheaper.
    """
    base = RankerSession(source.model, "cpu", source.settings.threads)
    judge = judge or catalogue_judge(source.ranker, base, source.split, source.settings)
    gains = judge.gains(base)
    reference = Candidate(FLOAT32, len(source.model), _mean(gains))
    models, table = {FLOAT32: source.model}, [reference]
    for kind in source.settings.compression.candidates:
        if progress is not None:
            progress(kind)
        try:
            models[kind] = _BUILDERS[kind](source)
            check_onnx(models[kind])
            session = RankerSession(models[kind], "cpu", source.settings.threads)
            table.append(_measured(kind, models[kind], session, base, gains, judge, source))
        except Exception as error:  # noqa: BLE001  # the quantiser raises what it likes; float32 is still there
            table.append(
                Candidate(kind, 0, 0.0, cost=np.inf, verdict=f"could not be made: {str(error)[:160]}")
            )
    chosen = min((c for c in table if not c.verdict), key=lambda c: c.cost).kind
    table = [replace(c, verdict=c.verdict or ("taken" if c.kind == chosen else "dearer")) for c in table]
    return Compressed(models[chosen], chosen, _golden(models[chosen], chosen, source), tuple(table))


def paired_loss(base: Float64, other: Float64, users: Int64, seed: int = 0) -> tuple[float, float, float]:
    """Share of the mean gain that `other` loses, and its 95 % interval: users are resampled, both means from
    the same draw.

    `base` and `other` are float64[n], `users` int64[n] from 0. Zero where nothing can be lost.

    >>> paired_loss(np.array([1.0, 1.0]), np.array([1.0, 0.5]), np.array([0, 0]))
    (0.25, 0.25, 0.25)
    """
    if not len(base) or base.sum() <= 0:
        return 0.0, 0.0, 0.0
    before, lost = np.bincount(users, weights=base), np.bincount(users, weights=base - other)
    drawn = np.random.default_rng(seed).integers(0, len(before), (_SAMPLES, len(before)))
    shares = lost[drawn].sum(axis=1) / np.maximum(before[drawn].sum(axis=1), 1e-12)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(lost.sum() / before.sum()), float(low), float(high)


def latency_ratio(
    session: RankerSession, base: RankerSession, call: RankerInputs, rounds: int = _ROUNDS
) -> float:
    """Time of one call over the base's: the median of rounds in which both take turns. One thread's processor
    time where there is one, which what else runs doesn't change; else by the clock."""
    clock = time.thread_time if base.wish.threads == 1 else time.perf_counter
    ratios = []
    for number in range(rounds + 2):
        order = (session, base) if number % 2 else (base, session)
        took = {}
        for one in order:
            started = clock()
            one.score(call)
            took[one] = clock() - started
        ratios.append(took[session] / took[base])
    return float(np.median(ratios[2:]))


def _measured(
    kind: str,
    model: bytes,
    session: RankerSession,
    base: RankerSession,
    gains: Float64,
    judge: Judge,
    source: Source,
) -> Candidate:
    asked = source.settings.compression
    own = judge.gains(session)
    loss, low, high = paired_loss(gains, own, judge.users, source.settings.seed)
    size = len(model) / len(source.model)
    latency = latency_ratio(session, base, _full_call(source))
    cost = size**asked.size_weight * latency ** (1.0 - asked.size_weight)
    verdict = ""
    if high > asked.max_ndcg_loss:
        verdict = (
            f"may lose {100 * high:.1f} % of NDCG@10, at most {100 * asked.max_ndcg_loss:.1f} % is allowed"
        )
    elif cost > asked.least_gain:
        verdict = f"costs {cost:.2f} of float32, at most {asked.least_gain:.2f} is asked for"
    return Candidate(kind, len(model), _mean(own), size, latency, loss, low, high, cost, verdict)


def _full_call(source: Source) -> RankerInputs:
    """16 users x 200 candidates with full histories: what the gate's latency budget speaks of."""
    call = training_calls(source.split, source.settings, 16)[0]
    rng = np.random.default_rng(source.settings.seed)
    call.history = rng.integers(1, len(source.split.vocabulary) + 1, call.history.shape)
    return call


def _golden(model: bytes, kind: str, source: Source) -> Golden:
    """The probe holds PyTorch's scores for float32; a compressed graph gives its own."""
    golden = source.export.golden
    if kind == FLOAT32:
        return golden
    return Golden(golden.inputs, RankerSession(model, "cpu").score(golden.inputs))


def _mean(gains: Float64) -> float:
    return float(gains.mean()) if len(gains) else 0.0


def _int8_rows(source: Source) -> bytes:
    from serving.training import quantize  # seconds of imports, for those who compress

    return slim(quantize.int8_rows(source.model), keep_names=False)


def _int8_dynamic(source: Source) -> bytes:
    from serving.training import quantize

    return slim(quantize.int8_rows(quantize.int8_dynamic(source.model)), keep_names=False)


def _int8_static(source: Source) -> bytes:
    from serving.training import quantize

    whole = quantize.int8_static(source.model, source.calls())
    return slim(quantize.int8_rows(whole), keep_names=False)


def _fp16(source: Source) -> bytes:
    from serving.training import quantize

    return slim(quantize.float16(source.model), keep_names=False)


def _pruned(source: Source) -> bytes:
    from serving.training import quantize

    network = prune(source.ranker.network, source.split, source.settings)
    model = exported(ExportedRanker(network, source.ranker.head), seed=source.settings.seed)[0]
    return slim(quantize.sparse(model), keep_names=False)


def _distilled(source: Source) -> bytes:
    """A student of half the width and half the blocks, taught by the network."""
    given = source.settings
    half = msgspec.structs.replace(
        given,
        dim=max(given.heads, given.dim // (2 * given.heads) * given.heads),
        blocks=max(1, given.blocks // 2),
        ensemble=(),
        adversarial="none",
    )
    teacher = TrainedNetwork(source.ranker.network, source.split.vocabulary, given)
    student = distil({"whole": teacher}, source.split, half)
    return slim(
        exported(ExportedRanker(student.network, source.ranker.head), seed=given.seed)[0], keep_names=False
    )


_BUILDERS: Mapping[Compression, Callable[[Source], bytes]] = {
    "int8_rows": _int8_rows,
    "int8_dynamic": _int8_dynamic,
    "int8_static": _int8_static,
    "fp16": _fp16,
    "pruned": _pruned,
    "distilled": _distilled,
}
