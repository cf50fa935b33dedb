"""What the network learns, that it learns it twice alike, and that it takes over what was learned."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from serving.training import step
from serving.training.dataset import split_by_time
from serving.training.losses import SampledSoftmax, full_softmax
from serving.training.networks import build_network
from serving.training.networks.base import Shape
from serving.training.report import html_report
from serving.training.train import TrainingDivergedError, WarmStart, copy_weights, evaluate, train
from serving.training.windows import hold_out_newest
from tests.test_serving.ranker_cases import (
    ITEMS,
    SETTINGS,
    item_name,
    markov_log,
    markov_outcome,
    markov_ranker,
    successor,
)


def test_the_chain_is_learned_and_published() -> None:
    _, outcome = markov_outcome()
    assert outcome.report.accepted, outcome.report.reasons
    assert outcome.report.challenger is not None
    assert outcome.report.challenger.hr_at_10 > 0.85  # 5 % of the steps can't be known
    assert outcome.report.popularity.hr_at_10 < 0.2
    assert outcome.report.parity is not None
    assert outcome.report.parity <= 1e-4


def test_the_report_of_a_refusal_says_why_and_quotes_nothing_as_html() -> None:
    _, outcome = markov_outcome()
    refusal = msgspec.structs.replace(outcome.report, accepted=False, reasons=("a <b> too few",))
    page = html_report(replace(outcome, published=None, report=refusal), "a <set>")
    assert "<li>a &lt;b&gt; too few</li>" in page
    assert "transformer on a &lt;set&gt;" in page
    assert "Not published" in page
    assert outcome.report.challenger is not None
    assert f'<td class="best">{outcome.report.challenger.ndcg_at_10:.4f}</td>' in page
    assert f"<b>{SETTINGS.history_length}</b>" in page, "a setting that is not the default"
    assert "Published</b> as" in html_report(outcome, "a set")


def test_the_exported_ranker_puts_the_right_next_item_first() -> None:
    ranker = markov_ranker()
    catalogue = [item_name(index) for index in range(ITEMS)]
    histories = [[item_name(start), successor(item_name(start))] for start in range(0, ITEMS, 5)]
    inputs = ranker.inputs_of(histories, [catalogue] * len(histories))
    inputs.history_types = (inputs.history > 0).astype(np.int64)  # the log's one type, a second apart
    inputs.history_gaps_s[:, -1] = 1.0
    scores = ranker.score_inputs(inputs)
    for row, history in enumerate(histories):  # what was seen is not served, and not learned to rank low
        scores[row, [catalogue.index(item_id) for item_id in history]] = -np.inf
    best = [catalogue[k] for k in scores.argmax(axis=1)]
    right = [successor(history[-1]) for history in histories]
    assert np.mean([a == b for a, b in zip(best, right, strict=True)]) > 0.9


def test_two_runs_of_one_seed_agree_to_the_bit() -> None:
    split = split_by_time(markov_log(users=120), SETTINGS)
    quick = msgspec.structs.replace(SETTINGS, max_epochs=2)
    first, second = train(split, quick).weights(), train(split, quick).weights()
    other = train(split, msgspec.structs.replace(quick, seed=8)).weights()
    assert first.keys() == second.keys()
    for name, weights in first.items():
        np.testing.assert_array_equal(weights, second[name])
    assert not np.array_equal(first["item_embedding.weight"], other["item_embedding.weight"])


def test_warm_start_copies_by_item_id_and_begins_where_the_old_one_ended() -> None:
    split = split_by_time(markov_log(users=250), SETTINGS)
    old = train(split, msgspec.structs.replace(SETTINGS, max_epochs=5))
    warm = WarmStart(old.vocabulary, old.weights(), ("click",))
    vocabulary = (*reversed(split.vocabulary), "item-new")
    torch.manual_seed(0)
    network = build_network(Shape(len(vocabulary), 1), SETTINGS)
    assert copy_weights(network, vocabulary, warm, ("click",)) == len(split.vocabulary)
    table = network.item_embedding.weight.detach().numpy()
    row = {item_id: k for k, item_id in enumerate(old.vocabulary, start=1)}
    for k, item_id in enumerate(vocabulary[:-1], start=1):
        np.testing.assert_array_equal(table[k], warm.weights["item_embedding.weight"][row[item_id]])
    torch.manual_seed(0)
    fresh, copied = (build_network(Shape(len(split.vocabulary), 1), SETTINGS) for _ in range(2))
    copy_weights(copied, split.vocabulary, warm, ("click",))
    _, held_out = hold_out_newest(split.train, SETTINGS)
    contents = torch.from_numpy(split.contents)
    assert evaluate(copied, held_out, contents) == pytest.approx(old.ndcg_at_10)
    assert evaluate(fresh, held_out, contents) < 0.5 * evaluate(copied, held_out, contents)


def test_a_warm_start_of_another_size_leaves_items_their_spectral_start() -> None:
    """None of its item vectors fits, so all items are new."""
    split = split_by_time(markov_log(users=120), SETTINGS)
    small = msgspec.structs.replace(SETTINGS, dim=8)
    torch.manual_seed(0)
    old = build_network(Shape(len(split.vocabulary), 1), msgspec.structs.replace(SETTINGS, dim=16))
    weights = {name: p.detach().numpy() for name, p in old.state_dict().items()}
    warm = WarmStart(split.vocabulary, weights)
    assert copy_weights(build_network(Shape(len(split.vocabulary), 1), small), split.vocabulary, warm) == 0
    barely = msgspec.structs.replace(small, max_epochs=1, learning_rate=1e-12, weight_decay=0.0)
    cold, started = (train(split, barely, start).weights()["item_embedding.weight"] for start in (None, warm))
    np.testing.assert_allclose(started[1:-1], cold[1:-1], atol=1e-5)


def test_judging_in_parts_gives_the_same_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_by_time(markov_log(users=120), SETTINGS)
    torch.manual_seed(0)
    network = build_network(Shape(len(split.vocabulary), 1), SETTINGS)
    _, held_out = hold_out_newest(split.train, SETTINGS)
    assert any(np.count_nonzero(part.batch.targets) > 7 for part in held_out)
    contents = torch.from_numpy(split.contents)
    whole = evaluate(network, held_out, contents)
    monkeypatch.setattr(step, "_MAX_SCORES", 7 * len(contents))
    assert whole > 0.0
    assert evaluate(network, held_out, contents) == pytest.approx(whole, rel=1e-6)


def test_warm_start_finds_event_types_and_content_by_name() -> None:
    torch.manual_seed(0)
    settings = msgspec.structs.replace(SETTINGS, dim=4, heads=1)
    old = build_network(Shape(2, 2, 6), settings)
    for parameter in old.parameters():
        torch.nn.init.normal_(parameter)
    weights = {name: p.detach().numpy() for name, p in old.state_dict().items()}
    warm = WarmStart(("a", "b"), weights, ("click", "buy"), (("text", 2), ("image", 2)))
    new = build_network(Shape(2, 3, 10), settings)  # 2 + 3 + 2 components, and a mask each
    before = {name: p.clone() for name, p in new.state_dict().items()}
    copy_weights(new, ("a", "b"), warm, ("view", "buy", "click"), (("image", 2), ("sound", 3), ("text", 2)))
    types, content = new.type_embedding.weight, new.content.weight
    assert torch.equal(types[[0, 2, 3]], old.type_embedding.weight[[0, 2, 1]])
    assert torch.equal(types[1], before["type_embedding.weight"][1])
    assert torch.equal(content[:, [0, 1]], old.content.weight[:, [2, 3]])  # image
    assert torch.equal(content[:, [5, 6]], old.content.weight[:, [0, 1]])  # text
    assert torch.equal(content[:, [7, 9]], old.content.weight[:, [5, 4]])  # the masks of image and text
    assert torch.equal(content[:, [2, 3, 4, 8]], before["content.weight"][:, [2, 3, 4, 8]])


def test_sampled_softmax_estimates_the_full_one() -> None:
    torch.manual_seed(3)
    network = build_network(Shape(300), SETTINGS)
    states, targets = torch.randn(64, SETTINGS.dim), torch.randint(1, 301, (64,))
    nothing, contents = torch.zeros(64, 1, dtype=torch.int64), torch.zeros(302, 1)
    q = torch.rand(301) + 0.05
    q[0] = 0.0
    loss = SampledSoftmax(q / q.sum(), 4000)
    with torch.no_grad():
        full = float(full_softmax(network, states, targets, nothing, contents))
        draws = [float(loss(network, states, targets, nothing, contents)) for _ in range(10)]
        sampled = float(np.mean(draws))
    assert sampled == pytest.approx(full, abs=0.02)


def test_what_was_seen_is_no_rival_unless_it_is_the_target() -> None:
    torch.manual_seed(3)
    network = build_network(Shape(5), SETTINGS)
    states, contents = torch.randn(1, SETTINGS.dim), torch.zeros(7, 1)
    seen, target = torch.tensor([[0, 2, 4]]), torch.tensor([4])
    with torch.no_grad():
        logits = network.logits(states, contents)[0]
        expected = torch.logsumexp(logits[[1, 3, 4, 5]], 0) - logits[4]
        loss = full_softmax(network, states, target, seen, contents)
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_sampled_softmax_learns_the_chain_too() -> None:
    split = split_by_time(markov_log(users=250), SETTINGS)
    settings = msgspec.structs.replace(SETTINGS, full_softmax_limit=100, negatives=64)
    assert train(split, settings).ndcg_at_10 > 0.5


def test_broken_weights_are_named_not_trained_on() -> None:
    split = split_by_time(markov_log(users=120), SETTINGS)
    network = build_network(Shape(len(split.vocabulary), 1), SETTINGS)
    weights = {name: p.numpy() * np.float32(np.nan) for name, p in network.state_dict().items()}
    with pytest.raises(TrainingDivergedError, match="loss is nan at batch 1"):
        train(split, SETTINGS, WarmStart(split.vocabulary, weights))


def test_time_budget_ends_the_run() -> None:
    split = split_by_time(markov_log(), SETTINGS)
    settings = msgspec.structs.replace(SETTINGS, max_epochs=10_000, patience=10_000, max_seconds=1.0)
    assert train(split, settings).seconds < 5.0


@pytest.mark.parametrize(
    "module",
    ["serving.training", "serving.training.settings", "serving.training.dataset", "serving.registry.swap"],
)
def test_workers_can_import_it_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
