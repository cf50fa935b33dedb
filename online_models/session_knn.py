"""Nearest sessions: what was used in the sessions most like the one that is going on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from online_models import session_knn_kernels as kernels
from online_models.base import COUNTS, RECENT_KEPT, Arrays, OnlineRanker, contiguous_rows, user_token
from online_models.forward_decay import new_clock
from online_models.item_table import grown
from online_models.kernels import forward_growth, past_growth
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["SessionKNN"]

MAX_ENTRIES = 2**31 - 1
"""Entries are named by int32."""


class SessionKNN(OnlineRanker):
    r"""Neighbouring sessions with decays by position, age and distance, kept as events come.

    A session n is what one user had (events of positive weight, each item once), until he has had nothing
    for `session_gap_s`, or it has `session_length` items. For a user whose recent items are h_0, h_1, ...
    (newest first), of the sessions that hold any of them, other than his own open one,

    $$\mathrm{sim}(n) = \frac{2^{-(T - t_n)/H}}{\sqrt{|n|}}
      \sum_{r<L,\; h_r \in n} \frac{d^r}{c_{h_r}^\alpha}$$

    $$\mathrm{score}(i) = \frac{1}{c_i^\beta} \sum_{n \ni i} \mathrm{sim}(n)\, g^{|p_n(i) - p_n(h^*)|}$$

    over the `neighbours` most similar of the `sample` that began last; among equals, those met first by h_0,
    then h_1, ..., the newest first. p_n is the position in n, h* the newest recent item in n, t_n the time of
    n's last event, T the newest event time, c_i the number of sessions that hold i. alpha and beta play the
    part of the inverse document frequency. At most `sessions_per_item` sessions are looked at for each recent
    item: a query costs at most that times L, and sample + neighbours times session_length.

    At most `max_sessions` are kept: a new one takes the place of that which began first, whatever its length.
    Late events join the open session. An event of negative weight takes the item out of the user's open
    session. A batch's events without a user token are passed over. A use that is withdrawn leaves its session
    as it would be without it, except that the session is not cut in two, keeps its turn among those that
    began, an item used again later in it keeps its place, and what made room or was taken out meanwhile does
    not come back. Finding it takes one look at all sessions.

    Parameters: session_gap_s, session_length, max_sessions, query_length L, query_decay d, distance_decay g,
    session_half_life_s H (seconds of event time; 0 = no decay), source_exponent alpha, target_exponent beta,
    sessions_per_item, sample, neighbours, seed (unused).

    References: Ludewig and Jannach, Evaluation of session-based recommendation algorithms, UMUAI 2018
    (V-SKNN). Garg, Gupta, Malhotra, Vig and Shroff, Sequence and Time Aware Neighborhood for Session-based
    Recommendations, SIGIR 2019 (STAN).

    >>> model = SessionKNN(source_exponent=0.0, target_exponent=0.0, distance_decay=0.5)
    >>> for item in ["bread", "milk", "tea"]:
    ...     model.learn_one("ann", item)
    >>> model.learn_one("bob", "bread")
    >>> [round(model.predict_one("bob", item), 6) for item in ("milk", "tea", "unknown")]
    [0.288675, 0.144338, 0.0]
    >>> model.rank("bob", ["tea", "milk", "unknown"])
    ['milk', 'tea', 'unknown']
    """

    learns = COUNTS

    def __init__(
        self,
        session_gap_s: float = 1800.0,
        session_length: int = 64,
        max_sessions: int = 100_000,
        query_length: int = 10,
        query_decay: float = 0.8,
        distance_decay: float = 0.95,
        session_half_life_s: float = 0.0,
        source_exponent: float = 0.5,
        target_exponent: float = 0.1,
        sessions_per_item: int = 200,
        sample: int = 1000,
        neighbours: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.session_gap_s = session_gap_s
        self.session_length = session_length
        self.max_sessions = max_sessions
        self.query_length = query_length
        self.query_decay = query_decay
        self.distance_decay = distance_decay
        self.session_half_life_s = session_half_life_s
        self.source_exponent = source_exponent
        self.target_exponent = target_exponent
        self.sessions_per_item = sessions_per_item
        self.sample = sample
        self.neighbours = neighbours
        self._check_parameters()
        self._gap_weight = (distance_decay ** np.arange(session_length)).astype(np.float32)
        self._clear()

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve_rows(len(self.items))
        self._reserve_sessions(int(self._sessions.begun[0]) + len(batch))
        forward_growth(0, batch.time_ms, self._clock, 0.0, np.empty(len(batch), dtype=np.float64))
        kernels.learn(
            rows.changes, rows.item, batch.weight, batch.time_ms, batch.user, self._sessions,
            self.session_length, self.session_gap_s * 1000.0, self.max_sessions,
        )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._reserve_rows(len(self.items))
        past_growth(batch.time_ms, self._clock, 0.0, np.empty(len(batch), dtype=np.float64))
        kernels.unlearn(
            rows.item, batch.weight, batch.time_ms, batch.user, self._sessions, self.session_length,
            self.max_sessions,
        )  # fmt: skip

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._reserve_rows(len(self.items))
        kernels.forget_items(rows, self._sessions, self.session_length)

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        kernels.forget_users(tokens, self._sessions, self._live(), self.session_length)

    def score(
        self,
        recent_rows: NDArray[np.int32],
        candidate_rows: NDArray[np.int32],
        users: NDArray[np.uint64] | None = None,
    ) -> NDArray[np.float32]:
        """Scores float32[n, C] of candidate_rows int32[n, C] (-1 scores 0) for recent_rows int32[n, L]
        (newest first, -1 padded). users uint64[n]: tokens, whose open sessions don't count; 0 = none."""
        out = np.zeros(candidate_rows.shape, dtype=np.float32)
        tokens = np.zeros(len(recent_rows), dtype=np.uint64) if users is None else users
        kernels.score(
            contiguous_rows(recent_rows), tokens, contiguous_rows(candidate_rows), self._sessions,
            self._source_power, self._target_power, self.session_length, self.max_sessions,
            self.query_length, self.query_decay, self.sessions_per_item, self.sample, self.neighbours,
            self.session_half_life_s * 1000.0, int(self._clock[1]), self._gap_weight, self._similarity,
            self._match, self._total, out,
        )  # fmt: skip
        return out

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        recent = self.recent_rows(user, self.query_length)
        token = np.array([user_token(user)], dtype=np.uint64)
        scores: NDArray[np.float32] = self.score(recent, rows[None, :], token)[0]
        return scores

    def item_arrays(self) -> Arrays:
        n, live = len(self.items), self._live()
        self._reserve_rows(n)
        sessions, used = self._sessions, self._used_entries(self._sessions.filled[:live])
        return {
            "session_knn.users": sessions.user[:live].copy(),
            "session_knn.last_ms": sessions.last_ms[:live].copy(),
            "session_knn.filled": sessions.filled[:live].copy(),
            "session_knn.items": sessions.item[used],
            "session_knn.older": sessions.older[used],
            "session_knn.uses": sessions.uses[used],
            "session_knn.used_ms": sessions.used_ms[used],
            "session_knn.newest": sessions.newest[:n].copy(),
            "session_knn.begun": sessions.begun.copy(),
            "session_knn.clock": self._clock.copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        n, live = len(self.items), len(arrays["session_knn.users"])
        self._reserve_rows(n)
        self._sessions.begun[:] = arrays["session_knn.begun"]
        self._clock[:] = arrays["session_knn.clock"]
        self._reserve_sessions(live)
        sessions = self._sessions
        sessions.user[:live] = arrays["session_knn.users"]
        sessions.last_ms[:live] = arrays["session_knn.last_ms"]
        sessions.filled[:live] = arrays["session_knn.filled"]
        sessions.newest[:n] = arrays["session_knn.newest"]
        used = self._used_entries(sessions.filled[:live])
        sessions.item[used] = arrays["session_knn.items"]
        sessions.older[used] = arrays["session_knn.older"]
        sessions.uses[used] = arrays["session_knn.uses"]
        sessions.used_ms[used] = arrays["session_knn.used_ms"]
        has_item = used[sessions.item[used] >= 0]
        sessions.held[:live] = np.bincount(has_item // self.session_length, minlength=live)
        sessions.newer[used] = -1
        kernels.link_newer(sessions, used)
        kernels.reopen(sessions, self.max_sessions)

    def nbytes(self) -> int:
        """Bytes of the sessions kept, whole, and of the arrays for the items' rows."""
        return self._live() * (8 + 8 + 3 * 4 + 24 * self.session_length) + 8 * len(self.items)

    def _live(self) -> int:
        return min(int(self._sessions.begun[0]), self.max_sessions)

    def _used_entries(self, filled: NDArray[np.int32]) -> NDArray[np.int64]:
        """Entries int64 that sessions have filled, in the order of their places."""
        places = np.arange(self.session_length) < filled[:, None]
        return np.flatnonzero(places)

    def _clear(self) -> None:
        none = np.zeros(0, dtype=np.int32)
        self._sessions = kernels.Sessions(
            user=np.zeros(0, dtype=np.uint64),
            last_ms=np.zeros(0, dtype=np.int64),
            filled=none,
            held=none,
            chain=none,
            buckets=np.full(1, -1, dtype=np.int32),
            item=none,
            older=none,
            newer=none,
            uses=none,
            used_ms=np.zeros(0, dtype=np.int64),
            newest=none,
            count=none,
            begun=np.zeros(1, dtype=np.int64),
        )
        self._clock = new_clock()
        self._total = np.zeros(0, dtype=np.float32)
        self._reserve_sessions(1)

    def _reserve_rows(self, n: int) -> None:
        sessions, limit = self._sessions, self.items.limit
        if n > len(sessions.count):
            self._sessions = sessions._replace(
                newest=grown(sessions.newest, n, limit, fill=-1), count=grown(sessions.count, n, limit)
            )
            self._total = grown(self._total, n, limit)

    def _reserve_sessions(self, wanted: int) -> None:
        n, sessions, most = min(wanted, self.max_sessions), self._sessions, self.max_sessions
        if n <= len(sessions.user):
            return
        user = grown(sessions.user, n, most)
        n, length = len(user), self.session_length
        self._sessions = sessions._replace(
            user=user,
            last_ms=grown(sessions.last_ms, n, most),
            filled=grown(sessions.filled, n, most),
            held=grown(sessions.held, n, most),
            chain=grown(sessions.chain, n, most),
            buckets=np.full(1 << (n - 1).bit_length(), -1, dtype=np.int32),
            item=grown(sessions.item, n * length, most * length),
            older=grown(sessions.older, n * length, most * length),
            newer=grown(sessions.newer, n * length, most * length),
            uses=grown(sessions.uses, n * length, most * length),
            used_ms=grown(sessions.used_ms, n * length, most * length),
        )
        counts = np.maximum(np.arange(n + 1, dtype=np.float64), 1.0)
        self._source_power = (counts**-self.source_exponent).astype(np.float32)
        self._target_power = (counts**-self.target_exponent).astype(np.float32)
        self._similarity = np.zeros(n, dtype=np.float32)
        self._match = np.full(n, -1, dtype=np.int32)
        kernels.reopen(self._sessions, self.max_sessions)

    def _check_parameters(self) -> None:
        ranges = {
            "session_gap_s": (0.0, 1e12),
            "session_length": (2, 4096),
            "max_sessions": (1, MAX_ENTRIES // max(self.session_length, 64)),
            "query_length": (1, RECENT_KEPT),
            "query_decay": (0.0, 1.0),
            "distance_decay": (0.0, 1.0),
            "session_half_life_s": (0.0, 1e12),
            "source_exponent": (0.0, 4.0),
            "target_exponent": (0.0, 4.0),
            "sessions_per_item": (1, 100_000),
            "sample": (1, 100_000),
            "neighbours": (1, 100_000),
        }
        require_ranges(self, ((name, low, high) for name, (low, high) in ranges.items()))
