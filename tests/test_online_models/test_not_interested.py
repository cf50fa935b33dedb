"""A dislike (weight -1) lowers the item, and raises nothing for others."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from online_models.base import OnlineRanker
from online_models.checks import Event
from online_models.registry import make_model

LOWERING = ("biased_mf", "covisitation", "isgd", "item_knn", "popularity")
START_MS = 1_600_000_000_000
SLACK = 5e-3
"""Of the largest score: a factor step leads towards 0, from below as well."""


def two_tastes() -> list[Event]:
    """16 users of two tastes, 10 items each, the first ones used most."""
    rng, events = np.random.default_rng(3), []
    for k in range(400):
        taste = int(rng.integers(2))
        user, item = f"{'ab'[taste]}{rng.integers(8)}", f"{'AB'[taste]}{min(rng.geometric(0.2) - 1, 9)}"
        events.append((user, item, 1.0, {"timestamp": START_MS + k * 60_000}))
    return events


@functools.cache
def learned(name: str) -> OnlineRanker:
    model = make_model(name)
    for event in two_tastes():
        model.learn_one(*event)
    return model


def disliked(name: str, user: str, item: str) -> OnlineRanker:
    model = make_model(name)
    model.from_arrays(learned(name).to_arrays())
    context = {"timestamp": START_MS + 401 * 60_000, "event_type": "dislike"}
    model.learn_one(user, item, -1.0, context)
    return model


def unused(user: str) -> list[str]:
    had = {item for other, item, *_ in two_tastes() if other == user}
    return [item for item in (f"A{k}" for k in range(10)) if item not in had]


def rises(name: str, model: OnlineRanker, reader: str) -> dict[str, float]:
    """By how much each item's score rose for a reader, as a share of his highest."""
    before = {item: learned(name).predict_one(reader, item) for item in learned(name).items.ids}
    highest = max(abs(score) for score in before.values())
    return {item: (model.predict_one(reader, item) - score) / highest for item, score in before.items()}


@pytest.mark.parametrize("name", LOWERING)
def test_a_disliked_item_falls_for_who_dislikes_it(name: str) -> None:
    for user in ("a0", "a1", "a2"):
        for target in unused(user)[:3]:
            fallen = rises(name, disliked(name, user, target), user)[target]
            assert fallen < 0.0, f"{user} dislikes {target}, which rose by {fallen}"


@pytest.mark.parametrize("name", [*LOWERING, "fusion"])
def test_a_dislike_raises_nothing_for_others(name: str) -> None:
    model = disliked(name, "a0", unused("a0")[0])
    for reader in ("a5", "a6", "b3"):
        rose = rises(name, model, reader)
        worst = max(rose, key=rose.__getitem__)
        assert rose[worst] <= SLACK, f"{reader}: {worst} rose by {rose[worst]}"


@pytest.mark.parametrize("name", ["biased_mf", "isgd", "popularity"])
def test_a_dislike_raises_nothing_else_for_who_says_so(name: str) -> None:
    for user in ("a0", "a1"):
        target = unused(user)[0]
        rose = rises(name, disliked(name, user, target), user)
        assert max(rise for item, rise in rose.items() if item != target) <= SLACK
