from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from river import drift

from online_models import ISGD, DecayedPopularity
from online_models.drift import DriftAlarm, DriftMonitor, MonitoredModel
from online_models.prequential import Interaction, evaluate


def hits(n: int, rate: float, seed: int) -> list[float]:
    return [float(hit) for hit in np.random.default_rng(seed).random(n) < rate]


def alarms_of(monitor: DriftMonitor, values: list[float]) -> list[DriftAlarm]:
    found = [monitor.update(value, 1000 * place) for place, value in enumerate(values)]
    return [alarm for alarm in found if alarm is not None]


@pytest.mark.parametrize(("detector", "before"), [("adwin", 3000), ("page_hinkley", 3000), ("kswin", 500)])
def test_a_planted_fall_is_noticed_soon_and_measured(detector: str, before: int) -> None:
    values = hits(before, 0.30, seed=1) + hits(500, 0.05, seed=2)
    monitor = DriftMonitor(detector)
    alarms = alarms_of(monitor, values)
    [alarm] = [alarm for alarm in alarms if before < alarm.event <= before + 400]
    assert alarms == list(monitor.alarms) == [alarm]
    assert (alarm.kind, alarm.time_ms) == ("worse", 1000 * (alarm.event - 1))
    assert alarm.before == pytest.approx(0.30, abs=0.04)
    assert alarm.after == pytest.approx(0.05, abs=0.06)


@pytest.mark.parametrize("detector", ["adwin", "page_hinkley"])
def test_a_stationary_stream_raises_next_to_no_alarm(detector: str) -> None:
    """20,000 hits at each of three rates and two seeds: at most one false alarm in 120,000."""
    found = [
        alarm
        for rate in (0.05, 0.2, 0.5)
        for seed in (3, 4)
        for alarm in alarms_of(DriftMonitor(detector), hits(20_000, rate, seed))
    ]
    assert len(found) <= 1


def test_kswin_raises_no_alarm_on_a_stationary_stream() -> None:
    assert alarms_of(DriftMonitor("kswin"), hits(1500, 0.2, seed=5)) == []


def test_losses_are_worse_when_they_rise() -> None:
    rng = np.random.default_rng(0)
    values = [*rng.normal(3.0, 0.5, 1000).tolist(), *rng.normal(4.0, 0.5, 300).tolist()]
    worse = alarms_of(DriftMonitor(signal="loss"), values)
    better = alarms_of(DriftMonitor(signal="loss"), [7.0 - value for value in values])
    assert [alarm.kind for alarm in worse] == ["worse"]
    assert [alarm.kind for alarm in better] == ["better"]
    assert worse[0].before == pytest.approx(3.0, abs=0.1)
    assert worse[0].after == pytest.approx(4.0, abs=0.3)


def at_alarm(**kwargs: Any) -> DriftMonitor:
    """A monitor that has just raised an alarm for the worse, on hits one second apart."""
    monitor = DriftMonitor("page_hinkley", parameters={"delta": 0.02, "threshold": 10.0}, **kwargs)
    for place in range(2000):
        monitor.context(1.0, {"timestamp": 1000 * place})
        if monitor.update(float(place % 2 == 0 and place < 400), 1000 * place):
            return monitor
    raise AssertionError("no alarm")


def test_forgetting_leaps_once_and_late_events_stay_before_it() -> None:
    monitor = at_alarm(answer="forget", half_lives=3.0, half_life_s=10.0)
    start = 1000 * (monitor.events - 1)
    assert monitor.leaps == [(start, 30_000)]
    assert monitor.context(1.0, {"timestamp": start, "place": "home"}) == {
        "timestamp": start + 30_000,
        "place": "home",
    }
    assert monitor.context(1.0, {"timestamp": start + 7000}) == {"timestamp": start + 37_000}
    assert monitor.context(1.0, {"timestamp": start - 1}) == {"timestamp": start - 1}
    assert monitor.context(1.0, None) is None
    assert not monitor.answering
    monitor._give_answer(monitor.alarms[0])
    assert monitor.leaps[1:] == [(start, 60_000)]
    assert monitor.context(1.0, {"timestamp": start + 5}) == {"timestamp": start + 60_005}


def test_a_leap_divides_what_was_counted_and_nothing_after_it() -> None:
    monitor = at_alarm(answer="forget", half_lives=3.0)
    watched = MonitoredModel(DecayedPopularity(half_life_s=10.0), monitor)
    assert monitor.half_life_s == 10.0
    monitor.leaps.clear()
    start = 10_000_000
    for second, item in [(0, "old"), (0, "old"), (10, "new"), (20, "new")]:
        if second == 10:
            monitor._newest_ms = start + 10_000
            monitor._give_answer(monitor.alarms[0])
        x = monitor.context(1.0, {"timestamp": start + 1000 * second})
        watched.model.learn_one(f"u{second}", item, 1.0, x)
    assert watched.predict_one("v", "old") == pytest.approx(2.0 * 0.5**3 * 0.5**2)
    assert watched.predict_one("v", "new") == pytest.approx(1.0 + 0.5)


def test_a_longer_step_is_a_larger_weight_for_a_while() -> None:
    monitor = at_alarm(answer="step", factor=4.0, duration_events=2)
    assert monitor.context(2.0, {"timestamp": 5}) == {"timestamp": 5, "weight": 8.0}
    assert monitor.context(2.0, {"weight": -0.5}) == {"weight": -2.0}
    assert monitor.context(1.0, {"weight": 9e5}) == {"weight": 1e6}
    monitor.update(1.0)
    monitor.update(1.0)
    assert not monitor.answering
    assert monitor.context(2.0, {"timestamp": 5}) == {"timestamp": 5}


def test_a_raised_weight_is_a_raised_learning_rate() -> None:
    monitor = at_alarm(answer="step", factor=3.0)
    slow = ISGD(dimension=4, learning_rate=0.1, negatives=0)
    fast = ISGD(dimension=4, learning_rate=0.3, negatives=0)
    slow.learn_one("u", "i", 1.0, monitor.context(1.0, None))
    fast.learn_one("u", "i", 1.0)
    assert slow.factors.rows == pytest.approx(fast.factors.rows, rel=1e-6)


def test_retraining_is_asked_for_once() -> None:
    asked: list[DriftAlarm] = []
    monitor = at_alarm(answer="retrain", on_retrain=asked.append)
    assert monitor.retrain_due
    assert asked == list(monitor.alarms)
    monitor.retrained()
    assert not monitor.retrain_due
    assert not monitor.answering


def test_what_is_better_is_reported_and_not_answered() -> None:
    monitor = DriftMonitor(answer="retrain")
    alarms = alarms_of(monitor, hits(1000, 0.05, seed=0) + hits(500, 0.5, seed=1))
    assert {alarm.kind for alarm in alarms} == {"better"}
    assert not monitor.retrain_due


def shifting_stream(n: int, shift: bool) -> list[Interaction]:
    """Skewed popularity over 200 items, one event a second; halfway, the items change places."""
    rng = np.random.default_rng(6)
    share = 1.0 / np.arange(1, 201)
    drawn = rng.choice(200, size=n, p=share / share.sum())
    drawn[n // 2 :] = (drawn[n // 2 :] + 100 * shift) % 200
    return [Interaction(f"u{k}", f"i{drawn[k]}", 1.0, {"timestamp": 1000 * k}) for k in range(n)]


class Recorder(drift.ADWIN):  # type: ignore[misc]
    """ADWIN that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def update(self, x: float) -> None:
        self.told.append(x)
        super().update(x)


def hit_rates(answer: str, half_life_s: float, shift: bool) -> tuple[np.ndarray, DriftMonitor]:
    monitor = DriftMonitor(Recorder(), answer=answer)
    model = MonitoredModel(DecayedPopularity(half_life_s=half_life_s), monitor)
    for event in shifting_stream(3600, shift):
        model.learn_one(*event[:4])
    return np.array(monitor.detector.told), monitor


def events_until_recovered(hits: np.ndarray, window: int = 100) -> int:
    """Events after the shift until a hundred events have 90% of the hit rate before it."""
    old = hits[1200:1800].mean()
    rates = np.convolve(hits[1800:], np.ones(window) / window, "valid")
    return window + int(np.append(np.flatnonzero(rates >= 0.9 * old), len(hits))[0])


def test_forgetting_recovers_from_a_shift_in_half_the_events_of_the_best_fixed_half_life() -> None:
    """Best: soonest recovered of those that lose at most 1% of the hits where nothing shifts."""
    never = {half_life: hit_rates("none", half_life, shift=False)[0].mean() for half_life in (100, 300, 2400)}
    good = [half_life for half_life, rate in never.items() if rate >= 0.99 * max(never.values())]
    assert 100 not in good
    fixed = min(events_until_recovered(hit_rates("none", half_life, shift=True)[0]) for half_life in good)
    hits, monitor = hit_rates("forget", 2400, shift=True)
    assert 2 * events_until_recovered(hits) <= fixed
    assert [alarm.kind for alarm in monitor.alarms][:1] == ["worse"]
    assert 1800 < monitor.alarms[0].event < 2000
    ready, monitor = hit_rates("forget", 2400, shift=False)
    assert ready.mean() >= 0.99 * never[2400]
    assert not monitor.leaps


def test_a_monitored_model_is_evaluated_as_its_own() -> None:
    events = shifting_stream(300, shift=False)
    monitored = MonitoredModel(DecayedPopularity(half_life_s=60.0), DriftMonitor())
    reports = evaluate({"plain": DecayedPopularity(half_life_s=60.0), "monitored": monitored}, events)
    assert reports["plain"].hr_at_10 == reports["monitored"].hr_at_10 > 0.2
    assert monitored.monitor.events == 300
    assert monitored.monitor._sum == pytest.approx(300 * reports["plain"].hr_at_10)


def test_hits_leave_out_what_the_user_had_and_halve_ties() -> None:
    model = MonitoredModel(DecayedPopularity(half_life_s=0.0), DriftMonitor(), k=1)
    for user, item in [("a", "x"), ("b", "x"), ("a", "y"), ("b", "z")]:
        model.learn_one(user, item)
    assert model._hit("a", "x") == 1.0
    assert model._hit("c", "y") == 0.0  # x above it
    assert model._hit("b", "y") == 1.0  # x and z are had
    assert model._hit("a", "z") == 1.0
    assert model._hit("a", "unknown") == 0.0


def test_any_river_detector_will_do() -> None:
    monitor = DriftMonitor(drift.PageHinkley(min_instances=10, threshold=5.0, delta=0.02))
    [first, *_] = alarms_of(monitor, [1.0] * 50 + [0.0] * 50)
    assert 50 < first.event <= 60


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"detector": "oracle"}, "no detector 'oracle'; there are adwin, page_hinkley, kswin"),
        ({"answer": "pray"}, "answer 'pray' must be one of none, forget, step, retrain"),
        ({"signal": "mood"}, "signal 'mood' one of hit, loss"),
        ({"factor": 0.5}, "factor 0.5 must be 1 to 10000"),
        ({"duration_events": 0}, "duration_events 0"),
        ({"half_lives": -1.0}, "half_lives -1.0 must be 0 to 100"),
        ({"detector": drift.ADWIN(), "parameters": {"delta": 0.1}}, "a detector given by name"),
    ],
)
def test_parameters_are_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftMonitor(**kwargs)


def test_values_and_models_that_cannot_be_watched_are_refused() -> None:
    with pytest.raises(ValueError, match="hit is nan at event 0"):
        DriftMonitor().update(float("nan"))
    with pytest.raises(ValueError, match="DecayedPopularity has none"):
        MonitoredModel(DecayedPopularity(half_life_s=0.0), DriftMonitor(answer="forget"))
    with pytest.raises(ValueError, match="signal is 'loss'"):
        MonitoredModel(DecayedPopularity(), DriftMonitor(signal="loss"))
