"""One score from all sources: the online models' scores and the ranker's, blended as log-probabilities.

For a user with candidates C, each source's scores become a distribution over C, and an item's blended score is

    score(i) = Σ_s w_s log p_s(i)          p_s(i) = (x_s(i) + ε m_s) / Σ_j (x_s(j) + ε m_s)     for counts and sums
                                           p_s(i) = exp x_s(i) / Σ_j exp x_s(j)                 for logits

with m_s the mean of x_s over C: a log-linear (geometric) pool of opinions (Genest and Zidek, 1986), in which a source
that knows nothing of an item costs it a bounded amount. An item that the ranker has never seen takes the online
opinion in the ranker's place, so that it is ranked among the others by what is known of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.ranker.errors import RankerError
from serving.ranker.ranker import Ranker
from serving.retrieval import Candidates, Context
from serving.settings import ServingSettings

__all__ = ["RankerView", "Scores", "score"]

Float32 = npt.NDArray[np.float32]

FLOOR = 0.02
"""ε: what an unrelated item gets, as a share of the mean related one's; bounds the penalty to about 4 nats."""


@dataclass(slots=True)
class Scores:
    """float32[n, C] each, -inf (blended) or 0 (parts) on padding; `ranker` is NaN where it knows nothing."""

    blended: Float32
    covisitation: Float32
    factors: Float32
    ranker: Float32 | None
    degraded: str | None


class RankerView:
    """A ranker seen through the item table: rows instead of ids, looked up once an item."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self._index = np.full(1, -1, dtype=np.int64)

    def _indices(self, items: ItemState, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Vocabulary indices of rows; -1 (its last entry stands for padding) where unknown."""
        known = len(self._index) - 1
        if len(items.items) > known:
            new = self.ranker.index_of(items.items.ids[known:])
            self._index = np.concatenate((self._index[:-1], new, self._index[-1:]))
        return self._index[rows]

    def score(self, context: Context, rows: npt.NDArray[np.int32], items: ItemState) -> Float32:
        """Logits float32[n, C] of candidate rows for the queries' histories; NaN where unknown."""
        length = self.ranker.history_length
        history = np.zeros((len(context.queries), length), dtype=np.int64)
        for index, query in enumerate(context.queries):
            recent = query.recent[-length:]
            history[index, length - len(recent) :] = self._indices(items, items.items.rows(recent))
        return self.ranker.score_indices(history, self._indices(items, rows))


def score(
    context: Context,
    candidates: Candidates,
    items: ItemState,
    ranker: RankerView | None,
    settings: ServingSettings,
) -> Scores:
    """Score every candidate; a ranker that fails leaves the online scores, and says why."""
    rows, valid = candidates.rows, candidates.rows >= 0
    related = items.covisitation.score(context.recent, rows)
    popular = items.popularity.score(rows.ravel()).reshape(rows.shape)
    similar = items.factors.score(context.factors, rows)
    logits, degraded = _ranker_logits(context, rows, items, ranker)
    online = (
        settings.covisitation_weight * log_share(related, valid)
        + settings.popularity_weight * log_share(popular, valid)
        + settings.factor_weight * log_softmax(similar, valid)
    )
    blended = online
    if logits is not None:
        weight = settings.covisitation_weight + settings.popularity_weight + settings.factor_weight
        known = valid & ~np.isnan(logits)
        opinion = np.where(known, log_softmax(np.where(known, logits, 0), known), online / max(weight, 1e-9))
        blended = online + settings.ranker_weight * opinion
    blended = np.where(valid, blended, -np.inf).astype(np.float32)
    return Scores(blended, related, similar, logits, degraded)


def _ranker_logits(
    context: Context, rows: npt.NDArray[np.int32], items: ItemState, ranker: RankerView | None
) -> tuple[Float32 | None, str | None]:
    if ranker is None:
        return None, None
    try:
        return ranker.score(context, rows, items), None
    except RankerError as error:
        return None, f"ranker: {error}"


def log_share(values: Float32, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """log p for non-negative scores [n, C] as in the module's equation; 0 where not valid."""
    x = np.where(valid, np.maximum(values, 0), 0).astype(np.float64)
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    floor = FLOOR * x.sum(axis=1, keepdims=True) / count + 1e-12
    x = np.where(valid, x + floor, 0)
    return np.log(np.where(valid, x / np.maximum(x.sum(axis=1, keepdims=True), 1e-300), 1))


def log_softmax(logits: Float32, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """log p for logits [n, C]; 0 where not valid."""
    x = np.where(valid, logits, -np.inf).astype(np.float64)
    top = np.max(x, axis=1, keepdims=True, initial=-1e300)
    shifted = np.where(valid, x - top, -np.inf)
    total = np.log(np.maximum(np.exp(shifted).sum(axis=1, keepdims=True), 1e-300))
    return np.where(valid, shifted - total, 0)
