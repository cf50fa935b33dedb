"""The owner's half of what takes back: an event retracted, a rating replaced, a user or an item forgotten.

What the models learned of an event is named by log records that every replica applies, in log order and in
the same transaction as everything else; `online_models.corrections` says which. The owner can name it for as
long as the event is among the user's recent ones (`user_state.recent`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from online_models.learning_batch import PAIR, UNPAIR, WITHDRAW
from streams import user_kernels as kernels
from streams.event_columns import EventColumns
from streams.intake import Batch
from streams.introductions import Arrivals
from streams.learning_log import Interactions, in_phases
from streams.log_kinds import DISMISS, FORGET_ITEM, FORGET_USER, INTRODUCE
from streams.settings import Settings
from streams.shards import Shards
from streams.user_kernels import TOKEN
from streams.validation import Tombstone, event_hash

__all__ = ["Withdrawals"]

Int32 = npt.NDArray[np.int32]

RETRACTS = 5
"""Place of `retracts` among `EventColumns.others`."""


@dataclass(slots=True)
class _Cause:
    """The n records that ask for rows of the log: where they stand, and their event ids as spans of `data`,
    int32[n, 2]."""

    data: npt.NDArray[np.uint8]
    span: Int32
    partition: Int32
    offset: npt.NDArray[np.int64]


class Withdrawals:
    """Writes the rows of the log that take back, and moves the users' own state accordingly."""

    def __init__(self, settings: Settings, items: ItemState, shards: Shards) -> None:
        models = settings.models
        self._items = items
        self._shards = shards
        self._widths = (models.covisitation.window, models.factors.dimension, models.factors.negatives)
        self._most = 2 * settings.user_state.recent + 1
        self.retract, self.rating = shards.users.kinds.codes_of([b"retract", b"rating"]).tolist()

    def before(self, batch: Batch, wave: Int32) -> Interactions | None:
        """What those of the events at the places `wave`, of distinct users, that are retracts or ratings take
        back: the rows of all users together, kind by kind, for replicas take neighbours of one kind at once.
        None if there is nothing to."""
        events, users = batch.events, self._shards.users
        rows, kind = batch.rows[wave], events.event_type[wave]
        retracts = kind == self.retract
        named, at = np.zeros(len(wave), np.uint64), np.empty(len(wave), np.int64)
        for k in np.flatnonzero(retracts).tolist():
            named[k] = event_hash(events.text(events.others[wave[k], RETRACTS]) or "")
        kernels.find_withdrawn(
            users.users, rows, batch.codes[wave], events.weight[wave].astype(np.float32), kind, named,
            self.retract, self.rating, at,
        )  # fmt: skip
        self._count(events.partition[wave], retracts, at >= 0)
        found = np.flatnonzero(at >= 0)
        if not len(found):
            return None
        rows, at, wave = rows[found], at[found], wave[found]
        cause = _Cause(events.data, events.event[wave], events.partition[wave], events.offset[wave])
        return self._withdrawn(rows, at, cause, retracts[found].view(np.uint8))

    def _count(self, partition: Int32, retracts: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> None:
        for p in np.unique(partition[retracts | found]).tolist():
            stats, here = self._shards[p].stats, partition == p
            stats.retracted += int((here & retracts & found).sum())
            stats.retracts_unknown += int((here & retracts & ~found).sum())
            stats.replaced += int((here & ~retracts & found).sum())

    def _withdrawn(
        self, of: Int32, at: npt.NDArray[np.int64], cause: _Cause, unsee: npt.NDArray[np.uint8]
    ) -> Interactions:
        """Withdraw the events at the places `at` of the users in the rows `of`."""
        users, counts = self._shards.users, np.empty(len(of), np.int64)
        before = users.users.factor[of]
        after, drawn = self._items.unlearn_users(
            before,
            [users.items.id_of(code).decode() for code in users.users.recent_item[at].tolist()],
            users.users.recent_weight[at],
            users.users.recent_hash[at],
        )

        def plan(kinds: Any, places: Any, recent: Any) -> int:
            return int(kernels.withdraw_all(users.users, of, at, kinds, places, recent, counts))

        rows, which = self._rows(of, cause, plan, counts)
        rows.before[rows.kind == PAIR] = after[which[rows.kind == PAIR]]
        rows.after[rows.kind != UNPAIR] = after[which[rows.kind != UNPAIR]]
        for place in np.flatnonzero(rows.kind == WITHDRAW).tolist():
            named = [-self._items.items.row(item_id) - 2 for item_id in drawn[which[place]]]
            rows.negatives[place, : len(named)] = named
        users.users.factor[of] = after
        kernels.take_out_all(users.users, of, at, unsee)
        return in_phases(rows)

    def forget_user(self, tombstone: Tombstone, events: EventColumns) -> Interactions | None:
        """Drop a user: all that is kept of what the user did is taken out of the counts; None if nobody knows
        the user."""
        users, partition = self._shards.users, tombstone.partition
        row = users.row(tombstone.key, partition)
        if row < 0:
            return None
        cause = self._no_event(events, [tombstone])

        def plan(kinds: Any, places: Any, recent: Any) -> int:
            return int(kernels.forget(users.users, row, kinds, places, recent))

        rows, _ = self._rows(np.array([row], np.int32), cause, plan, more=1)
        rows.kind[-1], rows.time_ms[-1] = FORGET_USER, max(0, tombstone.kafka_time_ms)
        users.forget(partition, np.array([row], np.int32))
        self._shards[partition].stats.forgotten += 1
        return rows

    def forget_items(self, tombstones: Sequence[Tombstone], events: EventColumns) -> Interactions | None:
        """Have every replica drop what it learned of items; None of none."""
        if not tombstones:
            return None
        rows = self._of_items([one.key for one in tombstones], self._no_event(events, tombstones))
        rows.kind[:] = FORGET_ITEM
        rows.time_ms[:] = [max(0, one.kafka_time_ms) for one in tombstones]
        return rows

    def introduce(self, arrivals: Arrivals, events: EventColumns) -> Interactions | None:
        """Have every replica give rows to items that nobody has used yet, and take others back; None of none.
        No record asks for it: their offset is -1."""
        if not arrivals:
            return None
        n = len(arrivals.dismissed) + len(arrivals.introduced)
        nowhere = np.full(n, -1, np.int64)
        cause = _Cause(events.data, np.zeros((n, 2), np.int32), np.zeros(n, np.int32), nowhere)
        rows = self._of_items([*arrivals.dismissed, *arrivals.introduced], cause)
        rows.kind[:] = np.where(np.arange(n) < len(arrivals.dismissed), DISMISS, INTRODUCE)
        return rows

    def _of_items(self, item_ids: Sequence[str], cause: _Cause) -> Interactions:
        """A row for each item, of the cause at the same place."""
        codes = self._shards.users.items.codes_of([one.encode() for one in item_ids], ensure=True)
        rows = self._blank(cause, np.arange(len(codes)))
        rows.code[:] = codes
        return rows

    def _no_event(self, events: EventColumns, tombstones: Sequence[Tombstone]) -> _Cause:
        return _Cause(
            events.data,
            np.zeros((len(tombstones), 2), np.int32),
            np.array([one.partition for one in tombstones], np.int32),
            np.array([one.offset for one in tombstones], np.int64),
        )

    def _rows(
        self,
        of: Int32,
        cause: _Cause,
        plan: Callable[..., int],
        counts: npt.NDArray[np.int64] | None = None,
        more: int = 0,
    ) -> tuple[Interactions, npt.NDArray[np.intp]]:
        """The rows that `plan` names of the recent events of the users in the rows `of`, `counts` of each
        (of one user all), and `more` that name none; and which of the users each row is of."""
        users, most = self._shards.users.users, self._most * len(of)
        kinds, places = np.empty(most, np.uint8), np.empty(most, np.int64)
        recent = np.empty((most, self._widths[0]), np.int32)
        n = plan(kinds, places, recent)
        which = np.repeat(np.arange(len(of)), [n + more] if counts is None else counts)
        rows, places = self._blank(cause, which), places[:n]
        rows.kind[:n], rows.recent[:n] = kinds[:n], recent[:n]
        rows.code[:n], rows.event_type[:n] = users.recent_item[places], users.recent_kind[places]
        rows.time_ms[:n], rows.weight[:n] = users.recent_time[places], users.recent_weight[places]
        rows.value[:n] = users.recent_value[places]
        rows.token[:] = users.long[of[which], TOKEN].view(np.uint64)
        rows.before[:] = rows.after[:] = users.factor[of[which]]
        return rows, which

    def _blank(self, cause: _Cause, which: npt.NDArray[np.intp]) -> Interactions:
        """A row for each of the causes at the places `which`."""
        recent, width, drawn = self._widths
        n = len(which)

        def filled(value: Any, dtype: Any, *shape: int) -> Any:
            return np.full((n, *shape), value, dtype)

        return Interactions(
            data=cause.data,
            event=cause.span[which],
            code=filled(-1, np.int32),
            event_type=filled(0, np.uint8),
            token=filled(0, np.uint64),
            time_ms=filled(0, np.int64),
            weight=filled(0, np.float32),
            value=filled(np.nan, np.float64),
            partition=cause.partition[which],
            offset=cause.offset[which],
            recent=filled(-1, np.int32, recent),
            negatives=filled(-1, np.int32, drawn),
            before=filled(0, np.float32, width),
            after=filled(0, np.float32, width),
            kind=filled(0, np.uint8),
            table_epoch=self._items.epoch,
        )
