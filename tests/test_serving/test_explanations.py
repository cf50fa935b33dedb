"""Reasons: the user's own strongest items where there are any, else the strongest source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from online_models.item_table import ItemTable
from serving.catalogue import Catalogue, CatalogueEntry
from serving.explanations import BECAUSE, SOURCES_OF, explained
from serving.retrieval import SOURCES, Retriever, user_context
from tests.test_serving.pipeline_cases import SERVING, World, queries, worlds


@given(world=worlds(), query=queries)
@settings(max_examples=60, deadline=None)
def test_because_are_those_that_add_most(world: World, query: object) -> None:
    state = world.state
    context = user_context([query], state)  # type: ignore[list-item]  # the strategy builds queries
    chosen = np.arange(len(state.items), dtype=np.int32)[None, :]
    because = Retriever(state, SERVING).because(context, chosen, BECAUSE)[0]
    for row in range(len(state.items)):
        shares = state.covisitation.contributions(context.recent[0], row)
        best: dict[int, float] = {}  # an item twice among the recent counts by its larger share
        for source, share in zip(context.recent[0].tolist(), shares.tolist(), strict=True):
            if share > 0:
                best[source] = max(share, best.get(source, 0.0))
        named = [source for source in because[row].tolist() if source >= 0]
        largest = sorted(best.values(), reverse=True)[:BECAUSE]
        assert len(named) == len(set(named))
        np.testing.assert_allclose([best[source] for source in named], largest, rtol=1e-5)


@pytest.mark.parametrize(
    ("sources", "because", "newest", "kind", "text"),
    [
        (
            ("covisitation",),
            ["a", "b"],
            ["b"],
            "covisitation",
            "People who chose “Tea” and “b” also chose this",
        ),
        (("popularity",), [], ["a"], "popularity", "Popular now"),
        (("popularity", "factors"), [], ["a"], "factors", "Close to your taste"),
        (("popularity", "factors", "ranker"), [], ["a"], "ranker", "Often comes after “Tea”"),
        (("popularity", "ranker"), [], [], "ranker", "Close to your taste"),
        (("request", "ranker"), [], ["a"], "request", "Among the items you asked about"),
    ],
)
def test_kind_and_text(
    sources: tuple[str, ...], because: list[str], newest: list[str], kind: str, text: str
) -> None:
    catalogue = Catalogue(ItemTable())
    catalogue.put("a", CatalogueEntry(title="Tea"), 0)
    bits = sum(1 << SOURCES.index(source) for source in sources)
    item = explained("x", -1.5, bits, because, newest, catalogue)
    assert (item.item_id, item.score, item.kind, item.text) == ("x", -1.5, kind, text)
    assert item.sources == list(sources)
    assert set(item.because) <= {*because, *newest}


def test_sources_of_one_item_are_not_anothers() -> None:
    catalogue = Catalogue(ItemTable())
    explained("x", 0.0, 3, [], [], catalogue).sources.append("spoiled")
    assert explained("y", 0.0, 3, [], [], catalogue).sources == ["covisitation", "popularity"]
    assert len(SOURCES_OF) == 2 ** len(SOURCES)
