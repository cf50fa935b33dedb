from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import DecayedPopularity, checks
from online_models.base import user_token
from online_models.prequential import Interaction, evaluate
from online_models.social import SocialRanker

HOUR_MS = 3_600_000
USERS = ("ann", "bob", "eve", "tom")
Step = tuple[str, str, int, float]
"""User, item (or, of a follow, the followed user), hour, weight."""
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(USERS),
            st.sampled_from("abcde"),
            st.integers(0, 99),
            st.sampled_from([1.0, 2.0, -1.0]),
        ),
        st.tuples(st.sampled_from(USERS), st.sampled_from(USERS), st.just(0), st.sampled_from([1.0, -1.0])),
    ).filter(lambda step: step[0] != step[1]),
    max_size=40,
)


def learn(model: SocialRanker, steps: Sequence[Step]) -> SocialRanker:
    for k, (user, what, hour, weight) in enumerate(steps):
        context: dict[str, object] = {"timestamp": hour * HOUR_MS, "event_id": str(k)}
        if what in USERS:
            context |= {"event_type": "follow", "target_user": what}
        model.learn_one(user, what if what not in USERS else "", weight, context)
    return model


class Reference:
    """The equations, in plain Python, of histories long enough for all."""

    def __init__(self, half_life_h: float, gain: float, decline: float, max_trust: float) -> None:
        self.half_life_h, self.gain, self.decline, self.max_trust = half_life_h, gain, decline, max_trust
        self.uses: dict[str, list[tuple[str, int]]] = {user: [] for user in USERS}
        self.had: dict[str, list[tuple[str, int]]] = {user: [] for user in USERS}
        self.trust: dict[str, dict[str, float]] = {user: {} for user in USERS}
        self.items: set[str] = set()
        self.now = 0

    def learn(self, user: str, what: str, hour: int, weight: float) -> None:
        if what in USERS:
            if weight > 0.0:
                self.trust[user].setdefault(what, 1.0)
            else:
                self.trust[user].pop(what, None)
            return
        if weight > 0.0 and what in self.items:
            for other in self.trust[user]:
                used = any(item == what and then <= hour for item, then in self.had[other])
                moved = self.trust[user][other] * (1 + self.gain if used else 1 - self.decline)
                self.trust[user][other] = min(max(moved, 1 / self.max_trust), self.max_trust)
        self.items.add(what)
        self.now = max(self.now, hour)
        self.uses[user] = [use for use in self.uses[user] if use[0] != what]
        if weight > 0.0:
            self.uses[user].append((what, hour))
            self.had[user].append((what, hour))
        else:
            self.had[user] = [use for use in self.had[user] if use[0] != what]

    def score(self, user: str, item: str) -> float:
        return sum(
            trust * 0.5 ** ((self.now - hour) / self.half_life_h)
            for other, trust in self.trust[user].items()
            for had, hour in self.uses[other]
            if had == item
        )


@given(steps=STEPS, decline=st.sampled_from([0.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_scores_follow_the_equations(steps: list[Step], decline: float) -> None:
    model = SocialRanker(recency_half_life_s=36_000.0, gain=1.0, decline=decline, max_trust=8.0)
    reference = Reference(10.0, 1.0, decline, 8.0)
    learn(model, steps)
    for step in steps:
        reference.learn(*step)
    for user in USERS:
        for other in USERS:
            assert model.trust(user, other) == pytest.approx(reference.trust[user].get(other, 0.0), rel=1e-6)
        for item in "abcde":
            assert model.predict_one(user, item) == pytest.approx(
                reference.score(user, item), rel=1e-5, abs=1e-9
            )


def test_trust_by_hand() -> None:
    model = SocialRanker(gain=0.5, decline=0.1, recency_half_life_s=0.0)
    learn(model, [("ann", "bob", 0, 1.0), ("ann", "eve", 0, 1.0), ("bob", "a", 0, 1.0), ("eve", "b", 0, 1.0)])
    learn(model, [("ann", "a", 1, 1.0)])
    assert model.trust("ann", "bob") == pytest.approx(1.5)
    assert model.trust("ann", "eve") == pytest.approx(0.9)
    learn(model, [("ann", "a", 1, 1.0), ("ann", "new", 1, 1.0), ("ann", "b", 1, -1.0)])  # only a counts
    assert model.trust("ann", "bob") == pytest.approx(1.5 * 1.5)
    assert model.rank("ann", ["a", "b"]) == ["a", "b"]
    assert model.predict_one("ann", "b") == pytest.approx(0.9 * 0.9)


@given(steps=STEPS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_withdrawn_uses_and_follows_leave_what_was_without(steps: list[Step], data: st.DataObject) -> None:
    kept_weights = [(user, what, hour, abs(weight)) for user, what, hour, weight in steps]
    first = {step[:2]: k for k, step in reversed(list(enumerate(kept_weights)))}
    again = {k for k, step in enumerate(kept_weights) if step[1] in USERS and first[step[:2]] != k}
    gone = data.draw(st.sets(st.integers(0, max(len(steps) - 1, 0)), max_size=6)) - again if steps else set()
    model = learn(SocialRanker(gain=0.0, decline=0.0), kept_weights)
    for k in sorted(gone):
        assert model.retract(kept_weights[k][0], str(k))
        assert not model.retract(kept_weights[k][0], str(k))
    dropped = {kept_weights[k][:2] for k in gone if kept_weights[k][1] in USERS}
    left = [step for k, step in enumerate(kept_weights) if k not in gone and step[:2] not in dropped]
    expected = learn(SocialRanker(gain=0.0, decline=0.0), left)
    for user in USERS:
        for item in "abcde":
            score = model.predict_one(user, item)
            assert score == pytest.approx(expected.predict_one(user, item), rel=1e-5, abs=1e-7)


def test_a_withdrawn_use_takes_its_step_of_trust_back() -> None:
    model = SocialRanker(gain=0.5, decline=0.1)
    learn(model, [("ann", "bob", 0, 1.0), ("ann", "eve", 0, 1.0), ("bob", "a", 0, 1.0)])
    model.learn_one("ann", "a", x={"timestamp": HOUR_MS, "event_id": "mistake"})
    assert model.trust("ann", "bob") == 1.5
    assert model.retract("ann", "mistake")
    assert model.trust("ann", "bob") == model.trust("ann", "eve") == 1.0


def planted(
    follow: Callable[[int, np.random.Generator], list[int]], seed: int = 0
) -> tuple[list[tuple[str, str]], list[Interaction]]:
    """40 people in 4 circles; each circle uses its own 40 items, newer ones as time goes by."""
    rng, events = np.random.default_rng(seed), []
    edges = [(f"u{user}", f"u{other}") for user in range(40) for other in follow(user, rng) if other != user]
    for k in range(1_200):
        user = int(rng.integers(40))
        item = user // 10 * 40 + (k // 60 + int(rng.geometric(0.12))) % 40
        if rng.random() < 0.2:
            item = int(rng.integers(160))
        events.append(Interaction(f"u{user}", f"i{item}", 1.0, {"timestamp": k * HOUR_MS}))
    return edges, events


def friends_and_others(user: int, rng: np.random.Generator) -> list[int]:
    own = [user // 10 * 10 + int(k) for k in rng.choice(10, 5, replace=False)]
    return [*own, *(int(k) for k in rng.choice(40, 6, replace=False))]


def test_friends_foretell_more_than_popularity_and_than_strangers() -> None:
    edges, events = planted(friends_and_others)
    targets = np.random.default_rng(9).permutation([target for _, target in edges]).tolist()
    shuffled = [(user, target) for (user, _), target in zip(edges, targets, strict=True) if user != target]
    models = {
        "popularity": DecayedPopularity(half_life_s=10 * 86_400.0),
        "social": SocialRanker(),
        "all trusted the same": SocialRanker(gain=0.0, decline=0.0),
        "shuffled": SocialRanker(),
    }
    for name, graph in (("social", edges), ("all trusted the same", edges), ("shuffled", shuffled)):
        for user, target in graph:
            models[name].learn_follow(user, target)  # type: ignore[attr-defined]
    hits = {name: report.hr_at_10 for name, report in evaluate(models, events).items()}
    assert hits["social"] > hits["popularity"] + 0.1, hits
    assert hits["social"] > hits["shuffled"] + 0.04, hits
    assert hits["social"] > hits["all trusted the same"] + 0.02, hits


def test_a_follow_is_no_use_of_an_item_and_not_in_the_log() -> None:
    model = SocialRanker()
    context = {"event_type": "follow", "target_user": "bob"}
    assert len(model.learn_user([("ann", "bob's page", 1.0, context)])) == 0
    model.learn_many(["ann", "ann"], ["", "a"], x=[{**context, "target_user": "eve"}, None])
    assert model.items.ids == ["a"]
    assert model.trust("ann", "bob") == 1.0
    assert all(user_token("bob") not in array.tolist() for array in model.item_arrays().values())


@pytest.mark.parametrize(
    ("target", "weight", "error", "named"),
    [
        ("", 1.0, TypeError, "target_user must be"),
        (None, 1.0, TypeError, "target_user must be"),
        ("ann", 1.0, ValueError, "can't follow himself"),
        ("bob", float("nan"), ValueError, "weight of a follow is nan"),
    ],
)
def test_a_bad_follow_is_refused_and_nothing_is_learned(
    target: object, weight: float, error: type[Exception], named: str
) -> None:
    model = learn(SocialRanker(), [("ann", "eve", 0, 1.0), ("eve", "a", 0, 1.0)])
    before = model.digest()
    with pytest.raises(error, match=named):
        model.learn_user(
            [("ann", "a", 1.0, None), ("ann", "", weight, {"event_type": "follow", "target_user": target})]
        )
    with pytest.raises(ValueError, match="y is nan"):
        model.learn_user(
            [
                ("ann", "", 1.0, {"event_type": "follow", "target_user": "bob"}),
                ("ann", "a", float("nan"), None),
            ]
        )
    assert model.digest() == before


def test_who_follows_most_drops_the_one_he_trusts_least() -> None:
    model = SocialRanker(max_followed=2, gain=0.5, decline=0.1)
    learn(model, [("ann", "bob", 0, 1.0), ("ann", "eve", 0, 1.0), ("eve", "a", 0, 1.0), ("ann", "a", 0, 1.0)])
    learn(model, [("ann", "tom", 0, 1.0)])
    assert [model.trust("ann", other) for other in ("bob", "eve", "tom")] == [0.0, 1.5, 1.0]
    learn(model, [("ann", "tom", 0, 1.0)])  # again: no change
    model.unlearn_follow("ann", "nobody")
    assert [model.trust("ann", other) for other in ("bob", "eve", "tom")] == [0.0, 1.5, 1.0]


def test_a_forgotten_user_follows_nobody_and_nobody_follows_him() -> None:
    steps: list[Step] = [("ann", "bob", 0, 1.0), ("bob", "ann", 0, 1.0), ("bob", "eve", 0, 1.0)]
    model = learn(SocialRanker(), [*steps, ("ann", "a", 0, 1.0), ("bob", "b", 0, 1.0), ("eve", "b", 0, 1.0)])
    model.forget("bob")
    assert model.trust("ann", "bob") == model.trust("bob", "eve") == model.predict_one("ann", "b") == 0.0
    for name, array in model.to_arrays().items():
        assert b"bob" not in array.tobytes(), name
        assert array.dtype != np.uint64 or user_token("bob") not in array.tolist(), name
    model.learn_one("bob", "b")
    assert model.predict_one("ann", "b") == 0.0


def test_two_owners_agree_with_one_process_and_a_restored_model_goes_on() -> None:
    rng = np.random.default_rng(4)
    single, owners = SocialRanker(gain=0.5), (SocialRanker(gain=0.5), SocialRanker(gain=0.5))
    steps: list[Step] = []
    for k in range(120):
        user = USERS[int(rng.integers(4))]
        what = USERS[int(rng.integers(4))] if k % 5 == 0 else "abcdefgh"[int(rng.integers(8))]
        if what != user:
            steps.append((user, what, k, 1.0 if rng.random() < 0.8 else -1.0))
    for user, what, hour, weight in steps:
        context: dict[str, object] = {"timestamp": hour * HOUR_MS}
        if what in USERS:
            context |= {"event_type": "follow", "target_user": what}
        single.learn_one(user, what, weight, context)
        owner = owners[USERS.index(user) % 2]
        record = owner.learn_user([(user, what, weight, context)])
        for replica in owners:
            replica.replicate(record)
        for item in "abc":
            assert owner.predict_one(user, item) == single.predict_one(user, item)
    arrays = single.item_arrays()
    for replica in owners:
        assert all(array.tobytes() == arrays[name].tobytes() for name, array in replica.item_arrays().items())
    restored = SocialRanker(gain=0.5)
    restored.from_arrays(single.to_arrays())
    assert learn(restored, steps).digest() == learn(single, steps).digest()


@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_of_users_who_follow(check: Callable[[Callable[[], SocialRanker]], None]) -> None:
    def make() -> SocialRanker:
        model = SocialRanker(gain=0.0, decline=0.0, recency_half_life_s=86_400.0)
        for k in range(7):
            model.learn_follow(f"user-{k}", f"user-{(k + 1) % 7}")
            model.learn_follow(f"user-{k}", f"user-{(k + 3) % 7}")
        return model

    if check is not checks.check_forgotten_user_is_unknown:  # compares with one who still follows
        check(make)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"max_followed": 0}, "max_followed is 0"),
        ({"history_length": 0}, "history_length 0"),
        ({"max_users": 0}, "max_users is 0"),
        ({"gain": -0.1}, "gain is -0.1"),
        ({"decline": 1.0}, "decline 1.0"),
        ({"max_trust": 0.5}, "max_trust is 0.5"),
        ({"recency_half_life_s": 0.5}, "half_life_s is 0.5"),
    ],
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SocialRanker(**kwargs)  # type: ignore[arg-type]
