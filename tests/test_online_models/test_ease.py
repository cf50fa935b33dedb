from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_models import ItemTable, checks
from online_models.ease import RecencyEASE
from online_models.ease_kernels import ease_weights

VARIANTS: list[dict[str, Any]] = [
    {"refresh_growth": 0.0, "refresh_events": 7},
    {"max_items": 5, "regularization": 0.5, "window": 4},
    {"regularization": 0.001, "gap_decay": 0.5, "query_decay": 1.0, "query_length": 50},
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


WEIGHTS = st.sampled_from([1.0, 1.0, 0.0, -1.0])
STREAMS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdefghijklmnop"), WEIGHTS), min_size=1, max_size=120
)


@given(events=STREAMS, window=st.sampled_from([1, 3, 50]), gap_decay=st.sampled_from([1.0, 0.7]))
@settings(max_examples=60, deadline=None)
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
    found = np.empty((n, n), dtype=np.float32)
    ease_weights(packed, 0.3, np.empty((n, n)), found)
    assert found == pytest.approx(weights_of(gram, 0.3), rel=2e-4, abs=2e-5)


def test_a_matrix_that_is_not_definite_is_regularized_more() -> None:
    n = 40
    gram = np.random.default_rng(0).uniform(0, 50, (n, n))
    gram = np.float32(np.tril(gram) + np.tril(gram, -1).T)
    found = np.empty((n, n), dtype=np.float32)
    ease_weights(gram[np.tril_indices(n)], 0.01, np.empty((n, n)), found)
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
    for event in range(1, 40):
        before = model.item_arrays()["ease.weights"]
        model.learn_one(f"u{event % 3}", f"i{event % 7}")
        after = model.item_arrays()["ease.weights"]
        if before.tobytes() != after.tobytes() or before.shape != after.shape:
            moved.append(event)
    assert moved == [2, 4, 6, 9, 13, 19, 28]


def test_a_restored_model_scores_alike_between_refreshes() -> None:
    model, restored = RecencyEASE(refresh_events=40), RecencyEASE(refresh_events=40)
    events = checks.random_events(150)
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


@pytest.mark.parametrize(
    "kwargs",
    [{"max_items": 5001}, {"regularization": 0.0}, {"window": 51}, {"query_decay": float("nan")}],
    ids=str,
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        RecencyEASE(**kwargs)
