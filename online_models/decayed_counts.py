"""Counts of items that fade by event time and can be taken back: in all, and by column (group)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import decayed_counts_kernels
from online_models.base import Arrays
from online_models.corrections import PAST_KEPT
from online_models.forward_decay import halvings_due
from online_models.item_table import ItemTable, grown
from online_models.kernels import forward_growth
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["DecayedCounts", "NewestTimes"]

MAX_HALVINGS = 500.0
"""Bounds the way back from a landmark that an event withdrawn since had moved: no count overflows."""


class NewestTimes:
    """The newest event times, so that the newest is known again after events are withdrawn.

    At most `KEPT` are kept, more than a user's events that can be withdrawn; the last one always stays.

    >>> times = NewestTimes()
    >>> times.add(np.array([5, 9, 7])); times.now
    9
    >>> times.remove(np.array([9, 4])); times.now
    7
    """

    __slots__ = ("times",)
    KEPT = PAST_KEPT + 28

    def __init__(self) -> None:
        self.times = np.zeros(0, dtype=np.int64)
        """int64[m], falling."""

    @property
    def now(self) -> int:
        """Newest event time, ms since the epoch; -1 before the first event."""
        return int(self.times[0]) if len(self.times) else -1

    def add(self, time_ms: NDArray[np.int64]) -> None:
        joined = np.sort(np.concatenate([self.times, time_ms]))[::-1]
        self.times = np.ascontiguousarray(joined[: self.KEPT])

    def remove(self, time_ms: NDArray[np.int64]) -> None:
        for one in time_ms.tolist():
            place = int(np.searchsorted(-self.times, -one))
            if len(self.times) > 1 and place < len(self.times) and self.times[place] == one:
                self.times = np.delete(self.times, place)


class DecayedCounts:
    r"""$$c_{i,g}(T) = \sum_{e \text{ on } i \text{ in } g} w_e\, 2^{-(T - t_e)/H}$$ by forward decay.

    Column 0 counts all events, the others those of one group each. An event costs the same whatever the
    number of items; all counts are rescaled once in `RESCALE_HALF_LIVES` half-lives, by an exact power of 2.
    Taking an event back leaves what was there without it, but for float64's rounding.
    """

    __slots__ = ("_clock", "counts", "half_life_s", "newest", "totals")

    def __init__(self, half_life_s: float) -> None:
        self.half_life_s = half_life_s
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.counts = np.zeros((0, 1), dtype=np.float64)
        """float64[>= items, columns], at the landmark: times `present()` they are those of now."""
        self.totals = np.zeros(1, dtype=np.float64)
        """float64[columns]: sums of the counts above 0."""
        self.newest = NewestTimes()
        self._clock = np.full(2, -1, dtype=np.int64)

    def learn(
        self, batch: LearningBatch, rows: BatchRows, column: NDArray[np.int32], items: ItemTable
    ) -> None:
        """Add a batch's events; column int32[n] is 0 for those of no group."""
        self.reserve(items, int(column.max(initial=0)) + 1)
        event, changed, n = 0, 0, len(batch)
        growth = np.zeros(n, dtype=np.float64)
        while event < n:
            self._rescale(int(batch.time_ms[event]))
            last = forward_growth(event, batch.time_ms, self._clock, self.half_life_s * 1000.0, growth)
            changed = decayed_counts_kernels.counts_learn(
                event, last, rows.changes, changed, rows.item, column, batch.weight, growth, 1.0,
                self.counts, self.totals,
            )  # fmt: skip
            event = last
        self.newest.add(batch.time_ms)

    def unlearn(self, batch: LearningBatch, rows: BatchRows, column: NDArray[np.int32]) -> None:
        """Take back events that were added with the same columns."""
        growth, n = np.zeros(len(batch), dtype=np.float64), len(batch)
        forward_growth(0, batch.time_ms, self._clock.copy(), self.half_life_s * 1000.0, growth)
        decayed_counts_kernels.counts_learn(
            0, n, rows.changes, 0, rows.item, column, batch.weight, growth, -1.0, self.counts, self.totals
        )
        self.newest.remove(batch.time_ms)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        """Count the items of these rows no more."""
        decayed_counts_kernels.counts_forget(rows, self.counts, self.totals)

    def present(self) -> float:
        """What the stored counts are to be multiplied by, as of the newest event."""
        if self.half_life_s == 0.0 or self._clock[0] < 0:
            return 1.0
        halvings = (self.newest.now - int(self._clock[0])) / (self.half_life_s * 1000.0)
        return float(2.0 ** -max(halvings, -MAX_HALVINGS))

    def of(self, rows: NDArray[np.int32], column: int = 0) -> NDArray[np.float64]:
        """Counts float64[n] of rows int32[n] at the newest event; 0 for a row of no item."""
        known = (rows >= 0) & (rows < len(self.counts))
        counts = np.zeros(len(rows), dtype=np.float64)
        counts[known] = self.counts[rows[known], column]
        scaled: NDArray[np.float64] = counts * self.present()
        return scaled

    def total(self, column: int = 0) -> float:
        """Sum of a column's counts above 0, at the newest event; never below 0."""
        return max(float(self.totals[column]), 0.0) * self.present()

    def reserve(self, items: ItemTable, columns: int) -> None:
        """Room for the table's rows, and for so many columns."""
        self.counts = grown(self.counts, len(items), items.limit)
        if (have := len(self.totals)) < columns:
            more = (1 << (columns - 1).bit_length()) - have  # a power of 2, however the log is cut
            self.counts = np.pad(self.counts, ((0, 0), (0, more)))
            self.totals = np.pad(self.totals, (0, more))

    def nbytes(self, items: int) -> int:
        """Bytes of the counts of the items in use."""
        return int(8 * self.counts.shape[1] * items + self.totals.nbytes + self.newest.times.nbytes)

    def to_arrays(self, name: str, items: ItemTable) -> Arrays:
        """The counts of the rows in use, under `name`."""
        self.reserve(items, 1)
        return {
            f"{name}.counts": self.counts[: len(items)].copy(),
            f"{name}.totals": self.totals.copy(),
            f"{name}.clock": self._clock.copy(),
            f"{name}.newest": self.newest.times.copy(),
        }

    def load(self, name: str, arrays: Mapping[str, NDArray[np.generic]], items: ItemTable) -> None:
        """Replace all by what `to_arrays` gave."""
        self.clear()
        self.reserve(items, len(arrays[f"{name}.totals"]))
        self.counts[: len(items)] = arrays[f"{name}.counts"]
        self.totals[:] = arrays[f"{name}.totals"]
        self._clock[:] = arrays[f"{name}.clock"]
        self.newest.times = np.array(arrays[f"{name}.newest"], dtype=np.int64)

    def _rescale(self, time_ms: int) -> None:
        halvings = halvings_due(time_ms, self._clock, self.half_life_s)
        if halvings:
            self.counts *= 2.0**-halvings
            self.totals *= 2.0**-halvings
            self._clock[0] += round(halvings * self.half_life_s * 1000.0)
