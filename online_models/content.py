"""Items by what their catalogue entries say, with a metric that is learned as events come."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import content_kernels as kernels
from online_models.base import RECENT_KEPT, Arrays, Context, OnlineRanker
from online_models.item_content import ItemContent
from online_models.item_table import grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["ContentModel"]

_RANGES = (
    ("buckets", 16, 2**20),
    ("max_features", 1, 1024),
    ("max_items", 2, 2**26),
    ("query_length", 1, RECENT_KEPT),
    ("query_decay", 0.0, 1.0),
    ("learning_rate", 0.0, 0.5),
    ("linear_learning_rate", 0.0, 0.5),
    ("regularization", 0.0, 1.0),
    ("negatives", 0, 64),
    ("start_weight", 0.0, 20.0),
)
"""Parameters and the least and most that they may be."""


class ContentModel(OnlineRanker):
    r"""Items whose content is like that of what the user took, also ones that nobody has used yet.

    $$\mathrm{score}(u, i) = \sum_k (D_k\, t_{uk} + a_k)\, v_{ik}, \qquad
      t_u = \frac{\sum_r g^r w_r v_{h_r}}{\sum_r g^r |w_r|}$$

    v_i is the item's content vector (`item_content.ItemContent`: hashed words, categories, labels and price,
    and any given embeddings), h_r the user's recent items, newest first, w_r their weights within -1 and 1:
    what was disliked pushes away. D is a diagonal metric, from `start_weight` up or down to 0; a, from 0,
    says which features are sought by everybody, so that a stranger's scores are defined too. An item without
    content scores 0.

    `learn_item` brings content in and needs no event: `predict_one`, `rank` and `recommend` know every item
    that has content or was used. An event of weight w on an item with content draws m others j with content,
    by a hash of the event (user token, time, row), none of them a recent one. Each pair climbs

    $$\ln \sigma(s\,(\mathrm{score}(u, i) - \mathrm{score}(u, j))), \qquad s = \mathrm{sign}(w)$$

    by Adagrad steps of min(|w| eta, 1/2) for D and min(|w| eta_a, 1/2) for a, in every replica, from the log
    record alone: the taste is made anew of the record's recent items, which all count as liked there, since
    a record says no weights of them. Withdrawing an event takes the same steps back.

    Content is no part of the learning log, but what is learned depends on it. Replicas that take in the same
    entries at the same places of the log are equal bit for bit; with entries at other places only the metric
    differs, and the steps that follow bring it together. A snapshot holds the contents as well.

    Content finds what few have used yet, not what most will take. On ML-100K with titles, decades and genres,
    test-then-learn, items of less than 5 events stand among the first ten in 2.4% of their events
    (popularity: 0.5%), all items in 6.9% (7.9%). A smaller eta_a helps the first at the cost of the second.

    Parameters: buckets B (of the hashed features), max_features (of an item), max_items (with content; the
    one whose entry came in longest ago makes room), query_length (recent items in a taste), query_decay g,
    learning_rate eta, linear_learning_rate eta_a, regularization (pull of D to its start and of a to 0, per
    step), negatives m, start_weight, seed. State: 13 bytes a feature and 4 an embedding's component an item,
    float32[4, B + embeddings] for metric and steps. Vectors have length 1, D is bounded by 20, a by 10: no
    input reaches a NaN.

    References: pairs: Rendle, Freudenthaler, Gantner and Schmidt-Thieme, BPR, UAI 2009; a mapping from
    content learned from them: Gantner, Drumond, Freudenthaler, Rendle and Schmidt-Thieme, Learning
    Attribute-to-Feature Mappings for Cold-Start Recommendations, ICDM 2010; Adagrad: Duchi, Hazan and
    Singer, JMLR 12, 2011.

    >>> model = ContentModel()
    >>> for item, title in [("1", "green tea"), ("2", "steel nails"), ("3", "black tea")]:
    ...     model.learn_item(item, {"title": title})
    >>> model.learn_one("ann", "1")
    >>> [item for item, _ in model.recommend(["ann"], 2)[0]]  # nobody has used the black tea
    ['1', '3']
    >>> round(model.predict_one("ann", "3"), 3), model.predict_one("ann", "unknown")
    (1.28, 0.0)
    """

    def __init__(
        self,
        buckets: int = 4096,
        max_features: int = 64,
        max_items: int = 100_000,
        query_length: int = 20,
        query_decay: float = 0.8,
        learning_rate: float = 0.1,
        linear_learning_rate: float = 0.005,
        regularization: float = 0.001,
        negatives: int = 8,
        start_weight: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.buckets = buckets
        self.max_features = max_features
        self.max_items = max_items
        self.query_length = query_length
        self.query_decay = query_decay
        self.learning_rate = learning_rate
        self.linear_learning_rate = linear_learning_rate
        self.regularization = regularization
        self.negatives = negatives
        self.start_weight = start_weight
        self._rule = self._make_rule()
        self._content = ItemContent(buckets, max_features, max_items)
        self._slot_of_row = np.full(0, -1, dtype=np.int32)
        self._set_metric(self._start_metric(buckets))

    def learn_item(self, item: str, x: Context) -> None:
        """Take in an entry in place of the item's former one. Raises ValueError, naming item and field, for
        one that is of the wrong type or no finite number, or an embedding of another dimension than the first
        of its name; nothing is changed then."""
        super().learn_item(item, x)
        slot, gone = self._content.put(item, x)
        for name, its_slot in ((item, slot), (gone, -1)):
            row = self.items.row(name) if name is not None else -1
            if 0 <= row < len(self._slot_of_row):
                self._slot_of_row[row] = its_slot
        if self._content.width > len(self._metric.diagonal):
            self._set_metric(self._metric)

    def forget(self, user: str | None = None, *, item: str | None = None) -> None:
        super().forget(user, item=item)
        if item is not None:
            self._content.drop(item)  # it may have had no row

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        """As the base's; the contents go too."""
        known = rows[rows < len(self._slot_of_row)]
        gone = set(self._slot_of_row[known].tolist()) - {-1}
        for item in [item for item, slot in self._content.places() if slot in gone]:
            self._content.drop(item)
        self._slot_of_row[known] = -1

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._learn(batch, rows, 1.0)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._learn(batch, rows, -1.0)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        slots = np.full(rows.shape, -1, dtype=np.int32)
        known = (rows >= 0) & (rows < len(self._slot_of_row))
        slots[known] = self._slot_of_row[rows[known]]
        return self._score_slots(user, slots)

    def predict_one(  # type: ignore[override]  # ids are strings here, not any hashable
        self, user: str, item: str, x: Context | None = None
    ) -> float:
        """Score of one item for one user, by the item's content; 0 where it has none."""
        return float(self._score_slots(user, self._content.slots([item]))[0])

    def rank(  # type: ignore[override]  # as above
        self, user: str, items: Collection[str], x: Context | None = None
    ) -> list[str]:
        """Items by falling score, equal scores by item id."""
        distinct = sorted(set(items))
        scores = self._score_slots(user, self._content.slots(distinct))
        return [distinct[place] for place in np.argsort(-scores, kind="stable")]

    def recommend(
        self, users: Sequence[str], k: int, exclude: Mapping[str, Collection[str]] | None = None
    ) -> list[list[tuple[str, float]]]:
        """As the base's, over the items that have content or were used."""
        by_id = sorted({item for item in self.items.ids if item}.union(self._content))
        lists = []
        for user in users:
            without = set((exclude or {}).get(user, ()))
            left = [item for item in by_id if item not in without]
            scores = self._score_slots(user, self._content.slots(left))
            best = np.argsort(-scores, kind="stable")[:k].tolist()
            lists.append([(left[place], float(scores[place])) for place in best])
        return lists

    def item_arrays(self) -> Arrays:
        metric = {f"content.{name}": array.copy() for name, array in self._metric._asdict().items()}
        return {**self._content.to_arrays("content"), **metric}

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._content.load("content", arrays)
        names = kernels.Metric._fields
        self._set_metric(kernels.Metric(*[arrays[f"content.{name}"].astype(np.float32) for name in names]))
        self._slot_of_row = self._content.slots(self.items.ids)

    def nbytes(self) -> int:
        """Bytes of the contents, of the metric and its steps, and of the arrays for the items' rows."""
        return self._content.nbytes() + sum(array.nbytes for array in self._metric) + 4 * len(self.items)

    def _learn(self, batch: LearningBatch, rows: BatchRows, direction: float) -> None:
        self._slot_of_row = grown(self._slot_of_row, len(self.items), self.items.limit, fill=-1)
        content, time_ms = self._content, batch.time_ms
        kernels.learn(
            rows.changes, content.slots(batch.item_ids), rows.item, rows.recent, batch.weight, batch.user,
            time_ms, direction, content.used, self.buckets, self._slot_of_row, content.contents,
            self._metric, self._rule, self._taste, self._difference,
        )  # fmt: skip

    def _score_slots(self, user: str, slots: NDArray[np.int32]) -> NDArray[np.float32]:
        pasts = self._past.get(user, ())[: self.query_length]
        recent = self._content.slots(past.item for past in pasts)
        weights = np.array([min(max(past.weight, -1.0), 1.0) for past in pasts], dtype=np.float32)
        out, contents = np.empty(len(slots), dtype=np.float32), self._content.contents
        kernels.taste(recent, weights, self.query_decay, self.buckets, contents, self._taste)
        kernels.fold(self._taste, self._metric, self._folded)
        kernels.score(slots, self._folded, self.buckets, contents, out)
        return out

    def _start_metric(self, width: int) -> kernels.Metric:
        zeros = [np.zeros(width, dtype=np.float32) for _ in range(3)]
        return kernels.Metric(np.full(width, self.start_weight, dtype=np.float32), *zeros)

    def _set_metric(self, metric: kernels.Metric) -> None:
        """Take a metric, as wide as the contents are, with start values behind what it says."""
        start = self._start_metric(self._content.width)
        for ours, given in zip(start, metric, strict=True):
            ours[: len(given)] = given
        self._metric = start
        self._taste, self._folded = np.zeros_like(start.linear), np.zeros_like(start.linear)
        self._difference = np.zeros_like(start.linear)

    def _make_rule(self) -> kernels.Rule:
        """Raises ValueError for a parameter that is out of range, naming it."""
        require_ranges(self, _RANGES)
        return kernels.Rule(
            rate=float(self.learning_rate),
            linear_rate=float(self.linear_learning_rate),
            penalty=float(self.regularization),
            start_weight=float(self.start_weight),
            decay=float(self.query_decay),
            query_length=self.query_length,
            negatives=self.negatives,
            seed=self.seed,
        )
