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
from online_models.learning_batch import WITHDRAW
from streams import user_kernels as kernels
from streams.event_columns import EventColumns
from streams.intake import Batch
from streams.learning_log import FORGET_ITEM, FORGET_USER, Interactions
from streams.settings import Settings
from streams.shards import Shards
from streams.user_kernels import TOKEN
from streams.validation import Tombstone, event_hash

__all__ = ["Withdrawals"]

RETRACTS = 5
"""Place of `retracts` among `EventColumns.others`."""


@dataclass(slots=True)
class _Cause:
    """The record that asks for rows of the log: where it stands, and its event id as a span of `data`."""

    data: npt.NDArray[np.uint8]
    span: tuple[int, int]
    partition: int
    offset: int


class Withdrawals:
    """Writes the rows of the log that take back, and moves the users' own state accordingly."""

    def __init__(self, settings: Settings, items: ItemState, shards: Shards) -> None:
        models = settings.models
        self._items = items
        self._shards = shards
        self._widths = (models.covisitation.window, models.factors.dimension, models.factors.negatives)
        self._most = 2 * settings.user_state.recent + 1
        self.retract, self.rating = shards.users.kinds.codes_of([b"retract", b"rating"]).tolist()

    def before(self, batch: Batch, n: int) -> Interactions | None:
        """What event `n` of the batch, a retract or a rating, takes back; None if there is nothing to."""
        events, users, row = batch.events, self._shards.users.users, int(batch.rows[n])
        stats = self._shards[int(events.partition[n])].stats
        retracts = events.event_type[n] == self.retract
        if retracts:
            hashed: Any = np.uint64(event_hash(events.text(events.others[n, RETRACTS]) or ""))
            at = kernels.find_event(users, row, hashed)
            stats.retracted += at >= 0
            stats.retracts_unknown += at < 0
        else:
            at = kernels.find_rating(users, row, batch.codes[n], self.rating)
            stats.replaced += at >= 0
        if at < 0:
            return None
        start, length = events.event[n].tolist()
        cause = _Cause(events.data, (start, length), int(events.partition[n]), int(events.offset[n]))
        return self._withdrawn(row, at, cause, unsee=bool(retracts))

    def _withdrawn(self, row: int, at: int, cause: _Cause, *, unsee: bool) -> Interactions:
        users = self._shards.users
        rows = self._rows(row, cause, lambda *plan: kernels.withdraw(users.users, row, at, *plan))
        place = int(np.flatnonzero(rows.kind == WITHDRAW)[0])
        before = users.users.factor[row].copy()
        after, drawn = self._items.unlearn_users(
            before[None, :],
            [users.items.id_of(int(users.users.recent_item[at])).decode()],
            rows.weight[place : place + 1],
            users.users.recent_hash[at : at + 1],
        )
        users.users.factor[row] = after[0]
        rows.after[place:] = after[0]
        rows.before[place + 1 :] = after[0]
        named = [-self._items.items.row(item_id) - 2 for item_id in drawn[0]]
        rows.negatives[place, : len(named)] = named
        kernels.take_out(users.users, row, at, unsee)
        return rows

    def forget_user(self, tombstone: Tombstone, events: EventColumns) -> Interactions | None:
        """Drop a user: all that is kept of what the user did is taken out of the counts; None if nobody knows
        the user."""
        users, partition = self._shards.users, tombstone.partition
        row = users.row(tombstone.key, partition)
        if row < 0:
            return None
        cause = _Cause(events.data, (0, 0), partition, tombstone.offset)
        rows = self._rows(row, cause, lambda *plan: kernels.forget(users.users, row, *plan), more=1)
        rows.kind[-1], rows.time_ms[-1] = FORGET_USER, max(0, tombstone.kafka_time_ms)
        users.forget(partition, np.array([row], np.int32))
        self._shards[partition].stats.forgotten += 1
        return rows

    def forget_items(self, tombstones: Sequence[Tombstone], events: EventColumns) -> Interactions | None:
        """Have every replica drop what it learned of items; None of none."""
        if not tombstones:
            return None
        users = self._shards.users
        codes = users.items.codes_of([one.key.encode() for one in tombstones], ensure=True)
        n = len(codes)
        rows = self._blank(n, _Cause(events.data, (0, 0), 0, 0))
        rows.code[:], rows.kind[:] = codes, FORGET_ITEM
        rows.partition[:] = [one.partition for one in tombstones]
        rows.offset[:] = [one.offset for one in tombstones]
        rows.time_ms[:] = [max(0, one.kafka_time_ms) for one in tombstones]
        return rows

    def _rows(self, row: int, cause: _Cause, plan: Callable[..., int], more: int = 0) -> Interactions:
        """The rows that `plan` names of the user's recent events, and `more` that name none."""
        users = self._shards.users.users
        kinds, places = np.empty(self._most, np.uint8), np.empty(self._most, np.int64)
        recent = np.empty((self._most, self._widths[0]), np.int32)
        n = plan(kinds, places, recent)
        rows, places = self._blank(n + more, cause), places[:n]
        rows.kind[:n], rows.recent[:n] = kinds[:n], recent[:n]
        rows.code[:n], rows.event_type[:n] = users.recent_item[places], users.recent_kind[places]
        rows.time_ms[:n], rows.weight[:n] = users.recent_time[places], users.recent_weight[places]
        rows.value[:n] = users.recent_value[places]
        rows.token[:] = users.long[row : row + 1, TOKEN].view(np.uint64)
        rows.before[:] = rows.after[:] = users.factor[row]
        return rows

    def _blank(self, n: int, cause: _Cause) -> Interactions:
        recent, width, drawn = self._widths

        def filled(value: Any, dtype: Any, *shape: int) -> Any:
            return np.full((n, *shape), value, dtype)

        return Interactions(
            data=cause.data,
            event=filled(cause.span, np.int32, 2),
            code=filled(-1, np.int32),
            event_type=filled(0, np.uint8),
            token=filled(0, np.uint64),
            time_ms=filled(0, np.int64),
            weight=filled(0, np.float32),
            value=filled(np.nan, np.float64),
            partition=filled(cause.partition, np.int32),
            offset=filled(cause.offset, np.int64),
            recent=filled(-1, np.int32, recent),
            negatives=filled(-1, np.int32, drawn),
            before=filled(0, np.float32, width),
            after=filled(0, np.float32, width),
            kind=filled(0, np.uint8),
            table_epoch=self._items.epoch,
        )
