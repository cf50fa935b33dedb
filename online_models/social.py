"""What the people whom a user follows use, weighted by how well each has foretold him."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models import social_kernels
from online_models.base import COUNTS, Arrays, Context, OnlineRanker, contiguous_rows, user_token
from online_models.corrections import event_code
from online_models.decayed_counts import NewestTimes
from online_models.forward_decay import require_half_life
from online_models.item_table import UNLIMITED, grown, pack_ids, unpack_ids
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.user_histories import UserHistories

__all__ = ["SocialRanker"]

Events = Sequence[tuple[str, str, float, Context | None]]
_FOLLOW = event_code("follow")


class _Edges(NamedTuple):
    """Whom one user follows, in the order in which he came to."""

    token: NDArray[np.uint64]  # uint64[F]
    trust: NDArray[np.float32]  # float32[F]
    event_ids: list[str]  # of the events that said so, "" where they had none


class SocialRanker(OnlineRanker):
    r"""$$\mathrm{score}(u, i) = \sum_{v \in F_u,\, i \in H_v} T_{uv}\, 2^{-(t - t_{vi})/R}$$

    F_u are the users whom u follows, H_v the newest `history_length` items that v used (each once, at t_vi),
    t the newest event time, T_uv the trust, 1 at first. Each time u uses an item, first every followed v is
    tested on it: had he used it before?

    $$T_{uv} \leftarrow T_{uv} (1 + g) \text{ if he had, else } T_{uv} (1 - d), \quad
    T_{uv} \in [1 / \mathrm{max\_trust}, \mathrm{max\_trust}]$$

    so that trust grows towards those who agree with u more often than log(1/(1 - d)) / log(1 + g), about, and
    fades from the others.

    An event of type follow with x["target_user"] (or `learn_follow`) makes an edge, one of negative weight
    ends it, and so does withdrawing it by its id; it is no use of an item, whatever item it names. Who has
    `max_followed` drops the one he trusts least. Edges and trust are the owner's alone, by the followed
    users' tokens, and never in the log; replicas keep the histories of `max_users` users by token. An owner
    whose tokens are random gives `learn_follow` the token of the followed user. A weight above 0 is a use,
    one below 0 ("not interested") takes the item out of the history; sizes of weights do not count.

    A withdrawn use leaves the histories exactly, as far as they are kept (`UserHistories`); the trust it
    moved takes the step back. Forgetting a user drops his history, his edges, and the edges to him. An event
    costs history_length steps for each followed user at the owner, and history_length at every replica.

    Parameters: history_length, max_users, max_followed, recency_half_life_s R (seconds of event time; 0 = all
    ages count the same), gain g, decline d, max_trust, seed (unused).

    References: Ma, King and Lyu, Learning to Recommend with Social Trust Ensemble, SIGIR 2009. Littlestone
    and Warmuth, The Weighted Majority Algorithm, Information and Computation 108, 1994 (trust by
    multiplicative steps).

    >>> model = SocialRanker(recency_half_life_s=3600.0, gain=0.5, decline=0.0)
    >>> model.learn_one("ann", "any", x={"event_type": "follow", "target_user": "bob"})
    >>> model.learn_many(["bob", "bob"], ["tea", "ale"], x=[{"timestamp": 0}, {"timestamp": 3_600_000}])
    >>> [model.predict_one("ann", item) for item in ("tea", "ale", "unknown")]
    [0.5, 1.0, 0.0]
    >>> model.learn_one("ann", "tea", x={"timestamp": 3_600_000})
    >>> model.trust("ann", "bob"), model.predict_one("ann", "ale"), model.predict_one("eve", "ale")
    (1.5, 1.5, 0.0)
    """

    learns = COUNTS
    owner_reads_items = True

    def __init__(
        self,
        history_length: int = 50,
        max_users: int = 100_000,
        max_followed: int = 200,
        recency_half_life_s: float = 30 * 86_400.0,
        gain: float = 0.5,
        decline: float = 0.01,
        max_trust: float = 16.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        require_half_life(recency_half_life_s)
        if not 1 <= max_followed <= 100_000:
            raise ValueError(f"max_followed is {max_followed}, but 1 to 100000 are needed")
        if not (0.0 <= gain <= 10.0 and 0.0 <= decline <= 0.9):
            raise ValueError(f"gain is {gain} and decline {decline}; 0 to 10 and 0 to 0.9 are needed")
        if not 1.0 <= max_trust <= 1e6:
            raise ValueError(f"max_trust is {max_trust}, but 1 to 1e6 is needed")
        self.history_length = history_length
        self.max_users = max_users
        self.max_followed = max_followed
        self.recency_half_life_s = recency_half_life_s
        self.gain = gain
        self.decline = decline
        self.max_trust = max_trust
        self._histories = UserHistories(max_users, history_length)
        self._newest = NewestTimes()
        self._edges: dict[str, _Edges] = {}
        self._total = np.zeros(0, dtype=np.float64)

    def learn_follow(self, user: str, target: str, token: int | None = None, event_id: str = "") -> None:
        """A user follows another, whose token is `user_token(target)` if none is given; again: no change.
        Raises TypeError for an empty name, ValueError for following oneself."""
        _check_edge(user, target)
        followed = np.uint64(user_token(target) if token is None else token)
        edges = self._edges_of(user)
        if followed in edges.token:
            return
        if len(edges.token) >= self.max_followed:
            least = int(np.argmin(edges.trust))
            edges = self._keep(user, np.flatnonzero(np.arange(len(edges.token)) != least))
        tokens, trust = np.append(edges.token, followed), np.append(edges.trust, np.float32(1.0))
        self._edges[user] = _Edges(tokens, trust, [*edges.event_ids, event_id])

    def unlearn_follow(self, user: str, target: str, token: int | None = None) -> None:
        """A user follows another no more. No error where he didn't."""
        edges = self._edges_of(user)
        followed = np.uint64(user_token(target) if token is None else token)
        self._keep(user, np.flatnonzero(edges.token != followed))

    def trust(self, user: str, target: str) -> float:
        """Trust of a user in another, 0 where he doesn't follow him."""
        edges = self._edges_of(user)
        return float(edges.trust[edges.token == np.uint64(user_token(target))].sum())

    def learn_user(self, events: Events) -> LearningBatch:
        uses = [event for event in events if not _is_follow(event[3])]
        for event in events:
            if _is_follow(event[3]):
                _check_follow(event)
        batch = super().learn_user(uses)
        done = iter(range(len(batch)))
        for event in events:
            if _is_follow(event[3]):
                self._learn_follow_event(event)
            else:
                self._move_trust(event[0], batch, next(done), back=False)
        return batch

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        n = len(batch)
        self._histories.reserve(n, len(self.items), self.items.limit)
        sign, one = np.sign(batch.weight).astype(np.int8), np.ones(n, dtype=np.float32)
        self._histories.learn((0, n), batch, rows, 0, sign, one, False, _unread(n))
        self._newest.add(batch.time_ms)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        sign, one = np.sign(batch.weight).astype(np.int8), np.ones(len(batch), dtype=np.float32)
        self._histories.unlearn(batch, rows, sign, one, _unread(len(batch)))
        self._newest.remove(batch.time_ms)

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        for event in range(len(batch)):
            self._move_trust(user, batch, event, back=True)

    def retract(self, user: str, event_id: str) -> bool:
        edges = self._edges_of(user)
        if event_id and event_id in edges.event_ids:
            place = edges.event_ids.index(event_id)
            self._keep(user, np.flatnonzero(np.arange(len(edges.token)) != place))
            return True
        return super().retract(user, event_id)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._histories.forget_items(rows)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        self._histories.forget_users(tokens)
        for user, edges in list(self._edges.items()):
            self._keep(user, np.flatnonzero(~np.isin(edges.token, tokens)))

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._edges.pop(user, None)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out, edges = np.zeros(len(rows), dtype=np.float32), self._edges_of(user)
        store = self._histories.store
        self._total = grown(self._total, len(store.head), UNLIMITED)
        social_kernels.social_score(
            self._slots(edges), edges.trust, contiguous_rows(rows), self._newest.now,
            self.recency_half_life_s * 1000.0, self.history_length, store, self._total, out,
        )  # fmt: skip
        return out

    def item_arrays(self) -> Arrays:
        newest = {"social.newest": self._newest.times.copy()}
        return {**self._histories.to_arrays("social", len(self.items)), **newest}

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._histories.load("social", arrays)
        self._newest.times = np.array(arrays["social.newest"], dtype=np.int64)

    def nbytes(self) -> int:
        """Bytes of the histories of the users and items in use."""
        return self._histories.nbytes()

    def to_arrays(self) -> Arrays:
        every = list(self._edges.values())
        return {
            **super().to_arrays(),
            **pack_ids("users.following", list(self._edges)),
            "users.edges.counts": np.array([len(edges.token) for edges in every], dtype=np.int32),
            "users.edges.token": np.concatenate([_NOBODY.token, *(edges.token for edges in every)]),
            "users.edges.trust": np.concatenate([_NOBODY.trust, *(edges.trust for edges in every)]),
            **pack_ids("users.edges.events", [name for edges in every for name in edges.event_ids]),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().from_arrays(arrays)
        self._edges, end = {}, 0
        names = unpack_ids("users.edges.events", arrays)
        users = unpack_ids("users.following", arrays)
        for user, count in zip(users, arrays["users.edges.counts"].tolist(), strict=True):
            span = slice(end, end + count)
            token, trust = (arrays[f"users.edges.{part}"][span].copy() for part in ("token", "trust"))
            self._edges[user] = _Edges(token, trust, names[span])
            end += count

    def _edges_of(self, user: str) -> _Edges:
        return self._edges.get(user, _NOBODY)

    def _slots(self, edges: _Edges) -> NDArray[np.int32]:
        slots = [self._histories.slot(token) for token in edges.token.tolist()]
        return np.array(slots, dtype=np.int32)

    def _move_trust(self, user: str, batch: LearningBatch, event: int, back: bool) -> None:
        """One step of the user's trust in those he follows, for an event of his; or that step back."""
        edges, row = self._edges_of(user), self.items.row(batch.item_ids[batch.item[event]])
        if row < 0 or batch.weight[event] <= 0.0 or not len(edges.token):
            return
        used = np.zeros(len(edges.token), dtype=np.bool_)
        social_kernels.social_used(
            self._slots(edges),
            row,
            int(batch.time_ms[event]),
            self.history_length,
            self._histories.store,
            used,
        )
        factor = np.where(used, 1.0 + self.gain, 1.0 - self.decline)
        moved = edges.trust / factor if back else edges.trust * factor
        edges.trust[:] = np.clip(moved, 1.0 / self.max_trust, self.max_trust)

    def _learn_follow_event(self, event: tuple[str, str, float, Context | None]) -> None:
        user, _, y, x = event
        context = x or {}
        if float(context.get("weight", y)) < 0.0:
            self.unlearn_follow(user, context["target_user"])
        else:
            self.learn_follow(user, context["target_user"], event_id=str(context.get("event_id") or ""))

    def _keep(self, user: str, places: NDArray[np.intp]) -> _Edges:
        """Keep the edges at these places alone."""
        edges = self._edges_of(user)
        kept = [edges.event_ids[place] for place in places.tolist()]
        edges = _Edges(edges.token[places], edges.trust[places], kept)
        if kept:
            self._edges[user] = edges
        else:
            self._edges.pop(user, None)
        return edges


def _is_follow(x: Context | None) -> bool:
    return event_code((x or {}).get("event_type")) == _FOLLOW


def _check_edge(user: object, target: object) -> None:
    for role, name in (("user", user), ("target_user", target)):
        if not isinstance(name, str) or not name:
            raise TypeError(f"{role} must be a non-empty string, got {name!r} ({type(name).__name__})")
    if user == target:
        raise ValueError(f"user {user!r} can't follow himself: target_user names him")


def _check_follow(event: tuple[str, str, float, Context | None]) -> None:
    user, _, y, x = event
    _check_edge(user, (x or {}).get("target_user"))
    if not math.isfinite(weight := float((x or {}).get("weight", y))):
        raise ValueError(f"weight of a follow is {weight!r}, but a finite number is needed")


def _unread(n: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    return np.zeros(n, np.float32), np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)


_NOBODY = _Edges(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.float32), [])
