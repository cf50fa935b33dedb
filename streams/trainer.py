"""`freshet trainer`: follow the learning log, train now and then, announce what passes the gate.

    interactions ─► columns, examples ─► serving.training.run_slow_path ─► registry ─► models topic

The trainer has no state of its own but what a training under way needs to be continued: the log is the data,
the registry the result, and the `models` topic says which version is live. One that was killed in the middle
of a training reads the log up to where that training had, and continues it from its last epoch.

Started by torchrun, the first process decides when to train and on what, and all train together.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from serving.ranker.errors import RankerError, RegistryError
from serving.training.checkpoint import write
from serving.training.dataset import NotEnoughDataError
from serving.training.device import DeviceError
from serving.training.distributed import ALONE, World
from serving.training.slow_path import Outcome, Stage, prepare, run_slow_path
from serving.training.train import TrainingDivergedError
from streams.errors import FreshetError
from streams.events import ModelRecord
from streams.item_vectors import catalogue_contents
from streams.learning_log import decode_record
from streams.model_records import announce, introduced, live_record, model_records, open_registry
from streams.reading import PartitionReader, watermarks, where
from streams.records import Record
from streams.settings import Settings, default_state_dir
from streams.topic_admin import check_layout
from streams.trainer_drift import DriftWatch
from streams.trainer_log import TrainingLog, made_replay
from streams.trainer_start import first_offset

__all__ = ["Trainer"]

log = logging.getLogger("freshet.trainer")

IDLE_S = 0.2
RETRY_S = 30.0
"""Wait after a training that failed for a reason of its own, before the schedule is asked again."""
NOTHING, STOP = -1.0, -2.0
"""What the first process says when there is nothing to train, and at the end; else the offset to train to."""


class TrainingInterrupted(BaseException):
    """A signal came in the middle of a training: nothing is published, and the next start continues it."""


class _Begun(msgspec.Struct, frozen=True):
    """A training under way: the log up to this offset, exclusive, and the version it started from."""

    to_offset: int
    champion: str | None


class Trainer:
    """Reads `interactions`, and trains when the schedule says so."""

    def __init__(
        self,
        settings: Settings,
        progress: Callable[[Stage], None] | None = None,
        world: World = ALONE,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._world = world
        self._schedule = settings.schedule
        self._key = (settings.names["interactions"], 0)
        self._stop = threading.Event()
        self._training = False
        self._start = 0
        self._limit = math.inf
        self._later: list[Record] = []
        self._drift = DriftWatch(self._schedule.drift_detector)
        self._log = TrainingLog(settings.trainer.max_interactions)
        self._trained_at = 0
        self._trained_s = time.monotonic()
        self.registry = open_registry(settings)
        self._folder = (
            default_state_dir() / "training" / f"{settings.topics.prefix}{self.registry.model_name}"
        )

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
        reader = self._open()
        try:
            self._continue(reader)
            while (target := self._world.agree(self._next(reader))) != STOP:
                if target != NOTHING and self._read_to(reader, int(target)):
                    self._train_by_schedule()
        finally:
            reader.close()
        log.info("trainer stopped after %d interactions", self._log.seen)

    def run_once(self) -> tuple[ModelRecord | None, Outcome | None]:
        """Train on all that the log holds now; both are None on every process but the first.

        Raises:
            FreshetError: there is too little to train on, or the training failed.
        """
        check_layout(self._settings)
        [(_, end)] = watermarks(self._settings, [self._key]).values()
        reader = self._open()
        try:
            self._read_to(reader, int(self._world.agree(end)))
        finally:
            reader.close()
        return self._train(self._live())

    def _open(self) -> PartitionReader:
        """A reader that stands where the settings say, and the columns and examples that it fills."""
        settings = self._settings
        self._start = int(self._world.agree(first_offset(settings)))
        [(low, end)] = watermarks(settings, [self._key]).values()
        replay = None
        if max(low, self._start) == 0 and self._world.leads:
            replay = made_replay(settings, self._drift)
        elif self._world.leads and (settings.trainer.head_examples or self._schedule.on_drift):
            log.warning(
                "the learning log is read from offset %d, and its records name items by what stands before:"
                " rankers are trained without the online features%s",
                max(low, self._start),
                ", and schedule.on_drift raises no alarm" if self._schedule.on_drift else "",
            )
        self._log = TrainingLog(settings.trainer.max_interactions, replay, settings.ranker.context_keys)
        self._log.follow_to(end, settings.trainer.head_examples)
        return PartitionReader(settings, {self._key: self._start})

    def _append(self, message: Record) -> None:
        if message.offset() >= self._limit:
            self._later.append(message)
            return
        name = where(message)
        self._log.add(decode_record(message.value(), name), message.offset(), name)

    def _take_up_to(self, limit: float) -> None:
        """From now on, and of what was read already, take in what stands before that offset: a training that
        is continued, or shared with other processes, must have the same data and no more."""
        self._limit, read = limit, self._later
        self._later = []
        for message in read:
            self._append(message)

    def _read_to(self, reader: PartitionReader, end: int) -> bool:
        self._take_up_to(end)
        return reader.read_to({self._key: end}, self._append, should_stop=self._stop.is_set)

    def _next(self, reader: PartitionReader) -> float:
        """For the first process: read on for a moment; what all are to do then."""
        if not self._world.leads:
            return NOTHING
        if self._stop.is_set():
            return STOP
        self._take_up_to(math.inf)
        for message in reader.poll(500, IDLE_S):
            self._append(message)
        return float(reader.positions[self._key]) if self._due() else NOTHING

    def _due(self) -> bool:
        new = self._log.seen - self._trained_at
        if new == 0 or self._log.seen < self._settings.trainer.min_interactions:
            return False
        waited = time.monotonic() - self._trained_s >= self._schedule.every_s > 0
        drifted = self._schedule.on_drift and self._drift.due
        return new >= self._schedule.every_interactions or waited or drifted

    def _continue(self, reader: PartitionReader) -> None:
        """Take up a training that a former process was killed in."""
        data = self._begun.read_bytes() if self._world.leads and self._begun.exists() else b""
        try:
            begun = msgspec.json.decode(self._world.share(data), type=_Begun)
        except msgspec.MsgspecError:
            return
        [(_, end)] = watermarks(self._settings, [self._key]).values()
        if begun.to_offset <= self._world.agree(end) and self._read_to(reader, begun.to_offset):
            log.info("continuing the training on the log up to offset %d", begun.to_offset)
            self._train_by_schedule(begun)

    def _train_by_schedule(self, begun: _Begun | None = None) -> None:
        try:
            self._training = True
            self._train(begun.champion if begun is not None else self._live())
        except TrainingInterrupted:
            log.info("training interrupted; the live version stays, and the next start continues")
        except FreshetError as error:
            log.warning("%s", error)
            self._stop.wait(RETRY_S if not isinstance(error.__cause__, NotEnoughDataError) else 0)
        finally:
            self._training = False

    def _live(self) -> str | None:
        """The version that is live, as the first process reads it."""
        live = None
        if self._world.leads:
            live = live_record(model_records(self._settings), self.registry.model_name)
        return self._world.share((live.version if live is not None else "").encode()).decode() or None

    def _train(self, champion: str | None) -> tuple[ModelRecord | None, Outcome | None]:
        self._trained_at, self._trained_s = self._log.seen, time.monotonic()
        self._drift.trained()
        interactions = self._log.interactions()
        if self._world.leads:
            write(self._begun, msgspec.json.encode(_Begun(self._log.offset + 1, champion)))
        try:
            with catalogue_contents(self._settings, self._stop.is_set, self._world.agree) as contents:
                outcome = run_slow_path(
                    interactions,
                    self.registry,
                    self._settings.trainer,
                    champion,
                    self._say,
                    examples=self._log.examples(interactions),
                    contents=contents,
                    serving=self._settings.serving,
                    world=self._world,
                    folder=self._folder,
                )
        except (NotEnoughDataError, TrainingDivergedError, DeviceError, RankerError, RegistryError) as error:
            self._begun.unlink(missing_ok=True)
            raise FreshetError(f"training on {len(interactions)} interactions: {error}") from error
        if outcome is None:
            return None, None
        record = announcement(self.registry.model_name, outcome, self._settings.registry_url)
        record = introduced(record, self._settings)
        announce(self._settings, record)
        self._begun.unlink(missing_ok=True)
        return record, outcome

    @property
    def _begun(self) -> Path:
        return self._folder / "begun.json"

    def _say(self, stage: Stage) -> None:
        log.info("%3.0f%% %s: %s", 100 * stage.fraction, stage.name, stage.text)
        if self._progress is not None:
            self._progress(stage)


def announcement(name: str, outcome: Outcome, uri: str) -> ModelRecord:
    """The outcome as a record of `models`: the live version, or a refusal with its numbers."""
    report, published = outcome.report, outcome.published
    now_ms = int(time.time() * 1000)
    if published is None:
        return ModelRecord(
            model=name,
            version=f"{datetime.fromtimestamp(now_ms / 1000, tz=UTC):%Y%m%dT%H%M%S}Z-refused",
            status="refused",
            digest=None,
            uri=uri,
            reason="; ".join(report.reasons),
            metrics=report.figures(),
            published_at=now_ms,
        )
    trained_on = published.manifest.trained_on
    return ModelRecord(
        model=name,
        version=published.manifest.version,
        status="live",
        digest=published.digest,
        uri=published.uri,
        metrics=report.figures(),
        trained_on=msgspec.structs.asdict(trained_on),
        published_at=now_ms,
    )
