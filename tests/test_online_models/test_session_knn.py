from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemTable, checks
from online_models.base import user_token
from online_models.learning_batch import WITHDRAW
from online_models.session_knn import SessionKNN
from tests.test_online_models.batches import LASTING, random_batches

VARIANTS: list[dict[str, Any]] = [
    {},
    {"session_length": 4, "max_sessions": 60, "session_gap_s": 600.0, "session_half_life_s": 3600.0},
    {"sample": 3, "neighbours": 2, "sessions_per_item": 2, "source_exponent": 1.0, "query_length": 3},
]
PLAIN: dict[str, Any] = {"source_exponent": 0.0, "target_exponent": 0.0, "distance_decay": 0.5}


class Session:
    def __init__(self, user: str, time_ms: int) -> None:
        self.user, self.last_ms = user, time_ms
        self.items: list[str | None] = []

    def held(self) -> int:
        return sum(item is not None for item in self.items)


class Plain:
    """The docstring's equation over lists of sessions, without any index."""

    def __init__(self, model: SessionKNN) -> None:
        self.model = model
        self.sessions: list[Session] = []  # in the order in which they began
        self.open: dict[str, Session] = {}
        self.had: dict[str, list[Session]] = defaultdict(list)  # newest first
        self.newest_ms = -1

    def learn(self, user: str, item: str, weight: float, time_ms: int) -> None:
        self.newest_ms = max(self.newest_ms, time_ms)
        here = self.open.get(user)
        if weight < 0.0 and here is not None and item in here.items:
            self._take_out(here, item)
        if weight <= 0.0:
            return
        gap_ms = self.model.session_gap_s * 1000.0
        expired = here is not None and time_ms - here.last_ms > gap_ms
        full = here is not None and item not in here.items and len(here.items) == self.model.session_length
        if here is None or expired or full:
            here = self._begin(user, time_ms)
        here.last_ms = max(here.last_ms, time_ms)
        if item not in here.items:
            here.items.append(item)
            self.had[item].insert(0, here)

    def scores(self, user: str, recent: list[str]) -> dict[str, float]:
        model, own = self.model, self.open.get(user)
        similarity: dict[Session, np.float32] = {}
        match: dict[Session, str] = {}
        decay = 1.0
        for item in recent[: model.query_length]:
            part = np.float32(decay) * np.float32(
                float(max(len(self.had[item]), 1)) ** -model.source_exponent
            )
            for near in [s for s in self.had[item] if s is not own][: model.sessions_per_item]:
                similarity[near] = np.float32(similarity.get(near, np.float32(0.0)) + part)
                match.setdefault(near, item)
            decay *= model.query_decay
        newest = sorted(similarity, key=self.sessions.index)[-model.sample :]
        value = {s: self._value(s, similarity[s]) for s in similarity if s in newest}
        total: dict[str, float] = defaultdict(float)
        for near in sorted(value, key=lambda s: -value[s])[: model.neighbours]:
            at = near.items.index(match[near])
            for position, item in enumerate(near.items):
                if item is not None:
                    total[item] += value[near] * model.distance_decay ** abs(position - at)
        return {item: sum_ / len(self.had[item]) ** model.target_exponent for item, sum_ in total.items()}

    def _value(self, session: Session, similarity: np.float32) -> np.float32:
        half_life_ms = self.model.session_half_life_s * 1000.0
        age = (self.newest_ms - session.last_ms) / half_life_ms if half_life_ms else 0.0
        return np.float32(float(similarity) * 2.0**-age / np.sqrt(float(session.held())))

    def _begin(self, user: str, time_ms: int) -> Session:
        if len(self.sessions) == self.model.max_sessions:
            gone = self.sessions.pop(0)
            for item in [item for item in gone.items if item is not None]:
                self._take_out(gone, item)
            self.open = {who: session for who, session in self.open.items() if session is not gone}
        self.sessions.append(Session(user, time_ms))
        self.open[user] = self.sessions[-1]
        return self.sessions[-1]

    def _take_out(self, session: Session, item: str) -> None:
        session.items[session.items.index(item)] = None
        self.had[item].remove(session)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("uvwxyz"),
        st.sampled_from("abcdefghijkl"),
        st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.0, -1.0]),
        st.integers(-100, 800),
    ),
    max_size=120,
)


@given(
    events=EVENTS, length=st.sampled_from([2, 3, 8]), most=st.sampled_from([1, 4, 100]),
    sample=st.sampled_from([2, 5, 100]), neighbours=st.sampled_from([1, 3, 100]),
    per_item=st.sampled_from([1, 3, 100]), half_life_s=st.sampled_from([0.0, 900.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_scores_follow_the_equation(
    events: list[tuple[str, str, float, int]], length: int, most: int, sample: int, neighbours: int,
    per_item: int, half_life_s: float,
) -> None:  # fmt: skip
    model = SessionKNN(
        session_gap_s=500.0, session_length=length, max_sessions=most, sample=sample, neighbours=neighbours,
        sessions_per_item=per_item, session_half_life_s=half_life_s, query_length=4, distance_decay=0.7,
    )  # fmt: skip
    plain, time_ms = Plain(model), 10**9
    for user, item, weight, later_s in events:
        time_ms += later_s * 1000
        model.learn_one(user, item, weight, {"timestamp": time_ms})
        plain.learn(user, item, weight, time_ms)
    for user in "uz":
        recent = [model.items.ids[row] for row in model.recent_rows(user, 4)[0] if row >= 0]
        expected = plain.scores(user, recent)
        found = {item: model.predict_one(user, item) for item in model.items.ids}
        assert found == pytest.approx({item: expected.get(item, 0.0) for item in found}, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_in_other_settings(check: Any, kwargs: dict[str, Any]) -> None:
    check(lambda: SessionKNN(**kwargs))


@pytest.mark.parametrize("check", LASTING, ids=lambda check: check.__name__)
def test_few_short_sessions_keep_the_contract(check: Any) -> None:
    """What has made room does not come back, so nothing that needs it does."""
    check(lambda: SessionKNN(session_length=2, max_sessions=5, session_gap_s=600.0, session_half_life_s=3600))


@given(
    events=st.lists(
        st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcdefgh"), st.integers(1, 500)),
        min_size=1, max_size=60,
    ),
    which=st.integers(0, 99), per_item=st.sampled_from([1, 2, 100]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_what_is_withdrawn_was_never_there(
    events: list[tuple[str, str, int]], which: int, per_item: int
) -> None:
    """Of a user's events in one session, each of another item; his sessions are days apart."""
    which, time_ms, streams = which % len(events), 10**9, ([], [])  # type: ignore[var-annotated]
    met: dict[str, set[str]] = defaultdict(set)
    days: dict[str, int] = defaultdict(int)
    for at, (user, item, later_s) in enumerate(events):
        if item in met[user]:
            met[user], days[user] = set(), days[user] + 1
        met[user].add(item)
        time_ms += later_s
        x = {"timestamp": time_ms + days[user] * 86_400_000, "event_id": f"{at}"}
        streams[0].append((user, item, 1.0, x))
        if at != which:
            streams[1].append((user, item, 1.0, x))
    models = []
    for stream in streams:
        models.append(SessionKNN(sessions_per_item=per_item, session_half_life_s=86_400.0))
        for event in stream:
            models[-1].learn_one(*event)
    model, without = models
    restored = SessionKNN(sessions_per_item=per_item, session_half_life_s=86_400.0)
    assert model.retract(events[which][0], f"{which}")
    restored.from_arrays(model.to_arrays())
    for user in "uvwxz":
        for item in without.items.ids:
            found, expected = model.predict_one(user, item), without.predict_one(user, item)
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
            assert restored.predict_one(user, item) == found


def test_of_two_uses_one_can_be_withdrawn() -> None:
    model, once = SessionKNN(**PLAIN), SessionKNN(**PLAIN)
    for at, item in enumerate(["bread", "milk", "bread"]):
        model.learn_one("ann", item, x={"timestamp": at, "event_id": f"{at}"})
        if at < 2:
            once.learn_one("ann", item, x={"timestamp": at})
    for one in (model, once):
        one.learn_one("bob", "milk", x={"timestamp": 3})
    assert model.retract("ann", "0")
    assert model.predict_one("bob", "bread") == once.predict_one("bob", "bread") > 0.0
    assert model.retract("ann", "2")
    assert model.predict_one("bob", "bread") == 0.0
    assert model.retract("ann", "1")
    assert model.item_arrays()["session_knn.filled"].tolist() == [0, 1]


def test_a_forgotten_user_has_no_session() -> None:
    model = SessionKNN(max_sessions=3, **PLAIN)
    for at in range(3):
        model.learn_many(["ann", "ann"], ["bread", "milk"], x=[{"timestamp": at * 10**8}] * 2)
    model.learn_one("bob", "bread", x={"timestamp": 3 * 10**8})
    assert model.predict_one("bob", "milk") > 0.0
    model.forget("ann")
    assert model.predict_one("bob", "milk") == 0.0
    state = model.item_arrays()
    assert np.count_nonzero(state["session_knn.users"]) == 1
    assert state["session_knn.filled"].sum() == 1
    model.learn_one("cat", "milk", x={"timestamp": 4 * 10**8})
    assert model.predict_one("cat", "bread") == 0.0


def test_a_hundred_thousand_random_steps_stay_finite() -> None:
    rng = np.random.default_rng(0)
    model = SessionKNN(max_sessions=300, session_length=8, session_gap_s=10**5, session_half_life_s=60.0)
    for batch in random_batches(rng, n=20_000, batches=5, users=60, items=50):
        model.apply(batch, model.items.resolve(batch))
        taken = batch.take(rng.choice(len(batch), 2_000))
        taken.kind = WITHDRAW
        model.correct(*model.items.find(taken))
        sessions, rows = model._sessions, np.arange(len(model.items), dtype=np.int32)
        counts = np.bincount(sessions.item[sessions.item >= 0], minlength=len(rows))
        assert sessions.count[: len(rows)].tolist() == counts.tolist()
        assert np.isfinite(model.score(rows[None, :10], rows[None, :])).all()


def test_two_hours_apart_are_two_sessions() -> None:
    for gap_s, expected in [(7200.0, 0.5 / np.sqrt(2)), (7199.0, 0.0)]:
        model = SessionKNN(session_gap_s=gap_s, **PLAIN)
        model.learn_one("ann", "bread", x={"timestamp": 0})
        model.learn_one("ann", "milk", x={"timestamp": 7_200_000})
        model.learn_one("bob", "bread", x={"timestamp": 7_200_000})
        assert model.predict_one("bob", "milk") == pytest.approx(expected)


def test_the_session_that_goes_on_is_no_neighbour_of_itself() -> None:
    model = SessionKNN(**PLAIN)
    model.learn_many(["ann", "ann"], ["bread", "milk"])
    assert model.predict_one("ann", "bread") == 0.0
    rows = model.recent_rows("ann", 10)
    everything = np.array([[0, 1]], dtype=np.int32)
    assert model.score(rows, everything)[0, 0] > 0.0, "without a token it is a session like any other"
    assert model.score(rows, everything, np.array([user_token("ann")], dtype=np.uint64))[0, 0] == 0.0


def test_not_interested_takes_the_item_out_of_the_open_session() -> None:
    model = SessionKNN(**PLAIN)
    model.learn_many(["ann"] * 3, ["bread", "milk", "tea"])
    model.learn_one("bob", "bread")
    before = model.predict_one("bob", "tea")
    model.learn_one("ann", "milk", -1.0)
    assert model.predict_one("bob", "milk") == 0.0
    # of two items left, the places are as they were
    assert model.predict_one("bob", "tea") == pytest.approx(before * np.sqrt(3 / 2))


def test_older_sessions_count_half_at_a_half_life() -> None:
    model = SessionKNN(session_half_life_s=60.0, **PLAIN)
    model.learn_many(["ann", "ann"], ["bread", "milk"], x=[{"timestamp": 0}, {"timestamp": 0}])
    model.learn_one("bob", "bread", x={"timestamp": 0})
    fresh = model.predict_one("bob", "milk")
    model.learn_one("cat", "nails", x={"timestamp": 120_000})
    assert model.predict_one("bob", "milk") == pytest.approx(fresh / 4)


def test_the_oldest_session_makes_room_and_leaves_nothing() -> None:
    model = SessionKNN(max_sessions=3, **PLAIN)
    for user in ("ann", "bob", "cat", "dan"):
        model.learn_many([user] * 2, ["bread", f"{user}'s"])
    model.learn_one("eve", "bread")
    found = {user: model.predict_one("eve", f"{user}'s") for user in ("ann", "bob", "cat", "dan")}
    assert found["ann"] == found["bob"] == 0.0  # eve's own session took the place of bob's
    assert found["cat"] == found["dan"] == pytest.approx(0.5 / np.sqrt(2))
    arrays = model.item_arrays()
    assert len(arrays["session_knn.users"]) == 3
    gone = [model.items.row(f"{user}'s") for user in ("ann", "bob")]
    assert (arrays["session_knn.newest"][gone] == -1).all()


def test_memory_is_bounded() -> None:
    model = SessionKNN(max_sessions=100, session_length=8)
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(4):
        users = [f"u{k}" for k in rng.integers(0, 500, 1500)]
        model.learn_many(users, [f"i{k}" for k in rng.integers(0, 40, 1500)])
        sizes.append(sum(array.nbytes for name, array in model.item_arrays().items() if "items" not in name))
        assert model.nbytes() <= 100 * (28 + 24 * 8) + 8 * 40
    assert len(model.item_arrays()["session_knn.users"]) == 100
    assert max(sizes) <= 100 * (20 + 16 * 8) + 4 * 40 + 80


def test_an_item_that_loses_its_row_leaves_every_session() -> None:
    limit = 8
    model = SessionKNN(session_length=4, max_sessions=6, session_gap_s=50.0)
    model.items = ItemTable(limit=limit)
    rng = np.random.default_rng(1)
    for event in range(400):
        item, user = f"i{event // 8 + rng.integers(0, 6)}", f"u{rng.integers(0, 4)}"
        model.learn_one(user, item, x={"timestamp": 20_000 * event})
        state, sessions = model.item_arrays(), model._sessions
        entries = state["session_knn.items"]
        named = entries[entries >= 0]
        assert all(model.items.ids[row] for row in named.tolist())
        counts = np.bincount(named, minlength=len(model.items)).tolist()
        assert counts == sessions.count[: len(model.items)].tolist()
        for row, count in enumerate(counts):
            listed, entry = 0, int(sessions.newest[row])
            while entry >= 0:
                assert sessions.item[entry] == row
                listed, entry = listed + 1, int(sessions.older[entry])
            assert listed == count
    assert model.items.evictions > 40


def test_events_without_a_token_are_passed_over() -> None:
    model = SessionKNN(**PLAIN)
    batch = model.learn_user([("ann", item, 1.0, None) for item in ("bread", "milk")])
    batch.user[:] = 0
    model.apply(batch, model.items.resolve(batch))
    assert len(model.item_arrays()["session_knn.users"]) == 0


@given(events=EVENTS, seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_restored_model_scores_and_learns_alike(
    events: list[tuple[str, str, float, int]], seed: int
) -> None:
    made = {"session_length": 3, "max_sessions": 4 + seed, "session_gap_s": 500.0}
    model, restored = SessionKNN(**made), SessionKNN(**made)
    stream = [
        (user, item, weight, {"timestamp": 10**6 + 300_000 * k + late})
        for k, (user, item, weight, late) in enumerate(events)
    ]
    for event in stream[: len(stream) // 2]:
        model.learn_one(*event)
    restored.from_arrays(model.to_arrays())
    for event in stream[len(stream) // 2 :]:
        assert restored.predict_one(event[0], event[1]) == model.predict_one(event[0], event[1])
        model.learn_one(*event)
        restored.learn_one(*event)
    assert restored.digest() == model.digest()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"session_length": 1}, {"query_decay": 1.5}, {"neighbours": 0}, {"session_gap_s": float("nan")},
        {"max_sessions": 2**31}, {"query_length": 51},
    ],
    ids=str,
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    [(name, value)] = kwargs.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        SessionKNN(**kwargs)
