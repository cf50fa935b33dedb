"""Logs whose next item is known by construction."""

from __future__ import annotations

import numpy as np

from serving.training.dataset import InteractionLog
from serving.training.settings import CompressionSettings, TrainerSettings

__all__ = ["ITEMS", "SETTINGS", "item_name", "markov_log", "successor"]

ITEMS = 200
STEP = 37
"""Item i is followed by item (i + 37) mod 200; the two have no common factor, so a walk meets every item."""


SETTINGS = TrainerSettings(
    dim=32,
    blocks=2,
    heads=2,
    history_length=12,
    window_stride=12,
    max_epochs=14,
    patience=4,
    max_seconds=60.0,
    compression=CompressionSettings(candidates=()),
)


def item_name(index: int) -> str:
    return f"item-{index % ITEMS}"


def successor(item_id: str) -> str:
    return item_name(int(item_id.removeprefix("item-")) + STEP)


def markov_log(users: int = 400, steps: int = 15, noise: float = 0.05, seed: int = 1) -> InteractionLog:
    """Users walk the chain from random items, all at once; a share `noise` of the steps goes anywhere."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, ITEMS, users)
    log = InteractionLog()
    names = [item_name(index) for index in range(ITEMS)]
    for step in range(steps):
        log.append(
            user=np.arange(users),
            item_ids=names,
            item=at,
            time_ms=np.arange(users) + step * 1000,
            event_type=np.zeros(users),
            weight=np.ones(users),
            offset=step,
        )
        at = np.where(rng.random(users) < noise, rng.integers(0, ITEMS, users), (at + STEP) % ITEMS)
    return log
