"""Ids as bytes to dense codes, with room made ahead of the kernels that use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streams import user_kernels as kernels
from streams.user_kernels import DEAD_SLOTS, END, FREE, GARBAGE, LIVE, NEXT, Ids

__all__ = ["IdTable", "resized"]

MIN_SLOTS = 64
GROWTH = 1.25
"""Tables grow by a quarter: what is in use stays above 80 % of what is held."""


def resized(array: npt.NDArray[np.generic], n: int, fill: int | None = None) -> npt.NDArray[np.generic]:
    """`array` with `n` rows: grown where it stands if the allocator can, new rows zero or `fill`."""
    have = len(array)
    array.resize((n, *array.shape[1:]), refcheck=False)
    if fill is not None:
        array[have:] = fill
    return array


class IdTable:
    """A hash table of ids; `ids` is its view for kernels, good until the next `reserve` or `compact`."""

    def __init__(self) -> None:
        self._slots = np.full(MIN_SLOTS, kernels.EMPTY, np.int32)
        self._hash = np.zeros(0, np.uint64)
        self._start = np.zeros(0, np.int64)
        self._length = np.zeros(0, np.int32)
        self._arena = np.zeros(0, np.uint8)
        self._counts = np.zeros(6, np.int64)
        self._counts[FREE] = -1
        self.ids = self._view()

    def _view(self) -> Ids:
        return Ids(self._slots, self._hash, self._start, self._length, self._arena, self._counts)

    def __len__(self) -> int:
        return int(self._counts[LIVE])

    @property
    def codes(self) -> int:
        """Codes ever given: all codes are below it."""
        return int(self._counts[NEXT])

    @property
    def capacity(self) -> int:
        """Codes that there is room for."""
        return len(self._length)

    @property
    def nbytes(self) -> int:
        held = (self._slots, self._hash, self._start, self._length, self._arena)
        return sum(array.nbytes for array in held)

    def reserve(self, n: int, n_bytes: int) -> bool:
        """Make room for `n` more ids of `n_bytes` together; True when memory moved."""
        counts = self._counts
        moved = False
        if counts[NEXT] + n > len(self._length):
            size = max(int(counts[NEXT]) + n, int(len(self._length) * GROWTH), 16)
            for array in (self._hash, self._start, self._length):
                resized(array, size)
            moved = True
        if 4 * (counts[LIVE] + counts[DEAD_SLOTS] + n) > 3 * len(self._slots) or (
            counts[END] + n_bytes > len(self._arena)
        ):
            self._rebuild(n, n_bytes)
            moved = True
        if moved:
            self.ids = self._view()
        return moved

    def _rebuild(self, n: int, n_bytes: int) -> None:
        """New slots if they are too full, a new arena if it is too small; garbage goes with either."""
        counts = self._counts
        slots = len(self._slots)
        while 4 * (counts[LIVE] + n) > 2 * slots:
            slots *= 2
        held = int(counts[END] - counts[GARBAGE]) + n_bytes
        size = len(self._arena) if held <= len(self._arena) else max(held, int(held * GROWTH))
        fresh_slots, arena = np.empty(slots, np.int32), np.empty(size, np.uint8)
        kernels.rebuild(self._view(), fresh_slots, arena)
        self._slots, self._arena = fresh_slots, arena

    def codes_of(self, ids: Sequence[bytes], *, ensure: bool = False) -> npt.NDArray[np.int32]:
        """Codes int32[n] of ids; unknown ones get a code with `ensure`, else -1."""
        lengths = np.array([len(one) for one in ids], np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        data = np.frombuffer(b"".join(ids) or b"\0", np.uint8)
        if ensure:
            self.reserve(len(ids), int(lengths.sum()))
        out = np.empty(len(ids), np.int32)
        kernels.codes_of(self.ids, data, ends - lengths, lengths, ensure, out)
        return out

    def id_of(self, code: int) -> bytes:
        """The id of a code that is held."""
        start, length = int(self._start[code]), int(self._length[code])
        return self._arena[start : start + length].tobytes()

    def is_held(self, code: int) -> bool:
        return bool(self._length[code] >= 0)

    def held(self) -> npt.NDArray[np.int32]:
        """Every code in use."""
        return np.flatnonzero(self._length[: self.codes] >= 0).astype(np.int32)

    def remove(self, codes: npt.NDArray[np.int32]) -> None:
        """Give codes int32[n] back that are held; they will be given to other ids."""
        kernels.remove_all(self.ids, codes)
