from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import checks
from online_models.decayed_counts import NewestTimes
from online_models.group_popularity import GroupPopularity
from online_models.item_table import ItemTable
from online_models.learning_batch import LearningBatch
from online_models.trending import Trending

HOUR_MS = 3_600_000
Step = tuple[int, int, float]
EVENTS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 400), st.sampled_from([1.0, 0.5, 3.0, -1.0])),
    min_size=1,
    max_size=60,
)
VARIANTS = [
    pytest.param(lambda: Trending(short_half_life_s=40_000.0, long_half_life_s=1e6), id="z_score"),
    pytest.param(lambda: Trending(long_half_life_s=0.0), id="past-never-fades"),
    pytest.param(lambda: Trending(mode="window"), id="window"),
]


def learned(events: Sequence[Step], model: Trending) -> Trending:
    for k, (item, hour, weight) in enumerate(events):
        model.learn_one("u", str(item), weight, {"timestamp": hour * HOUR_MS, "event_id": str(k)})
    return model


def z_score(events: Sequence[Step], item: int, short_h: float, long_h: float, shrinkage: float) -> float:
    now = max(hour for _, hour, _ in events)

    def counts(half_life_h: float) -> dict[int, float]:
        found: dict[int, float] = {}
        for other, hour, weight in events:
            found[other] = found.get(other, 0.0) + weight * 0.5 ** ((now - hour) / half_life_h)
        return found

    short, long = counts(short_h), counts(long_h)
    total = sum(max(count, 0.0) for count in long.values())
    share = min(sum(max(count, 0.0) for count in short.values()) / total, 1.0) if total > 0.0 else 0.0
    expected = max(long[item], 0.0) * share
    return (short[item] - expected) / (expected / 2 + shrinkage) ** 0.5


@given(events=EVENTS)
@settings(max_examples=25, deadline=None)
def test_scores_follow_the_equation(events: list[Step]) -> None:
    model = learned(events, Trending(short_half_life_s=36_000.0, long_half_life_s=360_000.0, shrinkage=0.5))
    for item in {item for item, _, _ in events}:
        expected = z_score(events, item, 10.0, 100.0, 0.5)
        assert model.predict_one("u", str(item)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(events=EVENTS, buckets=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_window_is_the_sum_of_its_buckets(events: list[Step], buckets: int) -> None:
    in_order = sorted(events, key=lambda event: event[1])
    model = learned(in_order, Trending(mode="window", bucket_s=7200.0, buckets=buckets))
    newest = in_order[-1][1] // 2
    for item in {item for item, _, _ in events}:
        inside = [w for other, hour, w in events if other == item and newest - buckets < hour // 2]
        assert model.predict_one("u", str(item)) == pytest.approx(sum(inside), abs=1e-6)


def test_what_rises_is_above_what_is_used_most() -> None:
    events = [("evergreen", hour) for hour in range(200) for _ in range(10)]
    events += [("rising", hour) for hour in range(190, 200) for _ in range(4)]
    events += [("fallen", hour) for hour in range(150) for _ in range(4)]
    model = Trending(short_half_life_s=6 * 3600.0, long_half_life_s=96 * 3600.0)
    for item, hour in sorted(events, key=lambda event: event[1]):
        model.learn_one("u", item, x={"timestamp": hour * HOUR_MS})
    assert model.rank("u", ["evergreen", "rising", "fallen", "unknown"])[0] == "rising"
    assert model.predict_one("u", "fallen") < model.predict_one("u", "unknown") == 0.0


def test_a_late_event_counts_in_its_own_bucket_or_not_at_all() -> None:
    model = Trending(mode="window", bucket_s=3600.0, buckets=3)
    model.learn_many(["u"] * 2, ["a", "b"], None, [{"timestamp": hour * HOUR_MS} for hour in (10, 12)])
    assert model.predict_one("u", "a") == 1.0
    model.learn_one("u", "a", x={"timestamp": 9 * HOUR_MS})  # in the ring, outside the window
    model.learn_one("u", "a", x={"timestamp": 1 * HOUR_MS})  # its place in the ring is a newer one's
    assert model.predict_one("u", "a") == 1.0
    model.learn_one("u", "c", x={"timestamp": 13 * HOUR_MS})
    assert model.predict_one("u", "a") == 0.0


@pytest.mark.parametrize("make", VARIANTS[1:])
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract(make: checks.MakeModel, check: object) -> None:
    check(make)  # type: ignore[operator]


@pytest.mark.parametrize("make", VARIANTS)
@given(events=EVENTS, data=st.data())
@settings(max_examples=25, deadline=None)
def test_withdrawing_leaves_what_was_without(make: object, events: list[Step], data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, len(events) - 1), max_size=6))
    model = learned(events, make())  # type: ignore[operator]
    for k in sorted(gone):
        assert model.retract("u", str(k))
    without = [event for k, event in enumerate(events) if k not in gone]
    within_window = not without or max(e[1] for e in events) - max(e[1] for e in without) < 24
    if model.mode == "window" and not within_window:
        return
    expected = learned(without, make())  # type: ignore[operator]
    for item in {item for item, _, _ in without}:
        score = model.predict_one("u", str(item))
        assert score == pytest.approx(expected.predict_one("u", str(item)), rel=1e-4, abs=1e-4)


@given(times=st.lists(st.integers(0, 50), min_size=1, max_size=200), data=st.data())
@settings(max_examples=50, deadline=None)
def test_newest_time_is_known_after_removals(times: list[int], data: st.DataObject) -> None:
    newest = NewestTimes()
    newest.add(np.array(times[:3]))
    newest.add(np.array(times[3:], dtype=np.int64))
    gone = data.draw(st.lists(st.sampled_from(times), max_size=min(len(times) - 1, 100), unique=True))
    newest.remove(np.array(gone, dtype=np.int64))
    left = list(times)
    for time in gone:
        left.remove(time)
    assert newest.now == max(left, default=min(times))
    assert len(newest.times) <= NewestTimes.KEPT


def many(n: int, seed: int = 0) -> LearningBatch:
    rng = np.random.default_rng(seed)
    weight = rng.choice([1.0, 1.0, 0.0, -1.0, 1e6, -1e6], size=n).astype(np.float32)
    return LearningBatch(
        item_ids=[f"i{k}" for k in range(100)],
        item=rng.integers(0, 100, size=n).astype(np.int32),
        recent=np.zeros((n, 0), dtype=np.int32),
        time_ms=1_600_000_000_000 + np.cumsum(rng.integers(-(10**5), 10**6, size=n)),
        weight=weight,
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=rng.integers(0, 9, size=(n, 1)).astype(np.float32),
        user_after=np.zeros((n, 1), dtype=np.float32),
        negatives=np.zeros((n, 0), dtype=np.int32),
    )


@pytest.mark.parametrize(
    "model",
    [Trending(short_half_life_s=3600.0), Trending(mode="window"), GroupPopularity(half_life_s=3600.0)],
    ids=lambda model: type(model).__name__,
)
def test_100_000_random_events_leave_it_finite_and_totals_true(model: Trending | GroupPopularity) -> None:
    model.items = ItemTable(limit=70)  # items come and go
    model.replicate(many(100_000))
    rows = np.arange(len(model.items), dtype=np.int32)
    scores = (
        [model.score(rows)] if isinstance(model, Trending) else [model.score(code, rows) for code in range(9)]
    )
    assert all(np.isfinite(score).all() and np.ptp(score) > 0.0 for score in scores)
    assert model.items.evictions > 1000
    for name, array in model.item_arrays().items():
        if name.endswith(".counts"):
            total = model.item_arrays()[name.replace(".counts", ".totals")]
            scale = np.abs(array).sum(axis=0)
            assert np.abs(np.maximum(array, 0.0).sum(axis=0) - total).max() <= 1e-6 * scale.max(), name


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"mode": "median"}, "mode is 'median'"),
        ({"short_half_life_s": 10.0, "long_half_life_s": 10.0}, "short_half_life_s is 10.0"),
        ({"short_half_life_s": 0.0}, "short_half_life_s is 0.0"),
        ({"long_half_life_s": 0.5}, "half_life_s is 0.5"),
        ({"shrinkage": 0.0}, "shrinkage is 0.0"),
        ({"bucket_s": 0.1}, "bucket_s is 0.1"),
        ({"buckets": 0}, "buckets 0"),
    ],
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Trending(**kwargs)  # type: ignore[arg-type]
