"""What reading an event costs: a batch into columns, beside an object per event, on the same records.

python -m benchmarks.event_reading
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from typing import cast

from confluent_kafka import Message

from streams.clients import partition_for
from streams.event_columns import EventReader
from streams.records import Record
from streams.settings import ValidationSettings
from streams.validation import EventValidator

__all__ = ["measure"]

TIME_MS = 1_700_000_000_000
PARTITIONS = 8
BATCHES = (1, 100, 5000)
AT_LEAST_EVENTS = 500
"""Events in one timed round."""


def records(n: int, seed: int = 0) -> list[Record]:
    """`n` events of 260 to 280 bytes, as a shop's producer writes them, in the client's own message class."""
    rng = random.Random(seed)
    made = []
    for number in range(n):
        user_id = f"user-{rng.randrange(100_000):07d}"
        event = {
            "event_id": f"{rng.getrandbits(128):032x}",
            "user_id": user_id,
            "item_id": f"item-{rng.randrange(50_000):06d}",
            "event_type": rng.choice(("view", "click", "purchase")),
            "timestamp": TIME_MS + number,
            "value": round(rng.random() * 10, 2),
            "session_id": f"s-{rng.getrandbits(64):016x}",
            "domain": "shop",
            "context": {"device": "mobile", "page": rng.randrange(9), "ok": True},
        }
        key = user_id.encode()
        message = Message(
            topic="events",
            partition=partition_for(key, PARTITIONS),
            offset=number,
            key=key,
            value=json.dumps(event).encode(),
            timestamp=(1, TIME_MS + number),
        )
        made.append(cast(Record, message))
    return made


def measure(rounds: int = 30) -> dict[str, float]:
    """Microseconds an event, the best of `rounds`: `columns_1`, `columns_100`, ... by size of batch, and
    `objects`, `EventValidator.decode_event` on each."""
    events = records(max(BATCHES))
    reader = EventReader(ValidationSettings(), PARTITIONS)
    validator = EventValidator(ValidationSettings(), partial(partition_for, partitions=PARTITIONS))
    reader.read(events)
    if reader.fallbacks:
        raise RuntimeError(f"{reader.fallbacks} of {len(events)} usual events were left to the validator")
    found = {f"columns_{size}": _columns_us(reader, events, size, rounds) for size in BATCHES}
    found["objects"] = _best_us(
        partial(_objects, validator, events[:AT_LEAST_EVENTS]), AT_LEAST_EVENTS, rounds
    )
    return found


def _columns_us(reader: EventReader, events: list[Record], size: int, rounds: int) -> float:
    batches = [events[at : at + size] for at in range(0, max(size, AT_LEAST_EVENTS), size)]

    def read() -> None:
        for batch in batches:
            reader.read(batch)

    return _best_us(read, sum(map(len, batches)), rounds)


def _objects(validator: EventValidator, events: list[Record]) -> None:
    for event in events:
        validator.decode_event(
            event.value(), event.key(), event.partition(), event.offset(), event.timestamp()[1]
        )


def _best_us(work: Callable[[], None], events: int, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds) / events * 1e6


if __name__ == "__main__":
    print(json.dumps({name: round(us, 3) for name, us in measure().items()}))
