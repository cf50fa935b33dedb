"""When the trainer is due: its three reasons, each with its numbers, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from serving.ranker.errors import RankerError, RegistryError
from serving.training.dataset import NotEnoughDataError
from serving.training.distributed import ALONE, World
from serving.training.train import TrainingDivergedError
from streams.errors import FreshetError
from streams.settings import Settings, load_settings
from streams.trainer import Trainer
from streams.trainer_log import TrainingLog, made_replay
from streams.trainer_schedule import Schedule
from tests.integration.trainer_cases import CHAIN_USERS, chain_events, records_of


def settings_with(**schedule: Any) -> Settings:
    never = {"every_s": 0.0, "every_interactions": 10**9}
    return load_settings(
        environ={},
        overrides={
            "trainer": {"min_interactions": 100, "head_examples": 40},
            "schedule": {**never, **schedule},
        },
    )


def test_a_count_is_due_again_after_as_many() -> None:
    schedule = Schedule(settings_with(every_interactions=300))
    assert [bool(schedule.reason(seen)) for seen in (0, 299, 300)] == [False, False, True]
    assert schedule.reason(310) == "310 new interactions (schedule.every_interactions=300)"
    schedule.began(310)
    assert [bool(schedule.reason(seen)) for seen in (310, 609, 610)] == [False, False, True]


def test_the_clock_counts_only_where_anything_is_new_and_enough() -> None:
    now_s = 1000.0
    schedule = Schedule(settings_with(every_s=60.0), lambda: now_s)
    assert not schedule.reason(500)
    now_s = 1060.0
    assert not schedule.reason(99), "fewer than trainer.min_interactions"
    assert schedule.reason(500) == "500 new interactions after 60 s (schedule.every_s=60)"
    schedule.began(500)
    now_s = 2000.0
    assert not schedule.reason(500), "nothing is new"
    assert schedule.reason(501).startswith("1 new interactions after 940 s")
    assert not Schedule(settings_with(every_s=0.0), lambda: now_s).reason(500)


@pytest.mark.parametrize("on_drift", [True, False])
def test_users_who_turn_to_something_else_are_due_where_drift_is_asked_for(on_drift: bool) -> None:
    settings = settings_with(on_drift=on_drift)
    schedule = Schedule(settings)
    training = TrainingLog(10_000, made_replay(settings, schedule.drift))
    reasons: dict[int, str] = {}
    for offset, record in enumerate(records_of(settings, chain_events([7] * 20 + [11] * 5))):
        training.add(record, offset, "here")
        reasons[training.seen] = schedule.reason(training.seen)
    changed = 20 * CHAIN_USERS
    assert sorted(reasons)[-2] == changed, "no record ends where the users change"
    assert not any(reason for seen, reason in reasons.items() if seen <= changed)
    last = reasons[training.seen]
    assert last.startswith("drift at ") == on_drift
    assert "from 0.99" in last or not on_drift
    schedule.began(training.seen)
    assert not schedule.reason(training.seen + 1), "one alarm, two trainings"


@pytest.mark.parametrize(
    ("cause", "goes_on"),
    [
        (NotEnoughDataError("100 interactions"), (True, True)),
        (RegistryError("no store", "store"), (True, False)),
        (RankerError("no export"), (True, False)),
        (TrainingDivergedError("loss is nan"), (False, False)),
        (None, (False, False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_process_goes_on_only_where_the_others_are(
    cause: Exception | None, goes_on: tuple[bool, bool]
) -> None:
    """With several, whoever stands elsewhere would exchange one thing for another: it must end."""
    error = FreshetError("training on 1000 interactions")
    error.__cause__ = cause
    settings = settings_with()
    found = [Trainer(settings, world=World(rank, 2))._can_go_on(error) for rank in (0, 1)]
    assert found == list(goes_on)
    assert Trainer(settings, world=ALONE)._can_go_on(error), "alone it waits, and tries again"
