"""Waves: what a micro-batch is cut into, so that a user's second event knows the first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.events import Event
from streams.intake import Admitted, Batch
from streams.settings import UserStateSettings
from streams.user_state import Shard
from streams.validation import AcceptedEvent


def admitted(shard: Shard, user_id: str, offset: int, item: str = "item", weight: float = 1.0) -> Admitted:
    event = Event(event_id=f"e{offset}", user_id=user_id, event_type="click", timestamp=offset, item_id=item)
    new = user_id not in shard.users
    user = shard.user(user_id, np.zeros(shard.factor_width, np.float32))
    accepted = AcceptedEvent(event, offset, weight, offset, shard.partition, offset, offset, 0, False)
    return Admitted(accepted, user, shard, new)


@given(users=st.lists(st.integers(0, 6), max_size=60))
def test_waves_hold_one_event_a_user_in_order_and_lose_none(users: list[int]) -> None:
    shard = Shard(0, UserStateSettings(), 2)
    batch = Batch(events=[admitted(shard, f"u{user}", k) for k, user in enumerate(users)])
    waves = list(batch.waves())
    for wave in waves:
        names = [event.user.user_id for event in wave]
        assert len(set(names)) == len(names) > 0
        places = [event.accepted.offset for event in wave]
        assert places == sorted(places)
    for user in set(users):
        own = [e.accepted.offset for wave in waves for e in wave if e.user.user_id == f"u{user}"]
        assert own == [k for k, other in enumerate(users) if other == user]
    assert sum(map(len, waves)) == len(users)
    assert len(waves) == max(map(users.count, users), default=0), "no more waves than the busiest user needs"
