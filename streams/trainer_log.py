"""The learning log as the trainer keeps it: the newest interactions in columns, less what was taken back."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from online_models.learning_batch import LEARN, WITHDRAW
from serving.ranker.hashing import ContextHash
from serving.training.dataset import InteractionLog
from serving.training.examples import Examples
from serving.training.replay import FeatureReplay
from streams.errors import LearningLogError
from streams.learning_log import FORGET_ITEM, FORGET_USER, LogRecord, learn_record
from streams.log_columns import DIGEST_BYTES
from streams.settings import Settings
from streams.trainer_drift import DriftWatch

__all__ = ["TakenBack", "TrainingLog", "append_record", "made_replay"]

log = logging.getLogger("freshet.trainer")

SPARE = 0.25
"""Share above the most interactions kept at which the oldest are dropped: each drop copies the rest."""


class TrainingLog:
    """Takes the log's records in, and gives what is trained on; memory is bounded by `most` interactions.

    `replay`, where there is one, sees every record and keeps the newest examples. It must have seen the log
    from its beginning, since records name items by the rows that they have then. Contexts count that were
    hashed of `context_keys`; others' columns mean something else.
    """

    def __init__(
        self, most: int, replay: FeatureReplay | None = None, context_keys: Sequence[str] = ()
    ) -> None:
        self.most = most
        self.seen = 0
        """Interactions so far, those dropped again included."""
        self.offset = -1
        """Of the newest record taken in."""
        self._context_digest = ContextHash(context_keys).digest
        self._data = InteractionLog()
        self._data.context_keys = tuple(context_keys)
        self._taken_back = TakenBack()
        self._replay = replay
        self._records = 0
        self._end = self._wanted = 0

    def add(self, record: LogRecord, offset: int, where: str) -> None:
        """Take the record at `offset` in; `where` names it. Raises LearningLogError for a broken one."""
        if record.context[:DIGEST_BYTES] != self._context_digest:
            record = msgspec.structs.replace(record, context=b"")
        self.seen += append_record(self._data, record, offset)
        self._taken_back.add(record, offset)
        self.offset, self._records = offset, self._records + 1
        if self._replay is not None:
            if offset < self._end:
                self._replay.sample_from = self._first_sampled()
            self._learn(self._replay, record, where)
        if len(self._data) > self.most * (1 + SPARE):
            self._data = self._data.newest(self.most)
            self._taken_back.prune(int(self._data.column("time_ms").min()))

    def follow_to(self, end: int, wanted: int) -> None:
        """Records up to offset `end` are known to come: until then, no examples are made of those that are
        sure to be displaced by `wanted` newer ones. Making one costs a hundred times as much as learning
        it."""
        self._end, self._wanted = end, wanted

    def _first_sampled(self) -> int:
        """An offset behind which twice the wanted examples are expected."""
        return int(self._end - 2.0 * self._wanted * self._records / max(self.seen, 1))

    def interactions(self) -> InteractionLog:
        """What is trained on now."""
        return self._taken_back.rest_of(self._data).newest(self.most)

    def examples(self, interactions: InteractionLog) -> Examples | None:
        """The newest examples whose events are among `interactions`; None without a replay."""
        if self._replay is None or not len(self._replay):
            return None
        return self._replay.examples().located(interactions)

    def _learn(self, replay: FeatureReplay, record: LogRecord, where: str) -> None:
        replay.offset = self.offset
        try:
            learn_record(replay, record, where)
        except (LearningLogError, ValueError) as error:
            self._replay = None
            log.warning("rankers are trained without the online features from here on: %s", error)


def made_replay(settings: Settings, drift: DriftWatch | None = None) -> FeatureReplay | None:
    """What follows the log as a worker would, for the examples of a fused ranker and for `drift`; None where
    the settings ask for neither."""
    drift = drift if settings.schedule.on_drift else None
    if not settings.trainer.head_examples and drift is None:
        return None
    capacity = max(settings.trainer.head_examples, 1)
    return FeatureReplay(
        settings.models,
        settings.serving,
        capacity,
        list_length=settings.trigger.count,
        judged=None if drift is None else drift.judge,
        examples=settings.trainer.examples,
    )


class TakenBack:
    """What the log says must not be trained on any more: withdrawn interactions, forgotten users, and what
    was done with items before they were forgotten."""

    def __init__(self) -> None:
        self._withdrawn: dict[int, Counter[tuple[str, int]]] = {}
        self._forgotten: set[int] = set()
        self._items: dict[str, int] = {}
        """Offset in the log up to which an item is forgotten."""

    def add(self, record: LogRecord, offset: int) -> None:
        """Take the log record at `offset` in."""
        if not record.kind:
            return
        kinds, tokens = record.kinds, record.column("token", "<u8")
        self._forgotten |= set(tokens[kinds == FORGET_USER].tolist())
        items, times, item_ids = (
            record.column("item", "<i4"),
            record.column("time_ms", "<i8"),
            record.item_ids,
        )
        for item in items[kinds == FORGET_ITEM].tolist():  # what the same record says of it stands before
            self._items[item_ids[item]] = offset
        trained_on = record.column("weight", "<f4") > 0
        for n in np.flatnonzero((kinds == WITHDRAW) & trained_on).tolist():
            of_user = self._withdrawn.setdefault(int(tokens[n]), Counter())
            of_user[item_ids[items[n]], int(times[n])] += 1

    def prune(self, oldest_ms: int) -> None:
        """Forget what was withdrawn of times before the oldest interaction that is still kept."""
        kept = {
            token: Counter({one: count for one, count in gone.items() if one[1] >= oldest_ms})
            for token, gone in self._withdrawn.items()
        }
        self._withdrawn = {token: gone for token, gone in kept.items() if gone}

    def rest_of(self, data: InteractionLog) -> InteractionLog:
        """`data` without them; of interactions alike the newest go first."""
        if not self._withdrawn and not self._forgotten and not self._items:
            return data
        user, item, time_ms = (data.column(name) for name in ("user", "item", "time_ms"))
        keep = ~np.isin(user, np.array(sorted(self._forgotten), np.uint64))
        if self._items:
            forgotten = np.array([self._items.get(item_id, -1) for item_id in data.item_ids], np.int64)
            keep &= data.column("offset") > forgotten[item]
        left = {token: gone.copy() for token, gone in self._withdrawn.items()}
        moments = {moment for gone in left.values() for _, moment in gone}
        concerned = keep & np.isin(user, np.array(sorted(left), np.uint64))
        concerned &= np.isin(time_ms, np.array(sorted(moments), np.int64))
        for n in np.flatnonzero(concerned)[::-1].tolist():
            one = (data.item_ids[item[n]], int(time_ms[n]))
            if left[int(user[n])][one] > 0:
                left[int(user[n])][one] -= 1
                keep[n] = False
        return data.chosen(np.flatnonzero(keep))


def append_record(data: InteractionLog, record: LogRecord, offset: int) -> int:
    """Add a log record's positive interactions to `data`: what recent items are made of when serving. Gives
    how many there are."""
    item = record.column("item", "<i4")
    keep = (item >= 0) & (record.column("weight", "<f4") > 0) & (record.kinds == LEARN)
    codes = np.array(data.type_codes(record.event_types), dtype=np.int64)
    contexts = record.contexts
    data.append(
        user=record.column("token", "<u8")[keep],
        item_ids=record.item_ids,
        item=item[keep],
        time_ms=record.column("time_ms", "<i8")[keep],
        event_type=codes[record.column("event_type", "u1")[keep]],
        weight=record.column("weight", "<f4")[keep],
        offset=offset,
        value=record.column("value", "<f8")[keep],
        context=None if contexts is None else contexts[keep],
    )
    return int(np.count_nonzero(keep))
