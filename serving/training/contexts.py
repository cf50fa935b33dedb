"""Hashed contexts by code: few are different, so a log of millions of interactions keeps one number each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import HASHED

__all__ = ["ContextTable"]

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class ContextTable:
    """Distinct rows float32[HASHED] in the order in which they were met; code 0 is a row of zeros.

    >>> table = ContextTable()
    >>> table.codes_of(np.eye(2, HASHED, dtype=np.float32), 2).tolist(), table.codes_of(None, 1).tolist()
    ([1, 2], [0])
    """

    def __init__(self) -> None:
        self._codes: dict[bytes, int] = {bytes(4 * HASHED): 0}
        self._rows = np.zeros((16, HASHED), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def rows(self) -> Float32:
        """float32[codes, HASHED], a view."""
        return self._rows[: len(self._codes)]

    def codes_of(self, contexts: Float32 | None, n: int) -> Int32:
        """int32[n] of contexts float32[n, HASHED], new ones where there were none; None is zeros."""
        found = np.zeros(n, dtype=np.int32)
        if contexts is None:
            return found
        for place in np.flatnonzero(contexts.any(axis=1)).tolist():
            key = contexts[place].tobytes()
            code = self._codes.setdefault(key, len(self._codes))
            if code == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._rows[code] = contexts[place]
            found[place] = code
        return found

    def codes_from(self, other: ContextTable, codes: Int32) -> Int32:
        """Codes in this table of `other`'s int32[n], in the order in which they come, without a row for each:
        n may be millions."""
        used, first = np.unique(codes, return_index=True)
        met = used[np.argsort(first)]
        found = np.zeros(len(other), dtype=np.int32)
        found[met] = self.codes_of(other.rows[met], len(met))
        return found[codes]
