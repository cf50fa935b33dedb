"""The learning log read once more by the trainer: what serving would have shown before each event.

    record ─► retrieve and describe, for its positive events ─► examples
         └──► then learn it, as every replica does

Serving's own code makes the candidates (`serving.retrieval`) and their features (`serving.features`), from an
item state that has learned the log up to the record before: what a worker had that was up to date. What the
log doesn't say is left out: items that the catalogue hid, and lists that were made for a request's own items
or categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from online_models.learning_batch import LEARN, WITHDRAW, LearningBatch
from online_models.settings import ModelSettings
from serving import kernels
from serving.catalogue import Catalogue
from serving.features import candidate_features
from serving.filters import Filter
from serving.query import Query, QueryBatch
from serving.ranker.inputs import FEATURES, context_of
from serving.retrieval import Retriever
from serving.retrieval.nearest import NearestItems
from serving.scoring import Opinion, asked_of, blended
from serving.settings import ServingSettings
from serving.training.as_served import upon_event
from serving.training.example_ring import ExampleRing
from serving.training.examples import Examples
from serving.training.item_rows import ItemRows
from serving.training.pasts import Before, Pasts
from serving.training.settings import ExamplesOf

__all__ = ["Examples", "FeatureReplay"]

PAST_EVENTS = 1 << 20
"""Newest events of all users by which it is known what each has seen: 20 MB."""
MOST_SEEN = 2000
"""Items seen that are kept out of a user's list, as many as workers keep."""
MOST_ITEMS = 1 << 20
"""Items met at which those are forgotten that no event and no example kept names."""
MOVED_AT_ONCE = 256
"""Moved items that the index of a large catalogue takes in at one record."""

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Judged = Callable[[Float32, Int32, Int32, Int64], None]
"""Told `Examples.online`, `targets`, `length` and `times_ms` of examples."""


class FeatureReplay:
    """Follows the learning log like a worker's `ItemState`, and keeps the newest examples of it.

    It has an item state's methods for records, so that whoever reads the log applies records to it in the
    same way; `offset` is the record that is applied next, which the caller says. Before the offset
    `sample_from` records are learned and no examples made, which takes a fraction of the time.

    Memory: the item state, 20 bytes for each of the newest events (`PAST_EVENTS`), for each of `capacity`
    examples 32 bytes a candidate, 7 KB under the default settings, and the names of the items in these.
    """

    def __init__(
        self,
        models: ModelSettings,
        serving: ServingSettings,
        capacity: int = 20_000,
        *,
        share: float = 1.0,
        sample_from: int = 0,
        list_length: int = 10,
        judged: Judged | None = None,
        examples: ExamplesOf = "requests",
    ) -> None:
        """`share` of the positive events become examples, evenly. Lists of `list_length` are asked for.
        `judged` is told of examples as they are made. `examples` says which lists they are of."""
        self.items = ItemState(models)
        self.offset = 0
        self.sample_from = sample_from
        self._serving = serving
        self._share = share
        self._list_length = list_length
        self._judged = judged
        self._examples_of: ExamplesOf = examples
        self._positive = 0
        self._just_withdrawn: tuple[int, set[tuple[int, int]]] = (-1, set())
        self._nearest = NearestItems(self.items)
        self._retriever = Retriever(self.items, serving, self._nearest)
        self._catalogue = Catalogue(self.items.items)
        self._codes = ItemRows()
        self._most_items = MOST_ITEMS
        self._pasts = Pasts(PAST_EVENTS, MOST_SEEN)
        room = serving.covisitation_candidates + serving.factor_candidates
        room += max(serving.popularity_candidates, list_length)
        self._ring = ExampleRing(capacity, room + 1)

    @property
    def settings_digest(self) -> str:
        """As the item state's: whose log may be applied."""
        return self.items.settings_digest

    def __len__(self) -> int:
        """Examples kept."""
        return len(self._ring)

    def take(self, batch: LearningBatch, offset: int) -> None:
        """`apply` a batch of the record at `offset`."""
        self.offset = offset
        self.apply(batch)

    def apply(self, batch: LearningBatch) -> None:
        """Make examples of a batch's positive events, if it is one of events that happened, then learn it.
        A bad batch raises ValueError and changes nothing."""
        batch.validate()
        if len(self._codes.ids) >= self._most_items and self._just_withdrawn[0] != self.offset:
            self._forget_unnamed()
        codes, users = self._codes.codes_of(batch.item_ids), batch.user.tolist()
        if batch.kind == LEARN:
            item = codes[batch.item]
            newest = self._pasts.add(users, item, batch.time_ms, batch.weight > 0, batch.context)
            chosen = self._chosen(batch, users, item)
            if len(chosen):
                self._make(
                    batch, chosen, self._pasts.before(newest[chosen], item[chosen], self._codes.row_of)
                )
        elif batch.kind == WITHDRAW:
            item = codes[batch.item]
            self._pasts.take_back(users, item, batch.time_ms)
            self._just_withdrawn = (self.offset, set(zip(users, item.tolist(), strict=True)))
        self.items.apply(batch)
        self._follow()

    def expose(self, item_ids: Sequence[str], item: Int32) -> None:
        """As `ItemState.expose`."""
        self.items.expose(item_ids, item)

    def forget_users(self, tokens: npt.NDArray[np.uint64]) -> None:
        """As `ItemState.forget_users`, and their pasts; their examples are left out when they are
        `located`."""
        self._pasts.forget(tokens.tolist())
        self.items.forget_users(tokens)

    def forget_item(self, item_id: str) -> bool:
        """As `ItemState.forget_item`."""
        had_row = self.items.forget_item(item_id)
        self._follow()
        return had_row

    def introduce(self, item_ids: Sequence[str]) -> int:
        """As `ItemState.introduce`."""
        given = self.items.introduce(item_ids)
        self._follow()
        return given

    def dismiss(self, item_id: str) -> bool:
        """As `ItemState.dismiss`."""
        dismissed = self.items.dismiss(item_id)
        self._follow()
        return dismissed

    def examples(self) -> Examples:
        """The examples kept, oldest first: a copy."""
        return self._ring.examples(self._codes.ids)

    def _chosen(self, batch: LearningBatch, users: list[int], item: Int32) -> npt.NDArray[np.intp]:
        """Places of the events to make examples of. A rating that replaces one in the same record is none:
        the item was seen when the list was made."""
        positive = np.flatnonzero(batch.weight > 0)
        number = self._positive + np.arange(len(positive))
        self._positive += len(positive)
        if self.offset < self.sample_from:
            return positive[:0]
        drawn = np.floor((number + 1) * self._share) > np.floor(number * self._share)
        chosen: npt.NDArray[np.intp] = positive[drawn]
        offset, withdrawn = self._just_withdrawn
        if offset == self.offset and withdrawn:
            keep = [(users[n], int(item[n])) not in withdrawn for n in chosen.tolist()]
            chosen = chosen[np.array(keep, dtype=np.bool_)]
        return chosen

    def _make(self, batch: LearningBatch, chosen: npt.NDArray[np.intp], before: Before) -> None:
        events, before = batch.take(chosen[~before.is_repeat]), before.without_repeats()
        if not len(events):
            return
        queries = self._queries(events, before)
        wanted, found = self._retriever.retrieve(queries, self._allowed())
        asked = asked_of(queries, wanted, found, self.items, with_features=True)
        online = blended(queries.seen_count, found, _NO_OPINION, self._serving).blended
        rows = self.items.items.rows(events.item_ids)[events.item]
        targets = _columns_of(found.rows, rows)
        missed = np.flatnonzero((targets < 0) & (rows >= 0))
        targets[missed] = found.length[missed]
        names = [events.item_ids[item] for item in events.item[missed].tolist()]
        self._ring.put(
            candidates=self._codes.code_of(found.rows),
            length=found.length,
            targets=targets,
            target_items=self._codes.codes_of(events.item_ids)[events.item],
            features=asked.features,
            online=online,
            context=self._context(events, before),
            users=events.user,
            times_ms=events.time_ms,
            offsets=np.full(len(events), self.offset, dtype=np.int64),
            missed=missed,
            missed_features=self._missed(queries, found, missed, names),
        )
        if self._judged is not None:
            self._judged(online, targets, found.length, events.time_ms)

    def _queries(self, events: LearningBatch, before: Before) -> QueryBatch:
        """What the lists of the events' users would have been made of, just before. Of a user who had done
        nothing yet serving knows no factor, though one stands in the record."""
        recent = np.ascontiguousarray(self.items.items.look_up(events).recent)
        is_new = (before.seen_count == 0) & (events.recent == -1).all(axis=1)
        times_ms = np.full(recent.shape, -1, dtype=np.int64)
        times_ms[:, :1] = before.newest_ms[:, None]
        return QueryBatch(
            recent=recent,
            blocked=before.blocked,
            blocked_end=before.ends,
            seen_count=before.seen_count,
            factors=np.where(is_new[:, None], np.float32(0), events.user_before),
            count=np.full(len(events), self._list_length, dtype=np.int32),
            recent_times_ms=times_ms,
            now_ms=events.time_ms,
        )

    def _context(self, events: LearningBatch, before: Before) -> Float32:
        """float32[n, len(CONTEXT)] of the lists that the events answer: asked for just before, or, by
        `as_served.upon_event`, made upon their users' positive events before, with no time in between."""
        upon = upon_event(events.user, events.time_ms, self._examples_of) & (before.newest_ms >= 0)
        made_ms = np.where(upon, before.newest_ms, events.time_ms)
        idle_ms = np.where(before.newest_ms >= 0, np.maximum(made_ms - before.newest_ms, 0), 0)
        hashed = self._pasts.contexts_at(np.where(upon, before.newest_at, -1))
        if hashed is not None and events.context is not None:
            hashed = np.where(upon[:, None], hashed, events.context)
        return context_of(made_ms, (idle_ms / 1000.0).astype(np.float32), before.seen_count, hashed)

    def _missed(
        self, queries: QueryBatch, found: kernels.Found, missed: npt.NDArray[np.intp], names: list[str]
    ) -> Float32:
        """float32[m, F]: features of targets that retrieval did not give, beside what it gave."""
        if not len(missed):
            return np.empty((0, len(FEATURES)), dtype=np.float32)
        named = queries.take(missed)
        nobody = queries.factors[0]
        named.requests = {
            place: Query((), (), nobody, 1, candidates=(item_id,)) for place, item_id in enumerate(names)
        }
        _, alone = self._retriever.retrieve(named, self._allowed())
        users, length = np.arange(len(missed)), found.length[missed]
        wide = _widened(found, missed)
        wide.rows[users, length] = alone.rows[:, 0]
        wide.scores[users, :, length] = alone.scores[:, :, 0]
        wide = wide._replace(length=length + np.int32(1))
        features = candidate_features(wide, self.items, named.now_ms, named.seen_count)
        missing: Float32 = features[users, length]
        return missing

    def _allowed(self) -> Filter:
        return Filter(self.items.items, self._catalogue, 0)

    def _forget_unnamed(self) -> None:
        """Between two records: memory follows what is kept, not all items that the log ever named."""
        new = self._codes.keep_only(np.concatenate((self._pasts.codes(), self._ring.codes())))
        self._pasts.renumber(new)
        self._ring.renumber(new)
        self._most_items = max(MOST_ITEMS, 2 * len(self._codes.ids))

    def _follow(self) -> None:
        """Move what is kept by row of the item table on."""
        given, freed = self.items.take_changes()
        moved = np.concatenate((given, freed))
        if len(moved):
            self._catalogue.rows_changed(moved, 0)
            self._codes.follow(self.items.items.ids, given, freed)
        if len(self.items.items) > self._serving.factor_scan_items:
            self._nearest.follow(np.concatenate((moved, self.items.take_moved(MOVED_AT_ONCE))))


_NO_OPINION = Opinion(np.empty((0, 0), dtype=np.float32), None)


def _columns_of(rows: Int32, wanted: Int32) -> Int32:
    """int32[n]: where wanted int32[n] stand in rows int32[n, C], -1 where they don't; -1 is found nowhere."""
    same = (rows == wanted[:, None]) & (wanted >= 0)[:, None]
    if not rows.shape[1]:
        return np.full(len(wanted), -1, dtype=np.int32)
    return np.where(same.any(axis=1), same.argmax(axis=1), -1).astype(np.int32)


def _widened(found: kernels.Found, users: npt.NDArray[np.intp]) -> kernels.Found:
    """Some users' candidates, with room for one more."""
    return kernels.Found(
        length=found.length[users],
        rows=np.pad(found.rows[users], ((0, 0), (0, 1)), constant_values=-1),
        sources=np.pad(found.sources[users], ((0, 0), (0, 1))),
        scores=np.pad(found.scores[users], ((0, 0), (0, 0), (0, 1))),
    )
