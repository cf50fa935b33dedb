"""A stream of two kinds of events whose next item and value are known, small enough to train on in tests."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from serving.training.dataset import InteractionLog, LogSplit, split_by_time
from serving.training.networks.base import SequenceNetwork, Tokens
from serving.training.settings import TrainerSettings

ITEMS = 30
VIEW, BUY = 7, 11
"""After item i the next view is of i + 7, the next purchase of i + 11 (mod 30)."""
SETTINGS = TrainerSettings(
    dim=16,
    blocks=1,
    heads=2,
    dropout=0.1,
    history_length=8,
    window_stride=8,
    batch_windows=16,
    learning_rate=0.01,
    max_epochs=12,
    patience=12,
    min_interactions=100,
    slice_fraction=0.1,
    validation_fraction=0.1,
    average_decay=0.9,
    spectral_start=False,
    hidden_share=0.0,
    shuffle_ties=False,
)


def value_of(item: int) -> float:
    """What events say of an item: 1 to 5."""
    return 1.0 + item % 5


def planted_log(users: int = 80, steps: int = 12, buys: float = 0.5, seed: int = 1) -> InteractionLog:
    """Each event follows the one before by its own type's step; a share `buys` are purchases,
    with a value."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, ITEMS, users)
    log = InteractionLog()
    log.type_codes(["view", "purchase"])
    for step in range(steps):
        bought = rng.random(users) < buys
        if step:
            at = (at + np.where(bought, BUY, VIEW)) % ITEMS
        values = [value_of(item) if b else np.nan for item, b in zip(at.tolist(), bought, strict=True)]
        log.append(
            user=np.arange(users),
            item_ids=[f"i{item}" for item in range(ITEMS)],
            item=at,
            time_ms=np.arange(users) + 1000 * step,
            event_type=bought.astype(int),
            weight=np.ones(users),
            offset=step,
            value=np.array(values) + rng.normal(0, 0.1, users),
        )
    return log


@functools.cache
def planted_split() -> LogSplit:
    """The stream of both kinds."""
    return split_by_time(planted_log(), SETTINGS)


@functools.cache
def chain_split() -> LogSplit:
    """Views alone: one successor for each item."""
    return split_by_time(planted_log(buys=0.0), SETTINGS)


def next_scores(network: SequenceNetwork, split: LogSplit) -> tuple[Tensor, Tensor, Tensor]:
    """Each item as the newest: the network's queries float32[V, d], its place's item number int64[V], and the
    contents."""
    contents = torch.from_numpy(split.contents)
    items = torch.arange(1, ITEMS + 1).unsqueeze(1)
    given = [torch.nn.functional.pad(column, (1, 0)) for column in (items, torch.ones_like(items), 0 * items)]
    numbers = torch.tensor([int(name[1:]) for name in split.vocabulary])
    network.eval()
    with torch.no_grad():
        return network.queries(Tokens(*given), contents)[:, 1], numbers, contents


def share_right(scores: Tensor, numbers: Tensor, step: int) -> float:
    """How often the best of scores float32[V, V + 2], but for the item itself, is the item `step` on."""
    others = scores[:, 1 : ITEMS + 1].clone().fill_diagonal_(float("-inf"))
    best = numbers[others.argmax(dim=1)]
    return float((best == (numbers + step) % ITEMS).float().mean())
