from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from online_models import EALS, checks
from online_models.base import OnlineRanker

Matrix = NDArray[np.float64]
CHECKS = [check for check in checks.all_checks() if check is not checks.check_retraction_undoes]
"""Withdrawing: see `test_ials.test_a_withdrawn_use_takes_its_score_along`, which asks it of both."""
VARIANTS: list[dict[str, Any]] = [
    {"dimension": 5, "passes": 3, "new_weight": 1.0, "refresh": 0, "popularity_exponent": 0.0},
    {"dimension": 3, "history": 4, "users_per_item": 2, "max_users": 3, "max_interactions": 8, "refresh": 3},
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("parameters", VARIANTS, ids=["passes", "small"])
def test_contract(check: Callable[[Callable[[], OnlineRanker]], None], parameters: dict[str, Any]) -> None:
    check(lambda: EALS(**parameters))


def taste(users: int = 24, items: int = 15, seed: int = 0) -> list[tuple[str, str]]:
    """Two communities and some items that all like; each pair once."""
    rng = np.random.default_rng(seed)
    likes = [
        (user, item)
        for user in range(users)
        for item in range(items)
        if rng.random() < (0.8 if item < 3 else 0.5 if user % 2 == item % 2 else 0.1)
    ]
    return [(f"u{user}", f"i{item}") for user, item in rng.permutation(likes)]


def learned(model: EALS, events: list[tuple[str, str]]) -> tuple[list[str], list[str], Matrix]:
    """The model, taught; users and items in the order of first use, and weights of pairs."""
    for user, item in events:
        model.learn_one(user, item)
    users = list(dict.fromkeys(user for user, _ in events))
    items = list(dict.fromkeys(item for _, item in events))
    seen = np.zeros((len(users), len(items)))
    for user, item in events:
        seen[users.index(user), items.index(item)] = 1.0
    return users, items, seen


def factors(model: EALS) -> tuple[Matrix, Matrix]:
    state = model.item_arrays()
    return state["eals.users"].astype(np.float64), state["eals.items"].astype(np.float64)


def missing(counts: Matrix, c0: float, alpha: float) -> Matrix:
    return c0 * counts**alpha / (counts**alpha).sum()


def element_pass(
    moved: Matrix, others: Matrix, weights: Matrix, targets: Matrix, ridge: float, absent: Matrix
) -> None:
    """One pass over the components of `moved`, over all pairs: weight of a pair with no weight = absent."""
    confidence = np.where(weights > 0.0, weights, absent)
    for f in range(len(moved)):
        without = others @ moved - moved[f] * others[:, f]
        above = (confidence * (targets - without) * others[:, f]).sum()
        moved[f] = above / ((confidence * others[:, f] ** 2).sum() + ridge)


def loss(users: Matrix, items: Matrix, seen: Matrix, c: Matrix, ridge: float) -> float:
    scores = users @ items.T
    confidence = np.where(seen > 0.0, seen, c[None, :])
    penalty = ridge * ((users**2).sum() + (items**2).sum())
    return float((confidence * ((seen > 0.0) - scores) ** 2).sum() + penalty)


def test_an_event_moves_its_user_and_then_its_item_by_the_equations() -> None:
    model = EALS(
        dimension=4,
        missing_weight=2.0,
        popularity_exponent=0.7,
        regularization=0.3,
        new_weight=4.0,
        refresh=0,
    )
    users, items, seen = learned(model, taste())
    U, V = factors(model)
    counts = seen.sum(axis=0)
    user = users.index("u0")
    item = int(np.flatnonzero(seen[user] == 0.0)[0])
    weights = seen[user].copy()
    weights[item] = 4.0
    element_pass(U[user], V, weights, (weights > 0.0) * 1.0, 0.3, missing(counts, 2.0, 0.7))
    model.learn_one("u0", items[item])
    moved_users, moved_items = factors(model)
    assert moved_users[user] == pytest.approx(U[user], rel=1e-3, abs=1e-5)
    share = float((counts[item] + 1.0) ** 0.7 / (counts**0.7).sum())  # as the caches have it in the event
    weights = seen[:, item].copy()
    weights[user] = 4.0
    element_pass(V[item], U, weights, (weights > 0.0) * 1.0, 0.3, np.full(len(U), 2.0 * share))
    assert moved_items[item] == pytest.approx(V[item], rel=1e-3, abs=1e-5)
    others = np.arange(len(items)) != item
    assert (moved_items[others] == V[others]).all()


def test_a_sweep_is_the_pass_over_all_pairs() -> None:
    model = EALS(dimension=4, missing_weight=3.0, popularity_exponent=0.5, regularization=0.2, new_weight=2.0)
    users, items, seen = learned(model, taste())
    U, V = factors(model)
    c = missing(seen.sum(axis=0), 3.0, 0.5)
    losses = [loss(U, V, seen, c, 0.2)]
    for _ in range(2):
        for u in range(len(users)):
            element_pass(U[u], V, seen[u], seen[u], 0.2, c)
        for i in range(len(items)):
            element_pass(V[i], U, seen[:, i], seen[:, i], 0.2, np.full(len(users), c[i]))
        model.sweep()
        found_users, found_items = factors(model)
        assert found_users == pytest.approx(U, rel=1e-3, abs=1e-5)
        assert found_items == pytest.approx(V, rel=1e-3, abs=1e-5)
        losses.append(loss(U, V, seen, c, 0.2))
    assert losses[0] > losses[1] > losses[2]


def test_many_passes_reach_the_exact_solution() -> None:
    model = EALS(
        dimension=4,
        missing_weight=2.0,
        popularity_exponent=0.0,
        regularization=0.3,
        new_weight=1.0,
        passes=100,
    )
    users, items, seen = learned(model, taste())
    _, V = factors(model)
    confidence = np.where(seen[0] > 0.0, 1.0, 2.0 / len(items))
    system = (V * confidence[:, None]).T @ V + 0.3 * np.eye(4)
    expected = np.linalg.solve(system, V.T @ seen[0])
    assert model.user_factor(users[0]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_caches_are_those_of_the_factors() -> None:
    model = EALS(dimension=4, popularity_exponent=0.5)
    users, items, seen = learned(model, taste())
    U, V = factors(model)
    state = model.item_arrays()
    assert state["eals.mass"] == pytest.approx(np.sqrt(seen.sum(axis=0)))
    assert state["eals.mass_sum"][0] == pytest.approx(np.sqrt(seen.sum(axis=0)).sum())
    weighted = V * np.sqrt(seen.sum(axis=0))[:, None]
    assert state["eals.item_gram"] == pytest.approx(weighted.T @ V, rel=1e-9, abs=1e-9)
    assert state["eals.user_gram"] == pytest.approx(U.T @ U, rel=1e-9, abs=1e-9)
    assert len(users) == 24
    assert len(items) == 15


def test_a_popular_item_left_out_counts_as_disliked_more() -> None:
    """The same stream with the missing weight shared by popularity, and evenly."""
    scores = []
    for exponent in (0.0, 1.0):
        model = EALS(dimension=4, missing_weight=10.0, popularity_exponent=exponent, new_weight=1.0)
        users, items, seen = learned(model, taste(users=40))
        for _ in range(5):
            model.sweep()
        popular = seen.sum(axis=0) > 1.5 * seen.sum(axis=0).mean()
        U, V = factors(model)
        found = U @ V.T
        scores.append(found[:, popular][seen[:, popular] == 0.0].mean())
        assert len(users) == 40
        assert len(items) == 15
    assert scores[1] < scores[0]


def test_communities_are_told_apart() -> None:
    model = EALS(dimension=3, missing_weight=4.0, refresh=1, seed=3)
    users, items, seen = learned(model, taste(users=40))
    found = {user: model.score_rows(user, np.arange(len(items), dtype=np.int32)) for user in users}
    own, other = [], []
    for u, user in enumerate(users):
        for i, item in enumerate(items):
            if seen[u, i] == 0.0 and int(item[1:]) >= 3:
                same = int(user[1:]) % 2 == int(item[1:]) % 2
                (own if same else other).append(float(found[user][i]))
    assert np.mean(own) > 2.0 * abs(np.mean(other))
    assert (np.array(own)[:, None] > np.array(other)).mean() > 0.65


def test_not_interested_lowers_the_score() -> None:
    model = EALS(dimension=4)
    learned(model, taste())
    liked = next(iter(model.interactions("u2")))
    before = model.predict_one("u2", liked)
    model.learn_one("u2", liked, -2.0)
    assert model.interactions("u2")[liked] == -2.0
    assert model.predict_one("u2", liked) < 0.7 * before


def test_gram_matrices_hold_when_users_go() -> None:
    model = EALS(**VARIANTS[1])
    for event in checks.random_events(300, users=9, items=20):
        model.learn_one(*event)
    U, V = factors(model)
    state = model.item_arrays()
    assert len(U) <= 3
    assert len(state["eals.entries"]) <= 8
    weighted = V * state["eals.mass"][:, None]
    assert state["eals.user_gram"] == pytest.approx(U.T @ U, rel=1e-9, abs=1e-9)
    assert state["eals.item_gram"] == pytest.approx(weighted.T @ V, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"passes": 0}, "passes is 0, but 1 to 100"),
        ({"new_weight": 0.5}, "new_weight is 0.5, but 1 to"),
        ({"missing_weight": -1.0}, "missing_weight is -1.0"),
        ({"popularity_exponent": float("nan")}, "popularity_exponent is nan"),
        ({"max_users": 0}, "max_users is 0"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EALS(**parameters)
