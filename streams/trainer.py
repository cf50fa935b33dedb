"""`freshet trainer`: follow the learning log, train now and then, announce what passes the gate.

    interactions ─► columns, examples ─► serving.training.run_slow_path ─► registry ─► models topic

The trainer has no state of its own but what a training under way needs to be continued: the log is the data,
the registry the result, and the `models` topic says which version is live. One that was killed in the middle
of a training reads the log up to where that training had, and continues it from its last epoch.

Started by torchrun, the first process decides when to train and on what, and all train together:

1. Any that was told to stop? Then all stop.
2. The first says up to which offset to train, or that there is nothing to do.
3. All have read up to there? 4. Then all train.

Between 4 and the next 1 a process can't speak with the others. One that has to leave there (a signal, an
error of its own) ends, and the others notice its closed connections.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from serving.ranker.errors import RankerError, RegistryError
from serving.training.checkpoint import write
from serving.training.dataset import NotEnoughDataError
from serving.training.device import DeviceError
from serving.training.distributed import ALONE, Interrupted, World
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
from streams.trainer_log import TrainingLog, made_replay
from streams.trainer_record import announcement
from streams.trainer_schedule import Schedule
from streams.trainer_start import first_offset

__all__ = ["Trainer"]

log = logging.getLogger("freshet.trainer")

IDLE_S = 0.2
RETRY_S = 30.0
"""Wait after a training that failed for a reason of its own, before the schedule is asked again."""
SIGNAL_S = 2.0
"""A signal to all processes may reach one this much later than it notices that another has followed it."""
NOTHING = -1.0
"""What the first process says when there is nothing to train; else the offset to train to."""


class _Begun(msgspec.Struct, frozen=True):
    """A training under way: the log up to this offset, exclusive, the version it started from, and why."""

    to_offset: int
    champion: str | None
    why: str = ""


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
        self._schedule = Schedule(settings)
        self._why = ""
        self._key = (settings.names["interactions"], 0)
        self._stop = threading.Event()
        self._training = False
        self._start = 0
        self._limit = math.inf
        self._later: list[Record] = []
        self._log = TrainingLog(settings.trainer.max_interactions)
        self.registry = open_registry(settings)
        self._folder = (
            default_state_dir() / "training" / f"{settings.topics.prefix}{self.registry.model_name}"
        )

    def stop(self) -> None:
        """End soon; to be called from a signal handler, which interrupts a training that is under way."""
        self._stop.set()
        if self._training:
            self._training = False
            raise Interrupted

    def run(self) -> None:
        """Train by the schedule until stopped.

        With several processes Interrupted is raised in one that is stopped where it can't tell the others,
        and PyTorch's RuntimeError where another one is lost.
        """
        check_layout(self._settings)
        os.nice(self._settings.schedule.niceness)
        try:
            self._prepare()
            self._follow()
        except Interrupted:
            if self._world.size > 1:
                raise
        except RuntimeError as error:
            if self._world.size == 1 or not self._stop.wait(SIGNAL_S):
                raise
            raise Interrupted from error
        log.info("trainer stopped after %d interactions", self._log.seen)

    def _prepare(self) -> None:
        try:
            self._training = True
            prepare()
        finally:
            self._training = False

    def _follow(self) -> None:
        reader = self._open()
        try:
            self._continue(reader)
            while not self._world.either(self._stop.is_set()):  # 1
                target = self._world.agree(self._next(reader))  # 2
                if target != NOTHING and self._all_read_to(reader, int(target)):  # 3
                    self._train_by_schedule()  # 4
        finally:
            reader.close()

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
            replay = made_replay(settings, self._schedule.drift)
        elif self._world.leads and (settings.trainer.head_examples or settings.schedule.on_drift):
            log.warning(
                "the learning log is read from offset %d, and its records name items by what stands before:"
                " rankers are trained without the online features%s",
                max(low, self._start),
                ", and schedule.on_drift raises no alarm" if settings.schedule.on_drift else "",
            )
        self._log = TrainingLog(settings.trainer.max_interactions, replay, settings.ranker.context_keys)
        self._log.follow_to(end, settings.trainer.head_examples)
        log.info("following the learning log from offset %d", max(low, self._start))
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

    def _all_read_to(self, reader: PartitionReader, end: int) -> bool:
        """False on every process when one was stopped before it was there."""
        return not self._world.either(not self._read_to(reader, end))

    def _next(self, reader: PartitionReader) -> float:
        """For the first process: read on for a moment; what all are to do then."""
        if not self._world.leads:
            return NOTHING
        self._take_up_to(math.inf)
        for message in reader.poll(500, IDLE_S):
            self._append(message)
        self._why = self._schedule.reason(self._log.seen)
        return float(reader.positions[self._key]) if self._why else NOTHING

    def _continue(self, reader: PartitionReader) -> None:
        """Take up a training that a former process was killed in."""
        data = self._begun.read_bytes() if self._world.leads and self._begun.exists() else b""
        try:
            begun = msgspec.json.decode(self._world.share(data), type=_Begun)
        except msgspec.MsgspecError:
            return
        [(_, end)] = watermarks(self._settings, [self._key]).values()
        if begun.to_offset <= self._world.agree(end) and self._all_read_to(reader, begun.to_offset):
            log.info("continuing the training on the log up to offset %d", begun.to_offset)
            self._why = begun.why if self._world.leads else ""
            self._train_by_schedule(begun)

    def _train_by_schedule(self, begun: _Begun | None = None) -> None:
        try:
            self._training = True
            if self._why:
                log.info("training: %s", self._why)
            self._train(begun.champion if begun is not None else self._live())
        except Interrupted:
            log.info("training interrupted; the live version stays, and the next start continues")
            if self._world.size > 1:
                raise
        except FreshetError as error:
            if not self._can_go_on(error):
                raise
            log.warning("%s", error)
            self._stop.wait(RETRY_S if not isinstance(error.__cause__, NotEnoughDataError) else 0)
        finally:
            self._training = False

    def _can_go_on(self, error: FreshetError) -> bool:
        """Whether the other processes, if there are any, are where this one is: all have failed alike before
        the first exchange, or this one after the last."""
        cause = error.__cause__
        after_last = self._world.leads and isinstance(cause, RankerError | RegistryError)
        return self._world.size == 1 or after_last or isinstance(cause, NotEnoughDataError)

    def _live(self) -> str | None:
        """The version that is live, as the first process reads it."""
        live = None
        if self._world.leads:
            live = live_record(model_records(self._settings), self.registry.model_name)
        return self._world.share((live.version if live is not None else "").encode()).decode() or None

    def _train(self, champion: str | None) -> tuple[ModelRecord | None, Outcome | None]:
        self._schedule.began(self._log.seen)
        interactions = self._log.interactions()
        if self._world.leads:
            write(self._begun, msgspec.json.encode(_Begun(self._log.offset + 1, champion, self._why)))
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
            if self._world.leads:
                self._begun.unlink(missing_ok=True)
            raise FreshetError(f"training on {len(interactions)} interactions: {error}") from error
        if outcome is None:
            return None, None
        record = announcement(self.registry.model_name, outcome, self._settings.registry_url, self._why)
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
