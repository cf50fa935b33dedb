"""The filter's two forms say the same, and the same as the promise."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.filters import Filter
from serving.query import Query, QueryBatch
from tests.test_serving.pipeline_cases import World, queries, worlds


def columns(world: World, asked: list[Query]) -> QueryBatch:
    return QueryBatch.of(asked, world.state.items, 10)


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_masks_and_ids_and_the_promise_agree(world: World, asked: list[Query]) -> None:
    allowed, batch = (
        Filter(world.state.items, world.catalogue, int(time.time() * 1000)),
        columns(world, asked),
    )
    masks, mask = allowed.masks(batch)
    parts = np.split(*allowed.blocked(batch))
    for number, query in enumerate(asked):
        blocked = set(parts[number].tolist())
        for row, item_id in enumerate(world.state.items.ids):
            by_row = bool(masks[mask[number], row]) and row not in blocked
            assert by_row == allowed.allows(query, item_id) == world.may_have(query, item_id)


@given(world=worlds(), query=queries)
@settings(max_examples=30, deadline=None)
def test_queries_without_categories_share_one_mask(world: World, query: Query) -> None:
    query.categories = None
    allowed = Filter(world.state.items, world.catalogue, 0)
    masks, mask = allowed.masks(columns(world, [query, query, query]))
    assert masks.shape == (1, len(world.state.items))
    assert mask.tolist() == [0, 0, 0]


@given(world=worlds(), query=queries)
@settings(max_examples=30, deadline=None)
def test_unknown_items_are_those_named_allowed_and_without_a_row(world: World, query: Query) -> None:
    allowed = Filter(world.state.items, world.catalogue, int(time.time() * 1000))
    unknown = allowed.unknown({7: query}).get(7, [])
    named = dict.fromkeys(query.candidates or ())
    assert unknown == [i for i in named if world.may_have(query, i) and world.state.items.row(i) < 0]
