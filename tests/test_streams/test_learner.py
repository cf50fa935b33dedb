"""The owner's half of learning: judged, then learned, and the replicas' state only read."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest

from online_models.item_state import ItemState
from streams.learner import Learner
from streams.learning_log import decode_record, learning_batch, pack
from streams.settings import Settings, UserStateSettings, load_settings
from streams.user_state import Shard
from tests.test_streams.test_intake import admitted


@pytest.fixture
def settings() -> Settings:
    return load_settings(environ={}, overrides={"models": {"factors": {"dimension": 4, "negatives": 2}}})


@pytest.fixture
def items(settings: Settings) -> ItemState:
    return ItemState(settings.models)


@pytest.fixture
def shard() -> Shard:
    return Shard(0, UserStateSettings(), 4)


def _log(learner: Learner, items: ItemState, rows: list) -> None:  # type: ignore[type-arg]
    """What every replica does with the rows."""
    for value in pack(rows, learner.widths, items.settings_digest):
        batch = learning_batch(decode_record(value, "here"), items.settings_digest, "here")
        if batch is not None:
            items.apply(batch)


def test_factors_form_a_chain_and_the_item_state_is_only_read(
    settings: Settings, items: ItemState, shard: Shard
) -> None:
    learner = Learner(settings, items)
    before = items.digest()
    rows = [learner.learn([admitted(shard, "u", k, f"item-{k}")])[0] for k in range(5)]
    assert items.digest() == before
    np.testing.assert_array_equal(rows[0].before, items.start_users(["u"])[0])
    for first, second in itertools.pairwise(rows):
        np.testing.assert_array_equal(first.after, second.before)
        assert not np.array_equal(second.before, second.after)
    np.testing.assert_array_equal(rows[-1].after, shard.users["u"].factor)
    assert [list(row.recent) for row in rows[:3]] == [[], ["item-0"], ["item-1", "item-0"]]
    assert {row.token for row in rows} == {shard.users["u"].token}


def test_a_wave_of_many_is_each_alone(settings: Settings, items: ItemState, shard: Shard) -> None:
    learner = Learner(settings, items)
    together = learner.learn([admitted(shard, f"u{k}", k, f"item-{k % 3}") for k in range(8)])
    other = Shard(0, UserStateSettings(), 4)
    alone = [learner.learn([admitted(other, f"u{k}", k, f"item-{k % 3}")])[0] for k in range(8)]
    for one, two in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.after, two.after)


def test_what_was_liked_is_recent_what_was_used_is_seen(
    settings: Settings, items: ItemState, shard: Shard
) -> None:
    learner = Learner(settings, items)
    for offset, (item, weight) in enumerate([("liked", 1.0), ("disliked", -1.0), ("shown", 0.0)]):
        learner.learn([admitted(shard, "u", offset, item, weight)])
    user = shard.users["u"]
    assert user.recent_items == ["liked"]
    assert list(user.seen) == ["liked", "disliked"]
    assert shard.stats.evaluated == 1


def test_an_event_is_judged_by_the_list_before_it(settings: Settings, items: ItemState, shard: Shard) -> None:
    learner = Learner(settings, items)
    for offset in range(4):  # popularity by construction: item-0 first, then item-1, item-2
        for k in range(3 - offset % 4):
            _log(learner, items, learner.learn([admitted(shard, f"fan-{offset}-{k}", offset, f"item-{k}")]))
    stats = shard.stats
    judged = msgspec.structs.replace(stats)
    user = shard.user("u", np.zeros(4, np.float32))
    user.last_list = ["other", "item-2", *(f"x{k}" for k in range(8)), "item-11"]
    learner.learn([admitted(shard, "u", 10, "item-2")])
    assert stats.hits_at_10 - judged.hits_at_10 == 1
    assert stats.ndcg_at_10_sum - judged.ndcg_at_10_sum == pytest.approx(1 / math.log2(3))
    assert stats.popularity_hits_at_10 - judged.popularity_hits_at_10 == 1
    gain = stats.popularity_ndcg_at_10_sum - judged.popularity_ndcg_at_10_sum
    assert gain == pytest.approx(1 / math.log2(4)), "item-2 is third among the popular"
    learner.learn([admitted(shard, "u", 11, "item-11")])
    assert stats.hits_at_10 - judged.hits_at_10 == 1, "the eleventh of a list is no hit at 10"
    learner.learn([admitted(shard, "u", 12, "item-2")])
    assert stats.popularity_hits_at_10 - judged.popularity_hits_at_10 == 1, "popularity offers nothing seen"
    assert stats.evaluated - judged.evaluated == 3
