from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_models import ItemTable, checks, ease
from online_models.ease import RecencyEASE
from online_models.ease_kernels import EVENTS
from online_models.ease_sweep_kernels import BLOCK, SIZE, advance, begin
from online_models.learning_batch import PAIR, UNPAIR, WITHDRAW
from tests.test_online_models.batches import LASTING, random_batches

VARIANTS: list[dict[str, Any]] = [
    {"refresh_growth": 0.0, "refresh_events": 7, "window": 3},
    {"regularization": 0.01, "gap_decay": 0.5, "query_decay": 1.0, "query_length": 50},
]


class Counts:
    """G of the docstring with dictionaries, item by item, and the rule of who has room."""

    def __init__(self, window: int, gap_decay: float = 1.0, max_items: int = 10**9) -> None:
        self.window, self.gap_decay, self.max_items = window, gap_decay, max_items
        self.slots: list[str] = []
        self.uses: dict[str, int] = defaultdict(int)
        self.pairs: dict[frozenset[str], float] = defaultdict(float)
        self.history: dict[str, list[str]] = defaultdict(list)

    def learn(self, user: str, item: str, weight: float = 1.0) -> None:
        recent = self.history[user][: self.window]
        if weight >= 0.0:
            self.history[user].insert(0, item)
        if weight > 0.0:
            self.uses[item] += 1
            if item not in self.slots:
                self._admit(item)
        if item not in self.slots or (weight > 0.0) == (item in recent) or weight == 0.0:
            return
        place = recent.index(item) if item in recent else -1
        self._add([item], 1.0 if weight > 0.0 else -1.0)
        for other in dict.fromkeys(recent):
            if other != item and other in self.slots:
                gap = abs(recent.index(other) - place)
                amount = (1.0 - gap / (self.window + 1.0)) * self.gap_decay**gap
                self._add([item, other], amount if weight > 0.0 else -amount)

    def matrix(self, order: list[str]) -> NDArray[np.float64]:
        pairs = [[self.pairs[frozenset([a, b])] for b in order] for a in order]
        return np.array(pairs, dtype=np.float64).reshape(len(order), len(order))

    def forget(self, item: str) -> None:
        self.pairs = defaultdict(float, {key: v for key, v in self.pairs.items() if item not in key})
        self.uses[item] = 0

    def _admit(self, item: str) -> None:
        if len(self.slots) < self.max_items:
            self.slots.append(item)
            return
        least = min(self.slots, key=lambda other: (self.uses[other], self.slots.index(other)))
        if self.uses[item] > self.uses[least]:
            self.slots[self.slots.index(least)] = item
            self.forget(least)

    def _add(self, pair: list[str], amount: float) -> None:
        self.pairs[frozenset(pair)] = max(self.pairs[frozenset(pair)] + amount, 0.0)


def gram_of(model: RecencyEASE) -> tuple[list[str], NDArray[np.float64]]:
    """Items in the order of their slots ("" = none), and their counts as a full matrix."""
    arrays = model.item_arrays()
    rows = arrays["ease.rows"].astype(int).tolist()
    full = np.zeros((len(rows), len(rows)))
    full[np.tril_indices(len(rows))] = arrays["ease.pairs"].astype(float)
    return [model.items.ids[row] if row >= 0 else "" for row in rows], np.maximum(full, full.T)


def weights_of(gram: NDArray[np.float64], regularization: float) -> NDArray[np.float64]:
    inverse = np.linalg.inv(gram + regularization * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def kernel_weights(packed: NDArray[np.float32], n: int, regularization: float, budget: int) -> Any:
    """Weights float32[n, n] by the kernels, `budget` operations at a time, and the most done at once."""
    sweep, weights = ease._room(n), np.empty((n, n), dtype=np.float32)
    begin(packed, n, regularization, sweep)
    done = []
    while sweep.marks[SIZE]:
        done.append(advance(sweep, packed, np.zeros(n, dtype=np.uint8), weights, budget))
    return weights, done


WEIGHTS = st.sampled_from([1.0, 1.0, 0.0, -1.0])
STREAMS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdefghijklmnop"), WEIGHTS), min_size=1, max_size=120
)


@given(events=STREAMS, window=st.sampled_from([1, 3, 50]), gap_decay=st.sampled_from([1.0, 0.7]))
@settings(max_examples=30, deadline=None)
def test_counts_and_scores_follow_the_equations(
    events: list[tuple[str, str, float]], window: int, gap_decay: float
) -> None:
    # a large regularization keeps the matrix definite whatever the negative events took back
    model = RecencyEASE(regularization=150.0, window=window, gap_decay=gap_decay, query_length=5)
    counts = Counts(window, gap_decay)
    for event in events:
        model.learn_one(*event)
        counts.learn(*event)
    items, gram = gram_of(model)
    assert items == counts.slots
    assert gram == pytest.approx(counts.matrix(items), rel=1e-5, abs=1e-5)
    if len(events) < 100:  # up to there every event brings new weights
        weights = weights_of(gram, 150.0)
        for user in "uv":
            expected = np.zeros(len(items))
            for r, h in enumerate(counts.history[user][:5]):
                expected += 0.8**r * weights[items.index(h)] if h in items else 0.0
            found = [model.predict_one(user, item) for item in items]
            assert found == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)


def test_counts_are_those_of_sliding_windows() -> None:
    """Without repeats, G is X'X / (W + 1) for X of all windows of W + 1 events, cut at the ends."""
    window, rng = 4, np.random.default_rng(0)
    model = RecencyEASE(window=window)
    rows = []
    for user in range(5):
        order = rng.permutation(12).tolist()
        model.learn_many([f"u{user}"] * 12, [f"i{k}" for k in order])
        for first in range(-window, 12):
            inside = [order[k] for k in range(first, first + window + 1) if 0 <= k < 12]
            rows.append([float(k in inside) for k in range(12)])
    items, gram = gram_of(model)
    X = np.array(rows)[:, [int(item[1:]) for item in items]]
    assert gram == pytest.approx(X.T @ X / (window + 1), abs=1e-4)
    assert np.linalg.eigvalsh(gram).min() > -1e-4


@pytest.mark.parametrize("n", [1, 2, 8, 31, 32, 33, 75])
def test_the_inverse_is_the_inverse(n: int) -> None:
    X = np.random.default_rng(n).normal(size=(n + 3, n))
    gram = X.T @ X
    packed = gram[np.tril_indices(n)].astype(np.float32)
    found, [whole] = kernel_weights(packed, n, 0.3, 10**12)
    assert found == pytest.approx(weights_of(gram, 0.3), rel=2e-4, abs=2e-5)
    again, parts = kernel_weights(packed, n, 0.3, 500)
    assert again.tobytes() == found.tobytes(), "the parts are done in the same order"
    assert sum(parts) == whole >= n * n * (n + 1) // 2
    assert max(parts) <= 500 + (2 * BLOCK + 1) * BLOCK * n + 2 * BLOCK**3


def test_a_matrix_that_is_not_definite_is_regularized_more() -> None:
    n = 40
    gram = np.random.default_rng(0).uniform(0, 50, (n, n))
    gram = np.float32(np.tril(gram) + np.tril(gram, -1).T)
    found, _ = kernel_weights(gram[np.tril_indices(n)], n, 0.01, 500)
    ridge = 0.01
    while np.linalg.eigvalsh(gram.astype(float) + ridge * np.eye(n)).min() < 0.0:
        ridge *= 2.0
    expected = [weights_of(gram.astype(float), ridge * more) for more in (1.0, 2.0)]
    assert any(found == pytest.approx(weights, rel=1e-3, abs=1e-4) for weights in expected)


def test_two_items_by_hand() -> None:
    model = RecencyEASE(regularization=2.0, window=1)
    model.learn_many(["ann", "ann", "bob"], ["bread", "milk", "bread"])
    # G + 2 I = [[4, 1/2], [1/2, 3]]: B[bread, milk] = (1/2) / 4
    assert model.predict_one("bob", "milk") == pytest.approx(0.125)
    assert model.predict_one("bob", "bread") == 0.0


def test_more_recent_items_weigh_more() -> None:
    model = RecencyEASE(regularization=1.0, query_decay=0.5)
    for k in range(20):
        model.learn_many([f"s{k}"] * 2, ["bread", "butter"])
        model.learn_many([f"t{k}"] * 2, ["nails", "hammer"])
    model.learn_many(["ann", "ann"], ["bread", "nails"])
    assert model.predict_one("ann", "hammer") > 1.5 * model.predict_one("ann", "butter") > 0.0


def test_not_interested_takes_the_pairs_back() -> None:
    events = [("ann", "bread"), ("ann", "milk"), ("ann", "tea"), ("bob", "bread"), ("bob", "milk")]
    model = RecencyEASE()
    for user, item in [*events, ("cat", "bread")]:
        model.learn_one(user, item)
    before = model.predict_one("cat", "milk")
    model.learn_one("ann", "milk", -1.0)
    order, gram = gram_of(model)
    assert gram[order.index("milk"), order.index("milk")] == 1.0
    assert gram[order.index("milk"), order.index("tea")] == 0.0
    assert gram[order.index("milk"), order.index("bread")] == pytest.approx(50 / 51)
    assert 0.0 < model.predict_one("cat", "milk") < before


def test_weights_are_computed_anew_as_the_stream_grows() -> None:
    model, moved = RecencyEASE(refresh_growth=0.5, refresh_events=2), []
    for event in range(1, 180):
        before = model.item_arrays()["ease.weights"]
        model.learn_one(f"u{event % 3}", f"i{event % 40}")
        after = model.item_arrays()["ease.weights"]
        if before.tobytes() != after.tobytes() or before.shape != after.shape:
            moved.append(event)
    assert moved == [*range(1, 33), 48, 72, 108, 162], "up to 32 items every event, then half as many more"


def bigger(n: int, seed: int = 0) -> list[checks.Event]:
    """So many events of 12 users on items 0 to 120, those of the lower numbers used the more."""
    rng = np.random.default_rng(seed)
    items = (121 * rng.random(n) ** 1.5).astype(int).tolist()
    return [
        (f"user-{rng.integers(12)}", f"item-{item}", 1.0, {"timestamp": 10**12 + k, "event_id": f"e{k}"})
        for k, item in enumerate(items)
    ]


def test_no_event_waits_for_the_whole_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every event does its share; cut elsewhere, and restored on the way, the log gives the same bytes."""
    done: list[int] = []

    def counting(*arguments: Any) -> int:
        done.append(advance(*arguments))
        return done[-1]

    monkeypatch.setattr(ease, "OPERATIONS", 20_000)
    monkeypatch.setattr(ease.sweeping, "advance", counting)
    events, models = bigger(600), []
    for size in (1, 1, 250):
        model = RecencyEASE(refresh_growth=0.3)
        for start in range(0, len(events), size):
            model.learn_many(*zip(*events[start : start + size], strict=True))
            if len(models) == 1 and start % 7 == 0:
                arrays = model.to_arrays()
                model = RecencyEASE(refresh_growth=0.3)
                model.from_arrays(arrays)
        models.append(model)
    assert models[0].digest() == models[1].digest() == models[2].digest()
    n = int(model.item_arrays()["ease.rows"].shape[0])
    assert max(done) <= 20_000 + (2 * BLOCK + 1) * BLOCK * n + 2 * BLOCK**3 < n**3 / 2
    model.settle()
    _, gram = gram_of(model)
    assert model._weights == pytest.approx(weights_of(gram, model.regularization), rel=1e-3, abs=1e-6)


def test_an_item_that_goes_while_the_weights_are_computed_has_none() -> None:
    model = RecencyEASE(max_items=100, window=3)
    for event in bigger(500):
        model.learn_one(*event)
    model._begin_sweep()
    model._go_on(1000)
    assert model._sweep.marks[SIZE] > 0
    row = model.items.row("item-2")
    slot = int(model._gram.slot_of[row])
    assert model._weights[slot].any()
    model.forget(item="item-2")
    model._go_on(10**12)
    assert model._sweep.marks[SIZE] == 0
    assert not model._weights[slot].any()
    assert not model._weights[:, slot].any()
    assert model._weights.any()


@pytest.mark.parametrize("parameters", [{}, {"window": 3, "gap_decay": 0.7, "regularization": 5.0}], ids=str)
def test_what_is_withdrawn_was_never_there(parameters: dict[str, Any]) -> None:
    """Of more items than follow every event: their counts at once, their scores when the weights are anew."""
    events = bigger(400)
    for place in (150, 390):
        model, without = RecencyEASE(**parameters), RecencyEASE(**parameters)
        for k, event in enumerate(events):
            model.learn_one(*event)
            if k != place:
                without.learn_one(*event)
        assert model.retract(events[place][0], f"e{place}")
        items, gram = gram_of(model)
        assert len(items) > 60
        others, expected = gram_of(without)
        order = [items.index(item) for item in others]
        assert gram[np.ix_(order, order)] == pytest.approx(expected, abs=1e-4)
        assert model._gram.marks[EVENTS] == len(events) - 1
        model.settle()
        without.settle()
        for user in ("user-1", events[place][0]):
            found = [model.predict_one(user, item) for item in others]
            assert found == pytest.approx([without.predict_one(user, item) for item in others], abs=1e-5)


def test_a_withdrawn_dislike_gives_the_pairs_back() -> None:
    model = RecencyEASE()
    for item in ("bread", "milk", "tea"):
        model.learn_one("ann", item)
    before = model.item_arrays()["ease.pairs"]
    model.learn_one("ann", "milk", -1.0, {"event_id": "no"})
    assert model.item_arrays()["ease.pairs"].sum() < before.sum()
    assert model.retract("ann", "no")
    assert model.item_arrays()["ease.pairs"] == pytest.approx(before, abs=1e-6)


def test_a_hundred_thousand_random_steps_stay_finite() -> None:
    rng = np.random.default_rng(0)
    model = RecencyEASE(max_items=40, regularization=0.001, refresh_events=5000)
    for batch in random_batches(rng, n=20_000, batches=5, users=60, items=50):
        model.apply(batch, model.items.resolve(batch))
        for kind in (UNPAIR, PAIR, WITHDRAW):
            taken = batch.take(rng.choice(len(batch), 2_000))
            taken.kind = kind
            model.correct(*model.items.find(taken))
        model.settle()
        assert np.isfinite(model._weights).all()
        assert (model._gram.pairs >= 0.0).all()
    assert abs(model._weights).max() <= 100.0


def test_a_restored_model_scores_alike_between_refreshes() -> None:
    model, restored = RecencyEASE(refresh_events=40), RecencyEASE(refresh_events=40)
    events = checks.random_events(150, items=60)
    for event in events[:70]:
        model.learn_one(*event)
    restored.from_arrays(model.to_arrays())
    scored = 0
    for event in events[70:]:
        scores = [model.predict_one("user-1", item) for item in model.items.ids]
        assert scores == [restored.predict_one("user-1", item) for item in model.items.ids]
        scored += np.count_nonzero(scores)
        model.learn_one(*event)
        restored.learn_one(*event)
    assert scored > 200


@given(events=STREAMS, max_items=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_most_used_items_have_room(events: list[tuple[str, str, float]], max_items: int) -> None:
    model, counts = RecencyEASE(max_items=max_items, window=5), Counts(5, max_items=max_items)
    for event in events:
        model.learn_one(*event)
        counts.learn(*event)
        items, gram = gram_of(model)
        assert items == counts.slots
        assert gram == pytest.approx(counts.matrix(items), rel=1e-5, abs=1e-5)
    known = {item for item in model.items.ids if model.predict_one("u", item) != 0.0}
    assert known <= set(counts.slots)


def test_an_item_that_loses_its_row_starts_anew() -> None:
    model, counts = RecencyEASE(window=4, max_items=20), Counts(4)
    model.items = ItemTable(limit=6)
    rng = np.random.default_rng(2)
    returned = 0
    for event in range(300):
        item, user = f"i{(event // 10 + rng.integers(0, 5)) % 25}", f"u{rng.integers(0, 3)}"
        before = set(model.items.ids)
        model.learn_one(user, item)
        for gone in before - set(model.items.ids) - {""}:
            counts.forget(gone)
            counts.slots.remove(gone)
        returned += item not in before and event > 250
        counts.learn(user, item)
        items, gram = gram_of(model)
        live = [item for item in items if item]
        assert sorted(live) == sorted(counts.slots)
        where = [items.index(item) for item in live]
        assert gram[np.ix_(where, where)] == pytest.approx(counts.matrix(live), rel=1e-5, abs=1e-5)
        assert gram.sum() == pytest.approx(gram[np.ix_(where, where)].sum())
    assert model.items.evictions > 20
    assert returned > 0
    assert len(gram_of(model)[0]) <= 6


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_in_other_settings(check: Any, kwargs: dict[str, Any]) -> None:
    check(lambda: RecencyEASE(**kwargs))


@pytest.mark.parametrize("check", LASTING, ids=lambda check: check.__name__)
def test_little_room_keeps_the_contract(check: Any) -> None:
    """What had to make room does not come back, so nothing that needs it does."""
    check(lambda: RecencyEASE(max_items=5, regularization=0.5, window=4))


@pytest.mark.parametrize(
    "kwargs",
    [{"max_items": 5001}, {"regularization": 0.0}, {"window": 51}, {"query_decay": float("nan")}],
    ids=str,
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        RecencyEASE(**kwargs)
