"""From an announced version to the ranker in force, without a dropped request.

A version is loaded and checked in the background while the old one serves; the reference changes between two
micro-batches.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from typing import Literal

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from serving.ranker.errors import RankerError, RankerRefusedError, RegistryError
from serving.ranker.probe import median_latency_ms
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.ranker.settings import Provider, RankerSettings
from serving.registry.manifest import GOLDEN_FILE, MODEL_FILE, VOCABULARY_FILE, Signature
from serving.registry.store import Registry, StoredVersion

__all__ = ["RankerSlot", "SwapEvent", "load_verified"]

logger = logging.getLogger(__name__)

_PROBE_TOLERANCE = 1e-3
"""Absolute and relative. Providers round differently by 1e-5 or so; a wrong file is off by whole units."""


@dataclasses.dataclass(frozen=True, slots=True)
class SwapEvent:
    """What became of an announced version. `previous` is what served before, and still does when refused."""

    outcome: Literal["swapped", "refused"]
    version: str
    digest: str
    previous: str | None
    reason: str
    load_s: float


def load_verified(
    registry: Registry,
    version: str,
    expected_digest: str,
    provider: Provider = "auto",
    threads: int = 1,
    *,
    latency_budget_ms: float | None = None,
) -> Ranker:
    """Load a version that has passed every check, ready to serve.

    1. Fetch the manifest; its digest must be the announced one.
    2. Fetch model, vocabulary and golden probe; sizes, digests, no external data, no foreign operators.
    3. Load the graph; its signature must be ours. Vocabulary and manifest must agree.
    4. Warm up and measure; slower than the budget is refused.
    5. The golden inputs must give the golden scores, all of them finite.

    Raises RankerRefusedError, with the reason and the numbers, at the first that fails.
    """
    try:
        stored = registry.fetch(version, expected_digest, (MODEL_FILE, VOCABULARY_FILE, GOLDEN_FILE))  # 1, 2
        ranker = _load(stored, provider, threads)  # 3
        latency_ms = median_latency_ms(ranker)  # 4
        if latency_budget_ms is not None and latency_ms > latency_budget_ms:
            raise RankerError(
                f"16 users x 200 candidates take {latency_ms:.1f} ms, at most {latency_budget_ms:.1f}"
            )
        _probe(ranker, stored.files[GOLDEN_FILE])  # 5
    except (RegistryError, RankerError) as error:
        raise RankerRefusedError(f"{version} refused: {error}") from error
    logger.info(
        "ranker %s loaded: %s, %d items, %.1f ms", version, ranker.session.providers_in_force,
        len(ranker.vocabulary), latency_ms,
    )  # fmt: skip
    return ranker


def _load(stored: StoredVersion, provider: Provider, threads: int) -> Ranker:
    manifest = stored.manifest
    if manifest.signature != Signature():
        raise RankerError(f"signature {manifest.signature}, expected {Signature()}")
    try:
        vocabulary = msgspec.json.decode(stored.files[VOCABULARY_FILE], type=list[str])
    except msgspec.DecodeError as error:
        raise RankerError(f"{VOCABULARY_FILE}: {error}") from error
    if not vocabulary or len(vocabulary) != manifest.vocabulary_size:
        raise RankerError(
            f"{len(vocabulary)} items in {VOCABULARY_FILE}, the manifest says {manifest.vocabulary_size}"
        )
    return Ranker(
        RankerSession(stored.files[MODEL_FILE], provider, threads),
        vocabulary,
        version=manifest.version,
        history_length=manifest.history_length,
        digest=stored.digest,
    )


def _probe(ranker: Ranker, golden: bytes) -> None:
    try:
        arrays = safetensors.numpy.load(golden)
        history, candidates, expected = arrays["history"], arrays["candidates"], arrays["scores"]
    except (SafetensorError, KeyError) as error:
        raise RankerError(f"{GOLDEN_FILE} can't be read: {error!r}") from error
    if expected.shape != candidates.shape or not expected.size or not np.isfinite(expected).all():
        raise RankerError(
            f"{GOLDEN_FILE}: scores {expected.shape} for candidates {candidates.shape}, or not finite"
        )
    scores = ranker.score_indices(history, candidates)
    if not np.allclose(scores, expected, rtol=_PROBE_TOLERANCE, atol=_PROBE_TOLERANCE):
        worst = float(np.abs(scores - expected).max())
        raise RankerError(f"golden probe: off by {worst:.3g} at most, {_PROBE_TOLERANCE:g} is allowed")


class RankerSlot:
    """Holds the ranker in force, and loads the next one in the background. One thread calls it; that thread
    swaps.

    `request` returns at once; when several come before a load has ended, the newest wins. A refused version
    changes nothing but is reported once by `swap_if_ready`; asking for it again tries again.
    """

    def __init__(self, registry: Registry, settings: RankerSettings | None = None) -> None:
        self.current: Ranker | None = None
        self._registry = registry
        self._settings = settings or RankerSettings()
        self._condition = threading.Condition()
        self._wanted: tuple[str, str] | None = None
        self._done: collections.deque[tuple[Ranker | None, SwapEvent]] = collections.deque()
        self._thread: threading.Thread | None = None

    def request(self, version: str, digest: str, uri: str = "") -> None:
        """Ask for a version of this slot's registry.

        `uri` is where the trainer put it, and is only logged: a record never says where files are read from.
        """
        with self._condition:
            idle = self._thread is None and not self._done
            if (
                idle
                and self.current is not None
                and (self.current.version, self.current.digest) == (version, digest)
            ):
                return
            logger.info("ranker %r announced at %r", version, uri or self._registry.uri(version))
            self._wanted = (version, digest)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ranker-load", daemon=True)
                self._thread.start()

    @property
    def loading(self) -> bool:
        """True while a load is under way."""
        return self._thread is not None

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait until nothing is loading; False at the timeout. `swap_if_ready` then swaps."""
        with self._condition:
            return self._condition.wait_for(lambda: self._thread is None, timeout_s)

    def swap_if_ready(self) -> SwapEvent | None:
        """Call between two micro-batches: put a loaded ranker in force, or report a refusal. None when
        nothing ended."""
        if not self._done:
            return None
        ranker, event = self._done.popleft()
        event = dataclasses.replace(
            event, previous=self.current.version if self.current is not None else None
        )
        if ranker is not None:
            self.current = ranker
        return event

    def _work(self) -> None:
        while True:
            with self._condition:
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._thread = None
                    self._condition.notify_all()
                    return
            done = self._load(*wanted)
            with self._condition:
                self._done.append(done)

    def _load(self, version: str, digest: str) -> tuple[Ranker | None, SwapEvent]:
        started = time.monotonic()
        ranker: Ranker | None = None
        reason = ""
        try:
            ranker = load_verified(
                self._registry,
                version,
                digest,
                self._settings.provider,
                self._settings.threads,
                latency_budget_ms=self._settings.load_latency_budget_ms,
            )
        except RankerRefusedError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a store's client raises must not end serving
            reason = f"{version} refused: {error!r}"
        if reason:
            logger.warning("%s", reason)
        outcome: Literal["swapped", "refused"] = "refused" if ranker is None else "swapped"
        return ranker, SwapEvent(outcome, version, digest, None, reason, time.monotonic() - started)
