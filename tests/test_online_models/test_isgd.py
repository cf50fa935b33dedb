from __future__ import annotations

import numba
import numpy as np
import pytest

from online_models import ISGD, kernels


def taught(seed: int = 0) -> ISGD:
    """Two communities of taste: even users use even items, odd users odd ones."""
    model, rng = ISGD(dimension=8, seed=seed), np.random.default_rng(seed)
    for _ in range(6000):
        user = int(rng.integers(0, 20))
        item = 2 * int(rng.integers(0, 10)) + user % 2
        model.learn_one(f"u{user}", f"i{item}")
    return model


def test_communities_are_told_apart() -> None:
    model = taught()
    for user in range(20):
        own = np.array([model.predict_one(f"u{user}", f"i{2 * k + user % 2}") for k in range(10)])
        other = np.array([model.predict_one(f"u{user}", f"i{2 * k + 1 - user % 2}") for k in range(10)])
        assert own.mean() > other.mean() + 0.05
        assert (own[:, None] > other[None, :]).mean() >= 0.9


def test_one_step_is_the_equation() -> None:
    model = ISGD(dimension=4, learning_rate=0.5, regularization=0.1, negatives=0)
    user, item = model.start_users(["u"])[0], model.factors.start_vectors(["i"])[0]
    error = 1.0 - user @ item
    model.learn_one("u", "i")
    assert model._users["u"] == pytest.approx(user + 0.5 * (error * item - 0.1 * user), rel=1e-5)
    assert model.factors.rows[0] == pytest.approx(item + 0.5 * (error * user - 0.1 * item), rel=1e-5)


def test_the_owner_changes_no_item_and_draws_known_others() -> None:
    model = taught()
    before = model.factors.rows.copy()
    users = model.start_users([f"new{k}" for k in range(50)])
    hashes = np.arange(50, dtype=np.uint64)
    after, negatives = model.learn_users(users, ["i3"] * 50, np.ones(50, dtype=np.float32), hashes)
    again, same = model.learn_users(users, ["i3"] * 50, np.ones(50, dtype=np.float32), hashes)
    assert (model.factors.rows == before).all()
    assert (after == again).all()
    assert negatives == same
    assert (after != users).any(axis=1).all()
    drawn = [item for line in negatives for item in line]
    assert len(set(drawn)) > 10
    assert set(drawn) <= set(model.items.ids) - {"i3"}


def test_the_step_for_other_kernels_is_the_batch_kernels() -> None:
    @numba.njit
    def steps(rows, vectors, weight, hashes, factors, untried, users, drawn):  # type: ignore[no-untyped-def]
        for event in range(len(rows)):
            kernels.isgd_step(
                rows[event], vectors[event], weight[event], hashes[event], factors, untried, 0.3, 0.01,
                users[event], drawn[event],
            )  # fmt: skip

    factors, rng = taught().factors.rows, np.random.default_rng(0)
    rows = np.array([3, -1, 7, 0], dtype=np.int32)
    users, vectors = rng.normal(size=(2, 4, 8)).astype(np.float32)
    weight = np.array([1.0, 2.0, -1.0, 0.5], dtype=np.float32)
    hashes = rng.integers(0, 2**64, 4, dtype=np.uint64)
    found, untried = [], np.arange(len(factors)) % 3 == 0
    for kernel in (steps, None):
        moved, drawn = users.copy(), np.full((4, 5), 99, dtype=np.int32)
        if kernel:
            kernel(rows, vectors, weight, hashes, factors, untried, moved, drawn)
        else:
            kernels.isgd_learn_users(rows, vectors, weight, hashes, factors, untried, 0.3, 0.01, moved, drawn)
        assert (drawn[2] == -1).all()
        assert not untried[drawn[drawn >= 0]].any()
        assert (drawn >= 0).sum() > 10
        found.append((moved.tobytes(), drawn.tobytes()))
    assert found[0] == found[1]


def test_retrieve_is_score_sorted() -> None:
    model = taught()
    users = np.stack([model._users[f"u{k}"] for k in range(3)])
    rows = np.tile(np.arange(20, dtype=np.int32), (3, 1))
    scores = model.score(users, rows)
    exclude = np.array([[0, -1], [5, 99], [-1, -1]], dtype=np.int32)
    for _ in range(2):
        found, values = model.retrieve(users, 25, exclude)
        for user in range(3):
            order = sorted(set(range(20)) - set(exclude[user].tolist()), key=lambda r: (-scores[user, r], r))
            assert found[user].tolist() == order + [-1] * (25 - len(order))
            assert values[user, : len(order)].tolist() == [scores[user, row] for row in order]
    assert scores == pytest.approx(users @ model.factors.rows.T, abs=1e-5)
    assert model.score(users[:1], np.array([[-1, 500]], dtype=np.int32)).tolist() == [[0.0, 0.0]]


def test_extreme_steps_stay_bounded() -> None:
    model = ISGD(dimension=3, learning_rate=0.5, regularization=0.0, negatives=2)
    for k in range(3000):
        model.learn_one(f"u{k % 3}", f"i{k % 5}", 1e6 if k % 2 else -1e6)
    assert np.abs(model.factors.rows).max() <= 10.0


def test_a_record_of_another_dimension_is_refused() -> None:
    model = ISGD(dimension=4)
    batch = ISGD(dimension=6).learn_user([("u", "i", 1.0, None)])
    with pytest.raises(ValueError, match="6 dimensions, but this model has 4"):
        model.apply(batch, model.items.resolve(batch))


def test_an_event_withdrawn_at_once_leaves_what_was() -> None:
    """Without regularization the steps have inverses, and the negatives are drawn by the same hash."""
    model = ISGD(dimension=16, learning_rate=0.1, regularization=0.0, negatives=3, start_scale=0.2)
    for number in range(80):
        model.learn_one(f"u{number % 7}", f"i{number * number % 31}")
    before, users = model.factors.rows.copy(), {**model._users}
    model.learn_one("u3", "i4", 1.0, {"event_id": "wrong"})
    after = model.factors.rows.copy()
    assert model.retract("u3", "wrong")
    assert np.abs(after - before).max() > 0.01
    assert model.factors.rows == pytest.approx(before, abs=1e-5)
    for user, factor in users.items():
        assert model._users[user] == pytest.approx(factor, abs=1e-5)


def test_a_step_back_is_bounded_whatever_the_factors() -> None:
    rng = np.random.default_rng(3)
    for scale in (1e-9, 0.1, 1.0, 10.0):
        factors = (scale * rng.uniform(-1, 1, (5, 8))).astype(np.float32)
        users = (scale * rng.uniform(-1, 1, (1, 8))).astype(np.float32)
        item, negatives = np.array([0], dtype=np.int32), np.array([[1, 1, 0, -1]], dtype=np.int32)
        for weight in (1e6, 0.0, -1.0):
            weights, hashes = np.array([weight], dtype=np.float32), np.array([9], dtype=np.uint64)
            kernels.isgd_unlearn(item, negatives, weights, users, factors, 0.5)
            vectors = factors[:1].copy()
            untried = np.zeros(len(factors), np.bool_)
            kernels.isgd_unlearn_users(
                item, vectors, weights, hashes, factors, untried, 0.5, users, negatives
            )
            assert np.abs(factors).max() <= 10.0
            assert np.abs(users).max() <= 10.0
