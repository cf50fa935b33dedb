"""Item states to save, of the models that the `small_log` fixture's settings have."""

from __future__ import annotations

from online_models.item_state import ItemState
from tests.test_online_models.test_item_state import SETTINGS as MODELS
from tests.test_online_models.test_item_state import make_log

__all__ = ["MODELS", "state_at"]


def state_at(n: int, offset: int) -> ItemState:
    state = ItemState(MODELS)
    state.apply(make_log(n))
    state.offset = offset
    return state
