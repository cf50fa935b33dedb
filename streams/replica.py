"""What every worker holds whole: the learned item state, the catalogue with its content
vectors, the ranker in service.

All are read from topics without a group. The item state learns from the log alone, even from this
worker's own events, so that every replica applies the same records in the same order and stays bit-for-bit
equal.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import msgspec

from online_models.item_state import ItemState
from serving.catalogue import Catalogue, CatalogueEntry
from serving.ranker.errors import REFUSAL_KINDS
from serving.registry.swap import RankerSlot, Role, SwapEvent
from streams.events import ModelRecord
from streams.item_vectors import item_fields, open_item_vectors
from streams.learning_log import decode_record, learn_record
from streams.model_records import decoded_model, open_registry
from streams.model_state import ModelState, Trial
from streams.reading import PartitionId, PartitionReader, watermarks, where
from streams.records import Record
from streams.rejects import Rejected
from streams.settings import Settings
from streams.snapshots import SnapshotStore
from streams.validation import AcceptedItem, EventValidator

__all__ = ["Replica"]

log = logging.getLogger("freshet.replica")

DRAIN_RECORDS = 500
"""Log records applied at most between two micro-batches, so that a backlog does not starve the events."""
RETRY_S = 15.0
"""Between two tries to load a version whose store did not give it."""


class Replica:
    """Follows `interactions`, `items` and `models`."""

    def __init__(self, settings: Settings, validator: EventValidator, partitions: dict[str, int]) -> None:
        """`partitions`: the partition count of each topic, by its name in the table."""
        self._settings = settings
        self._validator = validator
        names = settings.names
        self._topics = {names[name]: name for name in ("interactions", "items", "models")}
        self.snapshots = SnapshotStore(settings)
        self.items: ItemState = self.snapshots.newest_or_empty()
        self.catalogue = Catalogue(self.items.items)
        self.content = open_item_vectors(settings)
        registry = open_registry(settings)
        self.slot = RankerSlot(registry, settings.ranker)
        self.models = ModelState(settings.registry.model_name)
        self.refused: dict[Role, SwapEvent] = {}
        """What became of the newest request, where it was refused, by what the version was wanted for."""
        self.lacking: str | None = None
        """Why no version is in service though one is live; None while it is loaded for the first time beside
        a worker that has served without one so far, which misses nothing."""
        self._retry_at = math.inf
        self.snapshots_failed = 0
        self._since_snapshot = 0
        self._last_snapshot = -math.inf
        self._moved_at = time.monotonic()
        starts: dict[PartitionId, int] = {}
        for topic, name in self._topics.items():
            for partition in range(partitions[name]):
                starts[topic, partition] = self.items.offset if name == "interactions" else 0
        self._reader = PartitionReader(settings, starts, lossy=False)
        self._log_key: PartitionId = (names["interactions"], 0)

    @property
    def offset(self) -> int:
        """Next offset of the learning log: all before it has been learned."""
        return self.items.offset

    @property
    def trial(self) -> Trial | None:
        """The trial of two versions, where both are loaded; for whoever joined `follow`."""
        trial = self.models.trial
        return trial if trial is not None and trial.in_force(self.slot.current, self.slot.shadow) else None

    @property
    def stalled_s(self) -> float:
        """For how long the log has held more, and none of it could be read: a transaction is open there."""
        return time.monotonic() - self._moved_at

    def lag(self) -> int:
        """How many offsets of the learning log are still to come."""
        return self._reader.lag(self._log_key)

    def catch_up(self, should_stop: Callable[[], bool]) -> bool:
        """Read all three topics to where they end now; False when told to stop before that.

        The end is the last stable offset: what stands behind a dead worker's open transaction comes once it
        is aborted, and serving need not wait for that. Item state may lag; only user state must be complete.
        """
        started, first = time.monotonic(), self.items.offset
        found = watermarks(self._settings, self._reader.positions, isolation="read_committed")
        ends = {key: end for key, (_, end) in found.items()}
        done = self._reader.read_to(ends, self._apply, should_stop=should_stop)
        if self.models.live is not None:
            self.lacking = f"ranker {self.models.live.version} is being loaded"
        log.info(
            "item state: %d items at learning-log offset %d, %d records in %.2f s; catalogue: %d items",
            len(self.items.items),
            self.items.offset,
            self.items.offset - first,
            time.monotonic() - started,
            len(self.catalogue),
        )
        return done

    def follow(self) -> SwapEvent | None:
        """Learn what has been logged since the last call, and swap the ranker if a new one is ready."""
        before = self.items.offset
        for message in self._reader.poll(DRAIN_RECORDS, 0):
            self._apply(message)
        self.items.offset = max(self.items.offset, self._reader.positions[self._log_key])
        if self.items.offset > before or not self.lag():
            self._moved_at = time.monotonic()
        if self._snapshot_is_due():
            self._since_snapshot, self._last_snapshot = 0, time.monotonic()
            self._snapshot()
        self.content.collect()
        if time.monotonic() >= self._retry_at:
            self._retry_at = math.inf
            self._ask()
        event = self.slot.swap_if_ready()
        if event is not None:
            self._note(event)
        return event

    def _note(self, event: SwapEvent) -> None:
        if event.outcome == "swapped":
            self.refused.pop(event.role, None)
            self.lacking = None if event.role == "live" else self.lacking
            return
        self.refused[event.role] = event
        if event.kind == "store":
            self._retry_at = time.monotonic() + RETRY_S
        live = self.models.live
        wanted = live is not None and (live.version, live.digest) == (event.version, event.digest)
        if event.role == "live" and wanted and self.slot.current is None:
            self.lacking = f"ranker {event.version} can't be loaded: {REFUSAL_KINDS[event.kind]}"

    def _snapshot_is_due(self) -> bool:
        limits = self._settings.worker
        return (
            self._since_snapshot >= limits.snapshot_interactions
            and time.monotonic() - self._last_snapshot >= limits.snapshot_s
        )

    def _snapshot(self) -> None:
        """A snapshot that fails costs time at the next start, so it is told and serving goes on."""
        try:
            self.snapshots.save(self.items)
        except Exception as error:  # noqa: BLE001  # a store's client may raise anything
            self.snapshots_failed += 1
            log.error(
                "snapshot at offset %d failed: %r. Look at %s.", self.offset, error, self.snapshots.place
            )

    def close(self) -> None:
        self.content.close()
        self._reader.close()

    def _apply(self, message: Record) -> None:
        match self._topics[message.topic()]:
            case "interactions":
                self._learn(message)
            case "items":
                self._catalogue_record(message)
            case _:
                self._model_record(message)

    def _learn(self, message: Record) -> None:
        place = where(message)
        record = decode_record(message.value(), place)
        learn_record(self.items, record, place)
        self.items.offset = message.offset() + 1
        self._since_snapshot += record.n

    def _catalogue_record(self, message: Record) -> None:
        now_ms = int(time.time() * 1000)
        found = self._validator.decode_item(
            message.value(), message.key(), message.partition(), message.offset(), message.timestamp()[1]
        )
        if isinstance(found, Rejected):
            return  # `streams.item_rejects` writes it to the dead letters
        if isinstance(found, AcceptedItem):
            item = found.item
            entry = CatalogueEntry(
                title=item.title,
                categories=tuple(item.categories),
                price=item.price,
                is_hidden=item.is_hidden,
                published_ms=found.published_ms,
                expires_ms=found.expires_ms,
            )
            self.catalogue.put(item.item_id, entry, now_ms)
            if self.content.spec:  # making a mapping of every item would be for nothing
                self.content.put(item.item_id, item_fields(item))
        else:
            self.content.forget(found.key)
            self.catalogue.remove(found.key, now_ms)

    def _model_record(self, message: Record) -> None:
        value = message.value()
        if value is None:
            return
        try:
            record = decoded_model(value)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            log.error("%s: not a models record (%s); the ranker in service stays", where(message), error)
            return
        if self.models.take(record):
            self._ask(record)

    def _ask(self, record: ModelRecord | None = None) -> None:
        """Ask for what `record` says, if that counts, or again for all that is wanted."""
        live = self.models.live
        if live is not None and live.digest is not None and (record is None or record is live):
            self.refused.pop("live", None)
            if record is not None and self.lacking is not None:
                self.lacking = f"ranker {live.version} is being loaded"
            self.slot.request(live.version, live.digest, live.uri)
        trial = self.models.trial
        if trial is None or record is None:
            self.slot.drop_shadow()
        if trial is not None and self.slot.request_shadow(trial.other, trial.other_digest):
            self.refused.pop("shadow", None)
