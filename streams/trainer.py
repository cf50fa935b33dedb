"""`freshet trainer`: follow the learning log, train now and then, announce what passes the gate.

    interactions ─► columns ─► serving.training.run_slow_path ─► registry ─► models topic

The trainer has no state of its own: the log is the data, the registry the result, and the `models` topic says
which version is live. A killed trainer starts again from those three.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import numpy as np

from online_models.learning_batch import LEARN, WITHDRAW
from serving.ranker.errors import RankerError, RegistryError
from serving.training.dataset import InteractionLog, NotEnoughDataError
from serving.training.slow_path import Outcome, Stage, prepare, run_slow_path
from serving.training.train import TrainingDivergedError
from streams.errors import FreshetError
from streams.events import ModelRecord
from streams.learning_log import FORGET_ITEM, FORGET_USER, LogRecord, decode_record
from streams.model_records import announce, live_record, model_records, open_registry
from streams.reading import PartitionReader, watermarks, where
from streams.records import Record
from streams.settings import Settings
from streams.topic_admin import check_layout

__all__ = ["Trainer"]

log = logging.getLogger("freshet.trainer")

IDLE_S = 0.2
RETRY_S = 30.0
"""Wait after a training that failed for a reason of its own, before the schedule is asked again."""


class TrainingInterrupted(BaseException):
    """A signal came in the middle of a training: nothing of it is kept, and nothing half done is left."""


class Trainer:
    """Reads `interactions` from its beginning, and trains when the schedule says so."""

    def __init__(self, settings: Settings, progress: Callable[[Stage], None] | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._schedule = settings.schedule
        self._topic = settings.names["interactions"]
        self._stop = threading.Event()
        self._training = False
        self._data = InteractionLog()
        self._taken_back = TakenBack()
        self._types: dict[str, int] = {}
        self._trained_at = 0
        self._trained_s = time.monotonic()
        self.registry = open_registry(settings)

    def stop(self) -> None:
        """End soon; to be called from a signal handler, which interrupts a training that is under way."""
        self._stop.set()
        if self._training:
            self._training = False
            raise TrainingInterrupted

    def run(self) -> None:
        """Train by the schedule until stopped."""
        check_layout(self._settings)
        os.nice(self._schedule.niceness)
        try:
            self._training = True
            prepare()
        except TrainingInterrupted:
            return
        finally:
            self._training = False
        reader = PartitionReader(self._settings, {(self._topic, 0): 0})
        try:
            while not self._stop.is_set():
                for message in reader.poll(500, IDLE_S):
                    self._append(message)
                if self._due():
                    self._train_by_schedule()
        finally:
            reader.close()
        log.info("trainer stopped after %d interactions", len(self._data))

    def run_once(self) -> tuple[ModelRecord, Outcome]:
        """Train on all that the log holds now.

        Raises:
            FreshetError: there is too little to train on, or the training failed.
        """
        check_layout(self._settings)
        [(_, end)] = watermarks(self._settings, [(self._topic, 0)]).values()
        reader = PartitionReader(self._settings, {(self._topic, 0): 0})
        try:
            reader.read_to({(self._topic, 0): end}, self._append, should_stop=self._stop.is_set)
        finally:
            reader.close()
        return self._train()

    def _append(self, message: Record) -> None:
        record = decode_record(message.value(), where(message))
        append_record(self._data, record, message.offset(), self._types)
        self._taken_back.add(record, message.offset())

    def _due(self) -> bool:
        new = len(self._data) - self._trained_at
        if new == 0 or len(self._data) < self._settings.trainer.min_interactions:
            return False
        waited = time.monotonic() - self._trained_s >= self._schedule.every_s > 0
        return new >= self._schedule.every_interactions or waited

    def _train_by_schedule(self) -> None:
        try:
            self._training = True
            self._train()
        except TrainingInterrupted:
            log.info("training interrupted; the live version stays")
        except FreshetError as error:
            log.warning("%s", error)
            self._stop.wait(RETRY_S if not isinstance(error.__cause__, NotEnoughDataError) else 0)
        finally:
            self._training = False

    def _train(self) -> tuple[ModelRecord, Outcome]:
        self._trained_at, self._trained_s = len(self._data), time.monotonic()
        name = self._settings.registry.model_name
        live = live_record(model_records(self._settings), name)
        try:
            outcome = run_slow_path(
                self._taken_back.rest_of(self._data),
                self.registry,
                self._settings.trainer,
                live.version if live is not None else None,
                self._say,
            )
        except (NotEnoughDataError, TrainingDivergedError, RankerError, RegistryError) as error:
            raise FreshetError(f"training on {len(self._data)} interactions: {error}") from error
        record = _announcement(name, outcome, self._settings.registry_url)
        announce(self._settings, record)
        return record, outcome

    def _say(self, stage: Stage) -> None:
        log.info("%3.0f%% %s: %s", 100 * stage.fraction, stage.name, stage.text)
        if self._progress is not None:
            self._progress(stage)


class TakenBack:
    """What the log says must not be trained on any more: withdrawn interactions, forgotten users, and what
    was done with items before they were forgotten."""

    def __init__(self) -> None:
        self._withdrawn: dict[int, Counter[tuple[str, int]]] = {}
        self._forgotten: set[int] = set()
        self._items: dict[str, int] = {}
        """Offset in the log up to which an item is forgotten."""

    def add(self, record: LogRecord, offset: int) -> None:
        """Take the log record at `offset` in."""
        if not record.kind:
            return
        kinds, tokens = record.kinds, record.column("token", "<u8")
        self._forgotten |= set(tokens[kinds == FORGET_USER].tolist())
        items, times, item_ids = (
            record.column("item", "<i4"),
            record.column("time_ms", "<i8"),
            record.item_ids,
        )
        for item in items[kinds == FORGET_ITEM].tolist():  # what the same record says of it stands before
            self._items[item_ids[item]] = offset
        trained_on = record.column("weight", "<f4") > 0
        for n in np.flatnonzero((kinds == WITHDRAW) & trained_on).tolist():
            of_user = self._withdrawn.setdefault(int(tokens[n]), Counter())
            of_user[item_ids[items[n]], int(times[n])] += 1

    def rest_of(self, data: InteractionLog) -> InteractionLog:
        """`data` without them; of interactions alike the newest go first."""
        if not self._withdrawn and not self._forgotten and not self._items:
            return data
        user, item, time_ms = (data.column(name) for name in ("user", "item", "time_ms"))
        keep = ~np.isin(user, np.array(sorted(self._forgotten), np.uint64))
        if self._items:
            forgotten = np.array([self._items.get(item_id, -1) for item_id in data.item_ids], np.int64)
            keep &= data.column("offset") > forgotten[item]
        left = {token: gone.copy() for token, gone in self._withdrawn.items()}
        moments = {moment for gone in left.values() for _, moment in gone}
        concerned = keep & np.isin(user, np.array(sorted(left), np.uint64))
        concerned &= np.isin(time_ms, np.array(sorted(moments), np.int64))
        for n in np.flatnonzero(concerned)[::-1].tolist():
            one = (data.item_ids[item[n]], int(time_ms[n]))
            if left[int(user[n])][one] > 0:
                left[int(user[n])][one] -= 1
                keep[n] = False
        rest = InteractionLog()
        columns = ("user", "item", "time_ms", "event_type", "weight", "offset")
        rest.append(item_ids=data.item_ids, **{name: data.column(name)[keep] for name in columns})
        return rest


def append_record(data: InteractionLog, record: LogRecord, offset: int, types: dict[str, int]) -> None:
    """Add a log record's positive interactions to `data`: what recent items are made of when serving.

    `types` numbers the event types as they come.
    """
    item = record.column("item", "<i4")
    keep = (item >= 0) & (record.column("weight", "<f4") > 0) & (record.kinds == LEARN)
    codes = [types.setdefault(name, min(len(types), 255)) for name in record.event_types]
    data.append(
        user=record.column("token", "<u8")[keep],
        item_ids=record.item_ids,
        item=item[keep],
        time_ms=record.column("time_ms", "<i8")[keep],
        event_type=[codes[index] for index in record.column("event_type", "u1")[keep].tolist()],
        weight=record.column("weight", "<f4")[keep],
        offset=offset,
    )


def _announcement(name: str, outcome: Outcome, uri: str) -> ModelRecord:
    """The outcome as a record of `models`: the live version, or a refusal with its numbers."""
    report, published = outcome.report, outcome.published
    scores = {
        f"{who}_{metric}": getattr(score, metric)
        for who, score in (
            ("challenger", report.challenger),
            ("champion", report.champion),
            ("popularity", report.popularity),
        )
        if score is not None
        for metric in ("hr_at_10", "ndcg_at_10")
    }
    now_ms = int(time.time() * 1000)
    if published is None:
        return ModelRecord(
            model=name,
            version=f"{datetime.fromtimestamp(now_ms / 1000, tz=UTC):%Y%m%dT%H%M%S}Z-refused",
            status="refused",
            digest=None,
            uri=uri,
            reason="; ".join(report.reasons),
            metrics=scores,
            published_at=now_ms,
        )
    trained_on = published.manifest.trained_on
    return ModelRecord(
        model=name,
        version=published.manifest.version,
        status="live",
        digest=published.digest,
        uri=published.uri,
        metrics=scores,
        trained_on=msgspec.structs.asdict(trained_on),
        published_at=now_ms,
    )
