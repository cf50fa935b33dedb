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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving import kernels
from serving.blend_kernels import blend
from serving.ranker.errors import RankerError
from serving.ranker.ranker import Ranker
from serving.settings import ServingSettings

__all__ = ["Opinion", "RankerView", "Scores", "blended", "ranker_opinion", "score"]

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

Opinion = tuple[Float32, str | None]
"""The ranker's logits float32[n, C], and why there are none; see `ranker_opinion`."""

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
        self._index = np.zeros(0, dtype=np.int32)
        self._known = 0

    def rows_changed(self, ids: Sequence[str], rows: Int32) -> None:
        """Look rows up again that were given to other items."""
        old = rows[rows < self._known]
        self._index[old] = self._looked_up([ids[row] for row in old.tolist()])

    def index(self, ids: Sequence[str]) -> Int32:
        """int32[rows]: places in the vocabulary of the item table's rows, 0 where unknown."""
        rows = len(ids)
        if rows > self._known:
            if rows > len(self._index):
                more = max(rows, 2 * len(self._index), 1024) - len(self._index)
                self._index = np.concatenate((self._index, np.zeros(more, dtype=np.int32)))
            self._index[self._known : rows] = self._looked_up(ids[self._known : rows])
            self._known = rows
        return self._index[:rows]

    def _looked_up(self, ids: Sequence[str]) -> Int32:
        return np.maximum(self.ranker.index_of(ids), 0).astype(np.int32)


def score(
    wanted: kernels.Wanted,
    seen_count: Int32,
    found: kernels.Found,
    items: ItemState,
    ranker: RankerView | None,
    settings: ServingSettings,
) -> Scores:
    """Score every candidate; a ranker that fails leaves the online scores, and says why."""
    opinion = ranker_opinion(wanted, found, ranker, None if ranker is None else ranker.index(items.items.ids))
    return blended(seen_count, found, opinion, settings)


def blended(seen_count: Int32, found: kernels.Found, opinion: Opinion, settings: ServingSettings) -> Scores:
    """One score for every candidate, from the online models' scores in `found` and the ranker's opinion."""
    logits, degraded = opinion
    seen = seen_count.astype(np.float64)
    experience = seen / (seen + settings.factor_experience_items + 1e-9)
    weights = (
        settings.covisitation_weight,
        settings.popularity_weight,
        settings.factor_weight,
        settings.ranker_weight,
    )
    scores = np.empty(found.rows.shape, dtype=np.float32)
    blend(found, logits, experience, weights, FLOOR, scores)
    return Scores(scores, degraded)


def ranker_opinion(
    wanted: kernels.Wanted, found: kernels.Found, ranker: RankerView | None, index: Int32 | None
) -> Opinion:
    """The ranker's logits of the candidates, [n, 0] where there is no ranker or it failed, and why it did.

    `index` is `RankerView.index` as of now: with it this may run in a thread of its own, and changes nothing.
    """
    none = np.empty((len(found.rows), 0), dtype=np.float32)
    width = int(found.length.max())
    if ranker is None or index is None or not width:
        return none, None
    rows = np.ascontiguousarray(found.rows[:, :width])  # another layout would be another kernel to compile
    try:
        return ranker.ranker.score_rows(wanted.recent, rows, index), None
    except RankerError as error:
        return none, f"ranker: {error}"
