from __future__ import annotations

from collections import OrderedDict, defaultdict
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemTable, UserKNN, checks
from online_models.base import user_token
from online_models.learning_batch import WITHDRAW
from tests.test_online_models.batches import LASTING, random_batches

BROWSED = [("user 1", "ABC"), ("user 2", "BCD"), ("user 3", "CDE")]


def browsers(**parameters: Any) -> UserKNN:
    model = UserKNN(query_decay=1.0, neighbours=2, **parameters)
    for user, items in BROWSED:
        model.learn_many([user] * 3, list(items))
    return model


def test_three_browsers() -> None:
    """Case 2: users 1 and 2, and 2 and 3, share two of three items, users 1 and 3 one."""
    model = browsers()
    tokens = {user_token(user): user for user, _ in BROWSED}
    for user, expected in [
        ("user 1", {"user 2": 2 / 3, "user 3": 1 / 3}),
        ("user 2", {"user 1": 2 / 3, "user 3": 2 / 3}),
        ("user 3", {"user 2": 2 / 3, "user 1": 1 / 3}),
    ]:
        found = model.nearest(user_token(user), model.recent_rows(user, 10)[0])
        assert {tokens[token]: similarity for token, similarity in found} == pytest.approx(expected)
    assert model.predict_one("user 1", "D") == pytest.approx(1.0)
    assert model.predict_one("user 1", "E") == pytest.approx(1 / 3)
    assert model.predict_one("user 3", "B") == pytest.approx(1.0)
    assert model.predict_one("user 3", "A") == pytest.approx(1 / 3)
    assert model.predict_one("user 2", "A") == model.predict_one("user 2", "E") == pytest.approx(2 / 3)
    have = dict(BROWSED)
    ranked = [[item for item, _ in one] for one in model.recommend([user for user, _ in BROWSED], 2, have)]
    assert ranked == [["D", "E"], ["A", "E"], ["B", "A"]]


class Plain:
    """The equations of the docstring, with dictionaries."""

    def __init__(self, model: UserKNN) -> None:
        self.model = model
        self.recent: dict[str, list[str]] = defaultdict(list)
        self.users: OrderedDict[str, list[tuple[str, int, int] | None]] = OrderedDict()
        self.clock = 0

    def learn(self, user: str, item: str, weight: float, time_ms: int, serial: int) -> None:
        if weight >= 0.0:
            self.recent[user].insert(0, item)
        self.clock = max(self.clock, time_ms)
        if user not in self.users and len(self.users) == self.model.max_users:
            self.users.popitem(last=False)
        uses = self.users.setdefault(user, [])
        self.users.move_to_end(user)
        if weight:
            uses[:] = [None if use and use[0] == item else use for use in uses]
        if weight > 0:
            uses[:] = [*uses, (item, time_ms, serial)][-self.model.history_length :]

    def scores(self, user: str) -> dict[str, float]:
        model, weight, met = self.model, {}, []
        for place, item in enumerate(self.recent[user][: model.query_length]):
            weight.setdefault(item, model.query_decay**place)
        held = {who: [use for use in uses if use] for who, uses in self.users.items()}
        for item in self.recent[user][: model.query_length]:
            having = [(use[2], who) for who, uses in held.items() for use in uses if use[0] == item]
            for _, who in sorted(having, reverse=True)[: model.sample]:
                if who != user and who not in met:
                    met.append(who)
        norm = sqrt(sum(w * w for w in weight.values()))
        similarity = {
            who: np.float32(sum(weight.get(use[0], 0.0) for use in held[who]) / norm / sqrt(len(held[who])))
            for who in met
        }
        nearest = sorted(met, key=lambda who: (-round(float(similarity[who]), 6), met.index(who)))
        total: dict[str, float] = defaultdict(float)
        for who in nearest[: model.neighbours]:
            for item, time_ms, _ in held[who]:
                age = (self.clock - time_ms) / (model.recency_half_life_s * 1000 or np.inf)
                total[item] += float(similarity[who]) * 2.0**-age
        return total


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("uvwxyz"), st.sampled_from("abcdefghij"), st.sampled_from([1.0, 1.0, 3.0, 0.0, -1.0]),
        st.integers(0, 400),
    ),
    max_size=60,
)  # fmt: skip


@given(
    events=EVENTS, neighbours=st.integers(1, 4), sample=st.integers(1, 4), history_length=st.integers(1, 6),
    max_users=st.integers(2, 6), half_life=st.sampled_from([0.0, 10.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_scores_follow_the_equation(
    events: list[tuple[str, str, float, int]], neighbours: int, sample: int, history_length: int,
    max_users: int, half_life: float,
) -> None:  # fmt: skip
    model = UserKNN(
        neighbours=neighbours, sample=sample, history_length=history_length, max_users=max_users,
        query_length=3, query_decay=0.5, recency_half_life_s=half_life,
    )  # fmt: skip
    plain = Plain(model)
    for serial, (user, item, weight, seconds) in enumerate(events):
        model.learn_one(user, item, weight, {"timestamp": seconds * 1000})
        plain.learn(user, item, weight, seconds * 1000, serial)
    for user in "uvz":
        expected = plain.scores(user)
        for item in "abcdefghij":
            assert model.predict_one(user, item) == pytest.approx(expected.get(item, 0.0), rel=1e-4, abs=1e-9)


def test_not_interested_takes_an_item_out_of_a_history() -> None:
    model = browsers()
    model.learn_one("user 2", "D", -1.0)
    assert model.predict_one("user 1", "D") == pytest.approx(1 / 3)  # of user 3 alone
    assert model.predict_one("user 3", "B") < 1.0
    model.learn_one("user 2", "D", 1.0)
    assert model.predict_one("user 1", "D") == pytest.approx(1.0)


def test_the_idlest_user_makes_room() -> None:
    model = browsers(max_users=3)
    model.learn_one("user 1", "A")
    model.learn_one("user 4", "Z")
    assert len(model._histories) == 3
    assert model._histories.slot(user_token("user 2")) == -1
    assert model.predict_one("user 1", "D") == pytest.approx(1 / 3)


def test_an_item_that_lost_its_row_is_in_no_history() -> None:
    model = UserKNN(query_decay=1.0)
    model.items = ItemTable(limit=3)
    model.learn_many(["u", "u", "v"], ["a", "b", "b"])
    model.learn_one("w", "c")
    assert model.predict_one("v", "a") > 0.0
    model.learn_one("w", "d")  # takes the row of the idlest, a
    assert model.items.row("a") == -1
    assert model.predict_one("v", "a") == 0.0
    assert model.predict_one("v", "d") == 0.0
    assert model.score(0, model.items.rows(["b"]), model.items.rows(["b", "c", "d"])).tolist() == [2.0, 0, 0]


def test_a_user_without_token_leaves_no_trace() -> None:
    model = browsers()
    before = model.item_arrays()
    batch = model.learn_user([("nobody", "A", 1.0, None), ("nobody", "E", 1.0, None)])
    batch.user[:] = 0
    model.apply(batch, model.items.resolve(batch))
    after = model.item_arrays()
    assert all((before[name] == after[name]).all() for name in before if name != "user_knn.clock")
    assert model.predict_one("nobody", "D") > 0.0


def test_a_withdrawn_use_leaves_its_user_and_lets_an_older_one_stand() -> None:
    model, without = browsers(recency_half_life_s=10.0), browsers(recency_half_life_s=10.0)
    for item, second in [("E", 10), ("A", 20), ("E", 30)]:
        model.learn_one("user 2", item, x={"timestamp": second * 1000, "event_id": f"at {second}"})
        if second < 30:
            without.learn_one("user 2", item, x={"timestamp": second * 1000})
    both = model.predict_one("user 1", "E")
    assert model.retract("user 2", "at 30")
    assert model.predict_one("user 1", "E") == without.predict_one("user 1", "E") != both
    assert model.retract("user 2", "at 10")
    found = model.recommend(["user 1"], 9)[0]
    plain = browsers(recency_half_life_s=10.0)
    plain.learn_one("user 2", "A", x={"timestamp": 20_000})
    assert dict(found) == pytest.approx(dict(plain.recommend(["user 1"], 9)[0]))


def test_a_forgotten_user_is_nobody_s_neighbour() -> None:
    model = browsers(max_users=3)
    model.forget("user 2")
    assert len(model._histories) == 2
    assert model.predict_one("user 1", "D") == pytest.approx(1 / 3)
    model.learn_one("user 4", "Z")
    assert model._histories.slot(user_token("user 1")) >= 0, "the place that became free is taken first"


def test_a_hundred_thousand_random_steps_stay_finite() -> None:
    model, rng = UserKNN(max_users=40, history_length=8, recency_half_life_s=60.0), np.random.default_rng(0)
    for batch in random_batches(rng, n=20_000, batches=5, users=60, items=50):
        model.apply(batch, model.items.resolve(batch))
        taken = batch.take(rng.choice(len(batch), 2_000))
        taken.kind = WITHDRAW
        model.correct(*model.items.find(taken))
        assert np.isfinite(model._histories.store.value).all()
        rows = np.arange(len(model.items), dtype=np.int32)
        assert np.isfinite(model.score(0, rows[:10], rows)).all()


VARIANTS: list[dict[str, Any]] = [
    {"recency_half_life_s": 3600.0},
    {"history_length": 12, "max_users": 6},
    {"neighbours": 2, "sample": 2, "query_length": 50, "query_decay": 0.0},
]


@pytest.mark.parametrize("parameters", VARIANTS, ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_variants_keep_the_contract(check: Any, parameters: dict[str, Any]) -> None:
    check(lambda: UserKNN(**parameters))


@pytest.mark.parametrize("check", LASTING, ids=lambda check: check.__name__)
def test_small_histories_keep_the_contract(check: Any) -> None:
    """What has left a history does not come back, so nothing that needs it does."""
    check(lambda: UserKNN(max_users=3, history_length=4))


@pytest.mark.parametrize(
    "parameters",
    [
        {"neighbours": 0},
        {"sample": 0},
        {"query_length": 51},
        {"query_decay": 1.5},
        {"history_length": 0},
        {"max_users": 0},
        {"recency_half_life_s": 0.001},
    ],
    ids=str,
)
def test_bad_parameters_are_refused_by_name(parameters: dict[str, float]) -> None:
    [(name, value)] = parameters.items()
    name = "half_life_s" if name == "recency_half_life_s" else name
    with pytest.raises(ValueError, match=f"{name} is {value}|{name} {value}"):
        UserKNN(**parameters)
