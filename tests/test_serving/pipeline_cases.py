"""Random learned states, catalogues and queries, and the rule of what may be served in its plainest words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from online_models.item_state import ItemState
from online_models.learning_batch import LearningBatch
from online_models.settings import CoVisitationSettings, FactorSettings, ModelSettings, PopularitySettings
from serving.catalogue import Catalogue, CatalogueEntry
from serving.pipeline import Pipeline
from serving.query import Query
from serving.settings import ServingSettings

MODELS = ModelSettings(
    covisitation=CoVisitationSettings(row_capacity=8),
    popularity=PopularitySettings(top_size=6),
    factors=FactorSettings(dimension=4, negatives=2),
)
SERVING = ServingSettings(covisitation_candidates=5, popularity_candidates=3, factor_candidates=4)
"""Caps far below the catalogue: what may be served must still fill a list."""

ITEMS = 24
LONG_AGO_MS, FAR_AHEAD_MS = 1, 4_000_000_000_000
CATEGORIES = ("news", "sport", "film")


def item_name(index: int) -> str:
    return f"i{index}"


def learned(events: Sequence[tuple[int, str, float]], models: ModelSettings = MODELS) -> ItemState:
    """State after events (user, item, weight) in order, one second apart, as a worker would learn them."""
    state = ItemState(models)
    recent: dict[int, list[str]] = {}
    factors: dict[int, np.ndarray] = {}
    window, drawn = models.covisitation.window, models.factors.negatives
    for number, (user, item_id, weight) in enumerate(events):
        before = factors.setdefault(user, state.start_users([f"u{user}"])[0])[None, :]
        weights = np.array([weight], dtype=np.float32)
        after, negatives = state.learn_users(before, [item_id], weights, np.array([number], dtype=np.uint64))
        newest = recent.setdefault(user, [])[: -window - 1 : -1]
        ids = list(dict.fromkeys([item_id, *newest, *negatives[0]]))
        state.apply(
            LearningBatch(
                item_ids=ids,
                item=np.array([0], dtype=np.int32),
                recent=_columns(ids, newest, window),
                time_ms=np.array([1000 * number], dtype=np.int64),
                weight=weights,
                event_type=np.zeros(1, dtype=np.uint8),
                user_before=before,
                user_after=after,
                negatives=_columns(ids, negatives[0], drawn),
            )
        )
        factors[user] = after[0]
        recent[user].append(item_id)
    return state


def _columns(ids: list[str], chosen: list[str], width: int) -> np.ndarray:
    columns = np.full((1, width), -1, dtype=np.int32)
    columns[0, : len(chosen)] = [ids.index(item_id) for item_id in chosen]
    return columns


@dataclass
class World:
    state: ItemState
    catalogue: Catalogue
    entries: dict[str, CatalogueEntry]
    removed: set[str] = field(default_factory=set)

    def pipeline(self, settings: ServingSettings = SERVING) -> Pipeline:
        return Pipeline(self.state, self.catalogue, settings)

    def may_have(self, query: Query, item_id: str) -> bool:
        """The promise, written without a look at the code: never hidden, expired, deleted, excluded, seen."""
        entry = self.entries.get(item_id, CatalogueEntry())
        if item_id in self.removed or entry.is_hidden:
            return False
        if entry.expires_ms == LONG_AGO_MS or entry.published_ms == FAR_AHEAD_MS:
            return False
        if item_id in query.exclude or (query.candidates is None and item_id in query.seen):
            return False
        return query.categories is None or bool(set(query.categories) & set(entry.categories))

    def may_serve(self, query: Query) -> set[str]:
        named = self.state.items.ids if query.candidates is None else query.candidates
        return {item_id for item_id in named if self.may_have(query, item_id)}


indices = st.integers(0, ITEMS - 1)
names = st.builds(item_name, indices)
events = st.lists(st.tuples(st.integers(0, 3), names, st.sampled_from([1.0, 2.0, 0.5, -1.0])), max_size=60)
entries = st.builds(
    CatalogueEntry,
    title=st.none() | st.just("A title"),
    categories=st.lists(st.sampled_from(CATEGORIES), unique=True).map(tuple),
    is_hidden=st.booleans(),
    published_ms=st.sampled_from([None, LONG_AGO_MS, FAR_AHEAD_MS]),
    expires_ms=st.sampled_from([None, LONG_AGO_MS, FAR_AHEAD_MS]),
)
queries = st.builds(
    Query,
    recent=st.lists(names, max_size=12),
    seen=st.sets(names, max_size=20),
    factor=st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4).map(
        lambda values: np.array(values, dtype=np.float32)
    ),
    count=st.integers(1, 2 * ITEMS),
    categories=st.none() | st.lists(st.sampled_from((*CATEGORIES, "none of them")), max_size=2),
    exclude=st.lists(names, max_size=6),
    candidates=st.none() | st.lists(names | st.sampled_from(["never used", "nor this"]), max_size=10),
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A state learned from random events; a catalogue changed before and after its masks were made."""
    state = learned(draw(events))
    catalogue = Catalogue(state.items)
    world = World(state, catalogue, {})
    changes = draw(st.lists(st.tuples(names, st.none() | entries), max_size=30))
    looked_at = draw(st.integers(0, 30))
    for number, (item_id, entry) in enumerate(changes):
        if number == looked_at:  # masks exist from here on and must be amended
            catalogue.mask(LONG_AGO_MS)
            catalogue.category_mask(frozenset(CATEGORIES[:1]))
        if entry is None:
            catalogue.remove(item_id, LONG_AGO_MS)
            world.entries.pop(item_id, None)
            world.removed.add(item_id)
        else:
            catalogue.put(item_id, entry, LONG_AGO_MS)
            world.entries[item_id] = entry
            world.removed.discard(item_id)
    return world
