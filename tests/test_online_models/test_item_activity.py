"""When an item was last used, and how often it was shown, as part of the item state."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemState, LearningBatch, ModelSettings
from online_models.learning_batch import WITHDRAW
from online_models.settings import FactorSettings

SETTINGS = ModelSettings(factors=FactorSettings(dimension=2, negatives=1), max_items=8)

events = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 10**9), st.sampled_from([1.0, 0.5, 0.0, -1.0])),
    min_size=1,
    max_size=60,
)


def batch_of(log: list[tuple[int, int, float]], kind: int = 0) -> LearningBatch:
    n = len(log)
    item, time_ms, weight = zip(*log, strict=True)
    return LearningBatch(
        item_ids=[f"i{k}" for k in range(12)],
        item=np.array(item, dtype=np.int32),
        recent=np.full((n, 2), -1, dtype=np.int32),
        time_ms=np.array(time_ms, dtype=np.int64),
        weight=np.array(weight, dtype=np.float32),
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=np.full((n, 2), 0.1, dtype=np.float32),
        user_after=np.full((n, 2), 0.1, dtype=np.float32),
        negatives=np.full((n, 1), -1, dtype=np.int32),
        kind=kind,
    )


def activity(state: ItemState) -> dict[str, tuple[int, int]]:
    """By item: newest positive event's time and exposures."""
    known = state.activity
    return {
        item_id: (int(known.last_ms[row]), int(known.exposures[row]))
        for row, item_id in enumerate(state.items.ids)
        if item_id
    }


def test_the_newest_positive_event_counts_and_weight_0_is_an_exposure() -> None:
    state = ItemState(SETTINGS)
    state.apply(batch_of([(0, 50, 1.0), (0, 40, 2.0), (1, 60, -1.0), (0, 70, 0.0), (2, 5, 0.0), (2, 6, 0.0)]))
    assert activity(state) == {"i0": (50, 1), "i1": (-1, 0), "i2": (-1, 2)}


def test_what_is_shown_without_a_row_is_not_counted_and_gets_none() -> None:
    state = ItemState(SETTINGS)
    state.apply(batch_of([(3, 50, 1.0)]))
    state.expose(["unheard", "i3"], np.array([1, 0, 1, 1], dtype=np.int32))
    assert activity(state) == {"i3": (50, 3)}
    assert "unheard" not in state.items.ids


@given(log=events, cuts=st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_batches_and_snapshots_between_give_what_the_definition_gives(
    log: list[tuple[int, int, float]], cuts: list[int]
) -> None:
    state, whole = ItemState(SETTINGS), ItemState(SETTINGS)
    whole.apply(batch_of(log))
    for start, stop in pairwise([0, *sorted(cuts), len(log)]):
        if part := log[start:stop]:
            state.apply(batch_of(part))
            state = ItemState.from_bytes(SETTINGS, state.to_bytes())
    assert activity(state) == activity(whole)
    if whole.items.evictions == 0:
        for item_id, (last_ms, exposures) in activity(whole).items():
            mine = [(time_ms, weight) for item, time_ms, weight in log if f"i{item}" == item_id]
            assert last_ms == max([time_ms for time_ms, weight in mine if weight > 0], default=-1)
            assert exposures == sum(weight == 0 for _, weight in mine)


def test_an_item_that_lost_its_row_comes_back_as_new() -> None:
    state = ItemState(SETTINGS)
    state.apply(batch_of([(0, 50, 1.0), (0, 60, 0.0), *((k, 100 + k, 1.0) for k in range(1, 12))]))
    assert state.items.evictions > 0
    assert "i0" not in state.items.ids
    state.apply(batch_of([(0, 10, 1.0)]))
    assert activity(state)["i0"] == (10, 0)


def test_a_forgotten_item_leaves_nothing() -> None:
    state = ItemState(SETTINGS)
    state.apply(batch_of([(0, 50, 1.0), (0, 60, 0.0)]))
    row = state.items.row("i0")
    assert state.forget_item("i0")
    assert (state.activity.last_ms[row], state.activity.exposures[row]) == (-1, 0)


def test_taking_an_event_back_leaves_its_time() -> None:
    state = ItemState(SETTINGS)
    state.apply(batch_of([(0, 50, 1.0), (0, 80, 1.0)]))
    state.apply(batch_of([(0, 80, 1.0)], kind=WITHDRAW))
    assert activity(state) == {"i0": (80, 0)}


def test_bytes_are_counted() -> None:
    state = ItemState(SETTINGS)
    state.apply(batch_of([(0, 50, 1.0), (1, 80, 1.0)]))
    assert state.nbytes()["activity"] == 2 * 16
