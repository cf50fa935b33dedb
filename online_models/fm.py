"""A factorisation machine over users, items, recent items, contexts and catalogue features."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import fm_kernels as kernels
from online_models.base import RECENT_KEPT, Arrays, Context, OnlineRanker, contiguous_rows
from online_models.corrections import event_code
from online_models.factor_table import (
    event_hash,
    name_negatives,
    pack_users,
    require_one_event,
    unpack_users,
    withdrawn_hash,
)
from online_models.fm_features import Catalogue, Feature, context_columns, features_of, hashed, item_features
from online_models.fm_state import SharedRows
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["FactorizationMachine"]

_LOSSES = ("logistic", "squared")
_RANGES = (
    ("dimension", 1, 1024),
    ("learning_rate", 0.0, 8.0),
    ("weight_learning_rate", 0.0, 8.0),
    ("slowing", 0.0, 1e6),
    ("regularization", 0.0, 1.0),
    ("negatives", 0, 64),
    ("candidates", 1, 256),
    ("recent_length", 0, RECENT_KEPT),
    ("recent_decay", 0.0, 1.0),
    ("buckets", 1, 2**24),
    ("context_features", 0, 256),
    ("item_features", 0, 256),
    ("start_scale", 0.0, 1.0),
)
"""Parameters and the least and most that they may be."""


class FactorizationMachine(OnlineRanker):
    r"""All features of an event in one model, each with a weight w_f and a factor v_f.

    $$\mathrm{score}(x) = w_0 + \sum_f w_f x_f + \sum_{f<g} \langle v_f, v_g \rangle x_f x_g$$

    $$\sum_{f<g} \langle v_f, v_g \rangle x_f x_g =
    \tfrac12 \Big( \big\| \sum_f x_f v_f \big\|^2 - \sum_f x_f^2 \| v_f \|^2 \Big)$$

    Features: the user (1), the item (1), each of the last L items in a block of its own (r-th newest:
    decay^r over the sum of these; at decay 1 their mean), the event's type, x["context"] (flat map of
    strings, numbers, bools), the user's labels (`learn_profile`), and the item's domain, categories and
    labels (`learn_item`). What has no row of its own is hashed, with a sign, into one of `buckets` rows
    (`fm_features`); per event the first `context_features` count, per item the first `item_features`.
    Asked without x["event_type"], a user's last type stands for it.

    loss "logistic": an event of positive weight w is an example of target 1, m items drawn by a hash of the
    event are examples of target 0 with all else equal; an event of negative weight is one of target 0. Drawn
    are known items, never the event's own, and one of the user's recent 50 only for an event with a context:
    what he chose in another is what he did not choose in this one.
    "squared": the event's value is the target, whatever its weight, and nothing is drawn (errors are bounded
    by 10). All features of an event step down the gradient of the sum of its examples' losses at once, from
    the values before the event:

    $$g = \sum_n e_n x_f (\textstyle\sum_h x_h v_h - x_f v_f), \quad
    e_n = y_n - \sigma(\mathrm{score}_n) \text{ or } y_n - \mathrm{score}_n$$

    $$v_f \mathrel{+}= \eta_f (g - \lambda v_f), \quad w_f \mathrel{+}= \eta'_f \sum_n e_n x_f$$

    eta_f = min(|w| eta, max(eta, 1/2)) / (max(1, x_f^2) sqrt(1 + slowing G_f)), G_f the sum of the squared
    gradients of f's factor, and likewise eta' and f's weight: plain descent at slowing 0, Adagrad by rows
    otherwise. Components are bounded by 10: no input reaches a NaN.

    Test-then-learn on all of MovieLens-100K without any context: HR@10 0.185, NDCG@10 0.094; the rates were
    chosen on its first fifth.

    What is learned where: the user's block at the owner; everything that users share (w_0, both blocks of an
    item, all buckets) at every replica, from the record alone. Its `user_before` is float32[1 + d + 2 C]: the
    user's block, then the buckets of the C features of context, type and labels (whole numbers), then their
    values; the recent items are in its `recent`. Catalogue entries are replicated state that is not in the
    log: replicas that are to stay equal take them in at the same places of it. A withdrawn event is stepped
    back without its context, which is not kept.

    Parameters: dimension d, learning_rate eta, weight_learning_rate eta', slowing, regularization lambda,
    negatives m, candidates (more than 1: the best scored of so many draws is a negative), recent_length L,
    recent_decay, buckets, context_features C, item_features, loss, use_ids (False: neither users, items nor
    recent items are features), start_scale (standard deviation of the start factors of items and buckets;
    others start at 0), seed. State: float32[2 d + 6] an item and 8 bytes for each of its features,
    float32[d + 3] a bucket or user.

    References: Rendle, Factorization Machines, ICDM 2010; recent items as features: Rendle, Factorization
    Machines with libFM, ACM TIST 3(3), 2012; Weinberger et al., Feature Hashing for Large Scale Multitask
    Learning, ICML 2009; Duchi, Hazan and Singer, Adaptive Subgradient Methods, JMLR 12, 2011.

    >>> model = FactorizationMachine(dimension=8)
    >>> for _ in range(30):
    ...     model.learn_one("ann", "coffee", x={"context": {"time": "morning"}})
    ...     model.learn_one("ann", "wine", x={"context": {"time": "evening"}})
    >>> model.rank("ann", ["coffee", "wine"], {"context": {"time": "evening"}})
    ['wine', 'coffee']
    >>> round(model.predict_one("ann", "wine", {"context": {"time": "morning"}}), 2)
    -4.01
    """

    owner_reads_items = True
    scores_are_logits = True

    def __init__(
        self,
        dimension: int = 32,
        learning_rate: float = 0.7,
        weight_learning_rate: float = 0.1,
        slowing: float = 0.5,
        regularization: float = 0.01,
        negatives: int = 8,
        candidates: int = 4,
        recent_length: int = 10,
        recent_decay: float = 0.8,
        buckets: int = 4096,
        context_features: int = 8,
        item_features: int = 8,
        loss: str = "logistic",
        use_ids: bool = True,
        start_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.dimension = dimension
        self.learning_rate = learning_rate
        self.weight_learning_rate = weight_learning_rate
        self.slowing = slowing
        self.regularization = regularization
        self.negatives = negatives
        self.candidates = candidates
        self.recent_length = recent_length
        self.recent_decay = recent_decay
        self.buckets = buckets
        self.context_features = context_features
        self.item_features = item_features
        self.loss = loss
        self.use_ids = use_ids
        self.start_scale = start_scale
        self._rule = self._make_rule()
        self._users: dict[str, NDArray[np.float32]] = {}
        self._profiles: dict[str, list[Feature]] = {}
        self._clear()

    @property
    def predicts_ratings(self) -> bool:
        """Whether a score is an estimate of the event's value."""
        return self.loss == "squared"

    def learn_item(self, item: str, x: Context) -> None:
        """Take in an item's domain, categories and labels, in place of those it had."""
        super().learn_item(item, x)
        self._shared.enter(item, item_features(x, self.buckets), self.items.row(item))

    def learn_profile(self, user: str, x: Context) -> None:
        """Take in a user's labels, in place of those he had."""
        super().learn_profile(user, x)
        self._profiles[user] = features_of("user", dict(x.get("labels") or {}), self.buckets)

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with the user's block, the context and negatives; one event at a time."""
        require_one_event(events)
        user, item, _, x = events[0]
        context = self._context(user, x, event_code((x or {}).get("event_type")))
        batch = super().learn_user(events)
        name = str((x or {}).get("event_id") or "")
        drawn_by = event_hash(self.seed, name, user, item, int(batch.time_ms[0]))
        self._learn_own(user, batch, context, drawn_by, not (x or {}).get("context"), undo=False)
        return batch

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        context = self._context(user, None, int(batch.event_type[0]))
        drawn_by = withdrawn_hash(self.seed, user, self._past.get(user, ()), batch)
        self._learn_own(user, batch, context, drawn_by, avoid=True, undo=True)

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._apply(batch, rows, undo=False)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._apply(batch, rows, undo=True)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._shared.forget(rows)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._users.pop(user, None)
        self._profiles.pop(user, None)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self._score(self._asked(user, None), rows)

    def score_record(
        self, record: LearningBatch, rows: BatchRows, candidates: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Scores float32[C] of candidate rows int32[C] for the user and context of a record of one event, as
        they were before it."""
        columns, width = 1 + self.dimension, self.context_features
        user = record.user_before[0]
        own, context, value = user[:columns], user[columns : columns + width], user[columns + width :]
        return self._score(kernels.Asked(own, context, value, contiguous_rows(rows.recent[0])), candidates)

    def predict_one(  # type: ignore[override]  # ids are strings here, not any hashable
        self, user: str, item: str, x: Context | None = None
    ) -> float:
        """Score of one item in the context of x; an item that no event had counts by its catalogue entry."""
        return float(self._score_items(user, [item], x)[0])

    def rank(  # type: ignore[override]  # as above
        self, user: str, items: Collection[str], x: Context | None = None
    ) -> list[str]:
        """Items by falling score in the context of x, equal scores by item id."""
        distinct = sorted(set(items))
        scores = self._score_items(user, distinct, x)
        return [distinct[position] for position in np.argsort(-scores, kind="stable")]

    def nbytes(self) -> int:
        """Bytes of the rows in use of items and their features, and of the buckets."""
        return self._shared.nbytes()

    def item_arrays(self) -> Arrays:
        return self._shared.to_arrays()

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        self._shared.load(arrays, self.items)

    def to_arrays(self) -> Arrays:
        profiles = Catalogue(self.context_features)
        for user, features in self._profiles.items():
            profiles.enter(user, features)
        return {
            **super().to_arrays(),
            **pack_users("fm.users", self._users, 3 + self.dimension),
            **profiles.to_arrays("fm.profiles"),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        profiles = Catalogue(self.context_features)
        profiles.load("fm.profiles", arrays)
        self._users = unpack_users("fm.users", arrays)
        self._profiles = dict(profiles.items())

    def _learn_own(
        self, user: str, batch: LearningBatch, context: NDArray[np.float32], drawn_by: int, avoid: bool,
        undo: bool,
    ) -> None:  # fmt: skip
        """Move the user's block, or step it back, and fill the record: his block and context, negatives."""
        before, item = self._own(user), batch.item_ids[batch.item[0]]
        row, after = self.items.row(item), before.copy()
        drawn = np.empty(0 if self.loss == "squared" else self.negatives, dtype=np.int32)
        recent = np.append(self.items.rows(batch.item_ids), -1).astype(np.int32)[batch.recent[0]]
        [feature], [amount] = self._shared.catalogue.rows([item])
        kernels.learn_user(
            row, self._shared.block(row, item), feature, amount, float(batch.weight[0]),
            float(batch.value[0]), np.uint64(drawn_by), recent if avoid else recent[:0], self.items.given,
            self._asked_with(before, context, recent), undo, self._shared.state(), self._rule, after, drawn,
        )  # fmt: skip
        name_negatives(batch, [self.items.ids[at] for at in drawn.tolist() if at >= 0])
        width = 1 + self.dimension
        batch.user_before = np.concatenate((before[:width], context))[None, :]
        batch.user_after = np.concatenate((after[:width], context))[None, :]
        self._users[user] = after

    def _apply(self, batch: LearningBatch, rows: BatchRows, undo: bool) -> None:
        expected = 1 + self.dimension + 2 * self.context_features
        if batch.user_before.shape[1] != expected:
            raise ValueError(
                f"user_before: {batch.user_before.shape[1]} columns, but this model has {expected} (weight, "
                "factor, buckets and values of the context); the record was made under other settings"
            )
        changes, start, feature, amount = self._shared.given(batch, rows.changes)
        self._shared.reserve(self.items)
        kernels.apply(
            changes, start, feature, amount, rows.item, rows.negatives, rows.recent, batch.weight,
            batch.value, batch.user_before, undo, self._shared.state(), self._rule,
        )  # fmt: skip
        self._shared.name(changes[:, 2], self.items)

    def _clear(self) -> None:
        self._shared = SharedRows(
            self.dimension, self.seed, self.start_scale, self.buckets, self.item_features
        )

    def _own(self, user: str) -> NDArray[np.float32]:
        """A user's row float32[2 + d], zeros for one never seen; not to be written to."""
        own = self._users.get(user)
        return np.zeros(3 + self.dimension, dtype=np.float32) if own is None else own

    def _context(self, user: str, x: Context | None, event_type: int) -> NDArray[np.float32]:
        """Buckets and values float32[2 C] of the event's type, the context and the user's labels."""
        typed = [hashed(f"type={event_type}", 1.0, self.buckets)] if event_type else []
        context = features_of("context", dict((x or {}).get("context") or {}), self.buckets)
        return context_columns([*typed, *context, *self._profiles.get(user, ())], self.context_features)

    def _asked(self, user: str, x: Context | None) -> kernels.Asked:
        named, past = (x or {}).get("event_type"), self._past.get(user)
        event_type = event_code(named) if named is not None or not past else past[0].event_type
        recent = self.recent_rows(user, self.recent_length)[0]
        return self._asked_with(self._own(user), self._context(user, x, event_type), recent)

    def _asked_with(
        self, own: NDArray[np.float32], context: NDArray[np.float32], recent: NDArray[np.int32]
    ) -> kernels.Asked:
        width = self.context_features
        return kernels.Asked(own, context[:width], context[width:], contiguous_rows(recent))

    def _score(self, asked: kernels.Asked, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out = np.empty(len(rows), dtype=np.float32)
        kernels.score(asked, contiguous_rows(rows), self._shared.state(), self._rule, out)
        return out

    def _score_items(self, user: str, items: Sequence[str], x: Context | None) -> NDArray[np.float32]:
        asked, rows = self._asked(user, x), self.items.rows(items)
        scores = self._score(asked, rows)
        for position in np.flatnonzero(rows < 0).tolist():
            if items[position] in self._shared.catalogue:
                [feature], [amount] = self._shared.catalogue.rows([items[position]])
                scores[position] = kernels.score_features(
                    asked, feature, amount, self._shared.state(), self._rule
                )
        return scores

    def _forget_item(self, item: str) -> None:
        super()._forget_item(item)
        self._shared.catalogue.drop(item)

    def _make_rule(self) -> kernels.Rule:
        """Raises ValueError for a parameter that is out of range, naming it."""
        require_ranges(self, _RANGES)
        if self.loss not in _LOSSES:
            raise ValueError(f"loss is {self.loss!r}, but one of {', '.join(_LOSSES)} is needed")
        return kernels.Rule(
            squared=self.loss == "squared",
            use_ids=bool(self.use_ids),
            candidates=self.candidates,
            rate=float(self.learning_rate),
            weight_rate=float(self.weight_learning_rate),
            slowing=float(self.slowing),
            penalty=float(self.regularization),
            recent_length=self.recent_length,
            recent_decay=float(self.recent_decay),
        )
