"""Who follows whom, and how far he trusts him: the owner's state of models that know of followed users."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.base import Arrays, Context, user_token
from online_models.corrections import event_code, weight_of
from online_models.item_table import pack_ids, unpack_ids

__all__ = ["Edges", "FollowGraph", "check_follow", "is_follow"]

_FOLLOW = event_code("follow")


class Edges(NamedTuple):
    """Whom one user follows, in the order in which he came to."""

    token: NDArray[np.uint64]  # uint64[F]
    trust: NDArray[np.float32]  # float32[F]
    event_ids: list[str]  # of the events that said so, "" where they had none


class FollowGraph:
    """Edges from users to the tokens of those they follow, at most `max_followed` each, with a trust from
    1 / max_trust to max_trust, 1 at first. Who follows one more drops the one he trusts least.

    >>> graph = FollowGraph(max_followed=2, max_trust=4.0)
    >>> for target in ("bob", "eve"):
    ...     graph.follow("ann", target)
    >>> graph.move_trust("ann", np.array([8.0, 0.5]))
    >>> graph.of("ann").trust.tolist()
    [4.0, 0.5]
    """

    def __init__(self, max_followed: int, max_trust: float) -> None:
        if not 1 <= max_followed <= 100_000:
            raise ValueError(f"max_followed is {max_followed}, but 1 to 100000 are needed")
        if not 1.0 <= max_trust <= 1e6:
            raise ValueError(f"max_trust is {max_trust}, but 1 to 1e6 is needed")
        self.max_followed = max_followed
        self.max_trust = max_trust
        self._edges: dict[str, Edges] = {}

    def of(self, user: str) -> Edges:
        """Whom a user follows."""
        return self._edges.get(user, _NOBODY)

    def trust(self, user: str, token: int) -> float:
        """Trust of a user in another, 0 where he doesn't follow him."""
        edges = self.of(user)
        return float(edges.trust[edges.token == np.uint64(token)].sum())

    def follow(self, user: str, target: str, token: int | None = None, event_id: str = "") -> None:
        """Add an edge to a user whose token is `user_token(target)` if none is given; again: no change.
        Raises TypeError for an empty name, ValueError for following oneself."""
        _check_edge(user, target)
        followed = np.uint64(user_token(target) if token is None else token)
        edges = self.of(user)
        if followed in edges.token:
            return
        if len(edges.token) >= self.max_followed:
            least = int(np.argmin(edges.trust))
            edges = self._keep(user, np.arange(len(edges.token)) != least)
        tokens, trust = np.append(edges.token, followed), np.append(edges.trust, np.float32(1.0))
        self._edges[user] = Edges(tokens, trust, [*edges.event_ids, event_id])

    def unfollow(self, user: str, target: str, token: int | None = None) -> None:
        """Drop an edge. No error where there is none."""
        followed = np.uint64(user_token(target) if token is None else token)
        self._keep(user, self.of(user).token != followed)

    def learn(self, event: tuple[str, str, float, Context | None]) -> None:
        """Follow as an event says that `check_follow` passed, or, with a negative weight, unfollow."""
        user, _, y, x = event
        context = x or {}
        if weight_of(y, x) < 0.0:
            self.unfollow(user, context["target_user"])
        else:
            self.follow(user, context["target_user"], event_id=str(context.get("event_id") or ""))

    def withdraw(self, user: str, event_id: str) -> bool:
        """Drop the edge that an event made; False where none is of that event."""
        edges = self.of(user)
        if not event_id or event_id not in edges.event_ids:
            return False
        self._keep(user, np.arange(len(edges.token)) != edges.event_ids.index(event_id))
        return True

    def move_trust(self, user: str, factor: NDArray[np.float64]) -> None:
        """Multiply the user's trust in each whom he follows by factor float64[F], within bounds."""
        trust = self.of(user).trust
        trust[:] = np.clip(trust * factor, 1.0 / self.max_trust, self.max_trust)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        """Drop all edges to users, by token."""
        for user, edges in list(self._edges.items()):
            self._keep(user, ~np.isin(edges.token, tokens))

    def drop_user(self, user: str) -> None:
        """Drop all edges of a user."""
        self._edges.pop(user, None)

    def to_arrays(self) -> Arrays:
        """All edges, for a snapshot: `users.edges.*`."""
        every = list(self._edges.values())
        return {
            **pack_ids("users.following", list(self._edges)),
            "users.edges.counts": np.array([len(edges.token) for edges in every], dtype=np.int32),
            "users.edges.token": np.concatenate([_NOBODY.token, *(edges.token for edges in every)]),
            "users.edges.trust": np.concatenate([_NOBODY.trust, *(edges.trust for edges in every)]),
            **pack_ids("users.edges.events", [name for edges in every for name in edges.event_ids]),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace all edges by those of `to_arrays`."""
        self._edges, end = {}, 0
        names = unpack_ids("users.edges.events", arrays)
        users = unpack_ids("users.following", arrays)
        for user, count in zip(users, arrays["users.edges.counts"].tolist(), strict=True):
            span = slice(end, end + count)
            token, trust = (arrays[f"users.edges.{part}"][span].copy() for part in ("token", "trust"))
            self._edges[user] = Edges(token, trust, names[span])
            end += count

    def _keep(self, user: str, kept: NDArray[np.bool_]) -> Edges:
        edges = self.of(user)
        names = [edges.event_ids[place] for place in np.flatnonzero(kept).tolist()]
        edges = Edges(edges.token[kept], edges.trust[kept], names)
        if names:
            self._edges[user] = edges
        else:
            self._edges.pop(user, None)
        return edges


def is_follow(x: Context | None) -> bool:
    """Is this the context of an event of type follow?"""
    return event_code((x or {}).get("event_type")) == _FOLLOW


def check_follow(event: tuple[str, str, float, Context | None]) -> None:
    """Raises TypeError or ValueError for a follow that can't be learned, naming what is wrong."""
    user, _, y, x = event
    _check_edge(user, (x or {}).get("target_user"))
    if not math.isfinite(weight := weight_of(y, x)):
        raise ValueError(f"weight of a follow is {weight!r}, but a finite number is needed")


def _check_edge(user: object, target: object) -> None:
    for role, name in (("user", user), ("target_user", target)):
        if not isinstance(name, str) or not name:
            raise TypeError(f"{role} must be a non-empty string, got {name!r} ({type(name).__name__})")
    if user == target:
        raise ValueError(f"user {user!r} can't follow himself: target_user names him")


_NOBODY = Edges(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.float32), [])
