from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import checks
from online_models.group_popularity import CODES, GroupPopularity, group_code

HOUR_MS = 3_600_000
Step = tuple[str, int, int, float]
"""User, item, hour, weight."""
GROUP_OF = {"ann": "F", "eve": "F", "bob": "M", "tom": "M", "who": None}
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(sorted(GROUP_OF)),
        st.integers(0, 6),
        st.integers(0, 300),
        st.sampled_from([1.0, 0.5, 3.0, -1.0]),
    ),
    min_size=1,
    max_size=50,
)


def learned(events: Sequence[Step], profiled: bool = True, **kwargs: float) -> GroupPopularity:
    model = GroupPopularity(**{"keys": ("gender",), "half_life_s": 360_000.0, **kwargs})  # type: ignore[arg-type]
    for user, gender in GROUP_OF.items():
        if profiled and gender:
            model.learn_profile(user, {"labels": {"gender": gender}})
    for k, (user, item, hour, weight) in enumerate(events):
        model.learn_one(user, str(item), weight, {"timestamp": hour * HOUR_MS, "event_id": str(k)})
    return model


def share(events: Sequence[Step], item: int, gender: str | None, strength: float, min_count: float) -> float:
    now = max(hour for _, _, hour, _ in events)

    def shares(kept: Sequence[Step]) -> tuple[float, float]:
        counts = [0.0] * 7
        for _, other, hour, weight in kept:
            counts[other] += weight * 0.5 ** ((now - hour) / 100.0)
        total = sum(max(count, 0.0) for count in counts)
        own = counts[item] / total if total > 1e-9 else min(counts[item], 0.0)
        return min(max(own, -1.0), 1.0), total

    everybody, _ = shares(events)
    if gender is None:
        return everybody
    group, total = shares([event for event in events if GROUP_OF[event[0]] == gender])
    trusted = max(total - min_count, 0.0)
    return (trusted * group + strength * everybody) / (trusted + strength)


@given(events=EVENTS, strength=st.sampled_from([0.5, 20.0]), min_count=st.sampled_from([0.0, 2.0]))
@settings(max_examples=40, deadline=None)
def test_scores_follow_the_equation(events: list[Step], strength: float, min_count: float) -> None:
    model = learned(events, strength=strength, min_count=min_count)
    for user, gender in GROUP_OF.items():
        for item in {item for _, item, _, _ in events}:
            expected = share(events, item, gender, strength, min_count)
            assert model.predict_one(user, str(item)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_groups_differ_and_strangers_get_everybodys() -> None:
    events = [("ann", 0, 0, 1.0)] * 8 + [("bob", 1, 0, 1.0)] * 10
    model = learned(events, strength=2.0)
    assert model.rank("eve", ["0", "1"]) == ["0", "1"]
    assert model.rank("tom", ["0", "1"]) == ["1", "0"]
    assert model.rank("who", ["0", "1"]) == model.rank("stranger", ["0", "1"]) == ["1", "0"]


def test_a_small_group_tells_nothing_of_its_members() -> None:
    events = [("ann", 0, 0, 1.0)] * 4 + [("bob", 1, 0, 1.0)] * 20
    model = learned(events, strength=1.0, min_count=5.0)
    assert model.predict_one("eve", "0") == model.predict_one("stranger", "0")
    assert learned(events, strength=1.0).predict_one("eve", "0") > model.predict_one("eve", "0")


@given(events=EVENTS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_withdrawn_events_leave_the_group_they_were_counted_in(
    events: list[Step], data: st.DataObject
) -> None:
    moved = data.draw(st.sampled_from(["F", "M", "X"]))
    model = learned(events, strength=3.0)
    model.learn_profile("ann", {"labels": {"gender": moved}})
    gone = data.draw(st.sets(st.integers(0, len(events) - 1), max_size=8))
    for k in sorted(gone):
        assert model.retract(events[k][0], str(k))
    left = [event for k, event in enumerate(events) if k not in gone]
    if not left:
        return
    for gender, user in (("F", "eve"), ("M", "tom"), (None, "who")):
        for item in {item for _, item, _, _ in left}:
            expected = share(left, item, gender, 3.0, 0.0)
            assert model.predict_one(user, str(item)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(events=EVENTS)
@settings(max_examples=25, deadline=None)
def test_a_forgotten_user_is_taken_out_of_his_groups(events: list[Step]) -> None:
    model = learned([*events, ("eve", 0, 300, 1.0)], strength=3.0)
    model.learn_profile("ann", {"gender": "M"})
    model.forget("ann")
    left = [event for event in [*events, ("eve", 0, 300, 1.0)] if event[0] != "ann"]
    for user in ("ann", "eve", "tom"):
        gender = None if user == "ann" else GROUP_OF[user]
        for item in {item for _, item, _, _ in left}:
            expected = share(left, item, gender, 3.0, 0.0)
            assert model.predict_one(user, str(item)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert all(b"ann" not in array.tobytes() for array in model.to_arrays().values())


def test_a_forgotten_item_leaves_the_pasts_in_step() -> None:
    events = [("ann", item, 0, 1.0) for item in (0, 1, 2)]
    model = learned(events, strength=3.0)
    model.learn_profile("ann", {"gender": "M"})
    model.learn_one("ann", "3", x={"event_id": "new"})
    model.forget(item="1")
    assert model.retract("ann", "0")
    assert model.retract("ann", "new")
    left = [("ann", 2, 0, 1.0)]
    assert model.predict_one("eve", "2") == pytest.approx(share(left, 2, "F", 3.0, 0.0))
    assert model.predict_one("tom", "2") == pytest.approx(share(left, 2, "M", 3.0, 0.0))


def test_groups_beyond_the_most_count_for_all_alone() -> None:
    model = GroupPopularity(keys=("country",), max_groups=2, strength=1.0)
    for country in "abcd":
        model.learn_profile(country, {"country": country})
        model.learn_one(country, f"of {country}")
    assert model.predict_one("a", "of a") > model.predict_one("d", "of d")
    assert model.predict_one("d", "of d") == model.predict_one("stranger", "of d") == 0.25


def test_two_owners_and_a_replica_agree_with_one_process() -> None:
    single, left, right = (GroupPopularity(keys=("g",), strength=1.0) for _ in range(3))
    for k in range(30):
        user, item, owner = f"u{k % 4}", f"i{k * 7 % 5}", (left, right)[k % 2]
        for model in (single, owner):
            model.learn_profile(user, {"g": "odd" if k % 4 in (1, 2) else "even"})
        single.learn_one(user, item, x={"timestamp": k * HOUR_MS})
        record = owner.learn_user([(user, item, 1.0, {"timestamp": k * HOUR_MS})])
        for replica in (left, right):
            replica.replicate(record)
        assert owner.predict_one(user, item) == single.predict_one(user, item)
    arrays = single.item_arrays()
    for replica in (left, right):
        for name, array in replica.item_arrays().items():
            assert array.tobytes() == arrays[name].tobytes(), name


def test_snapshot_keeps_profiles_and_groups_of_the_past() -> None:
    model = learned([("ann", 0, 0, 1.0), ("bob", 1, 0, 1.0), ("ann", 1, 1, 1.0)], strength=1.0)
    model.learn_profile("ann", {"gender": "M"})
    restored = GroupPopularity(keys=("gender",), half_life_s=360_000.0, strength=1.0)
    restored.from_arrays(model.to_arrays())
    for one in (model, restored):
        assert one.retract("ann", "0")
    assert restored.digest() == model.digest()
    assert restored.predict_one("ann", "1") == model.predict_one("ann", "1")


def test_factors_of_another_model_are_no_groups() -> None:
    model = GroupPopularity()
    record = model.learn_user([("u", "a", 1.0, None)])
    for before in (np.full((1, 3), 7.0, np.float32), np.full((1, 1), -2.0, np.float32)):
        record.user_before = record.user_after = before
        model.replicate(record)
    assert model.item_arrays()["group_popularity.groups"].tolist() == []
    assert model.predict_one("u", "a") == 1.0


@given(
    labels=st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.one_of(st.text("xyä", max_size=3), st.floats(), st.none())
    )
)
@settings(max_examples=60, deadline=None)
def test_a_code_is_a_whole_number_that_a_float_holds(labels: dict[str, object]) -> None:
    code = group_code(labels, ("b", "a"))
    assert 0 <= code <= CODES
    assert int(np.float32(code)) == code
    assert (code == 0) == all(labels.get(key) is None for key in ("a", "b"))
    assert code == group_code(labels, ("a", "b"))


@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_of_labelled_users(check: object) -> None:
    def make() -> GroupPopularity:
        model = GroupPopularity(keys=("g",), half_life_s=0.0, max_groups=3)
        for k in range(5):
            model.learn_profile(f"user-{k}", {"g": k % 4})
        return model

    if check is not checks.check_forgotten_user_is_unknown:  # compares with a user never labelled
        check(make)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"keys": ()}, "keys is"),
        ({"keys": "age"}, "keys is 'age'"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"min_count": -1.0}, "min_count is -1.0"),
        ({"numeric_step": float("nan")}, "numeric_step is nan"),
        ({"max_groups": 0}, "max_groups is 0"),
        ({"half_life_s": 0.5}, "half_life_s is 0.5"),
    ],
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GroupPopularity(**kwargs)  # type: ignore[arg-type]


def test_labels_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(TypeError, match="labels must map names"):
        GroupPopularity().learn_profile("u", {"labels": ["F"]})
