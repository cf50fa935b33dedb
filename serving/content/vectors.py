"""The table of content vectors that trainer and workers score items by."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from online_models.content_features import unit_vector
from serving.content.background import TOLD, BackgroundEncoder, Job, Modality

__all__ = ["ContentVectors"]

log = logging.getLogger("freshet.content")

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

BLANK = 0
FIRST_ROWS = 64


class ContentVectors:
    """Content vectors float32[rows, E] by item id.

    A row holds a vector of length 1 for each modality of `spec`, one after the other, and behind them, in the
    same order, a mask for each: 1 where the item has that content, else 0 with a vector of zeros. E is the
    sum of the dimensions plus the number of modalities. Row 0 belongs to no item and stays zero.

    Given embeddings are there at once. What has to be encoded is encoded in a thread and joins the table with
    the next `collect`; until then it is masked. All methods but the thread's are for one thread.

    >>> vectors = ContentVectors(embeddings={"image": 2})
    >>> vectors.put("tea", {"embeddings": {"image": [3.0, 4.0]}})
    >>> vectors.spec, vectors.table[vectors.rows_of(["tea", "milk"])].round(1).tolist()
    ((('image', 2),), [[0.6000000238418579, 0.800000011920929, 1.0], [0.0, 0.0, 0.0]])
    """

    def __init__(
        self,
        modalities: Sequence[Modality] = (),
        embeddings: Mapping[str, int] | None = None,
        *,
        max_items: int = 200_000,
        cpu_share: float = 1.0,
    ) -> None:
        """`embeddings`: dimension by name; an item's others are left out. `max_items`: with more, the one
        whose entry came longest ago loses its row. `cpu_share`: see `BackgroundEncoder`."""
        self._modalities = tuple(modalities)
        self._embeddings = dict(sorted((embeddings or {}).items()))
        encoded = ((f"{one.name}@{one.digest[:12]}", one.dim) for one in self._modalities)
        self.spec: tuple[tuple[str, int], ...] = (*encoded, *self._embeddings.items())
        """Name and dimension of each modality; an encoder's name holds its digest, since vectors of two
        models mean different things."""
        self._starts = np.concatenate([[0], np.cumsum([dim for _, dim in self.spec])]).astype(int).tolist()
        self.width = int(self._starts[-1]) + len(self.spec)
        self._table = np.zeros((FIRST_ROWS if self.spec else 1, self.width), dtype=np.float32)
        self._used = 1
        self._free: list[int] = []
        self._row_of: dict[str, int] = {}
        self._sources: dict[tuple[str, int], bytes] = {}
        """Digests: a text may be 20,000 characters long, and there may be millions."""
        self._max_items = max_items
        self._encoder = BackgroundEncoder(self._modalities, cpu_share)
        self.refused: Counter[str] = Counter()
        """Given embeddings that were left out, by name."""
        self._changed: set[str] = set()
        self.changes = 0
        """Counts what has changed so far: entries, vectors."""

    def __len__(self) -> int:
        """Items with a row."""
        return len(self._row_of)

    @property
    def table(self) -> Float32:
        """float32[rows, E], contiguous: a view that stays as it is shaped when the table grows."""
        return self._table[: self._used]

    @property
    def pending(self) -> int:
        """Contents under way to the table."""
        return self._encoder.open + len(self._encoder.done)

    @property
    def failed(self) -> Counter[str]:
        """Contents that could not be encoded, by modality."""
        return self._encoder.failed

    def rows_of(self, item_ids: Iterable[str]) -> Int64:
        """Rows int64[n] of the table; 0, which is all zeros, for an item without a row."""
        get = self._row_of.get
        return np.array([get(item_id, BLANK) for item_id in item_ids], dtype=np.int64)

    def of(self, item_ids: Sequence[str]) -> Float32:
        """float32[n, E]: vectors of items, zeros for an item without a row."""
        rows = self.rows_of(item_ids)
        found: Float32 = self._table[rows]
        return found

    def has(self, item_ids: Iterable[str]) -> npt.NDArray[np.bool_]:
        """bool[n]: whether items have content of any kind."""
        has: npt.NDArray[np.bool_] = np.any(self._table[self.rows_of(item_ids), self._starts[-1] :], axis=1)
        return has

    def newest_first(self) -> Iterator[str]:
        """Items with a row, the newest entry first."""
        return reversed(self._row_of)

    def take_changes(self) -> set[str]:
        """Items whose vectors changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def put(self, item_id: str, fields: Mapping[str, Any]) -> None:
        """Take in a catalogue entry in place of the item's former one. A content that can't be used is told,
        counted and masked."""
        if not self.spec:
            return
        self._give_row(item_id)
        for number, modality in enumerate(self._modalities):
            source, before = modality.source_of(fields), self._sources.get((item_id, number))
            digest = None if source is None else _digest(source)
            if digest != before:
                self._write(item_id, number, None)
                self._drop_source(item_id, number)
            if source is not None and digest is not None and (digest != before or modality.source_may_change):
                self._sources[item_id, number] = digest
                self._encoder.submit(Job(item_id, number, source))
        given = fields.get("embeddings") or {}
        for number, (name, dim) in enumerate(self._embeddings.items(), start=len(self._modalities)):
            self._write(item_id, number, self._given(item_id, name, dim, given.get(name)))

    def forget(self, item_id: str) -> None:
        """Free an item's row; what of it is under way is dropped when it comes."""
        row = self._row_of.pop(item_id, BLANK)
        if row != BLANK:
            self._table[row] = 0.0
            self._free.append(row)
            self._note(item_id)
        for number in range(len(self._modalities)):
            self._drop_source(item_id, number)

    def collect(self) -> int:
        """Take what has been encoded since into the table; returns how many contents that were."""
        done, taken = self._encoder.done, 0
        while done:
            (item_id, number, source), vector = done.popleft()
            if self._sources.get((item_id, number)) == _digest(source):
                self._write(item_id, number, vector)
                taken += 1
        return taken

    def wait(self, timeout_s: float = 3600.0) -> bool:
        """Wait for all that is under way, and collect it; False when some is not there after `timeout_s`."""
        done = self._encoder.wait(timeout_s)
        self.collect()
        return done

    def close(self) -> None:
        """End the encoding thread."""
        self._encoder.close()

    def _drop_source(self, item_id: str, number: int) -> None:
        if self._sources.pop((item_id, number), None) is not None:
            self._encoder.cancel(item_id, number)

    def _give_row(self, item_id: str) -> None:
        row = self._row_of.pop(item_id, BLANK)
        if row == BLANK:
            if len(self._row_of) >= self._max_items:
                self.forget(next(iter(self._row_of)))
            row = self._free.pop() if self._free else self._used
            if row == self._used:
                self._used += 1
                self._grow()
        self._row_of[item_id] = row  # the newest entry stands last

    def _grow(self) -> None:
        if self._used > len(self._table):
            wider = np.zeros((2 * len(self._table), self.width), dtype=np.float32)
            wider[: len(self._table)] = self._table
            self._table = wider

    def _write(self, item_id: str, number: int, vector: npt.NDArray[Any] | None) -> None:
        """An item's block of one modality, and its mask: zeros for None."""
        row, (start, stop) = self._row_of[item_id], self._starts[number : number + 2]
        if vector is None and not self._table[row, self._starts[-1] + number]:
            return
        self._table[row, start:stop] = 0.0 if vector is None else vector
        self._table[row, self._starts[-1] + number] = float(vector is not None)
        self._note(item_id)

    def _note(self, item_id: str) -> None:
        self._changed.add(item_id)
        self.changes += 1

    def _given(self, item_id: str, name: str, dim: int, values: Any) -> npt.NDArray[Any] | None:
        if values is None:
            return None
        try:
            vector = unit_vector(item_id, name, values)
            if len(vector) != dim:
                raise ValueError(
                    f"{item_id}: embedding {name!r} has {len(vector)} dimensions, but content.embeddings "
                    f"says {dim}"
                )
        except ValueError as error:
            self.refused[name] += 1
            if self.refused[name] <= TOLD:
                log.warning("an embedding is left out: %s", error)
            return None
        return vector if vector.any() else None


def _digest(source: str) -> bytes:
    return hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=16).digest()
