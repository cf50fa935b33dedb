"""Leave-one-out in small: who is held out, what is ranked, and how the opinions are pooled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.loo_split import LeaveOneOut, log_softmax, ranks_of
from benchmarks.networks_loo import PLAIN, Fitted, fit, fuse, main, pooled, settings_of
from online_models import CoVisitation
from online_models.evaluation.interactions import Interaction
from serving.training.settings import TrainerSettings


def _events(*given: tuple[str, str, int]) -> list[Interaction]:
    return [Interaction(user, item, 1.0, {"timestamp": at, "weight": 1.0}) for user, item, at in given]


SMALL = _events(
    ("ann", "a", 1), ("bob", "c", 1), ("ann", "b", 2), ("cy", "a", 2), ("ann", "c", 3), ("ann", "d", 3),
    ("bob", "a", 4), ("bob", "b", 5), ("cy", "d", 6),
)  # fmt: skip


def test_the_last_event_is_the_test_and_the_one_before_it_validates() -> None:
    split = LeaveOneOut.of(SMALL)
    assert split.users == ("ann", "bob")  # cy has too few
    names = ["", *split.item_ids]
    assert [names[k] for k in split.sequences.items[split.targets(1)]] == ["d", "b"]
    assert [names[k] for k in split.sequences.items[split.targets(2)]] == ["c", "a"]
    given = split.split()
    assert [names[k] for k in given.train.items] == ["a", "b", "c", "c", "a"]
    assert given.train.starts.tolist() == [0, 3, 5]
    assert given.judged is not None
    assert given.judged.tolist() == [False, False, True, False, True]
    assert given.popularity == {"a": 2.0, "b": 1.0, "c": 2.0, "d": 0.0}


def test_tie_orders_change_places_of_one_time_alone() -> None:
    tests = {int(LeaveOneOut.of(SMALL, seed).sequences.items[5 - 2]) for seed in range(1, 20)}
    split = LeaveOneOut.of(SMALL)
    assert tests == set(split.sequences.items[2:4].tolist())
    for seed in range(1, 5):
        shuffled = LeaveOneOut.of(SMALL, seed)
        assert (
            shuffled.sequences.items[[0, 1, 4, 5, 6]].tolist()
            == split.sequences.items[[0, 1, 4, 5, 6]].tolist()
        )


def test_what_the_user_had_is_not_listed_and_ties_count_half() -> None:
    split = LeaveOneOut.of(SMALL)
    places = {item: place for place, item in enumerate(split.item_ids, start=1)}
    scores = np.zeros((2, 5))
    scores[0, places["a"]] = scores[0, places["b"]] = (
        9.0  # ann had them: only c and d are left for validation
    )
    assert split.ranks(scores, 2).tolist() == [
        0.5,
        1.0,
    ]  # c ties with d; a with b and d, of which bob had none
    assert split.ranks(scores, 1).tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="NaN"):
        ranks_of(np.array([[0.0, np.nan]]), np.array([0]))
    with pytest.raises(ValueError, match="none for a target"):
        ranks_of(np.array([[0.0, -np.inf]]), np.array([1]))


def test_an_online_model_learns_the_validation_items_before_the_test() -> None:
    split, model, whole = LeaveOneOut.of(SMALL), CoVisitation(), CoVisitation()
    split.learn(model, back=2)
    assert [len(model.items), model.items.row("d")] == [3, -1]
    split.learn(model, back=1, learned=2)
    for user, item in [("ann", "a"), ("bob", "c"), ("ann", "b"), ("ann", "c"), ("bob", "a")]:
        whole.learn_one(user, item)
    ours, theirs = split.online_scores(model), split.online_scores(whole)
    assert np.isnan(ours[:, 1 + split.item_ids.index("d")]).all()
    assert np.nan_to_num(ours) == pytest.approx(np.nan_to_num(theirs), rel=1e-5)


def test_the_weight_follows_who_ranks_the_validation_items_better() -> None:
    rng = np.random.default_rng(0)
    events = _events(
        *[(f"u{u}", f"i{i}", k) for u in range(30) for k, i in enumerate(rng.permutation(40)[:5].tolist())]
    )
    split = LeaveOneOut.of(events)
    targets = split.sequences.items[split.targets(2)]
    noise, told = (rng.normal(size=(30, 41)) for _ in range(2))
    told[np.arange(30), targets] += 3.0
    noise, told = (log_softmax(split.masked(scores, 2)) for scores in (noise, told))
    knows = Fitted(1, told, told, 1, 0.0, 0.0)
    guesses = Fitted(1, noise, noise, 1, 0.0, 0.0)
    assert fuse(split, [knows], noise) < 0.3
    assert fuse(split, [guesses], told) > 1.0
    both = pooled(told, noise, 0.5)
    assert both[0, targets[0]] == pytest.approx(told[0, targets[0]] + 0.5 * noise[0, targets[0]])


def test_networks_find_a_planted_order_and_the_plain_one_is_given_no_times() -> None:
    """Everyone walks round a circle of 12 items: the next one is certain."""
    circle = _events(*[(f"u{u}", f"i{(u + k) % 12}", 100 * k + u) for k in range(10) for u in range(60)])
    split = LeaveOneOut.of(circle)
    base = TrainerSettings(dim=16, blocks=1, max_epochs=12, patience=12, history_length=8, learning_rate=0.02)
    fitted = fit(split, "transformer", base, seed=1)
    assert (split.ranks(fitted.test, 1) == 0.0).mean() > 0.9
    assert fitted.near_s <= fitted.cpu_s
    assert np.exp(fitted.test).sum(axis=1) == pytest.approx(np.ones(60))
    assert not split.split(with_times=False).train.times_ms.any()
    plain = settings_of(PLAIN, base, 3)
    assert (plain.network, plain.seed, plain.dim) == ("transformer", 3, base.dim)
    assert not plain.spectral_start
    assert not plain.shuffle_ties
    assert plain.average_decay == plain.hidden_share == 0.0


def test_the_small_run_writes_every_row(tmp_path: Path) -> None:
    arguments = ["--small", "--dataset", "synthetic", "--networks", "transformer", "--results", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "networks_loo.json").read_text())
    fused = {"transformer + co-visitation", "transformer + online fusion"}
    assert set(found["rows"]) == {PLAIN, "transformer", "co-visitation", "online fusion"} | fused
    assert all(0 <= row["hr_at_10"] <= 1 for row in found["rows"].values())
    for low_high in found["differences"].values():
        mean, low, high = low_high["ndcg_at_10"]
        assert low <= mean <= high
    assert len(found["tie_orders"]["by_seed"]) == 1
    assert "transformer + co-visitation" in result.stdout
