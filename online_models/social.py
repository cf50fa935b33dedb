"""What the people whom a user follows use, weighted by how well each has foretold him."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import social_kernels
from online_models.base import COUNTS, Arrays, Context, OnlineRanker, contiguous_rows, user_token
from online_models.decayed_counts import NewestTimes
from online_models.follow_graph import Edges, FollowGraph, check_follow, is_follow
from online_models.forward_decay import require_half_life
from online_models.item_table import UNLIMITED, grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.user_histories import UserHistories

__all__ = ["SocialRanker"]


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
        if not (0.0 <= gain <= 10.0 and 0.0 <= decline <= 0.9):
            raise ValueError(f"gain is {gain} and decline {decline}; 0 to 10 and 0 to 0.9 are needed")
        self.history_length = history_length
        self.max_users = max_users
        self.max_followed = max_followed
        self.recency_half_life_s = recency_half_life_s
        self.gain = gain
        self.decline = decline
        self.max_trust = max_trust
        self._histories = UserHistories(max_users, history_length)
        self._newest = NewestTimes()
        self._graph = FollowGraph(max_followed, max_trust)
        self._total = np.zeros(0, dtype=np.float64)

    def learn_follow(self, user: str, target: str, token: int | None = None, event_id: str = "") -> None:
        """A user follows another; see `FollowGraph.follow`."""
        self._graph.follow(user, target, token, event_id)

    def unlearn_follow(self, user: str, target: str, token: int | None = None) -> None:
        """A user follows another no more. No error where he didn't."""
        self._graph.unfollow(user, target, token)

    def withdraw_follow(self, user: str, event_id: str) -> bool:
        """Drop whom a user follows since that event; False where it was no such event."""
        return self._graph.withdraw(user, event_id)

    def trust(self, user: str, target: str) -> float:
        """Trust of a user in another, 0 where he doesn't follow him."""
        return self._graph.trust(user, user_token(target))

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        for event in events:
            if is_follow(event[3]):
                check_follow(event)
        batch = super().learn_user([event for event in events if not is_follow(event[3])])
        done = iter(range(len(batch)))
        for event in events:
            if is_follow(event[3]):
                self._graph.learn(event)
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
        return self.withdraw_follow(user, event_id) or super().retract(user, event_id)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._histories.forget_items(rows)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        self._histories.forget_users(tokens)
        self._graph.forget_users(tokens)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._graph.drop_user(user)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out, edges = np.zeros(len(rows), dtype=np.float32), self._graph.of(user)
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
        return {**super().to_arrays(), **self._graph.to_arrays()}

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        self._graph.from_arrays(arrays)

    def _slots(self, edges: Edges) -> NDArray[np.int32]:
        slots = [self._histories.slot(token) for token in edges.token.tolist()]
        return np.array(slots, dtype=np.int32)

    def _move_trust(self, user: str, batch: LearningBatch, event: int, back: bool) -> None:
        """One step of the user's trust in those he follows, for an event of his; or that step back."""
        edges, row = self._graph.of(user), self.items.row(batch.item_ids[batch.item[event]])
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
        self._graph.move_trust(user, 1.0 / factor if back else factor)


def _unread(n: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    return np.zeros(n, np.float32), np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)
