"""What the trainer keeps of the learning log: the newest, less what was taken back; and when it is due."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from online_models.learning_batch import WITHDRAW
from serving.training.dataset import InteractionLog
from streams.errors import SettingsError
from streams.events import Event
from streams.learning_log import LogRecord
from streams.settings import load_settings
from streams.trainer_dataset import LocalWorker
from streams.trainer_drift import DriftWatch, hits_at_10
from streams.trainer_log import TakenBack, TrainingLog, append_record, made_replay
from streams.trainer_start import time_ms_of

T0 = 1_700_000_000_000
SETTINGS = load_settings(environ={}, overrides={"trainer": {"head_examples": 40}})


def events_of(count: int, users: int = 7, items: int = 30) -> list[Event]:
    return [
        Event(
            event_id=f"e{n}",
            user_id=f"u{n % users}",
            item_id=f"i{(n * 11 + n // users) % items}",
            event_type="click" if n % 5 else "purchase",
            timestamp=T0 + 1000 * n,
        )
        for n in range(count)
    ]


def records_of(events: Sequence[Event]) -> list[LogRecord]:
    return list(LocalWorker(SETTINGS).records(events))


def rows_of(log: InteractionLog) -> list[tuple[int, str, str, int]]:
    """User, item, event type and time of each row."""
    return [
        (user, log.item_ids[item], log.event_types[kind], at)
        for user, item, kind, at in zip(
            log.column("user").tolist(),
            log.column("item").tolist(),
            log.column("event_type").tolist(),
            log.column("time_ms").tolist(),
            strict=True,
        )
    ]


def test_a_data_set_gives_the_rows_of_its_events_and_the_same_ones_each_time() -> None:
    events = events_of(1200)
    logs = []
    for _ in range(2):
        training = TrainingLog(10_000)
        for offset, record in enumerate(records_of(events)):
            training.add(record, offset, "here")
        logs.append(rows_of(training.interactions()))
    numbers: dict[str, int] = {}
    expected = [
        (numbers.setdefault(e.user_id, len(numbers) + 1), e.item_id, e.event_type, e.timestamp)
        for e in events
    ]
    assert logs[0] == expected
    assert logs[1] == expected


def test_what_the_validator_rejects_is_left_out_with_its_words() -> None:
    events = events_of(20)
    events[3] = Event(event_id="", user_id="u", item_id="i", event_type="click", timestamp=T0)
    worker = LocalWorker(SETTINGS)
    told: list[int] = []
    assert sum(record.n for record in worker.records(events, told.append)) == 19
    assert worker.left_out == 1
    assert "event_id" in worker.rejected[0]
    assert told[-1] == 20


@pytest.mark.parametrize("most", [100, 333])
def test_only_the_newest_are_kept(most: int) -> None:
    events = events_of(2000)
    training, whole = TrainingLog(most), TrainingLog(10_000)
    for offset, record in enumerate(records_of(events)):
        for log in (training, whole):
            log.add(record, offset, "here")
    assert training.seen == 2000
    kept, every = training.interactions(), whole.interactions()
    assert [(u, i, t) for u, i, _, t in rows_of(kept)] == [(u, i, t) for u, i, _, t in rows_of(every)][-most:]
    assert set(kept.item_ids) <= set(every.item_ids)


def test_a_replay_makes_examples_of_the_newest_events_only() -> None:
    events = events_of(4000, items=5000)
    records = records_of(events)
    training = TrainingLog(10_000, made_replay(SETTINGS))
    training.follow_to(len(records), SETTINGS.trainer.head_examples)
    for offset, record in enumerate(records):
        training.add(record, offset, "here")
    interactions = training.interactions()
    examples = training.examples(interactions)
    assert examples is not None
    assert 0 < len(examples) <= 40
    times = interactions.column("time_ms")
    assert examples.times_ms.min() >= times[-500]
    for row, target in zip(examples.rows.tolist(), examples.target_items.tolist(), strict=True):
        assert interactions.item_ids[interactions.column("item")[row]] == examples.item_ids[target]


def withdrawal_of(record: LogRecord) -> LogRecord:
    """The record, each of its rows taken back."""
    return msgspec.structs.replace(record, kind=np.full(record.n, WITHDRAW, np.uint8).tobytes())


def test_what_was_withdrawn_is_not_trained_on_and_forgotten_with_its_time() -> None:
    [record] = records_of(events_of(30))
    data, taken_back = InteractionLog(), TakenBack()
    append_record(data, record, 0)
    taken_back.add(withdrawal_of(record), 1)
    assert len(taken_back.rest_of(data)) == 0
    taken_back.prune(T0 + 20_000)
    assert [at for *_, at in rows_of(taken_back.rest_of(data))] == [T0 + 1000 * n for n in range(20)]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1700000000000", T0),
        ("2023-11-14T22:13:20Z", T0),
        ("2023-11-14T23:13:20+01:00", T0),
        ("2023-11-14T22:13:20.500", T0 + 500),
    ],
)
def test_times_are_ms_or_rfc_3339(text: str, at: int) -> None:
    assert time_ms_of(text) == at


def test_another_time_says_how_to_write_one() -> None:
    with pytest.raises(SettingsError, match=r"schedule\.from_time='yesterday'.*RFC 3339"):
        time_ms_of("yesterday")


def test_hits_count_ties_half_and_only_what_was_found() -> None:
    online = np.zeros((4, 25), np.float32)
    online[:, :9] = 1.0
    online[1, 9:] = np.linspace(0.9, 0.1, 16)
    targets = np.array([20, 9, 24, -1], np.int32)  # 9 above and 15 tied; 9 above; behind the list; none
    length = np.array([25, 25, 24, 25], np.int32)
    assert hits_at_10(online, targets, length).tolist() == [False, True, False, False]
    few = np.array([5, 10, 5, 5], np.int32)
    assert hits_at_10(online, np.array([3, 9, 5, -1], np.int32), few).tolist() == [True, True, False, False]


@pytest.mark.parametrize("detector", ["adwin", "page_hinkley"])
def test_a_fall_of_the_hits_is_due_once_and_no_rise_is(detector: str) -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random(4000) < 0.3, rng.random(4000) < 0.1
    times = np.arange(4000)
    watch = DriftWatch(detector)
    watch.add(before, times)
    assert not watch.due
    watch.add(after, times + 4000)
    assert watch.due
    watch.trained()
    watch.add(after, times + 8000)
    assert not watch.due
    rise = DriftWatch(detector)
    rise.add(np.concatenate((after, before)), np.arange(8000))
    assert not rise.due


def test_a_log_that_the_models_can_not_read_is_trained_on_without_features(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = load_settings(environ={}, overrides={"models": {"seed": 99}})
    training = TrainingLog(10_000, made_replay(other))
    for offset, record in enumerate(records_of(events_of(600))):
        training.add(record, offset, f"here@{offset}")
    assert len(training.interactions()) == 600
    assert training.examples(training.interactions()) is None
    assert caplog.text.count("without the online features") == 1
