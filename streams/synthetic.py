"""A seeded stream of events whose structure is known, for tests and where no data set can be fetched.

- **Communities of taste**: every item belongs to one; a user takes `loyalty` of the items from the own one.
- **Popularity skew**: inside a community, P(item of rank r) ∝ 1 / (r + 1)^skew.
- **Sessions**: a user acts in bursts, and inside one the next item follows on the last (`Truth.successor`)
  with probability `momentum`.
- **New items**: `fresh` of the catalogue appears one by one over time and is not drawn before.
- **Drift**: at one known moment `drifting` of the users move to the next community.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.errors import DatasetError
from streams.events import Event, Item

__all__ = ["Synthetic", "Truth", "synthetic"]

START_MS = 1_700_000_000_000
DAY_MS = 86_400_000
MAX_SESSION = 24
TYPES = ("click", "like", "purchase", "dislike")
TYPE_SHARES = (0.72, 0.15, 0.1, 0.03)
REDRAWS = 4
"""How often an item that has not appeared yet is drawn anew before the community's best seller stands in."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truth:
    """What was planted. Communities are numbered from 0; users and items are keyed by id."""

    drift_ms: int
    user_community_before: dict[str, int]
    user_community_after: dict[str, int]
    item_community: dict[str, int]
    item_published_ms: dict[str, int]
    successor: dict[str, str]
    """The item that tends to follow in a session."""


@dataclass(frozen=True, slots=True)
class Synthetic:
    events: list[Event]
    items: dict[str, Item]
    truth: Truth


@dataclass(frozen=True, slots=True)
class _World:
    """Communities as arrays: `item_of[community, rank]`, users' communities, births in ms."""

    item_of: Ints
    community_of_item: Ints
    rank_of_item: Ints
    born_ms: Ints
    before: Ints
    after: Ints
    cumulative: Floats
    drift_ms: int


def _world(
    rng: np.random.Generator, users: int, items: int, communities: int, days: int, drift_at: float,
    drifting: float, fresh: float, skew: float,
) -> _World:  # fmt: skip
    size = items // communities
    order = rng.permutation(size * communities)
    item_of = order.reshape(communities, size)
    community_of_item = np.empty(order.size, np.int64)
    rank_of_item = np.empty(order.size, np.int64)
    community_of_item[item_of] = np.arange(communities)[:, None]
    rank_of_item[item_of] = np.arange(size)[None, :]
    born_ms = np.where(
        rng.random(order.size) < fresh, START_MS + rng.random(order.size) * days * DAY_MS, START_MS - DAY_MS
    ).astype(np.int64)
    born_ms[item_of[:, 0]] = START_MS - DAY_MS
    before = rng.integers(communities, size=users)
    moved = rng.random(users) < drifting
    share = (np.arange(size) + 1.0) ** -skew
    return _World(
        item_of=item_of,
        community_of_item=community_of_item,
        rank_of_item=rank_of_item,
        born_ms=born_ms,
        before=before,
        after=np.where(moved, (before + 1) % communities, before),
        cumulative=np.cumsum(share / share.sum()),
        drift_ms=START_MS + round(drift_at * days * DAY_MS),
    )


def _draw(rng: np.random.Generator, world: _World, community: Ints, time_ms: Ints) -> Ints:
    """One item that exists at its time from each community, by popularity."""
    last = world.cumulative.size - 1
    item: Ints = world.item_of[community, 0].copy()
    left = np.arange(community.size)
    for _ in range(REDRAWS):
        rank = np.minimum(np.searchsorted(world.cumulative, rng.random(left.size)), last)
        drawn = world.item_of[community[left], rank]
        exists = world.born_ms[drawn] <= time_ms[left]
        item[left[exists]] = drawn[exists]
        left = left[~exists]
    return item


def _successor(world: _World, item: Ints) -> Ints:
    """The item next in popularity in the same community; the last is followed by the first."""
    size = world.cumulative.size
    onward: Ints = world.item_of[world.community_of_item[item], (world.rank_of_item[item] + 1) % size]
    return onward


def _sessions(
    rng: np.random.Generator,
    world: _World,
    count: int,
    users: int,
    days: int,
    loyalty: float,
    momentum: float,
) -> tuple[Ints, Ints, Ints, Ints]:
    """`count` sessions walked step by step, all at once: user, item, time in ms and session of every
    event."""
    communities = world.item_of.shape[0]
    activity = (np.arange(users) + 5.0) ** -0.6
    user = rng.choice(users, size=count, p=activity / activity.sum())
    length = np.minimum(rng.geometric(1 / 6, size=count), MAX_SESSION)
    time_ms = (START_MS + rng.random(count) * days * DAY_MS).astype(np.int64)
    previous = np.full(count, -1)
    steps: list[tuple[Ints, Ints, Ints, Ints]] = []
    for step in range(MAX_SESSION):
        going = np.flatnonzero(length > step)
        time_ms[going] += 5_000 + (rng.exponential(40_000.0, going.size)).astype(np.int64)
        home = np.where(time_ms[going] < world.drift_ms, world.before[user[going]], world.after[user[going]])
        stray = rng.random(going.size) >= loyalty
        community = np.where(stray, rng.integers(communities, size=going.size), home)
        item = _draw(rng, world, community, time_ms[going])
        follows = (rng.random(going.size) < momentum) & (previous[going] >= 0)
        onward = _successor(world, np.maximum(previous[going], 0))
        follows &= world.born_ms[onward] <= time_ms[going]
        item = np.where(follows, onward, item)
        previous[going] = item
        steps.append((user[going], item, time_ms[going].copy(), going))
    user_of, item_of, at_ms, session = (np.concatenate(part) for part in zip(*steps, strict=True))
    return user_of, item_of, at_ms, session


def _first_meetings(user: Ints, item: Ints, time_ms: Ints, items: int) -> Ints:
    """Positions in order of time, with only the first event of each user and item kept."""
    order = np.lexsort((np.arange(time_ms.size), time_ms))
    _, first = np.unique(user[order] * items + item[order], return_index=True)
    kept: Ints = order[np.sort(first)]
    return kept


def synthetic(
    events: int = 100_000,
    users: int = 1_000,
    items: int = 2_000,
    seed: int = 7,
    *,
    communities: int = 8,
    days: int = 60,
    drift_at: float = 0.6,
    drifting: float = 0.5,
    fresh: float = 0.3,
    loyalty: float = 0.85,
    momentum: float = 0.4,
    skew: float = 0.9,
) -> Synthetic:
    """Generate `events` events in order of time, with the catalogue and the truth behind them.

    The same arguments give the same bytes. `drift_at` is a share of the `days`; a user meets an item only
    once.

    Raises:
        DatasetError: fewer users or items than communities, or more events than users can have with these
            items.
    """
    items -= items % communities if communities > 0 else 0
    if communities < 1 or users < communities or items < communities or not 0 < events <= users * items // 4:
        raise DatasetError(
            f"synthetic: {events} events of {users} users and {items} items in {communities} communities"
            " can't be made; take at least one user and item per community, and events up to a quarter of"
            " users x items."
        )
    rng = np.random.default_rng(seed)
    world = _world(rng, users, items, communities, days, drift_at, drifting, fresh, skew)
    sessions = events // 4 + 16
    while True:
        user, item, time_ms, session = _sessions(rng, world, sessions, users, days, loyalty, momentum)
        kept = _first_meetings(user, item, time_ms, items)
        if kept.size >= events:
            break
        sessions = sessions * 3 // 2
    kept = kept[np.sort(rng.choice(kept.size, size=events, replace=False))]
    kind = rng.choice(len(TYPES), size=events, p=TYPE_SHARES)
    stream = _stream(seed, user[kept], item[kept], time_ms[kept], session[kept], kind)
    catalogue = {entry.item_id: entry for entry in _catalogue(world)}
    return Synthetic(stream, catalogue, _truth(world))


def _stream(seed: int, *columns: Any) -> list[Event]:
    return [
        Event(
            event_id=f"syn-{seed}-{number}",
            user_id=f"u{user}",
            item_id=f"i{item}",
            event_type=TYPES[kind],
            timestamp=time_ms,
            session_id=f"s{session}",
        )
        for number, (user, item, time_ms, session, kind) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]


def _catalogue(world: _World) -> list[Item]:
    return [
        Item(
            item_id=f"i{item}",
            title=f"Taste {community}, number {rank + 1}",
            categories=[f"taste-{community}"],
            published_at=born_ms,
            provider_id=f"p{item % 20}",
        )
        for item, (community, rank, born_ms) in enumerate(
            zip(
                world.community_of_item.tolist(),
                world.rank_of_item.tolist(),
                world.born_ms.tolist(),
                strict=True,
            )
        )
    ]


def _truth(world: _World) -> Truth:
    items = np.arange(world.born_ms.size)
    return Truth(
        drift_ms=world.drift_ms,
        user_community_before={f"u{user}": c for user, c in enumerate(world.before.tolist())},
        user_community_after={f"u{user}": c for user, c in enumerate(world.after.tolist())},
        item_community={f"i{item}": c for item, c in enumerate(world.community_of_item.tolist())},
        item_published_ms={f"i{item}": ms for item, ms in enumerate(world.born_ms.tolist())},
        successor={f"i{item}": f"i{onward}" for item, onward in enumerate(_successor(world, items).tolist())},
    )
