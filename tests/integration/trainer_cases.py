"""What the trainer's tests share: records in the learning log, and a small network that is soon trained."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from streams.clients import make_producer, producer_config
from streams.events import Event
from streams.learning_log import LogRecord
from streams.settings import Settings
from streams.trainer_dataset import LocalWorker

__all__ = ["CHAIN_USERS", "T0", "chain_events", "quick", "records_of", "write"]

T0 = 1_700_000_000_000
CHAIN_ITEMS, CHAIN_USERS = 120, 100


def chain_events(steps: Sequence[int]) -> list[Event]:
    """All users walk around a ring of items, in turns; in turn n each goes on by steps[n], so that one with
    another step than those before is a change of taste. The first items are anywhere."""
    at = np.random.default_rng(5).integers(0, CHAIN_ITEMS, CHAIN_USERS)
    events: list[Event] = []
    for step in steps:
        at = (at + step) % CHAIN_ITEMS
        for user, item in enumerate(at.tolist()):
            number = len(events)
            events.append(
                Event(
                    event_id=f"e{number}",
                    user_id=f"u{user}",
                    item_id=f"i{item}",
                    event_type="click",
                    timestamp=T0 + 1000 * number,
                )
            )
    return events


def quick(settings: Settings, **schedule: object) -> Settings:
    """A small network, a lenient gate, and no other reason to train than a killed training."""
    trainer = msgspec.structs.replace(
        settings.trainer, dim=16, blocks=1, history_length=10, max_epochs=3, patience=3,
        max_cpu_seconds=600.0, max_seconds=600.0, head_examples=200,
        gate=msgspec.structs.replace(settings.trainer.gate, min_ndcg_gain=-1.0, ndcg_tolerance=1.0),
        compression=msgspec.structs.replace(settings.trainer.compression, candidates=()),
    )  # fmt: skip
    never = {"every_s": 0.0, "every_interactions": 10**9, "niceness": 0}
    return msgspec.structs.replace(
        settings,
        trainer=trainer,
        schedule=msgspec.structs.replace(settings.schedule, **{**never, **schedule}),
    )


def records_of(settings: Settings, events: Sequence[Event]) -> list[LogRecord]:
    """The learning log of one worker that had these events."""
    return list(LocalWorker(settings).records(events))


def write(settings: Settings, records: Sequence[LogRecord], times_ms: Sequence[int] | None = None) -> None:
    """Records into the learning log, each with its own time."""
    producer = make_producer(producer_config(settings))
    for number, record in enumerate(records):
        at = int(time.time() * 1000) if times_ms is None else times_ms[number]
        topic, value = settings.names["interactions"], msgspec.msgpack.encode(record)
        producer.produce(topic, value, partition=0, timestamp=at)
    assert producer.flush(20) == 0
