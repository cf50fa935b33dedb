"""Encoding beside the fast path: a thread that takes what items give and hands vectors back."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.content.vector_cache import VectorCache

__all__ = ["BackgroundEncoder", "Content", "Encoded", "Job", "Modality"]

log = logging.getLogger("freshet.content")

Float32 = npt.NDArray[np.float32]

JOBS_AT_ONCE = 256
MADE_AT_ONCE = 16
"""Encodings between two pauses, and under one lock of the cache."""
NICENESS = 10
"""Of the thread, where the system has it for threads. With 5 busy processes on 2 cores, it took the 99th
percentile of a loop beside it from 2.4 times the undisturbed one to 1.3."""
TOLD = 20
"""Items of a modality whose trouble is logged; the others are counted."""


class Content(NamedTuple):
    """What is encoded: a text, or a file's bytes with its name."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Modality:
    """One kind of content and its encoder.

    `source_of` says what of an item's fields is to be encoded, None where there is nothing; `load` fetches it
    and may raise ContentError; `encode` gives float32[n, dim] of length 1, or raises ContentError.
    """

    name: str
    dim: int
    digest: str
    source_of: Callable[[Mapping[str, Any]], str | None]
    load: Callable[[str], Content]
    encode: Callable[[Sequence[Content]], Float32]
    cache: VectorCache
    source_may_change: bool = False
    """Whether one source may give other content later, as a file does."""


class Job(NamedTuple):
    item_id: str
    modality: int
    source: str


class Encoded(NamedTuple):
    job: Job
    vector: Float32 | None
    """float32[dim], None where the item's content can't be encoded."""


class BackgroundEncoder:
    """A queue of jobs, worked off by one daemon thread in small batches with pauses between them.

    Of an item's modality the newest job alone waits, at the place of the first: a catalogue that changes
    faster than it is encoded takes no more memory than it has items.
    """

    def __init__(self, modalities: Sequence[Modality], cpu_share: float) -> None:
        """`cpu_share`: the share of time at most that the thread is at work, in (0, 1]; below 1 it also gives
        way to others."""
        self._modalities = tuple(modalities)
        self._cpu_share = cpu_share
        self.failed: Counter[str] = Counter()
        """Items whose content could not be encoded, by modality."""
        self.done: deque[Encoded] = deque()
        self._jobs: dict[tuple[str, int], Job] = {}
        self._open = 0  # jobs that were taken in and whose vectors are not in `done` yet
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def open(self) -> int:
        """Jobs under way."""
        return self._open

    def submit(self, job: Job) -> None:
        with self._changed:
            self._open += (job.item_id, job.modality) not in self._jobs
            self._jobs[job.item_id, job.modality] = job
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="content", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, item_id: str, modality: int) -> None:
        """Drop the job that waits, if one does."""
        with self._changed:
            self._open -= self._jobs.pop((item_id, modality), None) is not None
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait for all jobs; False when some are still under way after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)

    def close(self) -> None:
        """End the thread after the batch in hand."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux" and self._cpu_share < 1.0:
            thread = threading.get_native_id()
            niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))  # only root may take it back
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs) or self._closed.is_set())
                jobs = [self._jobs.pop(key) for key in list(islice(self._jobs, JOBS_AT_ONCE))]
            for number, modality in enumerate(self._modalities):
                mine = [job for job in jobs if job.modality == number]
                if mine:
                    self._work_off(modality, mine)

    def _work_off(self, modality: Modality, jobs: list[Job]) -> None:
        loaded = [(job, content) for job in jobs if (content := self._loaded(modality, job)) is not None]
        keys = [_key(modality, content) for _, content in loaded]
        missing = []
        for n, vector in enumerate(modality.cache.find(keys)):
            if vector is None:
                missing.append(n)
            else:
                self._hand_back(loaded[n][0], vector)
        missing.sort(key=lambda n: len(loaded[n][1].data))  # texts of like length share a batch
        for start in range(0, len(missing), MADE_AT_ONCE):
            part = missing[start : start + MADE_AT_ONCE]
            started = time.thread_time()
            self._make(modality, [loaded[n] for n in part], [keys[n] for n in part])
            spent = time.thread_time() - started
            if self._closed.wait(spent * (1.0 / self._cpu_share - 1.0)):
                return

    def _loaded(self, modality: Modality, job: Job) -> Content | None:
        try:
            return modality.load(job.source)
        except Exception as error:  # noqa: BLE001  # what an item names may break anything
            self._tell(modality, job, error)
            return None

    def _make(self, modality: Modality, loaded: list[tuple[Job, Content]], keys: list[bytes]) -> None:
        """Encode together; where that fails, one by one, so that a bad item costs no other."""

        def make(places: list[int]) -> Float32:
            return modality.encode([loaded[n][1] for n in places])

        try:
            vectors = modality.cache.find_or_make(keys, make)
        except Exception as error:  # noqa: BLE001  # a file may break a decoder in any way
            if len(loaded) > 1:
                for one, key in zip(loaded, keys, strict=True):
                    self._make(modality, [one], [key])
            else:
                self._tell(modality, loaded[0][0], error)
            return
        for (job, _), vector in zip(loaded, vectors, strict=True):
            self._hand_back(job, vector)

    def _tell(self, modality: Modality, job: Job, error: Exception) -> None:
        self.failed[modality.name] += 1
        if self.failed[modality.name] <= TOLD:
            log.warning("item %s goes without %s: %s", job.item_id, modality.name, error)
        self._hand_back(job, None)

    def _hand_back(self, job: Job, vector: Float32 | None) -> None:
        with self._changed:
            self.done.append(Encoded(job, vector))
            self._open -= 1
            self._changed.notify_all()


def _key(modality: Modality, content: Content) -> bytes:
    digest = hashlib.sha256(modality.digest.encode())
    digest.update(content.name.rpartition(".")[2].lower().encode() + b"\0")  # files are read by their suffix
    digest.update(content.data)
    return digest.digest()
