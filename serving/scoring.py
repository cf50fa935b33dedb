"""One score from all sources: the online models' scores and the ranker's, blended as log-probabilities.

For a user with candidates C, each source's scores become a distribution over C, and an item's score is

    score(i) = Σ_s w_s log p_s(i)

    p_s(i) = (x_s(i) + ε m_s) / Σ_j (x_s(j) + ε m_s)     for counts and sums, m_s the mean of x_s over C
    p_s(i) = exp x_s(i) / Σ_j exp x_s(j)                 for inner products and logits

a log-linear (geometric) pool of opinions (Genest and Zidek, Statistical Science 1986), in which a source
that knows nothing of an item costs it a bounded amount, and one that knows nothing of any is left out. The
factors' weight grows with the h items that the user has seen, w h / (h + k): the factor of a new user is
where it was started. An item that the ranker has never seen stands, in the ranker's opinion, where it
stands in the online one, in standard deviations from the mean of the items that both know: it is ranked
among the others by what is known of it, and can win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.ranker.errors import RankerError
from serving.ranker.ranker import Ranker
from serving.retrieval import Context
from serving.settings import ServingSettings

__all__ = ["RankerView", "Scores", "score"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

FLOOR = 1.0
"""ε: what an unrelated item gets, as a share of the mean one's; without it log 0 would rule an item out."""


@dataclass(slots=True)
class Scores:
    """`blended` float32[n, C], -inf behind a user's last candidate; `degraded` says what was missing."""

    blended: Float32
    degraded: str | None


class RankerView:
    """A ranker seen through the item table: rows instead of ids, looked up once an item."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self._index = np.full(1, -1, dtype=np.int64)

    def _indices(self, items: ItemState, rows: Int32) -> Int64:
        """Vocabulary indices of rows; -1 (its last entry stands for padding) where unknown."""
        known = len(self._index) - 1
        if len(items.items) > known:
            new = self.ranker.index_of(items.items.ids[known:])
            self._index = np.concatenate((self._index[:-1], new, self._index[-1:]))
        return self._index[rows]

    def score(self, context: Context, rows: Int32, items: ItemState) -> Float32:
        """Logits float32[n, C] of candidate rows for the queries' histories; NaN where unknown."""
        length = self.ranker.history_length
        history = np.zeros((len(context.queries), length), dtype=np.int64)
        for index, query in enumerate(context.queries):
            recent = query.recent[-length:]
            history[index, length - len(recent) :] = self.ranker.index_of(recent)
        return self.ranker.score_indices(history, self._indices(items, rows))


def score(
    context: Context,
    found: kernels.Found,
    items: ItemState,
    ranker: RankerView | None,
    settings: ServingSettings,
) -> Scores:
    """Score every candidate; a ranker that fails leaves the online scores, and says why."""
    width = int(found.length.max())
    logits, degraded = _ranker_logits(context, found.rows[:, :width], items, ranker)
    if logits.shape[1]:
        found.sources[:, :width][~np.isnan(logits)] |= kernels.RANKER
    seen = np.array([len(query.seen) for query in context.queries], dtype=np.float64)
    experience = seen / (seen + settings.factor_experience_items + 1e-9)
    weights = (
        settings.covisitation_weight,
        settings.popularity_weight,
        settings.factor_weight,
        settings.ranker_weight,
    )
    blended = np.empty(found.rows.shape, dtype=np.float32)
    kernels.blend(found, logits, experience, weights, FLOOR, blended)
    return Scores(blended, degraded)


def _ranker_logits(
    context: Context, rows: Int32, items: ItemState, ranker: RankerView | None
) -> tuple[Float32, str | None]:
    """Logits float32[n, C], or [n, 0] where there is no ranker or it failed, and why it did."""
    none = np.empty((len(rows), 0), dtype=np.float32)
    if ranker is None or not rows.shape[1]:
        return none, None
    try:
        return ranker.score(context, rows, items), None
    except RankerError as error:
        return none, f"ranker: {error}"
