"""A growing table of vectors whose start values depend on the seed and the id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models.corrections import Past
from online_models.item_table import UNLIMITED, grown, pack_ids, unpack_ids
from online_models.learning_batch import LearningBatch

__all__ = [
    "FactorTable",
    "event_hash",
    "name_negatives",
    "pack_users",
    "require_one_event",
    "start_vectors",
    "unpack_users",
    "withdrawn_hash",
]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_16_BITS = np.uint64(0xFFFF)


def start_vectors(seed: int, ids: Sequence[str], dimension: int, scale: float) -> NDArray[np.float32]:
    """Start vectors float32[n, dimension], close to normal(0, scale), a function of (seed, id) only.

    BLAKE2b of the id, keyed by the seed, starts a SplitMix64 sequence (Steele, Lea and Flood 2014). The four
    16-bit fields of each draw are summed (Irwin and Hall): mean 2, variance 1/3. Only exact integer and IEEE
    arithmetic, no math library, so every machine gets the same bits.

    >>> start_vectors(0, ["milk"], 4, 0.1).astype(float).round(3).tolist()
    [[0.023, -0.075, 0.016, -0.01]]
    """
    key = seed.to_bytes(8, "little")
    hashes = [hashlib.blake2b(item_id.encode(), key=key, digest_size=8).digest() for item_id in ids]
    start = np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)
    draws = _splitmix64(start[:, None] + np.arange(1, dimension + 1, dtype=np.uint64) * _GOLDEN)
    fields = sum((draws >> np.uint64(shift)) & _LOW_16_BITS for shift in (0, 16, 32, 48))
    uniform_sum = (np.asarray(fields, dtype=np.float64) + 2.0) / 65_536.0  # each field sits mid-cell
    vectors: NDArray[np.float32] = ((uniform_sum - 2.0) * (np.sqrt(3.0) * scale)).astype(np.float32)
    return vectors


def event_hash(seed: int, event_id: str, user: str = "", item: str = "", time_ms: int = 0) -> int:
    """64 bits that an event draws its negatives by: of its id, or of user, item and time where it has none.

    >>> event_hash(0, "e1") == event_hash(0, "e1", "ann", "tea"), event_hash(0, "", "ann", "tea") % 1000
    (True, 584)
    """
    text = event_id or f"{user}\0{item}\0{time_ms}"
    digest = hashlib.blake2b(text.encode(), key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def withdrawn_hash(seed: int, user: str, pasts: Sequence[Past], batch: LearningBatch) -> int:
    """`event_hash` of the event that a record of one withdraws; the user's past has its id."""
    item, time_ms = batch.item_ids[batch.item[0]], int(batch.time_ms[0])
    same = (past for past in pasts if past.item == item and past.time_ms == time_ms)
    event_id = next((past.event_id for past in same if past.weight == batch.weight[0]), "")
    return event_hash(seed, event_id, user, item, time_ms)


def name_negatives(batch: LearningBatch, negatives: Sequence[str]) -> None:
    """Put the ids of its event's negatives into a record of one."""
    index_of = {item_id: index for index, item_id in enumerate(batch.item_ids)}
    columns = [index_of.setdefault(item_id, len(index_of)) for item_id in negatives]
    batch.item_ids = list(index_of)
    batch.negatives = np.array([columns], dtype=np.int32).reshape(1, len(columns))


def require_one_event(events: Sequence[object]) -> None:
    """Raises ValueError unless there is one event: a factor model's owner reads what the last one moved."""
    if len(events) != 1:
        raise ValueError(f"{len(events)} events, but a factor model's owner learns one before it is applied")


def pack_users(
    name: str, users: Mapping[str, NDArray[np.float32]], width: int
) -> dict[str, NDArray[np.generic]]:
    """The owner's vectors float32[width] of users, and their ids, under `name`."""
    own = np.array(list(users.values()), dtype=np.float32).reshape(len(users), width)
    return {**pack_ids(name, list(users)), name: own}


def unpack_users(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    """What `pack_users` packed."""
    return dict(zip(unpack_ids(name, arrays), arrays[name].astype(np.float32), strict=True))


class FactorTable:
    """Rows of float32[dimension], contiguous; a new row holds its id's start vector.

    >>> table = FactorTable(dimension=2, seed=7)
    >>> table.ensure(["milk", "bread"])
    >>> len(table), bool((table.rows[1] == table.start_vectors(["bread"])[0]).all())
    (2, True)
    """

    __slots__ = ("_length", "_storage", "dimension", "scale", "seed")

    def __init__(self, dimension: int, seed: int = 0, scale: float = 0.1) -> None:
        self.dimension = dimension
        self.seed = seed
        self.scale = scale
        self._length = 0
        self._storage: NDArray[np.float32] = np.zeros((16, dimension), dtype=np.float32)

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> NDArray[np.float32]:
        """View float32[n, dimension] of the rows in use; `ensure` may move them, so don't keep it."""
        return self._storage[: self._length]

    def ensure(self, ids: Sequence[str], limit: int = UNLIMITED) -> None:
        """Make the table as long as `ids`, row r holding the start vector of ids[r] until it is learned; at
        most `limit` rows are ever asked for."""
        first, wanted = self._length, len(ids)
        if wanted <= first:
            return
        self._storage = grown(self._storage, wanted, limit)
        self._storage[first:wanted] = self.start_vectors(ids[first:])
        self._length = wanted

    def start_vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Start vectors float32[n, dimension] of ids, whether or not they have rows."""
        return start_vectors(self.seed, ids, self.dimension, self.scale)

    def to_arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """The rows in use, under `name`."""
        return {name: self.rows.copy()}

    def load(self, name: str, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Take the rows of `to_arrays`. Raises ValueError when their dimension is another."""
        rows = arrays[name]
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise ValueError(f"{name}: shape {list(rows.shape)}, but [any, {self.dimension}] is needed")
        self._storage = np.zeros((max(16, len(rows)), self.dimension), dtype=np.float32)
        self._storage[: len(rows)] = rows
        self._length = len(rows)


def _splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (state ^ (state >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))
