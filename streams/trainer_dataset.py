"""A data set as the learning log that one worker would write of it, without Kafka.

The worker's own fast path does it (`Intake`, `Learner`, `LogWriter`), so the trainer sees the records that it
would see in production, and what it learns from them is the same. Users' tokens alone are not random here but
numbers in order of arrival: two runs on a data set are the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from online_models.item_state import ItemState
from streams.dead_letters import HEADER_PREFIX
from streams.events import Event
from streams.intake import Intake
from streams.learner import Learner
from streams.learning_log import LogRecord, decode_record, learn_record
from streams.records import Header
from streams.replay import encode_record
from streams.settings import Settings
from streams.shards import Shard, Shards

__all__ = ["LocalWorker"]

MOST_REASONS = 5
BATCH_EVENTS = 500
"""As many as a worker takes at once under load; what it learns of one batch helps the next."""


@dataclass(frozen=True, slots=True)
class _Record:
    """An event as a consumer would hand it out of partition 0 of `events`."""

    name: str
    data: bytes
    user: bytes
    place: int
    time_ms: int

    def key(self) -> bytes:
        return self.user

    def value(self) -> bytes:
        return self.data

    def headers(self) -> Sequence[Header] | None:
        return None

    def set_headers(self, value: list[Header], /) -> None:
        """They have none, and get none."""

    def topic(self) -> str:
        return self.name

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place

    def timestamp(self) -> tuple[int, int]:
        return 1, self.time_ms


class LocalWorker:
    """Learns a data set's events, and gives the records of the learning log that come of it."""

    def __init__(self, settings: Settings, batch_events: int = BATCH_EVENTS) -> None:
        """Events are learned so many at a time; one by one, each is learned from all before it."""
        self._settings = settings
        self._batch_events = batch_events
        self._items = ItemState(settings.models)
        self._intake = Intake(settings, 1)
        self._shards = Shards(settings, "data set", self._intake.reader.type_names)
        self._shards.owned[0] = Shard(0)
        self._learner = Learner(settings, self._items, self._shards, 1)
        self._tokens: dict[int, int] = {}
        self.rejected: list[str] = []
        """Why events were left out, by the validator's words; the first few."""
        self.left_out = 0

    def records(
        self, events: Sequence[Event], progress: Callable[[int], None] | None = None
    ) -> Iterator[LogRecord]:
        """Records of the log in their order; `progress` hears how many events are done."""
        for start in range(0, len(events), self._batch_events):
            part = events[start : start + self._batch_events]
            yield from self._learned([self._record(start + n, event) for n, event in enumerate(part)])
            if progress is not None:
                progress(start + len(part))

    def _record(self, place: int, event: Event) -> _Record:
        from streams.datasets import time_ms

        at = event.timestamp if isinstance(event.timestamp, int) else time_ms(event.timestamp)
        name = self._settings.names["events"]
        return _Record(name, encode_record(event), event.user_id.encode(), place, at)

    def _learned(self, records: Sequence[_Record]) -> Iterator[LogRecord]:
        batch = self._intake.admit(records, self._shards)
        self.left_out += len(records) - len(batch.accepted)
        for dead in batch.dead[: max(0, MOST_REASONS - len(self.rejected))]:
            reason = dict(dead.headers or ()).get(f"{HEADER_PREFIX}message") or b""
            self.rejected.append(reason if isinstance(reason, str) else reason.decode())
        if not len(batch.accepted):
            return
        self._learner.start(batch)
        rows = self._learner.learn(batch, batch.accepted)
        for value in self._learner.log.pack(rows):
            record = decode_record(value, "the data set")
            learn_record(self._items, record, "the data set")
            yield self._numbered(record)
        self._learner.codes.follow(*self._items.take_changes())

    def _numbered(self, record: LogRecord) -> LogRecord:
        tokens = record.column("token", "<u8").tolist()
        numbers = [self._tokens.setdefault(token, len(self._tokens) + 1) for token in tokens]
        return msgspec.structs.replace(record, token=np.array(numbers, "<u8").tobytes())
