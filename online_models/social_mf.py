"""Factors held near those of followed users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models.base import Arrays, Context, OnlineRanker, user_token
from online_models.follow_graph import FollowGraph, check_follow, is_follow
from online_models.isgd import ISGD
from online_models.kernels import MAX_RATE
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["SocialMF"]


class SocialMF(ISGD):
    r"""`ISGD` with a social regularization: each event also draws the user towards those whom he follows.

    $$p_u \mathrel{+}= \eta \beta\, (m_u - p_u), \qquad
    m_u = \frac{\sum_{v \in F_u} T_{uv}\, p_v}{\sum_{v \in F_u} T_{uv}}$$

    after ISGD's own step at rate η, which goes down the gradient of (β / 2) |p_u - m_u|². A user of whom
    nothing is known yet is m_u: he starts where his friends are. The trust T_uv, 1 at first, is learned
    online: at each event of positive weight on a known item i, before it is learned, it is multiplied by
    1 + g when v foretells it better than u himself, p_v . q_i > p_u . q_i, else by 1 - d, from 1 / max_trust
    to max_trust.

    Edges and trust are the owner's, as in `SocialRanker`, with its events of type follow. Replicas keep the
    newest factor (user_after in the log) of at most `max_users` users, by token; a new one takes the place of
    the one idle longest. Withdrawing an event inverts ISGD's steps; what it drew the user by, and its step of
    trust, stay. Forgetting a user drops his factor, his edges, and the edges to him.

    Parameters: social β, gain g, decline d, max_trust, max_followed, max_users; the others are ISGD's.

    Reference: Ma, Zhou, Liu, Lyu and King, Recommender Systems with Social Regularization, WSDM 2011 (its
    average-based regularization, with trust in place of similarity).

    >>> model = SocialMF(dimension=8)
    >>> model.learn_one("ann", "any", x={"event_type": "follow", "target_user": "bob"})
    >>> for _ in range(30):
    ...     model.learn_one("bob", "tea")
    ...     model.learn_one("eve", "nails")
    >>> [round(model.predict_one("ann", item), 3) for item in ("tea", "nails")]
    [0.95, 0.0]
    """

    def __init__(
        self,
        dimension: int = 32,
        learning_rate: float = 0.3,
        regularization: float = 0.01,
        negatives: int = 8,
        start_scale: float = 0.1,
        social: float = 0.3,
        gain: float = 0.5,
        decline: float = 0.3,
        max_trust: float = 16.0,
        max_followed: int = 200,
        max_users: int = 100_000,
        seed: int = 0,
    ) -> None:
        super().__init__(dimension, learning_rate, regularization, negatives, start_scale, seed)
        if not 0.0 <= social <= 1.0:
            raise ValueError(f"social is {social}, but 0 to 1 is needed")
        if not (0.0 <= gain <= 10.0 and 0.0 <= decline <= 0.9):
            raise ValueError(f"gain is {gain} and decline {decline}; 0 to 10 and 0 to 0.9 are needed")
        if not 1 <= max_users <= 2**26:
            raise ValueError(f"max_users is {max_users}, but 1 to {2**26} are needed")
        self.social = social
        self.gain = gain
        self.decline = decline
        self.max_trust = max_trust
        self.max_followed = max_followed
        self.max_users = max_users
        self._graph = FollowGraph(max_followed, max_trust)
        self._known: dict[int, NDArray[np.float32]] = {}  # by token, the idlest first

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
        """As ISGD's, one event at a time; one of type follow gives a record of none."""
        if len(events) == 1 and is_follow(events[0][3]):
            check_follow(events[0])
            self._graph.learn(events[0])
            batch = OnlineRanker.learn_user(self, [])
            batch.user_before = batch.user_after = np.zeros((0, self.dimension), dtype=np.float32)
            return batch
        batch = super().learn_user(events)
        user, weight = events[0][0], float(batch.weight[0])
        if weight > 0.0:
            self._move_trust(user, batch.user_before[0], self.items.row(events[0][1]))
        friends = self._friends(user)
        if friends is not None and weight != 0.0:
            rate = np.float32(min(abs(weight) * self.learning_rate, MAX_RATE) * self.social)
            drawn = batch.user_after[0] + rate * (friends - batch.user_after[0])
            batch.user_after = drawn[None, :].astype(np.float32)
            self._users[user] = batch.user_after[0]
        return batch

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        super().apply(batch, rows)
        self._keep_factors(batch)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        super().unlearn(batch, rows)
        self._keep_factors(batch)

    def retract(self, user: str, event_id: str) -> bool:
        return self.withdraw_follow(user, event_id) or super().retract(user, event_id)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        for token in tokens.tolist():
            self._known.pop(token, None)
        self._graph.forget_users(tokens)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._graph.drop_user(user)

    def nbytes(self) -> int:
        """Bytes of the factors of items and users in use."""
        return super().nbytes() + (8 + 4 * self.dimension) * len(self._known)

    def item_arrays(self) -> Arrays:
        known = np.array(list(self._known.values()), dtype=np.float32)
        return {
            **super().item_arrays(),
            "social_mf.tokens": np.array(list(self._known), dtype=np.uint64),
            "social_mf.users": known.reshape(len(self._known), self.dimension),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().load_item_arrays(arrays)
        tokens, known = arrays["social_mf.tokens"].tolist(), arrays["social_mf.users"].astype(np.float32)
        self._known = dict(zip(tokens, known, strict=True))

    def to_arrays(self) -> Arrays:
        return {**super().to_arrays(), **self._graph.to_arrays()}

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        self._graph.from_arrays(arrays)

    def _keep_factors(self, batch: LearningBatch) -> None:
        for token, factor in zip(batch.user.tolist(), batch.user_after, strict=True):
            if token:
                self._known.pop(token, None)
                self._known[token] = factor.copy()
                if len(self._known) > self.max_users:
                    del self._known[next(iter(self._known))]

    def _friends(self, user: str) -> NDArray[np.float32] | None:
        """Mean factor of those whom a user follows, by trust; None where nothing is known of them."""
        edges = self._graph.of(user)
        total, mean = 0.0, np.zeros(self.dimension, dtype=np.float64)
        for token, trust in zip(edges.token.tolist(), edges.trust.tolist(), strict=True):
            if (factor := self._known.get(token)) is not None:
                total += trust
                mean += trust * factor
        return (mean / total).astype(np.float32) if total > 0.0 else None

    def _move_trust(self, user: str, own: NDArray[np.float32], row: int) -> None:
        tokens = self._graph.of(user).token.tolist()
        if not tokens or not 0 <= row < len(self.factors):
            return
        friends = [self._known.get(token) for token in tokens]
        asked = np.stack([own, *(own if factor is None else factor for factor in friends)])
        foretold = self.score(asked, np.full((len(asked), 1), row, dtype=np.int32))[:, 0]
        factor = np.where(foretold[1:] > foretold[0], 1.0 + self.gain, 1.0 - self.decline)
        known = np.array([factor is not None for factor in friends])
        self._graph.move_trust(user, np.where(known, factor, 1.0))

    def _user_factor(self, user: str) -> NDArray[np.float32]:
        if user not in self._users and (friends := self._friends(user)) is not None:
            return friends
        return super()._user_factor(user)
