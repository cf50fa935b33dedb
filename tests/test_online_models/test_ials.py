from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_models import EALS, IALS, ItemTable, LearningBatch, checks
from online_models.alternating import AlternatingRanker
from online_models.base import OnlineRanker
from online_models.learning_batch import WITHDRAW
from tests.test_online_models.batches import random_batches

Matrix = NDArray[np.float64]
CHECKS = [check for check in checks.all_checks() if check is not checks.check_retraction_undoes]
"""What is withdrawn is solved for anew, with what was learned meanwhile: of an item that the user still uses
that moves the score by little, either way. `test_a_withdrawn_use_takes_its_score_along` asks of others."""
VARIANTS: list[dict[str, Any]] = [
    {"dimension": 5, "regularization_exponent": 1.0, "recent_boost": 3.0, "refresh": 0},
    {"dimension": 3, "history": 4, "users_per_item": 2, "max_users": 3, "max_interactions": 8, "refresh": 3},
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("parameters", VARIANTS, ids=["boost", "small"])
def test_contract(check: Callable[[Callable[[], OnlineRanker]], None], parameters: dict[str, Any]) -> None:
    check(lambda: IALS(**parameters))


def plain(**parameters: Any) -> IALS:
    """Without what the textbook's equations lack."""
    return IALS(**{"regularization_exponent": 0.0, "recent_boost": 0.0, **parameters})


def taste(users: int = 24, items: int = 15, seed: int = 0) -> list[tuple[str, str]]:
    """Two communities: even users mostly use even items; each pair once."""
    rng = np.random.default_rng(seed)
    likes = [
        (user, item)
        for user in range(users)
        for item in range(items)
        if rng.random() < (0.6 if user % 2 == item % 2 else 0.1)
    ]
    return [(f"u{user}", f"i{item}") for user, item in rng.permutation(likes)]


def solve(vectors: Matrix, weights: Matrix, targets: Matrix, gram: Matrix, ridge: float) -> Matrix:
    """The minimum of sum w (y - x . v)**2 + x'Gx + ridge x'x."""
    system = gram + (vectors * weights[:, None]).T @ vectors + ridge * np.eye(vectors.shape[1])
    return np.linalg.solve(system, vectors.T @ (weights * targets))


def batch_sweep(users: Matrix, items: Matrix, seen: Matrix, unobserved: float, ridge: float) -> None:
    """One pass of a full refit in place: every user, then every item; seen[u, i] = weight."""
    for side, other, weights in ((users, items, seen), (items, users, seen.T)):
        gram = unobserved * other.T @ other
        for row in range(len(side)):
            side[row] = solve(other, weights[row], np.ones(len(other)), gram, ridge)


def loss(users: Matrix, items: Matrix, seen: Matrix, unobserved: float, ridge: float) -> float:
    scores = users @ items.T
    return float(
        (seen * (1.0 - scores) ** 2).sum()
        + unobserved * (scores**2).sum()
        + ridge * ((users**2).sum() + (items**2).sum())
    )


def ids(events: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(user for user, _ in events)), list(dict.fromkeys(item for _, item in events))


def all_scores(model: IALS, users: list[str]) -> Matrix:
    rows = np.arange(len(model.items), dtype=np.int32)
    return np.array([model.score_rows(user, rows) for user in users], dtype=np.float64)


def test_one_event_in_one_dimension_by_hand() -> None:
    model = plain(dimension=1, unobserved_weight=0.5, regularization=0.1, refresh=0)
    start = float(model._start_vectors(["tea"])[0, 0])
    batch = model.learn_user([("ann", "tea", 2.0, None)])
    user = 2.0 * start / (2.0 * start**2 + 0.1)  # nothing else is known yet: no Gram matrix
    assert batch.user_before.tolist() == [[0.0]]
    assert batch.user_after[0, 0] == pytest.approx(user, rel=1e-6)
    model.apply(batch, model.items.resolve(batch))
    item = 2.0 * user / (2.0 * user**2 + 0.5 * user**2 + 0.1)
    assert model.item_arrays()["ials.items"][0, 0] == pytest.approx(item, rel=1e-6)
    user = 2.0 * item / (2.0 * item**2 + 0.5 * item**2 + 0.1)
    assert model.predict_one("ann", "tea") == pytest.approx(user * item, rel=1e-5)
    assert model.predict_one("ann", "unknown") == 0.0


def test_an_event_solves_for_its_user_and_then_its_item() -> None:
    model = plain(dimension=4, unobserved_weight=0.2, regularization=0.3, refresh=0)
    events = taste()
    for user, item in events:
        model.learn_one(user, item)
    users, items = ids(events)
    state = {name: array.astype(np.float64) for name, array in model.item_arrays().items()}
    of_u0 = [item for user, item in events if user == "u0"]
    new = next(item for item in items if item not in of_u0)
    used = np.array([items.index(item) for item in [*of_u0, new]])
    V, U, weights = state["ials.items"], state["ials.users"], np.ones(len(used))
    weights[-1] = 3.0
    expected = solve(V[used], weights, np.ones(len(used)), 0.2 * V.T @ V, 0.3)
    model.learn_one("u0", new, 3.0)
    moved = model.item_arrays()
    assert moved["ials.users"][users.index("u0")] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    U[users.index("u0")] = expected
    those = np.array([users.index(user) for user, item in [*events, ("u0", new)] if item == new])
    weights = np.where(those == users.index("u0"), 3.0, 1.0)
    expected = solve(U[those], weights, np.ones(len(those)), 0.2 * U.T @ U, 0.3)
    assert moved["ials.items"][items.index(new)] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    others = np.arange(len(items)) != items.index(new)
    assert (moved["ials.items"][others] == V[others].astype(np.float32)).all()


def test_two_sweeps_are_two_passes_of_a_full_refit() -> None:
    model = plain(dimension=6, unobserved_weight=0.1, regularization=0.2, refresh=0)
    events = taste(users=40, items=30)
    for user, item in events:
        model.learn_one(user, item)
    users, items = ids(events)
    seen = np.zeros((len(users), len(items)))
    for user, item in events:
        seen[users.index(user), items.index(item)] += 1.0
    U, V = np.zeros((len(users), 6)), model.item_arrays()["ials.items"].astype(np.float64)
    before = all_scores(model, users)
    for _ in range(2):
        model.sweep()
        batch_sweep(U, V, seen, 0.1, 0.2)
    gram = 0.1 * V.T @ V
    expected = np.array([solve(V, seen[u], np.ones(len(V)), gram, 0.2) for u in range(len(U))]) @ V.T
    found = all_scores(model, users)
    assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()
    assert np.linalg.norm(found - expected) <= 0.001 * np.linalg.norm(expected)
    assert np.linalg.norm(before - expected) > 0.01 * np.linalg.norm(expected), "the sweeps moved nothing"


def test_one_pass_and_two_sweeps_are_as_good_as_a_converged_refit() -> None:
    events = taste(users=40, items=30)
    users, items = ids(events)
    seen = np.zeros((len(users), len(items)))
    for user, item in events:
        seen[users.index(user), items.index(item)] += 1.0
    model = plain(dimension=6, unobserved_weight=0.1, regularization=0.2, refresh=2)
    U, V = np.zeros((len(users), 6)), model._start_vectors(items).astype(np.float64)
    for _ in range(50):
        batch_sweep(U, V, seen, 0.1, 0.2)
    for user, item in events:
        model.learn_one(user, item)
    losses = []
    for _ in range(3):
        state = model.item_arrays()
        learned = [state[name].astype(np.float64) for name in ("ials.users", "ials.items")]
        losses.append(loss(learned[0], learned[1], seen, 0.1, 0.2))
        model.sweep()
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] <= 1.02 * loss(U, V, seen, 0.1, 0.2)


def test_the_rest_follows_in_turn() -> None:
    events, still, moving = taste(), plain(dimension=4, refresh=0), plain(dimension=4, refresh=2)
    users, items = ids(events)
    seen = np.array([[float((user, item) in events) for item in items] for user in users])
    found = []
    for model in (still, moving):
        for user, item in events:
            model.learn_one(user, item)
        state = model.item_arrays()
        learned = [state[name].astype(np.float64) for name in ("ials.users", "ials.items")]
        found.append(loss(learned[0], learned[1], seen, 0.3, 0.01))
    assert found[1] < found[0]


def test_gram_matrices_are_those_of_the_factors() -> None:
    model = IALS(**VARIANTS[1])
    for event in checks.random_events(300, users=9, items=20):
        model.learn_one(*event)
    state = model.item_arrays()
    U, V = state["ials.users"].astype(np.float64), state["ials.items"].astype(np.float64)
    assert state["ials.user_gram"] == pytest.approx(U.T @ U, rel=1e-9, abs=1e-9)
    assert state["ials.item_gram"] == pytest.approx(V.T @ V, rel=1e-9, abs=1e-9)
    assert state["ials.user_sum"] == pytest.approx(U.sum(axis=0), rel=1e-9, abs=1e-9)
    assert state["ials.mass_sum"].tolist() == [len(V)]


def test_not_interested_lowers_the_score() -> None:
    model = plain(dimension=4, refresh=0)
    for user, item in taste():
        model.learn_one(user, item)
    liked = next(iter(model.interactions("u2")))
    before = model.predict_one("u2", liked)
    model.learn_one("u2", liked, -5.0)
    assert model.interactions("u2")[liked] == -5.0
    assert model.predict_one("u2", liked) < 0.5 * before


def test_weights_of_one_sign_add_up_and_the_other_sign_stands_alone() -> None:
    model = plain(dimension=2)
    for weight in (1.0, 2.5, 0.0):
        model.learn_one("ann", "tea", weight)
    assert model.interactions("ann") == {"tea": 3.5}
    model.learn_one("ann", "milk")
    model.learn_one("ann", "tea", -2.0)
    assert list(model.interactions("ann").items()) == [("tea", -2.0), ("milk", 1.0)]
    model.learn_one("ann", "tea", -1e6)
    assert model.interactions("ann")["tea"] == -1000.0


def test_an_item_with_many_users_is_solved_from_the_newest() -> None:
    model = plain(dimension=3, users_per_item=4, unobserved_weight=0.2, regularization=0.1, refresh=0)
    for k in range(10):
        model.learn_one(f"u{k}", f"own{k}")
        model.learn_one(f"u{k}", "tea")
    state = model.item_arrays()
    U = state["ials.users"].astype(np.float64)
    weights = np.full(4, 10 / 4)
    expected = solve(U[6:], weights, np.ones(4), 0.2 * U.T @ U, 0.1)
    assert state["ials.items"][model.items.row("tea")] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_recent_interactions_count_more_when_predicting() -> None:
    model = plain(
        dimension=4,
        recent_boost=2.0,
        recent_decay=0.5,
        regularization_exponent=0.0,
        unobserved_weight=0.2,
        regularization=0.3,
    )
    for user, item in taste():
        model.learn_one(user, item)
    state = model.item_arrays()
    V = state["ials.items"].astype(np.float64)
    rows = [model.items.row(item) for item in model.interactions("u3")]
    weights = 1.0 + 2.0 * 0.5 ** np.arange(len(rows))
    expected = solve(V[rows], weights, np.ones(len(rows)), 0.2 * V.T @ V, 0.3)
    assert model.user_factor("u3") == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_stranger_is_the_mean_user() -> None:
    model = plain(dimension=4)
    assert model.user_factor("nobody").tolist() == [0.0] * 4
    for user, item in taste():
        model.learn_one(user, item)
    mean = model.item_arrays()["ials.users"].astype(np.float64).mean(axis=0)
    assert model.user_factor("nobody") == pytest.approx(mean, rel=1e-5)


def test_who_lost_his_place_is_known_by_his_recent_items() -> None:
    model = plain(dimension=3, max_users=2, unobserved_weight=0.2, regularization=0.1, refresh=0)
    for user, item in [("ann", "tea"), ("ann", "milk"), ("bob", "tea"), ("cy", "milk")]:
        model.learn_one(user, item)
    assert model.interactions("ann") == {}
    assert model.interactions("bob") == {"tea": 1.0}
    V = model.item_arrays()["ials.items"].astype(np.float64)
    expected = solve(V[[1, 0]], np.ones(2), np.ones(2), 0.2 * V.T @ V, 0.1)
    assert model.user_factor("ann") == pytest.approx(expected, rel=1e-4, abs=1e-6)


class Reference:
    """What must be held, in plain dictionaries by last use."""

    def __init__(self, history: int, max_users: int, max_interactions: int) -> None:
        self.bounds = history, max_users, max_interactions
        self.users: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()

    def learn(self, user: str, item: str, weight: float) -> None:
        history, max_users, max_interactions = self.bounds
        if user not in self.users and len(self.users) == max_users:
            self.users.popitem(last=False)
        held = self.users.setdefault(user, OrderedDict())
        self.users.move_to_end(user)
        before = held.get(item, 0.0)
        if item not in held:
            if len(held) == history:
                held.popitem(last=False)
            while sum(map(len, self.users.values())) == max_interactions:
                self.users.popitem(last=False)
        held[item] = before + weight if before * weight >= 0.0 else weight
        held.move_to_end(item)

    def drop_item(self, item: str) -> None:
        for held in self.users.values():
            held.pop(item, None)


EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 7), st.sampled_from([1.0, 0.5, -1.0])), max_size=60
)


@given(events=EVENTS, history=st.integers(1, 4), max_users=st.integers(1, 4), room=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_what_is_held_is_bounded_as_said(
    events: list[tuple[int, int, float]], history: int, max_users: int, room: int
) -> None:
    model = IALS(
        dimension=2, history=history, max_users=max_users, max_interactions=history + room, users_per_item=2
    )
    reference = Reference(history, max_users, history + room)
    for user, item, weight in events:
        model.learn_one(f"u{user}", f"i{item}", weight)
        reference.learn(f"u{user}", f"i{item}", weight)
        for k in range(6):
            expected = reference.users.get(f"u{k}", {})
            assert list(model.interactions(f"u{k}").items()) == list(reversed(expected.items()))
    state = model.item_arrays()
    assert len(state["ials.users"]) <= max_users
    assert len(state["ials.entries"]) <= history + room
    held: dict[str, int] = {}
    for interactions in reference.users.values():
        for item_id in interactions:
            held[item_id] = held.get(item_id, 0) + 1
    assert state["ials.item_lists"][:, 1].tolist() == [held.get(item_id, 0) for item_id in model.items.ids]


def test_items_that_lose_their_rows_leave_nothing_behind() -> None:
    model, reference = IALS(dimension=3, refresh=1), Reference(512, 100_000, 5_000_000)
    model.items = ItemTable(limit=96)
    log: list[LearningBatch] = []
    for k in range(700):
        user, item = f"u{k % 7}", f"i{(k // 3 + 5 * (k % 3)) % 200}"
        known = set(model.items.ids)
        log.append(model.learn_user([(user, item, 1.0, {"timestamp": k})]))
        model.apply(log[-1], model.items.resolve(log[-1]))
        for gone in known - set(model.items.ids):
            reference.drop_item(gone)
        reference.learn(user, item, 1.0)
    assert model.items.evictions > 50
    for user, held in reference.users.items():
        assert list(model.interactions(user)) == list(reversed(held))
    state = model.item_arrays()
    V = state["ials.items"].astype(np.float64)
    freed = np.array([item_id == "" for item_id in model.items.ids])
    assert freed.any()
    assert not V[freed].any()
    assert state["ials.item_gram"] == pytest.approx(V.T @ V, rel=1e-9, abs=1e-9)
    assert state["ials.mass_sum"].tolist() == [float((~freed).sum())]
    width = max(batch.recent.shape[1] for batch in log)
    for batch in log:
        padding = ((0, 0), (0, width - batch.recent.shape[1]))
        batch.recent = np.pad(batch.recent, padding, constant_values=-1)
    replica, whole = IALS(dimension=3, refresh=1), LearningBatch.concat(log)
    replica.items = ItemTable(limit=96)
    for start in range(0, len(whole), 37):
        part = whole.slice(start, start + 37)
        replica.apply(part, replica.items.resolve(part))
    found = replica.item_arrays()
    assert all(found[name].tobytes() == array.tobytes() for name, array in state.items())


def test_events_of_nobody_are_not_held() -> None:
    model = plain(dimension=3)
    batch = model.learn_user([("ann", "tea", 1.0, None)])
    batch.user[:] = 0
    model.apply(batch, model.items.resolve(batch))
    assert model.interactions("ann") == {}
    assert model.item_arrays()["ials.items"] == pytest.approx(model._start_vectors(["tea"]))


def test_withdrawing_solves_again_for_the_user_and_the_item() -> None:
    model = plain(dimension=4, unobserved_weight=0.2, regularization=0.3, refresh=0)
    for at, (user, item) in enumerate([*taste(), ("u3", "late"), ("u3", "later")]):
        model.learn_one(user, item, 2.0, {"event_id": f"{at}"})
    state, at = model.item_arrays(), len(taste())
    U, V = state["ials.users"].astype(np.float64), state["ials.items"].astype(np.float64)
    used = [model.items.row(item) for item in model.interactions("u3") if item != "i1"]
    slot = model._slot("u3")
    [place] = [k for k, event in enumerate(taste()) if event == ("u3", "i1")]
    assert model.retract("u3", f"{place}")
    assert "i1" not in model.interactions("u3")
    U[slot] = solve(V[used], np.full(len(used), 2.0), np.ones(len(used)), 0.2 * V.T @ V, 0.3)
    moved = model.item_arrays()
    assert moved["ials.users"][slot] == pytest.approx(U[slot], rel=1e-4, abs=1e-6)
    row = model.items.row("i1")
    those = [model._slot(f"u{k}") for k in range(24) if "i1" in model.interactions(f"u{k}")]
    expected = solve(U[those], np.full(len(those), 2.0), np.ones(len(those)), 0.2 * U.T @ U, 0.3)
    assert moved["ials.items"][row] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert moved["ials.user_gram"] == pytest.approx(U.T @ U, rel=1e-5, abs=1e-5)
    assert model.retract("u3", f"{at}"), "nobody else has it: its factor starts anew"
    row = model.items.row("late")
    assert model.item_arrays()["ials.items"][row].tolist() == model._start_vectors(["late"])[0].tolist()


@pytest.mark.parametrize("model", [IALS, EALS], ids=["ials", "eals"])
def test_a_withdrawn_use_takes_its_score_along(model: type[AlternatingRanker]) -> None:
    """Of the items that a user had not used before."""
    events = [(f"u{k % 5}", f"i{(k * k + k // 5) % 9}", 1.0 + k % 2, {"event_id": f"{k}"}) for k in range(60)]
    first = 0
    for at in range(15, 60):
        user, item, *_ = events[at]
        if (user, item) in [event[:2] for event in events[:at]]:
            continue
        learned, without = model(dimension=8), model(dimension=8)  # type: ignore[call-arg]
        for one, stream in ((learned, events[: at + 1]), (without, events[:at])):
            for event in stream:
                one.learn_one(*event)
        before, after = without.predict_one(user, item), learned.predict_one(user, item)
        assert learned.retract(user, f"{at}")
        assert learned.interactions(user) == without.interactions(user)
        assert abs(learned.predict_one(user, item) - before) < 0.6 * abs(after - before)
        first += 1
    assert first > 3


def test_what_was_said_before_stands_when_the_rest_is_withdrawn() -> None:
    model = plain(dimension=2)
    for at, weight in enumerate([1.0, 2.5, -2.0, -1.0]):
        model.learn_one("ann", "tea", weight, {"event_id": f"{at}"})
    assert model.retract("ann", "0"), "the other sign has replaced it"
    assert model.interactions("ann") == {"tea": -3.0}
    assert model.retract("ann", "2")
    assert model.interactions("ann") == {"tea": -1.0}
    model.learn_one("ann", "milk")
    assert model.retract("ann", "3")
    assert model.interactions("ann") == {"milk": 1.0}


def test_the_last_withdrawal_forgets_the_user_s_place() -> None:
    model = plain(dimension=2)
    model.learn_one("bob", "milk")
    model.learn_one("ann", "tea", 1.0, {"event_id": "only"})
    assert model.retract("ann", "only")
    state = model.item_arrays()
    assert np.count_nonzero(state["ials.tokens"]) == 1
    assert model.user_factor("ann") == pytest.approx(state["ials.users"][0])


def test_items_of_a_forgotten_user_are_solved_without_him() -> None:
    model = plain(dimension=4, unobserved_weight=0.2, regularization=0.3, refresh=0)
    for user, item in [*taste(), ("u5", "own")]:
        model.learn_one(user, item)
    used = list(model.interactions("u5"))
    model.forget("u5")
    assert model.interactions("u5") == {}
    assert model.user_factor("u5").tolist() == model.user_factor("nobody").tolist()
    state = model.item_arrays()
    U, V = state["ials.users"].astype(np.float64), state["ials.items"].astype(np.float64)
    assert state["ials.user_gram"] == pytest.approx(U.T @ U, rel=1e-9, abs=1e-9)
    assert state["ials.item_gram"] == pytest.approx(V.T @ V, rel=1e-9, abs=1e-9)
    for item in used[1:]:
        those = [model._slot(f"u{k}") for k in range(24) if item in model.interactions(f"u{k}")]
        expected = solve(U[those], np.ones(len(those)), np.ones(len(those)), 0.2 * U.T @ U, 0.3)
        assert V[model.items.row(item)] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert state["ials.items"][model.items.row("own")] == pytest.approx(model._start_vectors(["own"])[0])


@pytest.mark.parametrize("model", [IALS, EALS], ids=["ials", "eals"])
def test_a_hundred_thousand_random_steps_stay_finite(model: type[AlternatingRanker]) -> None:
    rng = np.random.default_rng(0)
    made = model(dimension=3, history=8, users_per_item=4, max_users=40, max_interactions=200, refresh=1)  # type: ignore[call-arg]
    for batch in random_batches(rng, n=20_000, batches=5, users=60, items=50, dimension=3):
        made.apply(batch, made.items.resolve(batch))
        taken = batch.take(rng.choice(len(batch), 2_000))
        taken.kind = WITHDRAW
        made.correct(*made.items.find(taken))
        made.forget_users(np.arange(1, 9, dtype=np.uint64))
        made.sweep()
        state = made.item_arrays()
        assert all(np.isfinite(array).all() for array in state.values())
        assert len(np.unique(state[f"{made._name}.tokens"])) >= 20


def test_replicas_that_sweep_at_one_place_stay_equal() -> None:
    events, digests = checks.random_events(90), []
    for cut in (90, 45):
        model = plain(dimension=4)
        for start in range(0, 90, cut):
            users, items, rewards, contexts = zip(*events[start : start + cut], strict=True)
            model.learn_many(users, items, rewards, contexts)
        model.sweep()
        restored = plain(dimension=4)
        restored.from_arrays(model.to_arrays())
        restored.sweep()
        model.sweep()
        assert restored.digest() == model.digest()
        digests.append(model.digest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"dimension": 0}, "dimension is 0, but 1 to 512"),
        ({"regularization": 0.0}, "regularization is 0.0, but 1e-06"),
        ({"unobserved_weight": -1.0}, "unobserved_weight is -1.0"),
        ({"history": 10, "max_interactions": 9}, "max_interactions is 9, but 10 to"),
        ({"recent_decay": float("nan")}, "recent_decay is nan"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        IALS(**parameters)


def test_a_record_of_another_dimension_is_refused() -> None:
    model = plain(dimension=4)
    batch = IALS(dimension=6).learn_user([("u", "i", 1.0, None)])
    with pytest.raises(ValueError, match="6 dimensions, but this model has 4"):
        model.apply(batch, model.items.resolve(batch))
    with pytest.raises(ValueError, match=r"ials.items: shape \[0, 6\]"):
        model.load_item_arrays(IALS(dimension=6).item_arrays())
