"""Drift: River's detectors on a model's prequential hits or losses, and what is done at an alarm."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from river import drift
from river.base import DriftDetector

from online_models.base import Context, OnlineRanker
from online_models.corrections import weight_of
from online_models.item_table import ItemTable
from online_models.learning_batch import MAX_ABS_WEIGHT, MAX_TIME_MS

__all__ = ["ANSWERS", "DETECTORS", "DriftAlarm", "DriftMonitor", "MonitoredModel"]

ANSWERS = ("none", "forget", "step", "retrain")
SIGNALS = ("hit", "loss")
DETECTORS: dict[str, tuple[type[DriftDetector], dict[str, Any]]] = {
    "adwin": (drift.ADWIN, {"delta": 0.002}),
    "page_hinkley": (drift.PageHinkley, {"delta": 0.02, "threshold": 50.0}),
    "kswin": (drift.KSWIN, {"alpha": 1e-6, "window_size": 400, "stat_size": 150}),
}
"""Defaults for hits and misses: with River's own, Page-Hinkley and KSWIN raise false alarms in 20,000 of
them."""
ALARMS_KEPT = 1000


class DriftAlarm(msgspec.Struct, frozen=True, kw_only=True):
    """One alarm: the how manieth value, its event's time, "worse" or "better", and means on both sides."""

    event: int
    time_ms: int
    kind: str
    before: float
    after: float


class DriftMonitor:
    r"""Watches one signal of one model, and answers when it becomes worse.

    Each event's hit (1 or 0, higher is better) or loss (lower is better) goes to `update`, which gives the
    alarm if the detector raises one, with the means before and after the likeliest place of the change, at
    most `recent` values ago. A change for the better is reported too, and not answered. The answer to an
    alarm for the worse:

    - "none": nothing;
    - "forget": event time leaps on by `half_lives` times `half_life_s` (`context` moves the timestamps on),
      once: what the model counted before is divided by 2 to the power of `half_lives`, at once, and what
      comes fades as slowly as ever. Late events from before the leap stay before it;
    - "step": for `duration_events` values, events weigh `factor` times as much, which multiplies a factor
      model's learning rate (bounded by the model's own bound);
    - "retrain": `retrain_due` is set until `retrained()`, and `on_retrain` is called with the alarm.

    The monitor is not replicated state. It runs where each event is judged once, in an evaluator or at the
    owner of partition 0; what it changes of an event (time, weight) it changes before the event is learned,
    so the log carries it and the replicas agree. `leaps` must be kept with the model where that is stored.

    Parameters: detector, "adwin", "page_hinkley", "kswin" or any River drift detector; parameters of a named
    one; signal, "hit" or "loss"; answer; half_lives; half_life_s (`MonitoredModel` sets its model's);
    factor; duration_events; recent; on_retrain.

    References: Bifet and Gavaldà, Learning from Time-Changing Data with Adaptive Windowing, SDM 2007. Page,
    Continuous Inspection Schemes, Biometrika 1954. Gama et al., A Survey on Concept Drift Adaptation, ACM
    Computing Surveys 2014.

    >>> sensitive = {"delta": 0.02, "threshold": 20.0}
    >>> monitor = DriftMonitor("page_hinkley", answer="retrain", parameters=sensitive)
    >>> hits = [1, 0] * 300 + [0] * 100
    >>> [alarm] = [a for n, hit in enumerate(hits) if (a := monitor.update(hit, 1000 * n)) is not None]
    >>> alarm.event, alarm.time_ms, alarm.kind, round(alarm.before, 3), alarm.after, monitor.retrain_due
    (643, 642000, 'worse', 0.501, 0.0, True)
    """

    def __init__(
        self,
        detector: str | DriftDetector = "adwin",
        answer: str = "none",
        signal: str = "hit",
        factor: float = 16.0,
        duration_events: int = 1000,
        recent: int = 500,
        on_retrain: Callable[[DriftAlarm], None] | None = None,
        parameters: Mapping[str, Any] | None = None,
        half_lives: float = 6.0,
        half_life_s: float = 0.0,
    ) -> None:
        if answer not in ANSWERS or signal not in SIGNALS:
            raise ValueError(
                f"answer {answer!r} must be one of {', '.join(ANSWERS)}, signal {signal!r} one of "
                f"{', '.join(SIGNALS)}"
            )
        if not 1.0 <= factor <= 1e4 or duration_events < 1 or recent < 1:
            raise ValueError(
                f"factor {factor} must be 1 to 10000, duration_events {duration_events} and recent {recent} "
                "at least 1"
            )
        if not 0.0 <= half_lives <= 100.0 or not 0.0 <= half_life_s <= 1e12:
            raise ValueError(
                f"half_lives {half_lives} must be 0 to 100, half_life_s {half_life_s} 0 to 1e12 seconds"
            )
        self.detector = _made_detector(detector, parameters)
        self.answer = answer
        self.signal = signal
        self.factor = factor
        self.duration_events = duration_events
        self.recent = recent
        self.on_retrain = on_retrain
        self.half_lives = half_lives
        self.half_life_s = half_life_s
        self.leaps: list[tuple[int, int]] = []
        """Event times, ms, from which on times are moved, and by how much in all; both rise."""
        self.retrain_due = False
        self.alarms: deque[DriftAlarm] = deque(maxlen=ALARMS_KEPT)
        self.events = 0
        self._in_force = 0
        self._newest_ms = -1
        self._restart()

    @property
    def answering(self) -> bool:
        """Do events weigh more now, by the answer "step"?"""
        return self._in_force > 0

    def update(self, value: float, time_ms: int = 0) -> DriftAlarm | None:
        """Take the next hit or loss; the alarm, if it raises one. Raises ValueError for one not finite."""
        if not math.isfinite(value):
            raise ValueError(f"{self.signal} is {value!r} at event {self.events}, but must be finite")
        self.events += 1
        self._newest_ms = max(self._newest_ms, time_ms)
        self._in_force = max(self._in_force - 1, 0)
        self._count += 1
        self._sum += value
        self._last.append(value)
        self.detector.update(value)
        if not self.detector.drift_detected:
            return None
        alarm = self._made_alarm(time_ms)
        self.alarms.append(alarm)
        self._restart()
        if alarm.kind == "worse":
            self._give_answer(alarm)
        return alarm

    def context(self, y: float = 1.0, x: Context | None = None) -> Context | None:
        """x as the event is to be learned: with its time and weight as the answer makes them."""
        made = dict(x or {})
        if self.leaps and made.get("timestamp") is not None:
            time_ms = int(made["timestamp"])
            lead_ms = next((lead for start, lead in reversed(self.leaps) if time_ms >= start), 0)
            made["timestamp"] = min(time_ms + lead_ms, MAX_TIME_MS)
        if self.answer == "step" and self.answering:
            weight = self.factor * weight_of(y, x)
            made["weight"] = min(max(weight, -MAX_ABS_WEIGHT), MAX_ABS_WEIGHT)
        return made if made else x

    def retrained(self) -> None:
        """Say that the training asked for has been done."""
        self.retrain_due = False

    def _made_alarm(self, time_ms: int) -> DriftAlarm:
        """Means on both sides of the likeliest place of the change among the last values: where
        n (N - n) / N (after - before)^2 is largest, as for a shift of a normal mean."""
        n = np.arange(1, max(min(len(self._last), self._count - 1), 1) + 1)
        sums = np.cumsum(np.array(self._last)[::-1])[: len(n)]
        afters, befores = sums / n, (self._sum - sums) / np.maximum(self._count - n, 1)
        best = int(np.argmax(n * (self._count - n) * (afters - befores) ** 2))
        before, after = float(befores[best]), float(afters[best])
        is_worse = after < before if self.signal == "hit" else after > before
        return DriftAlarm(
            event=self.events,
            time_ms=time_ms,
            kind="worse" if is_worse else "better",
            before=before,
            after=after,
        )

    def _give_answer(self, alarm: DriftAlarm) -> None:
        if self.answer == "forget":
            lead_ms = self.leaps[-1][1] if self.leaps else 0
            leap_ms = round(1000.0 * self.half_lives * self.half_life_s)
            self.leaps.append((self._newest_ms, lead_ms + leap_ms))
            del self.leaps[:-ALARMS_KEPT]
        elif self.answer == "step":
            self._in_force = self.duration_events
        elif self.answer == "retrain":
            self.retrain_due = True
            if self.on_retrain is not None:
                self.on_retrain(alarm)

    def _restart(self) -> None:
        self._count, self._sum = 0, 0.0
        self._last: deque[float] = deque(maxlen=self.recent)


class MonitoredModel:
    """A model with a monitor, for `prequential.evaluate`: each event of positive weight is judged (is its
    item among the best k of those known that the user did not have of late?), the monitor told, and the
    event learned as the monitor's answer has it. Costs one scoring of the catalogue an event.

    >>> from online_models.popularity import DecayedPopularity
    >>> model = MonitoredModel(DecayedPopularity(half_life_s=3600.0), DriftMonitor(answer="forget"))
    >>> for n in range(5):
    ...     model.learn_one(f"user {n}", "tea", x={"timestamp": n * 1000})
    >>> model.monitor.events, len(model.monitor.alarms)
    (5, 0)
    """

    def __init__(self, model: OnlineRanker, monitor: DriftMonitor, k: int = 10) -> None:
        if monitor.signal != "hit":
            raise ValueError(f"the monitor's signal is {monitor.signal!r}, but hits are what it will be told")
        if monitor.answer == "forget":
            monitor.half_life_s = monitor.half_life_s or float(getattr(model, "half_life_s", 0.0))
            if monitor.half_life_s == 0.0:
                raise ValueError(
                    f"answer 'forget' leaps by half-lives, but {type(model).__name__} has none, and the "
                    "monitor's half_life_s is 0"
                )
        self.model = model
        self.monitor = monitor
        self.k = k

    @property
    def items(self) -> ItemTable:
        """The model's."""
        return self.model.items

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Context | None = None) -> None:
        """Judge, tell the monitor, learn."""
        if weight_of(y, x) > 0.0:
            self.monitor.update(self._hit(user, item), int((x or {}).get("timestamp") or 0))
        self.model.learn_one(user, item, y, self.monitor.context(y, x))

    def predict_one(self, user: str, item: str, x: Context | None = None) -> float:
        """The model's."""
        return self.model.predict_one(user, item, x)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """The model's."""
        return self.model.score_rows(user, rows)

    def _hit(self, user: str, item: str) -> float:
        """1 if fewer than k items stand above, ties counted half; 0 for an unknown item."""
        target = self.items.row(item)
        if target < 0:
            return 0.0
        scores = self.model.score_rows(user, np.arange(len(self.items), dtype=np.int32))
        of_late = self.model.recent_rows(user, 50)[0]
        mine = scores[target]
        scores[of_late[(of_late >= 0) & (of_late != target)]] = -np.inf
        above, tied = int((scores > mine).sum()), int((scores == mine).sum()) - 1
        return float(above + tied / 2.0 < self.k)


def _made_detector(detector: str | DriftDetector, parameters: Mapping[str, Any] | None) -> DriftDetector:
    if isinstance(detector, DriftDetector):
        if parameters:
            raise ValueError("parameters belong to a detector given by name; set them on the detector itself")
        return detector
    if detector not in DETECTORS:
        raise ValueError(
            f"no detector {detector!r}; there are {', '.join(DETECTORS)}, and any of River's own"
        )
    made, defaults = DETECTORS[detector]
    return made(**{**defaults, **({"seed": 0} if detector == "kswin" else {}), **(parameters or {})})
