"""Reasons: the user's own strongest items where there are any, else the strongest source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from online_models.item_table import ItemTable
from serving import kernels
from serving.catalogue import Catalogue, CatalogueEntry
from serving.explain_kernels import explain
from serving.explanations import SOURCES_OF, WORDS, ranked_list
from serving.kernels import KINDS
from serving.query import BECAUSE, Query, QueryBatch, RankedBatch
from serving.retrieval import SOURCES
from serving.retrieval.learned import learned_arrays
from tests.test_serving.pipeline_cases import World, learned, queries, worlds


def reasons(
    world: World, recent: np.ndarray, chosen: np.ndarray, sources: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    because = np.empty((*chosen.shape, BECAUSE), dtype=np.int32)
    kinds = np.empty(chosen.shape, dtype=np.uint8)
    place = np.full(len(world.state.items), -1, dtype=np.int32)
    explain(recent, chosen, sources, learned_arrays(world.state), place, because, kinds)
    assert (place == -1).all()
    return because, kinds


@given(world=worlds(), query=queries)
@settings(max_examples=60, deadline=None)
def test_because_are_those_that_add_most(world: World, query: Query) -> None:
    state = world.state
    recent = QueryBatch.of([query], state.items, state.covisitation.query_length).recent
    chosen = np.arange(len(state.items), dtype=np.int32)[None, :]
    because, kinds = reasons(world, recent, chosen, np.full(chosen.shape, kernels.FACTORS, dtype=np.uint8))
    for row in range(len(state.items)):
        shares = state.covisitation.contributions(recent[0], row)
        best: dict[int, float] = {}  # an item twice among the recent counts by its larger share
        for source, share in zip(recent[0].tolist(), shares.tolist(), strict=True):
            if share > 0:
                best[source] = max(share, best.get(source, 0.0))
        named = [source for source in because[0, row].tolist() if source >= 0]
        largest = sorted(best.values(), reverse=True)[:BECAUSE]
        assert len(named) == len(set(named))
        np.testing.assert_allclose([best[source] for source in named], largest, rtol=1e-5)
        assert KINDS[kinds[0, row]] == ("covisitation" if best else "factors")


@pytest.mark.parametrize(
    ("sources", "kind"),
    [
        (("popularity",), "popularity"),
        (("popularity", "factors"), "factors"),
        (("popularity", "factors", "ranker"), "ranker"),
        (("request", "ranker"), "request"),
    ],
)
@pytest.mark.parametrize("recent", [[-1, -1, -1], [-1, 1, 0]])
def test_without_neighbours_the_strongest_source_speaks(
    sources: tuple[str, ...], kind: str, recent: list[int]
) -> None:
    world = World(learned([(0, "a", 1.0), (1, "b", 1.0), (2, "c", 1.0)]), Catalogue(ItemTable()), {})
    bits = sum(1 << SOURCES.index(source) for source in sources)
    because, kinds = reasons(
        world,
        np.array([recent], dtype=np.int32),
        np.array([[2, -1]], dtype=np.int32),
        np.array([[bits, 0]], dtype=np.uint8),
    )
    assert KINDS[kinds[0, 0]] == kind
    newest = [1] if kind == "ranker" and max(recent) > 0 else []
    assert [row for row in because[0, 0].tolist() if row >= 0] == newest
    assert (because[0, 1] == -1).all()


@pytest.mark.parametrize(
    ("kind", "because", "text"),
    [
        ("covisitation", [0, 1], "People who chose “Tea” and “b” also chose this"),
        ("covisitation", [1], "People who chose “b” also chose this"),
        ("ranker", [0], "Often comes after “Tea”"),
        ("ranker", [], "Close to your taste"),
        ("factors", [], "Close to your taste"),
        ("request", [], "Among the items you asked about"),
        ("popularity", [], "Popular now"),
    ],
)
def test_words(kind: str, because: list[int], text: str) -> None:
    items = ItemTable(["a", "b", "x"])
    catalogue = Catalogue(items)
    catalogue.put("a", CatalogueEntry(title="Tea"), 0)
    batch = RankedBatch.empty(1, 1)
    batch.rows[0, 0], batch.length[0], batch.scores[0, 0] = 2, 1, -1.5
    batch.kinds[0, 0], batch.sources[0, 0] = KINDS.index(kind), 3
    batch.because[0, 0, : len(because)] = because
    (item,) = ranked_list(batch, 0, items, catalogue).items
    assert (item.item_id, item.score, item.kind, item.text) == ("x", -1.5, kind, text)
    assert item.because == [items.ids[row] for row in because]
    assert item.sources == ["covisitation", "popularity"]
    assert (kind, bool(because)) in WORDS


def test_sources_of_one_item_are_not_anothers() -> None:
    items = ItemTable(["x"])
    batch = RankedBatch.empty(1, 1)
    batch.rows[0, 0], batch.length[0], batch.sources[0, 0], batch.kinds[0, 0] = 0, 1, 3, 1
    ranked_list(batch, 0, items, Catalogue(items)).items[0].sources.append("spoiled")
    assert ranked_list(batch, 0, items, Catalogue(items)).items[0].sources == ["covisitation", "popularity"]
    assert len(SOURCES_OF) == 2 ** len(SOURCES)
