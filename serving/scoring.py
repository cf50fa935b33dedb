"""One score from all sources: the online models' scores and the ranker's, blended as log-probabilities.

For a user with candidates C, each source's scores become a distribution over C, and an item's score is

    score(i) = Σ_s w_s log p_s(i)

    p_s(i) = (x_s(i) + ε m_s) / Σ_j (x_s(j) + ε m_s)     for counts and sums, m_s the mean of x_s over C
    p_s(i) = exp x_s(i) / Σ_j exp x_s(j)                 for inner products and logits

a log-linear (geometric) pool of opinions (Genest and Zidek, Statistical Science 1986), in which a source
that knows nothing of an item costs it a bounded amount, and one that knows nothing of any is left out. The
factors' weight grows with the h items that the user has seen, w h / (h + k): the factor of a new user is
where it was started. An item that the ranker has never seen stands, in the ranker's opinion, where it
stands in the online one, in standard deviations from the mean of the items that both know: it is ranked
among the others by what is known of it, and can win.

A `fused` ranker has read the online models' scores itself (`serving.features`) and was trained to weigh
them: its score is the item's score, for items that it has never seen too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.blend_kernels import blend
from serving.features import candidate_features
from serving.query import QueryBatch
from serving.ranker.errors import RankerError
from serving.ranker.inputs import FEATURES, Contents, context_of
from serving.ranker.ranker import Asked, Ranker
from serving.settings import ServingSettings

__all__ = ["Opinion", "RankerView", "Scores", "Standing", "asked_of", "blended", "ranker_opinion", "score"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
logger = logging.getLogger(__name__)

_RANKER_ALONE = (0.0, 0.0, 0.0, 0.0, 1.0)


class Opinion(NamedTuple):
    """The ranker's logits float32[n, C], [n, 0] where there are none, and then why; see `ranker_opinion`."""

    logits: Float32
    degraded: str | None
    fused: bool = False


FLOOR = 1.0
"""ε: what an unrelated item gets, as a share of the mean one's; without it log 0 would rule an item out."""


@dataclass(slots=True)
class Scores:
    """`blended` float32[n, C], -inf behind a user's last candidate; `degraded` says what was missing."""

    blended: Float32
    degraded: str | None


class RankerView:
    """A ranker seen through the item table: rows instead of ids, looked up once an item.

    Items that the ranker has never seen get a place of their own where `contents` has a vector for them, for
    as long as they have a row.
    """

    def __init__(self, ranker: Ranker, contents: Contents | None = None) -> None:
        self.ranker = ranker
        self._contents = contents if contents is not None and contents.spec == ranker.content else None
        if ranker.content and self._contents is None:
            logger.warning(
                "ranker %s was trained on content %s, this process has %s ([content]): items that it has "
                "never seen are scored without", ranker.version, ranker.content, contents and contents.spec,
            )  # fmt: skip
        self._places = np.zeros(0, dtype=np.int32)
        self._known = 0
        self._vectors = ranker.contents
        self._places_used = len(ranker.contents)
        self._changes = 0
        self._own: dict[str, int] = {}
        self._owner: dict[int, str] = {}
        self._free: list[int] = []
        self._types: tuple[tuple[str, ...], Int64] = ((), np.zeros(0, dtype=np.int64))

    def rows_changed(self, ids: Sequence[str], rows: Int32) -> None:
        """Look rows up again that were given to other items, or whose items got other content."""
        old = rows[rows < self._known]
        before = set(self._places[old].tolist())
        self._places[old] = self._looked_up([ids[row] for row in old.tolist()])
        for place in before.difference(self._places[old].tolist()):
            if (owner := self._owner.pop(place, None)) is not None:
                del self._own[owner]
                self._free.append(place)

    def places(self, ids: Sequence[str]) -> Int32:
        """int32[rows]: places of the item table's rows."""
        rows = len(ids)
        if rows > self._known:
            if rows > len(self._places):
                more = max(rows, 2 * len(self._places), 1024) - len(self._places)
                self._places = np.concatenate((self._places, np.zeros(more, dtype=np.int32)))
            self._places[self._known : rows] = self._looked_up(ids[self._known : rows])
            self._known = rows
        return self._places[:rows]

    def vectors(self) -> Float32:
        """float32[N, E]: content vectors by place, as they are now, zeros behind the last place; the ranker's
        session has them on its device."""
        self.ranker.session.bind_items(self._vectors, self._changes)
        return self._vectors

    def types_of(self, names: tuple[str, ...]) -> Int64:
        """int64[n]: the network's event types by the codes of `names`."""
        if self._types[0] != names:
            self._types = (names, self.ranker.types_of(names))
        return self._types[1]

    def _looked_up(self, ids: Sequence[str]) -> Int32:
        places = self.ranker.places_of(ids).astype(np.int32)
        unseen = np.flatnonzero(places == self.ranker.unseen)
        if self._contents is None or not len(unseen):
            return places
        vectors = self._contents.of([ids[n] for n in unseen.tolist()])
        for n, vector in zip(unseen.tolist(), vectors, strict=True):
            if vector.any():
                places[n] = self._own_place(ids[n], vector)
        return places

    def _own_place(self, item_id: str, vector: Float32) -> int:
        place = self._own.get(item_id, -1)
        if place < 0:
            place = self._free.pop() if self._free else self._places_used
            self._own[item_id], self._owner[place] = place, item_id
            if place == self._places_used:
                self._places_used += 1
            if place >= len(self._vectors):
                more = np.zeros((max(64, place), self._vectors.shape[1]), dtype=np.float32)
                self._vectors = np.concatenate((self._vectors, more))
        self._vectors[place] = vector
        self._changes += 1
        return place


class Standing(NamedTuple):
    """What the ranker reads beside the batch, as of now: with it, it may run in a thread of its own."""

    view: RankerView
    places: Int32
    vectors: Float32
    types_of: Int64

    @classmethod
    def of(cls, view: RankerView, items: ItemState, event_types: tuple[str, ...]) -> Standing:
        return cls(view, view.places(items.items.ids), view.vectors(), view.types_of(event_types))


def score(
    batch: QueryBatch,
    wanted: kernels.Wanted,
    found: kernels.Found,
    items: ItemState,
    standing: Standing | None,
    settings: ServingSettings,
) -> Scores:
    """Score every candidate; a ranker that fails leaves the online scores, and says why."""
    opinion = ranker_opinion(batch, wanted, found, items, standing)
    return blended(batch.seen_count, found, opinion, settings)


def blended(seen_count: Int32, found: kernels.Found, opinion: Opinion, settings: ServingSettings) -> Scores:
    """One score for every candidate, from the online models' scores in `found` and the ranker's opinion."""
    seen = seen_count.astype(np.float64)
    experience = seen / (seen + settings.factor_experience_items + 1e-9)
    weights = (
        settings.covisitation_weight,
        settings.popularity_weight,
        settings.factor_weight,
        settings.content_weight,
        settings.ranker_weight,
    )
    scores = np.empty(found.rows.shape, dtype=np.float32)
    alone = opinion.fused and opinion.logits.shape[1] > 0
    blend(found, opinion.logits, experience, _RANKER_ALONE if alone else weights, FLOOR, scores)
    return Scores(scores, opinion.degraded)


def ranker_opinion(
    batch: QueryBatch,
    wanted: kernels.Wanted,
    found: kernels.Found,
    items: ItemState,
    standing: Standing | None,
) -> Opinion:
    """The ranker's logits of the candidates, [n, 0] where there is no ranker or it failed, and why it did.
    Changes nothing."""
    none = np.empty((len(found.rows), 0), dtype=np.float32)
    width = int(found.length.max())
    if standing is None or not width:
        return Opinion(none, None)
    ranker = standing.view.ranker
    asked = asked_of(batch, wanted, found, items, with_features=ranker.fused)
    try:
        logits = ranker.score_rows(asked, standing.places, standing.types_of, standing.vectors)
    except RankerError as error:
        return Opinion(none, f"ranker: {error}")
    return Opinion(logits, None, ranker.fused)


def asked_of(
    batch: QueryBatch, wanted: kernels.Wanted, found: kernels.Found, items: ItemState, *, with_features: bool
) -> Asked:
    """What a ranker is asked of the candidates in `found`; features are zeros where it reads none."""
    width = int(found.length.max())
    rows = np.ascontiguousarray(found.rows[:, :width])  # another layout would be another kernel to compile
    kinds, times_ms = map(np.ascontiguousarray, (batch.recent_kinds, batch.recent_times_ms))
    for position, query in (batch.requests or {}).items():
        if query.recent:  # stands in place of the user's own
            kinds, times_ms = kinds.copy(), times_ms.copy()
            kinds[position], times_ms[position] = -1, -1
    newest_ms = times_ms[:, 0] if times_ms.shape[1] else np.full(len(rows), -1, dtype=np.int64)
    idle_ms = np.where(newest_ms >= 0, np.maximum(batch.now_ms - newest_ms, 0), 0)
    if with_features:
        features = candidate_features(found, items, batch.now_ms, batch.seen_count)[:, :width]
    else:
        features = np.zeros((*rows.shape, len(FEATURES)), dtype=np.float32)
    context = context_of(batch.now_ms, (idle_ms / 1000.0).astype(np.float32), batch.seen_count, batch.hashed)
    return Asked(wanted.recent, kinds, times_ms, context, rows, features)
