"""The generator's structure is what it says."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
import pytest

from streams.errors import DatasetError
from streams.synthetic import Synthetic, synthetic


@pytest.fixture(scope="module")
def made() -> Synthetic:
    return synthetic(20_000, users=400, items=800, seed=3)


def test_one_seed_gives_the_same_bytes_and_another_others(made: Synthetic) -> None:
    again = synthetic(20_000, users=400, items=800, seed=3)
    assert msgspec.json.encode(made.events) == msgspec.json.encode(again.events)
    assert msgspec.json.encode(made.items) == msgspec.json.encode(again.items)
    assert made.truth == again.truth
    other = synthetic(20_000, users=400, items=800, seed=4)
    assert [event.item_id for event in other.events] != [event.item_id for event in made.events]


def test_as_many_events_as_asked_in_order_of_time_with_unique_ids(made: Synthetic) -> None:
    times = [event.timestamp for event in made.events]
    assert len(times) == 20_000
    assert times == sorted(times)
    assert len({event.event_id for event in made.events}) == 20_000
    assert len({(event.user_id, event.item_id) for event in made.events}) == 20_000


def test_no_item_is_used_before_it_appears(made: Synthetic) -> None:
    published = made.truth.item_published_ms
    assert all(published[str(event.item_id)] <= event.timestamp for event in made.events)
    start = made.events[0].timestamp
    assert sum(moment > start for moment in published.values()) == pytest.approx(
        0.3 * len(published), rel=0.25
    )
    assert {item.item_id: item.published_at for item in made.items.values()} == published


def own_share(made: Synthetic, before: bool, communities: dict[str, int], users: set[str]) -> float:
    truth = made.truth
    events = [e for e in made.events if (e.timestamp < truth.drift_ms) == before and e.user_id in users]
    own = sum(truth.item_community[str(e.item_id)] == communities[e.user_id] for e in events)
    return own / len(events)


def test_users_keep_to_their_community_and_move_at_the_drift(made: Synthetic) -> None:
    truth = made.truth
    movers = {
        user for user, c in truth.user_community_before.items() if truth.user_community_after[user] != c
    }
    assert len(movers) == pytest.approx(200, rel=0.2)
    assert own_share(made, True, truth.user_community_before, movers) > 0.7
    assert own_share(made, False, truth.user_community_before, movers) < 0.2
    assert own_share(made, False, truth.user_community_after, movers) > 0.7


def test_popularity_is_skewed(made: Synthetic) -> None:
    counts = sorted(Counter(event.item_id for event in made.events).values(), reverse=True)
    assert sum(counts[:80]) > 0.25 * sum(counts), "the top tenth takes far more than a tenth"


def test_the_successor_follows_in_sessions(made: Synthetic) -> None:
    last: dict[str, str] = {}
    follows = pairs = 0
    for event in made.events:
        session, item = str(event.session_id), str(event.item_id)
        if session in last:
            pairs += 1
            follows += made.truth.successor[last[session]] == item
        last[session] = item
    assert pairs > 5_000
    assert follows / pairs > 0.15


def test_a_hundred_thousand_events_take_seconds() -> None:
    start_s = time.process_time()
    assert len(synthetic().events) == 100_000
    assert time.process_time() - start_s < 3.0


def test_the_impossible_is_refused_with_the_numbers() -> None:
    with pytest.raises(DatasetError, match=r"1000 events of 10 users and 16 items"):
        synthetic(1_000, users=10, items=16)
