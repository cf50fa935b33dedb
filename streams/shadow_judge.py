"""Two versions judged by what users do next: the list that was served, and the one that another ranker would
have given to the same query (test, then learn)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from serving.ranker.errors import RankerError
from serving.shadowing import COMPARED, Shadowed
from streams.events import TrialStats
from streams.intake import Batch
from streams.item_codes import ItemCodes
from streams.model_state import Trial
from streams.shards import Shards
from streams.user_kernels import TOKEN

__all__ = ["ShadowJudge", "Tally"]

PLACES = 1 << 15
"""Users whose two lists wait for their next event, at most; one may push another out. 3 MB."""
LATER, NEVER = -1, -2
"""In place of the item that a list is judged by: the event is still to come, or says nothing."""

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Tally:
    """What this process has counted of the trial in hand; None while there is none."""

    stats: TrialStats | None = None

    def begin(self, trial: Trial | None) -> None:
        """Count for `trial` from now on: from nothing, unless it is the one in hand."""
        now = self.stats
        if trial is None:
            self.stats = None
        elif now is None or (now.kind, now.live_digest, now.other_digest) != (
            trial.kind, trial.live_digest, trial.other_digest,
        ):  # fmt: skip
            self.stats = TrialStats(
                kind=trial.kind,
                live=trial.live,
                live_digest=trial.live_digest,
                other=trial.other,
                other_digest=trial.other_digest,
            )

    def taken(self) -> TrialStats | None:
        """A copy, as of now."""
        return None if self.stats is None else msgspec.structs.replace(self.stats)


@dataclass(slots=True)
class _Pending:
    """Lists that are being made: of users in rows int32[k], their served ones' item codes int32[k, 10], and
    the codes of the items they are judged by int32[k], or `LATER` or `NEVER`."""

    rows: Int32
    tokens: npt.NDArray[np.int64]
    served: Int32
    judged_by: Int32
    shadowed: Shadowed


class ShadowJudge:
    """Keeps two lists for each of some users until their next event, and counts which had its item.

    Nothing of it is state that must last: after a restart fewer events are judged.
    """

    def __init__(self, tally: Tally, shards: Shards, codes: ItemCodes) -> None:
        self._tally = tally
        self._shards = shards
        self._codes = codes
        self._row = np.full(PLACES, -1, np.int32)
        self._token = np.zeros(PLACES, np.int64)
        self._served = np.full((PLACES, COMPARED), -1, np.int32)
        self._other = np.full((PLACES, COMPARED), -1, np.int32)
        self._pending: list[_Pending] = []
        self._gain = 1.0 / np.log2(np.arange(COMPARED, dtype=np.float64) + 2.0)

    def begin(self, trial: Trial | None) -> None:
        """Judge for `trial` from now on; lists of another one are thrown away."""
        before = self._tally.stats
        self._tally.begin(trial)
        if self._tally.stats is not before:
            self._pending.clear()
            self._row[:] = -1

    def collect(self) -> None:
        """Take in the lists that were on their way; before rows of the item table change hands."""
        pending, self._pending = self._pending, []
        stats = self._tally.stats
        for one in pending:
            if stats is None or stats.failed is not None or one.shadowed.lists is None:
                continue
            try:
                rows = one.shadowed.lists.result()
            except RankerError as error:
                stats.failed = str(error)
                continue
            stats.scored += len(rows)
            other = np.where(rows >= 0, self._codes.code_of[rows], -1)
            now = np.flatnonzero(one.judged_by >= 0)
            self._count(one.judged_by[now], one.served[now], other[now])
            kept = np.flatnonzero(one.judged_by == LATER)
            places = one.rows[kept] % PLACES
            self._row[places], self._token[places] = one.rows[kept], one.tokens[kept]
            self._served[places], self._other[places] = one.served[kept], other[kept]

    def events(self, batch: Batch, order: Int32) -> None:
        """Judge the first event of each user among events `order` int32[m] of the batch, which stand in each
        user's order, by the lists that wait for it."""
        if self._tally.stats is None or not len(order):
            return
        rows, first = np.unique(batch.rows[order], return_index=True)
        places = rows % PLACES
        waiting = (self._row[places] == rows) & (self._token[places] == self._tokens(rows))
        places, events = places[waiting], order[first[waiting]]
        self._row[places] = -1
        said = _judged_by(batch, events)
        judged = np.flatnonzero(said >= 0)
        self._count(said[judged], self._served[places[judged]], self._other[places[judged]])

    def listed(
        self, rows: Int32, served: Int32, shadowed: Sequence[Shadowed], batch: Batch | None, order: Int32
    ) -> None:
        """Users in `rows` int32[n] (-1: nobody) were given lists with the heads `served` int32[n, 10], some
        of them another's as well. `order` int32[n]: the events that the lists followed, empty where they
        answer requests."""
        if self._tally.stats is None:
            return
        self._forget(rows[rows >= 0])
        judged_by = _newest(rows) if batch is None else self._next(batch, order)
        for one in shadowed:
            users = rows[one.positions]
            said = np.where(users >= 0, judged_by[one.positions], np.int32(NEVER))
            tokens = self._tokens(np.maximum(users, 0))
            self._pending.append(_Pending(users, tokens, served[one.positions], said, one))

    def _forget(self, rows: Int32) -> None:
        """What waits for these users' next events is no longer what they see."""
        waiting = rows[self._row[rows % PLACES] == rows]
        self._row[waiting % PLACES] = -1
        for one in self._pending:
            one.judged_by[(one.judged_by == LATER) & np.isin(one.rows, rows)] = NEVER

    def _next(self, batch: Batch, order: Int32) -> Int32:
        """int32[n]: the item that each list is judged by, where its user's next event is in the batch too."""
        said = np.full(len(order), LATER, np.int32)
        rows = batch.rows[order]
        by_user = np.argsort(rows, kind="stable")
        again = rows[by_user[1:]] == rows[by_user[:-1]]
        said[by_user[:-1][again]] = _judged_by(batch, order[by_user[1:][again]])
        return said

    def _tokens(self, rows: Int32) -> npt.NDArray[np.int64]:
        """Which users are in the rows: a row is given to another when its user expires."""
        tokens: npt.NDArray[np.int64] = self._shards.users.users.long[rows, TOKEN]
        return tokens

    def _count(self, items: Int32, served: Int32, other: Int32) -> None:
        stats = self._tally.stats
        if stats is None or not len(items):
            return
        places_live, places_other = served == items[:, None], other == items[:, None]
        live, beside = places_live.any(axis=1), places_other.any(axis=1)
        stats.events += len(items)
        stats.live_hits += int(live.sum())
        stats.other_hits += int(beside.sum())
        stats.live_only += int((live & ~beside).sum())
        stats.other_only += int((beside & ~live).sum())
        stats.live_ndcg_sum += float((places_live * self._gain).sum())
        stats.other_ndcg_sum += float((places_other * self._gain).sum())


def _newest(rows: Int32) -> Int32:
    """int32[n]: of each user's lists the newest is judged by what is still to come, others by nothing."""
    said = np.full(len(rows), NEVER, np.int32)
    _, last = np.unique(rows[::-1], return_index=True)
    said[len(rows) - 1 - last] = LATER
    return said


def _judged_by(batch: Batch, events: Int32) -> Int32:
    """int32[n]: the item code of each event that speaks for its item, else `NEVER`."""
    codes = batch.codes[events]
    said: Int32 = np.where((codes >= 0) & (batch.events.weight[events] > 0), codes, np.int32(NEVER))
    return said
