"""The users of the partitions that a worker owns, by columns: ids, factors and bounded lists in contiguous
arrays.

All that every event does to a user is in `streams.user_kernels`; this class makes room for it, puts users
back from their records, writes those of the users touched, and forgets users: those of a partition that went
to another worker, and the idlest when a partition holds too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from streams import user_kernels as kernels
from streams.errors import ChangelogError
from streams.id_table import IdTable, resized
from streams.settings import UserStateSettings
from streams.user_kernels import (
    COUNT,
    DEDUPE,
    LAST_MS,
    PARTITION,
    RECENT,
    REWRITE,
    ROOM,
    SEEN,
    START,
    TAIL,
    TOUCHED,
    TURN,
    Users,
)
from streams.user_records import COLD_PREFIX, ShardRecords

__all__ = ["Gathered", "UserTable"]

TAIL_ENTRIES = 32
"""Events between two cold records of a user; the hot record repeats this many entries at most."""
LIST_LENGTH = 10
"""Items kept of the list last served: hit rate and NDCG look at no more."""
OUT_BYTES = 4 << 20
"""Records are encoded into a buffer of this size, part by part."""
EVICTED_AT_ONCE = 32
"""When a partition holds too many users, one in so many goes, the idlest: then there is room for a while."""
MOST_KINDS = 256
"""Event types that a table can hold: their codes are bytes."""
POOL_GROWTH = 1.125
"""What is added to a pool is memory that holds nothing yet; growing one moves pages, not bytes."""
UNUSED = 8
"""A full pool's segments are moved together when more than one entry in so many is unused."""
ITEM_GARBAGE = 65_536
"""Item codes are looked through for unused ones when this many, and as many as are in use, have been
added."""

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Gathered:
    """What lists need of n users, in rows of the item table: recent int32[n, L] newest first (-1 padded or
    unknown) with kinds int32[n, L] (codes of event types) and times_ms int64[n, L], blocked
    int32[sum of seen] one user behind the other, blocked_end int32[n], seen_count int32[n],
    factors float32[n, d]."""

    recent: Int32
    kinds: Int32
    times_ms: npt.NDArray[np.int64]
    blocked: Int32
    blocked_end: Int32
    seen_count: Int32
    factors: npt.NDArray[np.float32]


class UserTable:
    """Rows are given by `users.ids`. `users` is the view for kernels, good until the next call that makes
    room; `items` and `kinds` hold the codes of item ids and event types that the rows use."""

    def __init__(self, caps: UserStateSettings, width: int, kinds: Sequence[str]) -> None:
        self._caps = caps
        self._ids = IdTable()
        self.items = IdTable()
        self.kinds = IdTable()
        self.kinds.reserve(MOST_KINDS, 0)
        self.kinds.codes_of([kind.encode() for kind in kinds], ensure=True)
        self._columns: dict[str, npt.NDArray[Any]] = {
            "long": np.zeros((0, 8), np.int64),
            "small": np.zeros((0, 16), np.int32),
            "factor": np.zeros((0, width), np.float32),
            "last_list": np.zeros((0, LIST_LENGTH), np.int32),
            "touched": np.zeros(0, np.int32),
        }
        self._pools: dict[str, npt.NDArray[Any]] = {
            "recent_item": np.zeros(0, np.int32),
            "recent_time": np.zeros(0, np.int64),
            "recent_kind": np.zeros(0, np.uint8),
            "recent_weight": np.zeros(0, np.float32),
            "recent_hash": np.zeros(0, np.uint64),
            "recent_value": np.zeros(0, np.float32),
            "seen_item": np.zeros(0, np.int32),
            "dedupe_hash": np.zeros(0, np.uint64),
            "dedupe_time": np.zeros(0, np.int64),
        }
        lists = (caps.recent, caps.seen, caps.dedupe_entries)
        classes = [_size_classes(cap) for cap in lists]
        most = max(map(len, classes))
        self._fixed: dict[str, npt.NDArray[Any]] = {
            "sizes": np.array([c + c[-1:] * (most - len(c)) for c in classes], np.int64),
            "free": np.full((3, most), -1, np.int64),
            "ends": np.zeros(3, np.int64),
            "headroom": np.array([sum(c) for c in classes], np.int64),
            "touched_count": np.zeros(1, np.int64),
        }
        self._stamps = np.zeros(1, np.int64)
        self._place = np.zeros(0, np.int64)
        self._scratch_codes = np.zeros(caps.recent + caps.seen + LIST_LENGTH, np.int32)
        self._out = np.zeros(0, np.uint8)
        self._items_in_use = 0
        self._expired: dict[int, list[bytes]] = {}
        self.population: Counter[int] = Counter()
        """Users by partition."""
        self.users = self._view()
        self.reserve(1, 1)

    def _view(self) -> Users:
        columns, pools, fixed = self._columns, self._pools, self._fixed
        factor, weight = columns["factor"], pools["recent_weight"]
        return Users(
            ids=self._ids.ids,
            **columns,
            **pools,
            **fixed,
            factor_bytes=factor.view(np.uint8).reshape(-1, 4 * factor.shape[1]),
            recent_bits=weight.view(np.uint32),
        )

    def __len__(self) -> int:
        return len(self._ids)

    def count_new(self, rows: Int32) -> None:
        """Count users that a kernel has given rows."""
        for partition, n in enumerate(np.bincount(self.users.small[rows, PARTITION]).tolist()):
            if n:
                self.population[partition] += n

    @property
    def nbytes(self) -> int:
        """Bytes held for users, their ids and the items' ids."""
        held = [*self._columns.values(), *self._pools.values()]
        tables = (self._ids, self.items, self.kinds)
        return sum(array.nbytes for array in held) + sum(table.nbytes for table in tables)

    # --- room ---

    def reserve(self, n: int, n_bytes: int) -> None:
        """Make room for `n` events of users and items whose ids have `n_bytes` together."""
        moved = self._ids.reserve(n, n_bytes) | self.items.reserve(n, n_bytes)
        rows = self._ids.capacity
        if rows > len(self._columns["touched"]):
            for column in self._columns.values():
                resized(column, rows)
            moved = True
        if moved or not kernels.has_room(self.users):
            self.make_room()

    def make_room(self) -> None:
        """Give the pools that are nearly full room, by moving segments together where enough is unused,
        then by growing; and take the view anew."""
        ends, headroom = self._fixed["ends"], self._fixed["headroom"]
        for which, prefix in ((RECENT, "recent"), (SEEN, "seen"), (DEDUPE, "dedupe")):
            pools = [pool for name, pool in self._pools.items() if name.startswith(prefix)]
            if ends[which] + headroom[which] > len(pools[0]):
                self._compact(which)
            needed = int(ends[which] + headroom[which])
            if needed > len(pools[0]):
                for pool in pools:
                    resized(pool, max(needed, int(len(pool) * POOL_GROWTH)))
        self.users = self._view()

    def _compact(self, which: int) -> None:
        """Lists that grow leave small segments behind, together as much as is used."""
        room, rows = self.users.small[:, ROOM + which], self._ids.held()
        rows = rows[room[rows] >= 0]
        used, top = int(self.users.sizes[which, room[rows]].sum()), int(self.users.ends[which])
        if top - used > top // UNUSED:
            order = rows[np.argsort(self.users.long[rows, START + which])]
            kernels.compact(self.users, which, order.astype(np.int32))

    # --- changelog ---

    def restore(self, records: ShardRecords) -> None:
        """Put the users of one partition back.

        Raises:
            ChangelogError: a record that can't be read.
        """
        pairs = [
            (key, value, is_cold)
            for key, hot in records.hot.items()
            for value, is_cold in ((records.cold.get(key), True), (hot, False))
            if value is not None
        ]
        for start in range(0, len(pairs), 10_000):
            self._load(pairs[start : start + 10_000], records)
        self.population[records.partition] = len({key for key, _, _ in pairs})

    def _load(self, pairs: list[tuple[bytes, bytes, bool]], records: ShardRecords) -> None:
        data = np.frombuffer(b"".join([part for key, value, _ in pairs for part in (key, value)]), np.uint8)
        lengths = np.array([(len(key), len(value)) for key, value, _ in pairs], np.int64)
        ends = np.cumsum(lengths.ravel()).reshape(-1, 2)
        starts = ends - lengths
        cold = np.array([is_cold for _, _, is_cold in pairs], np.uint8)
        codes = np.zeros(65_536, np.int32)
        self.reserve(len(pairs), int(lengths[:, 0].sum()))
        done, stuck = 0, -1
        while done < len(pairs):
            if done == stuck:
                self._explain(pairs[done][0], records)
            stuck = done
            self.items.reserve(20_000, max(1 << 20, int(lengths[done, 1])))
            self.kinds.reserve(MOST_KINDS, int(lengths[done, 1]))
            self.make_room()
            done = kernels.load(
                data, starts[:, 1], ends[:, 1], starts[:, 0], ends[:, 0], cold, records.partition,
                self.users, self.items.ids, self.kinds.ids, codes, done,
            )  # fmt: skip

    def _explain(self, key: bytes, records: ShardRecords) -> None:
        """Why a record can't be loaded: decode it by the book."""
        user = records.user(key)
        raise ChangelogError(
            f"user-state[{records.partition}], key {key[:80]!r}: a record that this version can't take: a "
            f"factor of {len(user.factor)} numbers (here {self._columns['factor'].shape[1]}), "
            f"{len(self.kinds)} event types before it (at most {MOST_KINDS}), or bytes that no worker "
            "writes. Were [models.factors] or the event types changed? See the topic's ACLs."
        )

    def drain_touched(self) -> Iterator[tuple[int, list[bytes], list[bytes | None]]]:
        """By partition, keys and values of the records of every user touched since the last call: a hot one
        each, now and then a cold one before it; and tombstones of the users that went."""
        for partition, keys in self._expired.items():
            yield partition, keys, [None] * len(keys)
        self._expired.clear()
        n = int(self._fixed["touched_count"][0])
        rows = self._columns["touched"][:n]
        self._fixed["touched_count"][0] = 0
        small = self._columns["small"]
        small[rows, TOUCHED] = 0
        small[rows, TURN] = 0
        order = np.argsort(small[rows, PARTITION], kind="stable")
        rows = rows[order]
        cold = small[rows, TAIL : TAIL + 3].max(axis=1) >= min(TAIL_ENTRIES, self._caps.recent)
        cold |= small[rows, REWRITE] != 0
        chosen = np.repeat(rows, 1 + cold)
        whole = np.zeros(len(chosen), np.uint8)
        whole[np.cumsum(1 + cold)[cold] - 2] = 1
        keys, values = self._keys(chosen, whole), self._encoded(chosen, whole)
        partitions = small[chosen, PARTITION]
        cuts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(chosen)] if len(chosen) else [0]
        for start, end in pairwise(cuts):
            yield int(partitions[start]), keys[start:end], values[start:end]

    def ids_of(self, rows: Int32) -> list[bytes]:
        """Ids of the users in `rows`."""
        return self._keys(rows, np.zeros(len(rows), np.uint8))

    def _keys(self, chosen: Int32, whole: npt.NDArray[np.uint8]) -> list[bytes]:
        lengths = self._ids.ids.length[chosen] + len(COLD_PREFIX) * whole
        out, ends = np.empty(int(lengths.sum()), np.uint8), np.empty(len(chosen), np.int64)
        kernels.keys_of(self.users, chosen, whole, np.frombuffer(bytearray(COLD_PREFIX), np.uint8), out, ends)
        return _cut(out.tobytes(), ends.tolist())

    def _encoded(self, chosen: Int32, whole: npt.NDArray[np.uint8]) -> list[bytes | None]:
        if len(self._place) < self.items.capacity:
            self._place = np.zeros(self.items.capacity, np.int64)
        if not len(self._out):
            self._out = np.zeros(OUT_BYTES, np.uint8)
        ends = np.zeros(len(chosen), np.int64)
        values: list[bytes | None] = []
        done = 0
        while done < len(chosen):
            upto = kernels.encode(
                done, chosen, whole, self.users, self.items.ids, self.kinds.ids, self._place, self._stamps,
                self._scratch_codes, self._out, ends,
            )  # fmt: skip
            if upto == done:
                self._out = np.zeros(2 * len(self._out), np.uint8)
                continue
            values += _cut(self._out[: int(ends[upto - 1])].tobytes(), ends[done:upto].tolist())
            done = upto
        return values

    # --- reading ---

    def row(self, user_id: str, partition: int) -> int:
        """Row of a user, -1 when unknown. Never inserts."""
        data = np.frombuffer(user_id.encode() or b"\0", np.uint8)
        return int(kernels.row_of_user(self.users, data, len(user_id.encode()), partition))

    def gather(self, rows: Int32, row_of: Int32, length: int) -> Gathered:
        """What lists need of the users in `rows`; `row_of` leads from item codes to the item table's rows."""
        n = len(rows)
        if (missing := self.items.codes - len(row_of)) > 0:  # restored since the map was made: no rows yet
            row_of = np.concatenate((row_of, np.full(missing, -1, np.int32)))
        total = int(self.users.small[rows, COUNT + SEEN].sum())
        found = Gathered(
            recent=np.empty((n, length), np.int32),
            kinds=np.empty((n, length), np.int32),
            times_ms=np.empty((n, length), np.int64),
            blocked=np.empty(total, np.int32),
            blocked_end=np.empty(n, np.int32),
            seen_count=np.empty(n, np.int32),
            factors=np.empty((n, self._columns["factor"].shape[1]), np.float32),
        )
        kernels.gather(
            rows, self.users, row_of, found.recent, found.kinds, found.times_ms, found.seen_count,
            found.blocked, found.blocked_end, found.factors,
        )  # fmt: skip
        return found

    def touch(self, row: int) -> None:
        """Write the row's record with the next batch."""
        kernels.touch(self.users, row)

    def id_of(self, row: int) -> bytes:
        return self._ids.id_of(row)

    # --- forgetting ---

    def drop_partitions(self, partitions: Iterable[int]) -> None:
        """Let go of the users of partitions that another worker owns now."""
        rows, gone = self._ids.held(), list(partitions)
        self._drop(rows[np.isin(self.users.small[rows, PARTITION], gone)])
        for partition in gone:
            self.population.pop(partition, None)
            self._expired.pop(partition, None)

    def expire(self, partition: int, most: int, idle_before_ms: int) -> int:
        """Forget the users of a partition whose last event was before `idle_before_ms`, and, where it still
        holds more than `most`, the idlest of them; their tombstones go out with the next records. Returns how
        many went."""
        rows = self._ids.held()
        rows = rows[self.users.small[rows, PARTITION] == partition]
        last = self.users.long[rows, LAST_MS]
        gone = last < idle_before_ms
        if (left := len(rows) - int(gone.sum())) > most:
            surplus = int(gone.sum()) + left - most + most // EVICTED_AT_ONCE
            gone[np.lexsort((rows, last))[:surplus]] = True
        self.forget(partition, rows[gone])
        return int(gone.sum())

    def forget(self, partition: int, rows: Int32) -> None:
        """Forget users of a partition; their tombstones go out with the next records."""
        for key in (self.id_of(row) for row in rows.tolist()):
            self._expired.setdefault(partition, []).extend((key, COLD_PREFIX + key))
        self._drop(rows)
        self.population[partition] -= len(rows)

    def _drop(self, rows: Int32) -> None:
        touched = self._columns["touched"][: int(self._fixed["touched_count"][0])]
        kept = touched[~np.isin(touched, rows)]
        touched[: len(kept)] = kept
        self._fixed["touched_count"][0] = len(kept)
        kernels.drop_users(self.users, rows)

    def unused_items(self, also_used: Callable[[], Int32]) -> Int32:
        """Item codes that no user holds any more, nor `also_used` names; looked for only when many have come
        since the last time. The caller gives them back with `items.remove`."""
        held = len(self.items)
        if held < 2 * self._items_in_use + ITEM_GARBAGE:
            return np.zeros(0, np.int32)
        used = np.zeros(self.items.capacity, np.uint8)
        used[also_used()] = 1
        kernels.mark_items(self.users, self._ids.held(), used)
        unused: Int32 = self.items.held()
        unused = unused[used[unused] == 0]
        self._items_in_use = held - len(unused)
        return unused


def _cut(joined: bytes, ends: list[int]) -> list[bytes]:
    """The parts of `joined` that end where `ends` says."""
    return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _size_classes(cap: int) -> list[int]:
    """Segment sizes from 4 up, each by a quarter of the power of two below it, 2 at least; the last is the
    cap."""
    sizes = [4, 6]
    while sizes[-1] < cap:
        power = 1 << (sizes[-1].bit_length() - 1)
        sizes.append(sizes[-1] + max(2, power // 4))
    return [s for s in sizes if s < cap] + [cap]
