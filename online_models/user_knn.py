"""User-based neighbours: what people with a history like yours use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import kernels, user_knn_kernels
from online_models.base import COUNTS, RECENT_KEPT, Arrays, OnlineRanker, contiguous_rows, user_token
from online_models.forward_decay import half_lives_since, halvings_due, new_clock, require_half_life
from online_models.item_table import UNLIMITED, grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.user_histories import UserHistories, Uses

__all__ = ["UserKNN"]


class UserKNN(OnlineRanker):
    r"""Cosine between the asking user's recent items and the histories of those who used them too.

    Each replica keeps the last `history_length` uses of each of `max_users` users, by token; a new user who
    finds that many takes the place of the one idle longest. The candidates for neighbours are the newest
    `sample` users of each of the L recent items h_0, h_1, ... (newest first) of the user u who asks; of them
    the k most similar are his neighbours N, among equals those met first (of the newest items, and the
    newest to use them):

    $$\mathrm{sim}(u, v) = \frac{\sum_{r<L} d^r\, [h_r \in H_v]}
    {\sqrt{\sum_{r<L} d^{2r}}\, \sqrt{|H_v|}}$$

    $$\mathrm{score}(i) = \sum_{v \in N,\, i \in H_v} \mathrm{sim}(u, v)\, 2^{-(T - t_{vi})/R}$$

    H_v is the set of items in v's history, t_vi when he used i, T the newest event time. The similarity is
    exact for those sampled. A weight above 0 puts the item in front of the user's history, one below 0 ("not
    interested") takes it out; sizes of weights do not count. The user who asks is never his own neighbour.
    A use that is withdrawn leaves the history as it would be without it, as far as it is kept: what had left
    it by then, and what a "not interested" took out, does not come back. An event costs history_length steps;
    asking costs (L sample + k) history_length at most, and one step for each item asked of.

    Parameters: neighbours k, sample, query_length L, query_decay d, history_length, max_users,
    recency_half_life_s R (seconds of event time; 0 = all uses count the same), seed (unused).

    References: Resnick et al., GroupLens: An Open Architecture for Collaborative Filtering of Netnews, CSCW
    1994. Jannach and Ludewig, When Recurrent Neural Networks meet the Neighborhood for Session-Based
    Recommendation, RecSys 2017 (sampling the newest).

    >>> model = UserKNN(query_decay=1.0)
    >>> for user, items in [("ann", "ABC"), ("bob", "BCD"), ("eve", "CDE")]:
    ...     model.learn_many([user] * 3, list(items))
    >>> round(model.predict_one("ann", "D"), 6), round(model.predict_one("ann", "E"), 6)
    (1.0, 0.333333)
    >>> [item for item, _ in model.recommend(["eve"], 2, {"eve": "CDE"})[0]]
    ['B', 'A']
    """

    learns = COUNTS

    def __init__(
        self,
        neighbours: int = 50,
        sample: int = 500,
        query_length: int = 10,
        query_decay: float = 0.8,
        history_length: int = 50,
        max_users: int = 100_000,
        recency_half_life_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not (1 <= neighbours <= 10_000 and 1 <= sample <= 100_000):
            raise ValueError(
                f"neighbours is {neighbours} and sample {sample}; 1 to 10000 and 1 to 100000 are needed"
            )
        if not 1 <= query_length <= RECENT_KEPT or not 0.0 <= query_decay <= 1.0:
            raise ValueError(
                f"query_length is {query_length} and query_decay {query_decay}; 1 to {RECENT_KEPT} and "
                "0 to 1 are needed"
            )
        require_half_life(recency_half_life_s)
        self.neighbours = neighbours
        self.sample = sample
        self.query_length = query_length
        self.query_decay = query_decay
        self.history_length = history_length
        self.max_users = max_users
        self.recency_half_life_s = recency_half_life_s
        self._histories = UserHistories(max_users, history_length)
        self._clock = new_clock()
        self._scratch = _scratch(neighbours)

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        n = len(batch)
        self._histories.reserve(n, len(self.items), self.items.limit)
        growth, sign = np.empty(n, dtype=np.float64), np.sign(batch.weight).astype(np.int8)
        values, unread = np.empty(n, dtype=np.float32), _unread(n)
        event, changed = 0, 0
        while event < n:
            self._rescale(int(batch.time_ms[event]))
            last = kernels.forward_growth(
                event, batch.time_ms, self._clock, self.recency_half_life_s * 1000.0, growth
            )
            values[event:last] = growth[event:last]
            changed = self._histories.learn((event, last), batch, rows, changed, sign, values, False, unread)
            event = last

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        growth = np.empty(len(batch), dtype=np.float64)
        kernels.past_growth(batch.time_ms, self._clock, self.recency_half_life_s * 1000.0, growth)
        sign = np.sign(batch.weight).astype(np.int8)
        self._histories.unlearn(batch, rows, sign, growth.astype(np.float32), _unread(len(batch)))

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._histories.forget_items(rows)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        self._histories.forget_users(tokens)

    def score(
        self, token: int, recent_rows: NDArray[np.int32], candidate_rows: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Scores float32[C] of candidate_rows int32[C] (-1 scores 0) for one user: his token (0 = unknown)
        and recent_rows int32[R], newest first, -1 padded."""
        out = np.zeros(len(candidate_rows), dtype=np.float32)
        self._ask(token, recent_rows, candidate_rows, out)
        return out

    def nearest(self, token: int, recent_rows: NDArray[np.int32]) -> list[tuple[int, float]]:
        """The neighbours, most similar first: (token, similarity); arguments as in `score`."""
        nothing = np.zeros(0, dtype=np.int32)
        size, scratch = self._ask(token, recent_rows, nothing, nothing.astype(np.float32)), self._scratch
        slots = scratch.sampled[scratch.best[:size]]
        tokens = self._histories.store.token[slots].tolist()
        return list(zip(tokens, scratch.closeness[:size].tolist(), strict=True))

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.score(user_token(user), self.recent_rows(user, self.query_length)[0], rows)

    def item_arrays(self) -> Arrays:
        return {
            **self._histories.to_arrays("user_knn", len(self.items)),
            "user_knn.clock": self._clock.copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._histories.load("user_knn", arrays)
        self._clock[:] = arrays["user_knn.clock"]

    def nbytes(self) -> int:
        """Bytes of the histories of the users and items in use."""
        return self._histories.nbytes()

    def _ask(
        self,
        token: int,
        recent_rows: NDArray[np.int32],
        candidate_rows: NDArray[np.int32],
        out: NDArray[np.float32],
    ) -> int:
        store, fades = self._histories.store, self.recency_half_life_s > 0.0
        self._reserve_scratch(len(store.token), len(store.head))
        present = 2.0 ** -half_lives_since(self._clock, self.recency_half_life_s)
        return int(
            user_knn_kernels.user_knn_score(
                contiguous_rows(recent_rows), self._histories.slot(token), contiguous_rows(candidate_rows),
                self.query_length, self.query_decay, self.sample, self.history_length, fades, present,
                store, self._scratch, out,
            )
        )  # fmt: skip

    def _rescale(self, time_ms: int) -> None:
        """Move the landmark on by whole half-lives: each value is multiplied by an exact power of two."""
        halvings = halvings_due(time_ms, self._clock, self.recency_half_life_s)
        if halvings:
            self._histories.store.value[:] *= np.float32(2.0**-halvings)
            self._clock[0] += round(halvings * self.recency_half_life_s * 1000.0)

    def _reserve_scratch(self, slots: int, items: int) -> None:
        scratch = self._scratch
        if len(scratch.met) < slots or len(scratch.total) < items:
            self._scratch = scratch._replace(
                weight=grown(scratch.weight, items, UNLIMITED),
                total=grown(scratch.total, items, UNLIMITED),
                met=grown(scratch.met, slots, UNLIMITED),
                sampled=grown(scratch.sampled, slots, UNLIMITED),
            )


def _unread(n: int) -> Uses:
    return np.zeros(n, np.float32), np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32)


def _scratch(neighbours: int) -> user_knn_kernels.Scratch:
    return user_knn_kernels.Scratch(
        weight=np.zeros(0, dtype=np.float32),
        total=np.zeros(0, dtype=np.float32),
        met=np.zeros(0, dtype=np.uint8),
        sampled=np.zeros(0, dtype=np.int32),
        best=np.zeros(neighbours, dtype=np.int32),
        closeness=np.zeros(neighbours, dtype=np.float32),
    )
