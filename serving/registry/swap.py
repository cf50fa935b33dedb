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
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from serving.features import FEATURES_DIGEST
from serving.ranker.errors import MAX_REASON_CHARS, RankerError, RankerRefusedError, RegistryError
from serving.ranker.hashing import ContextHash
from serving.ranker.inputs import INPUTS, RankerInputs
from serving.ranker.probe import median_latency_ms
from serving.ranker.providers import Wish
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.ranker.settings import Provider, RankerSettings
from serving.registry.manifest import (
    CONTENTS_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    Manifest,
    Signature,
)
from serving.registry.store import Registry, StoredVersion

__all__ = ["RankerSlot", "SwapEvent", "load_verified"]

logger = logging.getLogger(__name__)

_READ, _READ_WHERE_THERE = (MODEL_FILE, VOCABULARY_FILE, GOLDEN_FILE), (CONTENTS_FILE,)
_PROBE_TOLERANCE = 1e-3
"""Absolute and relative. Providers round differently by 1e-5 or so; a wrong file is off by whole units."""
_ROUNDED_TOLERANCE = 0.1
_ROUNDED = ("fp16", "int8_dynamic", "int8_static")
"""Where activations are rounded, too, a difference of 1e-7 can fall to either side: one step of 8 bits moved
a score by 0.013."""
_MAX_HISTORY = 4096
"""Four times what the trainer's settings allow: each call makes room for so many items a user."""


Role = Literal["live", "shadow"]
_Version = tuple[str, str]
"""A version and its digest."""


@dataclasses.dataclass(frozen=True, slots=True)
class SwapEvent:
    """What became of an announced version. `previous` is what served before, and still does when refused.

    `role` is what it was asked for: to serve, or to be scored beside what serves. `kind` is a word of
    `serving.ranker.errors.REFUSAL_KINDS` where it is refused, else empty.
    """

    outcome: Literal["swapped", "refused"]
    version: str
    digest: str
    previous: str | None
    reason: str
    load_s: float
    role: Role = "live"
    kind: str = ""


def load_verified(
    registry: Registry,
    version: str,
    expected_digest: str,
    provider: Provider = "auto",
    *,
    wish: Wish | None = None,
    latency_budget_ms: float | None = None,
    context_keys: Sequence[str] = (),
) -> Ranker:
    """Load a version that has passed every check, ready to serve; `wish` holds the provider, too.
    `context_keys` are those whose values it will be given.

    1. Fetch the manifest; its digest must be the announced one.
    2. Fetch model, vocabulary and golden probe; sizes, digests, no external data, no foreign operators.
    3. Load the graph; its signature must be ours. Vocabulary and manifest must agree.
    4. Warm up and measure; slower than the budget is refused.
    5. The golden inputs must give the golden scores, all of them finite.

    Raises RankerRefusedError, with the reason and the numbers, at the first that fails.
    """
    try:
        stored = registry.fetch(version, expected_digest, _READ, _READ_WHERE_THERE)  # 1, 2
        _check_context(stored.manifest, tuple(context_keys))
        ranker = _load(stored, wish or Wish(provider))  # 3
        latency_ms = median_latency_ms(ranker)  # 4
        if latency_budget_ms is not None and latency_ms > latency_budget_ms:
            raise RankerError(
                f"16 users x 200 candidates take {latency_ms:.1f} ms, at most {latency_budget_ms:.1f}", "slow"
            )
        rounded = stored.manifest.precision in _ROUNDED
        _probe(ranker, stored.files[GOLDEN_FILE], _ROUNDED_TOLERANCE if rounded else _PROBE_TOLERANCE)  # 5
    except (RegistryError, RankerError) as error:
        raise RankerRefusedError(f"{version} refused: {error}", error.kind) from error
    logger.info(
        "ranker %s loaded: %s, %d items, %.1f ms", version, ranker.session.in_force,
        len(ranker.vocabulary), latency_ms,
    )  # fmt: skip
    return ranker


def _load(stored: StoredVersion, wish: Wish) -> Ranker:
    manifest = stored.manifest
    if manifest.signature != Signature():
        raise RankerError(f"signature {manifest.signature}, expected {Signature()}", "signature")
    if not 1 <= manifest.history_length <= _MAX_HISTORY:
        raise RankerError(
            f"the manifest says histories of {manifest.history_length} items, 1 to {_MAX_HISTORY} are served",
            "manifest",
        )
    if manifest.features_digest not in ("", FEATURES_DIGEST):
        raise RankerError(
            f"trained on features {manifest.features_digest[:12]} ({', '.join(manifest.features)}), here "
            f"they are {FEATURES_DIGEST[:12]}: train again with this version of the code",
            "features",
        )
    try:
        vocabulary = msgspec.json.decode(stored.files[VOCABULARY_FILE], type=list[str])
    except msgspec.DecodeError as error:
        raise RankerError(f"{VOCABULARY_FILE}: {error}", "file") from error
    if not vocabulary or len(vocabulary) != manifest.vocabulary_size:
        raise RankerError(
            f"{len(vocabulary)} items in {VOCABULARY_FILE}, the manifest says {manifest.vocabulary_size}",
            "vocabulary",
        )
    return Ranker(
        RankerSession(stored.files[MODEL_FILE], wish=wish),
        vocabulary,
        version=manifest.version,
        history_length=manifest.history_length,
        digest=stored.digest,
        event_types=manifest.event_types,
        fused=manifest.fused,
        contents=_contents(stored),
        content=tuple((part.name, part.dim) for part in manifest.content),
    )


def _check_context(manifest: Manifest, given: tuple[str, ...]) -> None:
    """A version that reads no context is served under any keys."""
    trained = manifest.context_keys
    if not trained:
        return
    if trained != given:
        raise RankerError(
            f"trained on the context of {', '.join(trained)}, here it is of {', '.join(given) or 'no keys'} "
            "(ranker.context_keys): give workers and trainer the same keys, and train again",
            "context",
        )
    if manifest.context_digest != (digest := ContextHash(given).digest.hex()):
        raise RankerError(
            f"trained on contexts hashed in another way ({manifest.context_digest or 'unknown'}, here "
            f"{digest}): train again with this version of the code",
            "context",
        )


def _contents(stored: StoredVersion) -> npt.NDArray[np.float32] | None:
    """Content vectors of the vocabulary, where the version was trained with any."""
    manifest, data = stored.manifest, stored.files.get(CONTENTS_FILE)
    if data is None:
        return None
    try:
        contents = safetensors.numpy.load(data)["contents"]
    except (SafetensorError, KeyError) as error:
        raise RankerError(f"{CONTENTS_FILE} can't be read: {error!r}", "file") from error
    width = sum(part.dim + 1 for part in manifest.content)  # and a mask for each
    expected = (manifest.vocabulary_size + 2, width)
    if contents.shape != expected or contents.dtype != np.float32 or not np.isfinite(contents).all():
        raise RankerError(
            f"{CONTENTS_FILE}: {contents.dtype}{contents.shape}, expected finite float32{expected}", "file"
        )
    return contents


def _probe(ranker: Ranker, golden: bytes, tolerance: float) -> None:
    try:
        arrays = safetensors.numpy.load(golden)
        inputs = RankerInputs(**{name: arrays[name] for name in INPUTS})
        expected = arrays["scores"]
    except (SafetensorError, KeyError) as error:
        raise RankerError(f"{GOLDEN_FILE} can't be read: {error!r}", "file") from error
    if expected.shape != inputs.candidates.shape or not expected.size or not np.isfinite(expected).all():
        raise RankerError(
            f"{GOLDEN_FILE}: scores {expected.shape} for candidates {inputs.candidates.shape}, or not finite",
            "file",
        )
    known = inputs.candidates > 0
    scores = ranker.session.score(inputs)
    scores, expected = scores[known], expected[known]
    if not np.allclose(scores, expected, rtol=tolerance, atol=tolerance):
        worst = float(np.abs(scores - expected).max())
        raise RankerError(f"golden probe: off by {worst:.3g} at most, {tolerance:g} is allowed", "probe")


class RankerSlot:
    """Holds the ranker in force and, where there is one, another that is scored beside it; loads what comes
    next in the background. One thread calls it; that thread swaps.

    Requests return at once; when several come before a load has ended, the newest wins. A refused version
    changes nothing but is reported once by `swap_if_ready`; asking for it again tries again. A version that
    is held already, in either role, is not loaded again.
    """

    def __init__(self, registry: Registry, settings: RankerSettings | None = None) -> None:
        self.current: Ranker | None = None
        self.shadow: Ranker | None = None
        self._registry = registry
        self._settings = settings or RankerSettings()
        self._condition = threading.Condition()
        self._shadow_is: _Version | None = None
        """What was asked for last as shadow: a load of another version that ends now comes too late."""
        self._wanted: dict[Role, tuple[int, _Version]] = {}
        self._done: collections.deque[tuple[int, Ranker | None, SwapEvent]] = collections.deque()
        self._requests = 0
        self._in_force_since = 0
        """Which of the requests has brought `current`."""
        self._thread: threading.Thread | None = None

    def request(self, version: str, digest: str, uri: str = "") -> None:
        """Ask for a version of this slot's registry to serve.

        `uri` is where the trainer put it, and is only logged: a record never says where files are read from.
        """
        with self._condition:
            idle = self._thread is None and not self._done
            if idle and _is(self.current, version, digest):
                return
            logger.info("ranker %r announced at %r", version, uri or self._registry.uri(version))
            self._want("live", version, digest)

    def request_shadow(self, version: str, digest: str) -> bool:
        """Ask for a version to be scored beside the one in force, in the place of the one that was so far.
        False where it was asked for already, and nothing else or nothing since."""
        with self._condition:
            if self._shadow_is == (version, digest):
                return False
            self._shadow_is = (version, digest)
            self._want("shadow", version, digest)
            return True

    def drop_shadow(self) -> None:
        """Have none beside the one in force any more."""
        with self._condition:
            self.shadow = self._shadow_is = None
            self._wanted.pop("shadow", None)

    @property
    def loading(self) -> bool:
        """True while a load is under way."""
        return self._thread is not None

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait until nothing is loading; False at the timeout. `swap_if_ready` then swaps."""
        with self._condition:
            return self._condition.wait_for(lambda: self._thread is None, timeout_s)

    def swap_if_ready(self) -> SwapEvent | None:
        """Call between two micro-batches: put a loaded ranker in force, or beside the one in force, or report
        a refusal. None when nothing ended."""
        while self._done:
            number, ranker, event = self._done.popleft()
            if event.role == "shadow":
                late = self._shadow_is != (event.version, event.digest)
                late |= ranker is not None and ranker is self.shadow
            else:
                late = ranker is not None and self._is_late(number, event)
            if late:
                continue
            event = dataclasses.replace(
                event, previous=self.current.version if self.current is not None else None
            )
            if ranker is not None and event.role == "live":
                self.current = ranker
            elif ranker is not None:
                self.shadow = ranker
            return event
        return None

    def _is_late(self, number: int, event: SwapEvent) -> bool:
        """Whether a later request has brought what is in force, or this one's version is that."""
        late = number < self._in_force_since
        self._in_force_since = max(number, self._in_force_since)
        return late or _is(self.current, event.version, event.digest)

    def _want(self, role: Role, version: str, digest: str) -> None:
        self._requests += 1
        held = next((one for one in (self.current, self.shadow) if _is(one, version, digest)), None)
        if held is not None:
            self._wanted.pop(role, None)
            event = SwapEvent("swapped", version, digest, None, "", 0.0, role)
            self._done.append((self._requests, held, event))
            return
        self._wanted[role] = self._requests, (version, digest)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ranker-load", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._condition:
                role: Role = "live" if "live" in self._wanted else "shadow"
                wanted = self._wanted.pop(role, None)
                if wanted is None:
                    self._thread = None
                    self._condition.notify_all()
                    return
            number, asked = wanted
            ranker, event = self._load(role, *asked)
            with self._condition:
                self._done.append((number, ranker, event))

    def _load(self, role: Role, version: str, digest: str) -> tuple[Ranker | None, SwapEvent]:
        started = time.monotonic()
        ranker: Ranker | None = None
        reason = kind = ""
        try:
            ranker = load_verified(
                self._registry,
                version,
                digest,
                wish=Wish.of(self._settings),
                latency_budget_ms=self._settings.load_latency_budget_ms,
                context_keys=self._settings.context_keys,
            )
        except RankerRefusedError as error:
            reason, kind = str(error), error.kind
        except Exception as error:  # noqa: BLE001 - whatever a store's client raises must not end serving
            reason, kind = f"{version} refused: {error!r}"[:MAX_REASON_CHARS], "store"
        if reason:
            logger.warning("%s", reason)
        outcome: Literal["swapped", "refused"] = "refused" if ranker is None else "swapped"
        load_s = time.monotonic() - started
        return ranker, SwapEvent(outcome, version, digest, None, reason, load_s, role, kind)


def _is(ranker: Ranker | None, version: str, digest: str) -> bool:
    return ranker is not None and (ranker.version, ranker.digest) == (version, digest)
