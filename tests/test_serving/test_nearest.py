"""The index of large catalogues follows the learned state, and its candidates come into lists."""

from __future__ import annotations

import numpy as np

from online_models.settings import FactorSettings, ModelSettings
from serving.catalogue import Catalogue
from serving.pipeline import Pipeline
from serving.query import Query
from serving.retrieval.nearest import BACKLOG_ROWS, NearestItems
from serving.settings import ServingSettings
from tests.test_serving.pipeline_cases import learned

NONE = np.empty(0, dtype=np.int32)
INDEXED = ServingSettings(
    factor_scan_items=0, popularity_candidates=0, factor_candidates=5, factor_weight=1.0
)
SCANNED = ServingSettings(popularity_candidates=0, factor_candidates=5, factor_weight=1.0)


def test_lists_are_those_of_a_scan_once_all_items_are_in() -> None:
    models = ModelSettings(factors=FactorSettings(dimension=4))
    state = learned([(n, f"i{n}", 1.0) for n in range(BACKLOG_ROWS + 100)], models)
    nearest = NearestItems(state)
    catalogue = Catalogue(state.items)
    indexed = Pipeline(state, catalogue, INDEXED, nearest)
    query = Query((), {"i3"}, np.array([1.0, -0.5, 0.25, 2.0], dtype=np.float32), 5)
    assert nearest.backlog == BACKLOG_ROWS + 100
    nearest.follow(NONE)
    assert (nearest.backlog, len(nearest)) == (100, BACKLOG_ROWS)
    nearest.follow(NONE)
    assert (nearest.backlog, len(nearest)) == (0, BACKLOG_ROWS + 100)
    wanted = Pipeline(state, catalogue, SCANNED).recommend([query])[0]
    got = indexed.recommend([query])[0]
    assert [item.item_id for item in got.items] == [item.item_id for item in wanted.items]
    assert all("factors" in item.sources for item in got.items)


def test_a_moved_item_is_found_at_its_new_place_and_a_freed_one_no_more() -> None:
    state = learned([(n, f"i{n}", 1.0) for n in range(50)])
    nearest = NearestItems(state)
    nearest.follow(NONE)
    mask, user = np.ones(50, dtype=np.bool_), np.array([[3.0, 0, 0, 0]], dtype=np.float32)
    state.factors.factors.rows[7] = [9.0, 0, 0, 0]
    nearest.follow(np.array([7, -1], dtype=np.int32))
    assert nearest(user, 3, mask)[0, 0] == 7
    mask[7] = False
    assert 7 not in nearest(user, 50, mask)[0]
    state.items.ids[7] = ""
    nearest.follow(np.array([7], dtype=np.int32))
    assert len(nearest) == 49
    assert 7 not in nearest(user, 50, np.ones(50, dtype=np.bool_))[0]


def test_another_state_starts_another_index() -> None:
    state = learned([(n, f"i{n}", 1.0) for n in range(20)])
    nearest = NearestItems(state)
    nearest.follow(NONE)
    assert len(nearest) == 20
    state.from_arrays(learned([(n, f"j{n}", 1.0) for n in range(5)]).to_arrays())
    nearest.follow(NONE)
    assert len(nearest) == 5
