"""Records in, good ones and bad ones out: decode, validate, drop duplicates.

A bad record is data: it becomes a dead letter, bytes untouched, and the stream goes on. Only when most of the
latest records are bad does the worker stop, for then a producer has broken.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from streams.dead_letters import dead_letter
from streams.records import Record
from streams.rejects import Reason, Rejected, RejectGuard
from streams.settings import Settings
from streams.shards import Shards
from streams.source import Source
from streams.transaction import OutputRecord
from streams.user_state import Shard, UserState
from streams.validation import AcceptedEvent, AcceptedRequest, EventValidator, newest_after

__all__ = ["Admitted", "Batch", "Intake"]


@dataclass(slots=True)
class Admitted:
    """An accepted event, its user and the shard that holds the user."""

    accepted: AcceptedEvent
    user: UserState
    shard: Shard
    new_user: bool


@dataclass(slots=True)
class Batch:
    """What one micro-batch holds once the bad records and the duplicates are out."""

    events: list[Admitted] = field(default_factory=list)
    requests: list[AcceptedRequest] = field(default_factory=list)
    dead: list[OutputRecord] = field(default_factory=list)
    records: int = 0
    """Records of `events` in the micro-batch, good or not."""
    shards: dict[int, Shard] = field(default_factory=dict)
    """Every shard that a record of the batch belongs to."""

    def waves(self) -> Iterator[list[Admitted]]:
        """Events such that each wave holds at most one per user, in order of arrival: a user's second event
        is in a later wave than the first, so that its list knows the first."""
        turn: dict[int, int] = {}
        waves: list[list[Admitted]] = []
        for event in self.events:
            nth = turn[id(event.user)] = turn.get(id(event.user), -1) + 1
            if nth == len(waves):
                waves.append([])
            waves[nth].append(event)
        return iter(waves)


class Intake:
    """Turns consumed records into a `Batch`, counting every record in its partition's totals."""

    def __init__(self, settings: Settings, validator: EventValidator) -> None:
        self._validator = validator
        self._state = settings.user_state
        self._window_ms = settings.user_state.dedupe_window_s * 1000
        self._dlq = settings.names["events-dlq"]
        limits = settings.validation
        self._guards = {
            name: RejectGuard(limits.reject_window, limits.reject_limit, settings.names[name])
            for name in ("events", "requests")
        }
        self._window = limits.reject_window
        self._fresh = True

    def begin_with(self, shards: Iterable[Shard]) -> None:
        """Let the guard go on where the partitions' last owners stood, if it has seen nothing itself yet."""
        if not self._fresh:
            return
        self._fresh = False
        shards = list(shards)
        rejected = sum(shard.recent_rejected for shard in shards)
        self._guards["events"].resume(sum(shard.recent_records for shard in shards), rejected)

    def admit(self, messages: Sequence[Record], source: Source, shards: Shards) -> Batch:
        """Sort `messages` out.

        Raises:
            ProducerBrokenError: too many of the latest records are bad.
        """
        batch = Batch()
        for message in messages:
            shard = shards[message.partition()]
            batch.shards[shard.partition] = shard
            if source.name(message.topic()) == "events":
                self._event(message, shard, batch)
            else:
                self._request(message, shard, batch)
        return batch

    def _event(self, message: Record, shard: Shard, batch: Batch) -> None:
        batch.records += 1
        found = self._validator.decode_event(
            message.value(),
            message.key(),
            message.partition(),
            message.offset(),
            message.timestamp()[1],
            shard.newest_ms,
        )
        if isinstance(found, Rejected):
            batch.dead.append(self._dead(message, found))
            if found.reason is not Reason.LATE:
                shard.stats.rejected += 1
                shard.count_recent(True, self._window)
                self._guards["events"].add(found)
                return
            shard.stats.late += 1
        shard.count_recent(False, self._window)
        self._guards["events"].add()
        if isinstance(found, Rejected):
            return
        shard.stats.unknown_fields += found.unknown_fields
        shard.stats.misplaced += found.misplaced
        self._accept(found, shard, batch)

    def _accept(self, found: AcceptedEvent, shard: Shard, batch: Batch) -> None:
        user_id = found.event.user_id
        known = shard.users.get(user_id)
        if known is not None and known.is_duplicate(found.event_hash, found.time_ms, self._window_ms):
            shard.stats.duplicate += 1
            return
        user = known or shard.user(user_id, None)
        user.admit(found.event_hash, found.time_ms, self._state.dedupe_entries)
        shard.touch(user)
        shard.stats.accepted += 1
        shard.newest_ms = min(newest_after(shard.newest_ms, found), int(time.time() * 1000))
        batch.events.append(Admitted(found, user, shard, known is None))

    def _request(self, message: Record, shard: Shard, batch: Batch) -> None:
        found = self._validator.decode_request(
            message.value(), message.key(), message.partition(), message.offset(), message.timestamp()[1]
        )
        if isinstance(found, Rejected):
            self._guards["requests"].add(found)
            shard.stats.requests_rejected += 1
            batch.dead.append(self._dead(message, found))
        else:
            self._guards["requests"].add()
            batch.requests.append(found)

    def _dead(self, message: Record, rejected: Rejected) -> OutputRecord:
        key, value, headers = dead_letter(message, rejected.reason, rejected.message)
        return OutputRecord(self._dlq, key, value, headers=headers)

    def dead_item(self, message: Record, rejected: Rejected) -> OutputRecord:
        """The dead letter of a rejected `items` record."""
        return self._dead(message, rejected)
