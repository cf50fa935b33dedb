"""The `context` of accepted events, hashed: read again from the records, where any keys of it are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from serving.ranker.hashing import ContextHash
from streams.events import Scalar
from streams.records import Record

__all__ = ["ContextReader"]

Float32 = npt.NDArray[np.float32]


class _Said(msgspec.Struct, gc=False):
    """The one field that is wanted of an event."""

    context: dict[str, Scalar] | None = None


_decode = msgspec.json.Decoder(_Said).decode


class ContextReader:
    """Hashes the contexts of events, which the columns of `EventReader` leave out: most deployments read no
    keys, and then nothing is done."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashing = ContextHash(keys)

    def of(self, messages: Sequence[Record], places: npt.NDArray[np.int32]) -> Float32:
        """float32[n, HASHED] of the records at `places`, which were accepted; [0, 0] where no keys are
        read."""
        if not self._hashing.keys:
            return np.empty((0, 0), np.float32)
        values = [messages[place].value() or b"{}" for place in places.tolist()]
        return self._hashing.rows([_decode(value).context if _names(value) else None for value in values])


def _names(value: bytes) -> bool:
    """Whether the field may be there: its name as it is, or one written in escapes."""
    return b'"context"' in value or b"\\u" in value
