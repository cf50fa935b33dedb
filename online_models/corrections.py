"""What a user did, kept by the owner so that it can be withdrawn, and the log records that withdraw it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.learning_batch import (
    LEARN,
    MAX_ABS_WEIGHT,
    MAX_TIME_MS,
    PAIR,
    UNCOUNT,
    UNPAIR,
    WITHDRAW,
    LearningBatch,
)

__all__ = [
    "EVENT_TYPES",
    "PAST_KEPT",
    "Past",
    "check_id",
    "event_code",
    "forgetting",
    "pack_pasts",
    "past_of",
    "recent_items",
    "record_of",
    "unpack_pasts",
    "weight_of",
    "withdrawal",
]

RECENT_KEPT = 50
"""Recent items of a user that an event may be learned with: the most that any window or query asks for."""
PAST_KEPT = 2 * RECENT_KEPT
"""Events kept per user of a standalone model: the newest RECENT_KEPT can be withdrawn with all that they were
learned with, older ones with what is left of it."""

EVENT_TYPES = (
    *("impression", "view", "click", "like", "dislike", "cart", "purchase", "rating", "share"),
    *("search", "follow", "retract"),
)
"""The names that x["event_type"] may have; a code is a name's place here."""


class Past(NamedTuple):
    """One event as it was learned. `value` is NaN where the event stated none."""

    item: str
    event_id: str
    time_ms: int
    weight: float
    event_type: int
    value: float


def event_code(name: object) -> int:
    """Code of an event type, given by name or code. Raises ValueError for another.

    >>> event_code("rating"), event_code(3), event_code(None)
    (7, 3, 0)
    """
    if name is None:
        return 0
    if isinstance(name, str):
        if name not in EVENT_TYPES:
            raise ValueError(f"event_type is {name!r}, but one of {', '.join(EVENT_TYPES)} is needed")
        return EVENT_TYPES.index(name)
    if isinstance(name, int | np.integer) and 0 <= name <= 255:
        return int(name)
    raise ValueError(f"event_type is {name!r}, but a name or a code from 0 to 255 is needed")


def past_of(user: str, item: str, y: float, x: Mapping[str, Any] | None) -> Past:
    """One event of River's calls; what x states as None is not stated. Raises TypeError and ValueError,
    naming what is wrong."""
    context = x or {}
    event_id, time_ms, weight = (context.get(name) for name in ("event_id", "timestamp", "weight"))
    check_id("user", user)
    check_id("item", item)
    if event_id is not None and (event_id := str(event_id)):
        check_id("event_id", event_id)
    value = float(np.float32(_number("y", y, -MAX_ABS_WEIGHT, MAX_ABS_WEIGHT)))
    return Past(
        item=item,
        event_id=event_id or "",
        time_ms=0 if time_ms is None else int(_number("timestamp", time_ms, 0, MAX_TIME_MS)),
        weight=value
        if weight is None
        else float(np.float32(_number("weight", weight, -MAX_ABS_WEIGHT, MAX_ABS_WEIGHT))),
        event_type=event_code(context.get("event_type")),
        value=value,
    )


def weight_of(y: float, x: Mapping[str, Any] | None) -> float:
    """The weight that an event states, else its y.

    >>> weight_of(4.0, {"weight": 1}), weight_of(4.0, {"weight": None}), weight_of(4.0, None)
    (1.0, 4.0, 4.0)
    """
    stated = (x or {}).get("weight")
    return float(y if stated is None else stated)


def check_id(kind: str, value: object) -> None:
    """Raises TypeError for what is no id, ValueError for one that no file or message can hold."""
    if not isinstance(value, str) or not value:
        raise TypeError(
            f"{kind} must be a non-empty string, got {value!r} ({type(value).__name__}); use str()"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{kind} {value!r} is no Unicode text ({error}); mend its decoding") from error


def _number(name: str, value: Any, low: float, high: float) -> Any:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), but a number is needed")
    if not low <= value <= high:  # so written that NaN is refused
        raise ValueError(f"{name} is {value!r}, but a finite number from {low:.15g} to {high:.15g} is needed")
    return value


def record_of(
    events: Sequence[tuple[int, Past]], recents: Sequence[Sequence[str]], kind: int = LEARN
) -> LearningBatch:
    """The log record of events (user token, what was done), each with the user's items before it, newest
    first; without factors and negatives."""
    n, width = len(events), max((len(recent) for recent in recents), default=0)
    index_of: dict[str, int] = {}
    item = [index_of.setdefault(past.item, len(index_of)) for _, past in events]
    recent = np.full((n, width), -1, dtype=np.int32)
    for position, row in enumerate(recents):
        recent[position, : len(row)] = [index_of.setdefault(item_id, len(index_of)) for item_id in row]
    pasts = [past for _, past in events]
    return LearningBatch(
        item_ids=list(index_of),
        item=np.array(item, dtype=np.int32),
        recent=recent,
        time_ms=np.array([past.time_ms for past in pasts], dtype=np.int64),
        weight=np.array([past.weight for past in pasts], dtype=np.float32),
        event_type=np.array([past.event_type for past in pasts], dtype=np.uint8),
        user_before=np.zeros((n, 0), dtype=np.float32),
        user_after=np.zeros((n, 0), dtype=np.float32),
        negatives=np.full((n, 0), -1, dtype=np.int32),
        user=np.array([token for token, _ in events], dtype=np.uint64),
        value=np.array([past.value for past in pasts], dtype=np.float32),
        kind=kind,
    )


def withdrawal(token: int, pasts: Sequence[Past], place: int) -> list[LearningBatch]:
    """Records that make the models what they would be without pasts[place], newest first, of one user.

    Events that came after it were learned with it among their recent items: what pairs of items they taught
    is taken back (UNPAIR, newest first), then the event itself (WITHDRAW), then they are paired again (PAIR,
    oldest first) with the recent items that remain.
    """
    without = [*pasts[:place], *pasts[place + 1 :]]
    paired = [q for q in range(place) if _is_recent(pasts, place, q)]
    records = [_one(token, pasts, q, UNPAIR) for q in paired]
    records.append(_one(token, pasts, place, WITHDRAW))
    records.extend(_one(token, without, q, PAIR) for q in reversed(paired))
    return records


def forgetting(token: int, pasts: Sequence[Past]) -> list[LearningBatch]:
    """Records that take one user's kept events, newest first, out of all counts; factors are left alone."""
    return [_one(token, pasts, place, UNCOUNT) for place in range(len(pasts))]


def _is_recent(pasts: Sequence[Past], place: int, at: int) -> bool:
    """Whether the item of pasts[place] was among the recent ones when pasts[at] came."""
    between = sum(past.weight >= 0.0 for past in pasts[at + 1 : place])
    return pasts[place].weight >= 0.0 and between < RECENT_KEPT


def recent_items(pasts: Sequence[Past], start: int = 0) -> list[str]:
    """A user's recent items, newest first, of his pasts from `start` on: what he dislikes is none of them."""
    items = (past.item for past in islice(pasts, start, None) if past.weight >= 0.0)
    return list(islice(items, RECENT_KEPT))


def _one(token: int, pasts: Sequence[Past], place: int, kind: int) -> LearningBatch:
    return record_of([(token, pasts[place])], [recent_items(pasts, place + 1)], kind)


def pack_pasts(pasts: Mapping[str, Sequence[Past]]) -> dict[str, NDArray[np.generic]]:
    """The users' pasts as arrays, in the mapping's order: `users.past.*`, without the ids of the users."""
    from online_models.item_table import pack_ids

    flat = [past for kept in pasts.values() for past in kept]
    return {
        **pack_ids("users.past.items", [past.item for past in flat]),
        **pack_ids("users.past.events", [past.event_id for past in flat]),
        "users.past.counts": np.array([len(kept) for kept in pasts.values()], dtype=np.int32),
        "users.past.time_ms": np.array([past.time_ms for past in flat], dtype=np.int64),
        "users.past.weight": np.array([past.weight for past in flat], dtype=np.float32),
        "users.past.event_type": np.array([past.event_type for past in flat], dtype=np.uint8),
        "users.past.value": np.array([past.value for past in flat], dtype=np.float32),
    }


def unpack_pasts(users: Collection[str], arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[Past]]:
    """What `pack_pasts` packed, for users in the same order."""
    from online_models.item_table import unpack_ids

    columns = [arrays[f"users.past.{name}"].tolist() for name in ("time_ms", "weight", "event_type", "value")]
    items, events = unpack_ids("users.past.items", arrays), unpack_ids("users.past.events", arrays)
    flat = iter([Past(*row) for row in zip(items, events, *columns, strict=True)])
    counts = arrays["users.past.counts"].tolist()
    return {user: [next(flat) for _ in range(n)] for user, n in zip(users, counts, strict=True)}
