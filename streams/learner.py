"""The owner's half of learning: a user's state moves at once, and the learning log carries the rest to every
replica."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.ranker.hashing import ContextHash
from streams import user_kernels as kernels
from streams.intake import Batch
from streams.item_codes import ItemCodes
from streams.learning_log import Interactions, LogWriter
from streams.settings import Settings
from streams.shards import Shards
from streams.user_kernels import TOKEN, Learned
from streams.user_table import LIST_LENGTH
from streams.withdrawals import Withdrawals

__all__ = ["JUDGED", "Learner"]

JUDGED = LIST_LENGTH
"""Hit rate and NDCG look at the first ten items of the list last emitted."""

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class Learner:
    """Judges each event against the list before it, then learns from it (test, then learn)."""

    def __init__(self, settings: Settings, items: ItemState, shards: Shards, partitions: int) -> None:
        self._items = items
        self._shards = shards
        self._partitions = partitions
        self.codes = ItemCodes(items, shards.users.items)
        models = settings.models
        self._widths = (models.covisitation.window, models.factors.dimension, models.factors.negatives)
        self.log = LogWriter(
            shards.users.items,
            shards.users.kinds,
            (settings.names["events"], settings.names["users"], settings.names["items"]),
            self._widths,
            items.settings_digest,
            ContextHash(settings.ranker.context_keys).digest,
        )
        self.withdrawals = Withdrawals(settings, items, shards)
        self._discount = 1.0 / np.log2(np.arange(JUDGED, dtype=np.float64) + 2.0)

    def start(self, batch: Batch) -> None:
        """Give users nobody knew the factors that they start from."""
        if len(batch.new):
            users = self._shards.users
            names = [name.decode() for name in users.ids_of(batch.rows[batch.new])]
            users.users.factor[batch.rows[batch.new]] = self._items.start_users(names)
            users.count_new(batch.rows[batch.new])

    def learn(self, batch: Batch, wave: Int32, *, listed: bool = True) -> Interactions:
        """Learn the events of `batch` at the places `wave`, in their order; returns their rows for the
        learning log, behind the rows that take back what they withdraw. They are judged against their users'
        last lists, or, not `listed`, by `judge` later."""
        events, users, m = batch.events, self._shards.users, len(wave)
        recent, width, drawn = self._widths
        before, after = np.empty((m, width), np.float32), np.empty((m, width), np.float32)
        items, negatives = np.empty((m, recent), np.int32), np.empty((m, drawn), np.int32)
        weight = events.weight.astype(np.float32)
        unknown, learned = self._learned(batch, wave, weight)
        hits = np.zeros((self._partitions, 3), np.int64)
        sums = np.zeros((self._partitions, 2), np.float64)
        begin, ends, withdrawn = 0, [m], []
        corrected = 0
        while begin < m:
            begin = kernels.learn(
                begin, wave[: ends[0]], listed, batch.rows, batch.codes, unknown, events.event_hash, weight,
                events.value, events.time_ms, events.event_type, events.partition, self.withdrawals.retract,
                self.withdrawals.rating, corrected, users.users, learned, hits, sums, before, after, items,
                negatives,
            )  # fmt: skip
            if begin == m:
                break
            if not kernels.has_room(users.users):
                users.make_room()
                continue
            if begin < ends[0]:  # an event that withdraws another: from here on, users one event at a time
                wave, ends = _by_turns(batch, wave, begin)
            else:
                ends = ends[1:]
            corrected = ends[0]
            if (taken_back := self.withdrawals.before(batch, wave[begin:corrected])) is not None:
                withdrawn.append((begin, taken_back))
        self._count(hits, sums)
        rows = Interactions(
            data=events.data,
            event=events.event[wave],
            code=batch.codes[wave],
            event_type=events.event_type[wave],
            token=users.users.long[batch.rows[wave], TOKEN].view(np.uint64),
            time_ms=events.time_ms[wave],
            weight=weight[wave],
            value=events.value[wave],
            partition=events.partition[wave],
            offset=events.offset[wave],
            recent=items,
            negatives=negatives,
            before=before,
            after=after,
            kind=np.zeros(m, np.uint8),
            table_epoch=self._items.epoch,
            context=batch.hashed(wave),
        )
        return _interleaved(rows, withdrawn) if withdrawn else rows

    def _learned(self, batch: Batch, wave: Int32, weight: Float32) -> tuple[Int32, Learned]:
        """What the kernel reads of the item state; items without a row get their start vectors looked up."""
        self.codes.cover()
        codes = batch.codes[wave]
        fresh = wave[(codes >= 0) & (self.codes.row_of[codes] < 0) & (weight[wave] != 0)]
        unknown = np.zeros(len(batch.codes), np.int32)
        distinct, unknown[fresh] = np.unique(batch.codes[fresh], return_inverse=True)
        table = self._shards.users.items
        names = [table.id_of(code).decode() for code in distinct.tolist()]
        factors = self._items.factors
        return unknown, Learned(
            row_of=self.codes.row_of,
            factors=factors.factors.rows,
            introduced=self._items.introduced,
            unknown=factors.factors.start_vectors(names)
            if names
            else np.zeros((1, factors.dimension), np.float32),
            popular_place=self._items.popularity.plain_places(),
            discount=self._discount,
            learning_rate=factors.learning_rate,
            regularization=factors.regularization,
        )

    def judge(self, batch: Batch, asked: Int32, shown: Int32) -> None:
        """Judge each of the events `asked` int32[n] that has an earlier one of its user among them against
        the list that followed that: its head is `shown` int32[n, 10], item codes."""
        rows = batch.rows[asked]
        order = np.argsort(rows, kind="stable")
        again = rows[order[1:]] == rows[order[:-1]]
        event, before = asked[order[1:][again]], order[:-1][again]
        codes, weight = batch.codes[event], batch.events.weight[event].astype(np.float32)
        found = shown[before] == codes[:, None]
        hit = np.flatnonzero(found.any(axis=1) & (codes >= 0) & (weight > 0))
        gain, partition = self._discount[found[hit].argmax(axis=1)], batch.events.partition[event[hit]]
        for p in np.unique(partition).tolist():
            stats = self._shards[p].stats
            stats.hits_at_10 += int((partition == p).sum())
            stats.ndcg_at_10_sum += float(gain[partition == p].sum())

    def _count(self, hits: npt.NDArray[np.int64], sums: npt.NDArray[np.float64]) -> None:
        for p in np.flatnonzero(hits[:, 0]).tolist():
            stats = self._shards[p].stats
            stats.evaluated += int(hits[p, 0])
            stats.hits_at_10 += int(hits[p, 1])
            stats.popularity_hits_at_10 += int(hits[p, 2])
            stats.ndcg_at_10_sum += float(sums[p, 0])
            stats.popularity_ndcg_at_10_sum += float(sums[p, 1])


def _by_turns(batch: Batch, wave: Int32, begin: int) -> tuple[Int32, list[int]]:
    """`wave` with its places from `begin` on in order of their users' turns, and where each turn ends."""
    turns = batch.turns[wave[begin:]]
    order = np.argsort(turns, kind="stable")
    ends = np.flatnonzero(np.diff(turns[order])) + 1
    return np.concatenate((wave[:begin], wave[begin:][order])), [*(begin + ends).tolist(), len(wave)]


def joined(parts: list[Interactions]) -> Interactions | None:
    """All parts, one behind the other; they share `data` and the table's epoch."""
    if len(parts) < 2:
        return parts[0] if parts else None
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in Interactions.__slots__
        if name not in ("data", "table_epoch", "context")
    }
    width = max(part.context.shape[1] for part in parts)  # rows that take back have none
    columns["context"] = np.zeros((sum(map(len, parts)), width), np.float32)
    for part, end in zip(parts, np.cumsum([len(part) for part in parts]).tolist(), strict=True):
        columns["context"][end - len(part) : end, : part.context.shape[1]] = part.context
    return Interactions(data=parts[0].data, table_epoch=parts[0].table_epoch, **columns)


def _interleaved(rows: Interactions, withdrawn: list[tuple[int, Interactions]]) -> Interactions:
    """`rows` with others put before those at the given places."""
    parts, start = [], 0
    for place, taken_back in withdrawn:
        parts += [_part(rows, start, place), taken_back]
        start = place
    whole = joined([*parts, _part(rows, start, len(rows))])
    return rows if whole is None else whole


def _part(rows: Interactions, start: int, end: int) -> Interactions:
    columns = {
        name: getattr(rows, name)[start:end]
        for name in Interactions.__slots__
        if name not in ("data", "table_epoch")
    }
    return Interactions(data=rows.data, table_epoch=rows.table_epoch, **columns)
