"""Items by codes that stay theirs, beside the rows of an item table, which change hands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["ItemRows"]

Int32 = npt.NDArray[np.int32]


class ItemRows:
    """Codes of item ids in the order in which they were met, and which rows they have now.

    >>> codes = ItemRows()
    >>> codes.codes_of(["b", "a"]).tolist(), codes.ids
    ([0, 1], ['b', 'a'])
    >>> codes.follow(["a", "c"], np.array([0, 1], np.int32), np.array([], np.int32))
    >>> codes.row_of[:3].tolist(), codes.code_of(np.array([[1, 0, -1]])).tolist()
    ([-1, 0, 1], [[2, 1, -1]])
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._codes: dict[str, int] = {}
        self._row_of = np.full(1024, -1, dtype=np.int32)
        self._code_of = np.full(1024, -1, dtype=np.int32)

    @property
    def row_of(self) -> Int32:
        """int32[>= codes]: each code's row, -1 where it has none; a view."""
        return self._row_of

    def codes_of(self, item_ids: Sequence[str]) -> Int32:
        """int32[n], new ones where ids had none."""
        found = np.array([self._codes.get(item_id, -1) for item_id in item_ids], dtype=np.int32)
        for place in np.flatnonzero(found < 0).tolist():
            code = self._codes.setdefault(item_ids[place], len(self.ids))
            if code == len(self.ids):
                self.ids.append(item_ids[place])
            found[place] = code
        self._row_of = _grown(self._row_of, len(self.ids))
        return found

    def code_of(self, rows: Int32) -> Int32:
        """Codes of rows, of their shape; -1 stays."""
        codes: Int32 = np.where(rows >= 0, self._code_of[np.maximum(rows, 0)], np.int32(-1))
        return codes

    def follow(self, ids: Sequence[str], given: Int32, freed: Int32) -> None:
        """Take in which rows of a table with these ids have another item now, and which have none."""
        self._code_of = _grown(self._code_of, len(ids))
        for rows in (freed, given):
            left = self._code_of[rows]
            left = left[left >= 0]
            self._row_of[left] = np.where(np.isin(self._row_of[left], rows), -1, self._row_of[left])
            self._code_of[rows] = -1
        codes = self.codes_of([ids[row] for row in given.tolist()])
        self._code_of[given], self._row_of[codes] = codes, given

    def keep_only(self, used: Int32) -> Int32:
        """Forget items that have no row and whose code is not among `used` (-1 is none); the others get new
        codes in the same order. Gives int32[codes + 1]: the new code of each old one, -1 where there is none
        now and, last, for -1."""
        n = len(self.ids)
        kept = self._row_of[:n] >= 0
        kept[used[used >= 0]] = True
        new = np.full(n + 1, -1, dtype=np.int32)
        new[:n][kept] = np.arange(np.count_nonzero(kept), dtype=np.int32)
        old = np.flatnonzero(kept)
        rows, codes = self._row_of[old], new[self._code_of]
        self.ids = [self.ids[code] for code in old.tolist()]  # whoever has the old list keeps it
        self._codes = {item_id: code for code, item_id in enumerate(self.ids)}
        self._row_of, self._code_of = _grown(rows, max(1024, len(rows))), codes
        return new


def _grown(values: Int32, n: int) -> Int32:
    if n <= len(values):
        return values
    return np.concatenate([values, np.full(max(n, 2 * len(values)) - len(values), -1, dtype=np.int32)])
