"""Seeded streams of events as a shop's web front end sends them: about 250 bytes of JSON each.

Who acts and on what is Zipf-distributed, P(rank r) ∝ 1 / (r + 10)^s, unless a stream is asked to be even.
Event times are `spacing_ms` apart. The same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["START_MS", "Stream", "item_name", "padding_events", "user_name"]

START_MS = 1_700_000_000_000
CHUNK = 50_000
TYPES = ("view", "click", "like", "cart", "purchase", "rating")
TYPE_SHARES = (0.45, 0.3, 0.08, 0.07, 0.05, 0.05)
DEVICES = ("phone", "tablet", "desktop")

Record = tuple[bytes, bytes]
"""Key and value."""
Ints = npt.NDArray[np.int64]


def user_name(number: int) -> str:
    return f"user-{number:08d}"


def item_name(number: int) -> str:
    return f"item-{number:07d}"


@dataclass(frozen=True, slots=True)
class Stream:
    """`count` events of `users` users on `items` items, drawn with Zipf exponent `skew` (0: evenly).

    `first_user` and `first_item` shift the numbers, so that two streams can share neither.
    """

    count: int
    users: int
    items: int
    seed: int = 4
    skew: float = 0.9
    spacing_ms: int = 2
    start_ms: int = START_MS
    first_user: int = 0
    first_item: int = 0

    def describe(self) -> dict[str, float]:
        """What the report says of it."""
        return {
            "events": self.count,
            "users": self.users,
            "items": self.items,
            "zipf_exponent": self.skew,
            "seed": self.seed,
        }

    def records(self) -> Iterator[Record]:
        """The records, keyed by user, in order of event time."""
        rng = np.random.default_rng(self.seed)
        user_shares, item_shares = _cumulative(self.users, self.skew), _cumulative(self.items, self.skew)
        user_of, item_of = rng.permutation(self.users), rng.permutation(self.items)
        for start in range(0, self.count, CHUNK):
            size = min(CHUNK, self.count - start)
            user = user_of[_draw(rng, user_shares, size)] + self.first_user
            item = item_of[_draw(rng, item_shares, size)] + self.first_item
            yield from _encoded(rng, self.seed, start, user, item, self.start_ms, self.spacing_ms)


def padding_events(
    users: Ints, items: Ints, *, seed: int, start_ms: int = START_MS - 86_400_000, spacing_ms: int = 1
) -> Iterator[Record]:
    """Events of exactly these users on exactly these items, one after the other: they fill a state."""
    rng = np.random.default_rng(seed)
    for start in range(0, len(users), CHUNK):
        part = slice(start, start + CHUNK)
        yield from _encoded(rng, seed, start, users[part], items[part], start_ms, spacing_ms)


def _cumulative(size: int, skew: float) -> npt.NDArray[np.float64]:
    shares = (np.arange(size) + 10.0) ** -skew
    cumulative: npt.NDArray[np.float64] = np.cumsum(shares / shares.sum())
    return cumulative


def _draw(rng: np.random.Generator, cumulative: npt.NDArray[np.float64], size: int) -> Ints:
    drawn: Ints = np.minimum(np.searchsorted(cumulative, rng.random(size)), cumulative.size - 1)
    return drawn


def _encoded(
    rng: np.random.Generator, seed: int, start: int, users: Ints, items: Ints, start_ms: int, spacing_ms: int
) -> Iterator[Record]:
    size = len(users)
    kinds = rng.choice(len(TYPES), size=size, p=TYPE_SHARES)
    salts = rng.integers(0, 1 << 62, size=size)
    columns = (users.tolist(), items.tolist(), kinds.tolist(), salts.tolist())
    for number, (user, item, kind, salt) in enumerate(zip(*columns, strict=True), start=start):
        name = user_name(user)
        value = f',"value":{1 + salt % 5}' if TYPES[kind] == "rating" else ""
        yield (
            name.encode(),
            (
                f'{{"event_id":"{seed:04x}-{number:08x}-{salt:016x}","user_id":"{name}",'
                f'"item_id":"{item_name(item)}","event_type":"{TYPES[kind]}",'
                f'"timestamp":{start_ms + number * spacing_ms}{value},'
                f'"session_id":"s-{user:x}-{number >> 12:x}","domain":"shop",'
                f'"context":{{"device":"{DEVICES[salt % 3]}","page":"home","slot":{salt % 7}}}}}'
            ).encode(),
        )
