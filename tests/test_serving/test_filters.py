"""The filter's two forms say the same, and the same as the promise."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.filters import Filter
from serving.query import Query
from tests.test_serving.pipeline_cases import World, queries, worlds


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_masks_and_ids_and_the_promise_agree(world: World, asked: list[Query]) -> None:
    allowed = Filter(world.state.items, world.catalogue, int(time.time() * 1000))
    masks, mask = allowed.masks(asked)
    for number, query in enumerate(asked):
        blocked = set(allowed.blocked(query))
        for row, item_id in enumerate(world.state.items.ids):
            by_row = bool(masks[mask[number], row]) and item_id not in blocked
            assert by_row == allowed.allows(query, item_id) == world.may_have(query, item_id)


@given(world=worlds(), query=queries)
@settings(max_examples=30, deadline=None)
def test_queries_without_categories_share_one_mask(world: World, query: Query) -> None:
    query.categories = None
    masks, mask = Filter(world.state.items, world.catalogue, 0).masks([query, query, query])
    assert masks.shape == (1, len(world.state.items))
    assert mask.tolist() == [0, 0, 0]
