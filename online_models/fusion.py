"""Fusion: one score from several models, with weights learned test-then-learn from the log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import fusion_kernels
from online_models.base import Arrays, Context, OnlineRanker
from online_models.follow_graph import is_follow
from online_models.fusion_kernels import BUCKETS, FusionState
from online_models.fusion_parts import (
    Part,
    followers,
    forget_user,
    join_records,
    made_parts,
    prefixed,
    record_width,
    split_record,
    stripped,
    withdraw_from,
)
from online_models.item_table import ItemTable, grown
from online_models.learning_batch import WITHDRAW, BatchRows, LearningBatch
from online_models.parameters import require

__all__ = ["Fusion"]

_STATE = "fusion."
_BUCKET_NAMES = ("history 0", "history 1 to 4", "history 5 to 9", "history 10 or more")


class Fusion(OnlineRanker):
    r"""A log-linear pool of its parts' scores (Genest and Zidek 1986), weighted by the user's experience.

    $$\mathrm{score}(u, i) = \sum_s w_{b(u), s}\, \varphi_s(u, i), \qquad w_{b,s} = v_s + \delta_{b,s}$$

    $$\varphi_s = \log\left(1 + \frac{x_s(u, i)}{\epsilon\, m_{b,s}}\right) \text{ for counts and sums}$$

    $$\varphi_s = \frac{x_s(u, i) - m_{b,s}}{\sigma_{b,s}} \text{ for inner products of factors}$$

    x_s is the part's score, m and sigma the running mean and spread of its scores over the catalogue, b the
    bucket of the user's history (0, 1 to 4, 5 to 9, 10 or more items, of at most 50), v the weights that all
    buckets share. A bucket with little data stays near them. For each event of positive weight on a known
    item, before any part learns it, the weights take a step down the log loss of that item against m others,

    $$\ell = -\log \frac{e^{\mathrm{score}(u, i)}}
      {e^{\mathrm{score}(u, i)} + \sum_{j} e^{\mathrm{score}(u, j)} / (m q_j)}$$

    where q_j is the chance of j at each draw: half of the draws come from the items of the last `ring_size`
    positive events, so popular and recent ones, half from the whole catalogue, none from what the user has
    had. Draws are by hash of the event's number in the log. The loss is convex in the weights; the step is
    Adagrad's (Duchi, Hazan and Singer 2011), within bounds, so its regret against any fixed weights, one
    part alone among them, grows as the square root of the events. `regret` says what it was.

    What is learned where: a part's user factor at the owner, by the part's own `learn_user`; the weights,
    means and spreads at every replica, in `apply`, from the record alone (the parts are asked with its
    `recent` and `user_before` before they learn it), so they are replicated state. A record holds the parts'
    `user_before` side by side, and their negatives one behind the other. A ranker's scores are not in the
    log: given to `score_rows` as `external`, they count with the fixed `external_weight`.

    A withdrawn event, a forgotten user or item is withdrawn from every part as that part can, and a forgotten
    item leaves the ring; the weights, which say how far the parts were to be trusted, stay as they are.

    Parameters: parts, models by name, of which fresh clones learn, or names separated by commas: "short_term"
    and "long_term" (co-visitation over 2 and over 30 items), "popular_now" (half-life two days), and those of
    the registry, with their defaults, that a record of the log can ask (another is refused by name);
    candidates m; learning_rate; floor epsilon; lowest_weight,
    highest_weight; shrinkage of delta towards 0; ring_size; external_weight; seed.

    >>> model = Fusion("short_term,popularity")
    >>> for n in range(30):
    ...     for item in ("tea", "milk", "cup") if n % 3 == 0 else ("nails", "glue", "saw"):
    ...         model.learn_one(f"user {n}", item)
    >>> model.learn_one("joe", "tea")
    >>> model.rank("joe", ["glue", "milk"]), model.rank("nobody", ["milk", "glue"])
    (['milk', 'glue'], ['glue', 'milk'])
    >>> {name: round(weight, 3) for name, weight in model.weights()["history 1 to 4"].items()}
    {'short_term': 1.703, 'popularity': 0.256}
    >>> model.regret()["events"], round(model.regret()["regret"], 3)
    (85, 0.02)
    """

    owner_reads_items = True
    _ring_count: NDArray[np.int32]

    def __init__(
        self,
        parts: Mapping[str, OnlineRanker] | str = "short_term,long_term,session_knn,stage_popularity",
        candidates: int = 64,
        learning_rate: float = 0.1,
        floor: float = 1.0,
        lowest_weight: float = 0.0,
        highest_weight: float = 8.0,
        shrinkage: float = 1e-3,
        ring_size: int = 4096,
        external_weight: float = 0.3,
        seed: int = 0,
    ) -> None:
        require("candidates", candidates, 2, 4096)
        require("ring_size", ring_size, 1, 2**20)
        require("learning_rate", learning_rate, 0.0, 1.0)
        require("floor", floor, 1e-6, 1e6)
        require("lowest_weight", lowest_weight, -100.0, 0.0)
        require("highest_weight", highest_weight, 1e-3, 100.0)
        require("shrinkage", shrinkage, 0.0, 1.0)
        require("external_weight", external_weight, 0.0, 100.0)
        self.parts = parts
        self.candidates = candidates
        self.learning_rate = learning_rate
        self.floor = floor
        self.lowest_weight = lowest_weight
        self.highest_weight = highest_weight
        self.shrinkage = shrinkage
        self.ring_size = ring_size
        self.external_weight = external_weight
        self._parts = made_parts(parts, seed)
        self._is_logit = np.array([part.is_logit for part in self._parts], dtype=np.uint8)
        self._clear()
        super().__init__(seed=seed)
        self._share_users()

    @property
    def items(self) -> ItemTable:
        """The item table. The parts share one that lags behind it within a batch: a part then sees the table
        as it was at each event, which rows are given and freed included."""
        return self._items

    @items.setter
    def items(self, items: ItemTable) -> None:
        self._items = items
        self._part_items = ItemTable.from_arrays(items.to_arrays(), items.limit)
        for part in self._parts:
            part.model.items = self._part_items

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with the parts' factors and negatives; one event at a time. Where a part knows whom
        a user follows, an event of type follow is for such parts alone, and gives a record of none."""
        if len(events) != 1:
            raise ValueError(f"{len(events)} events, but a fusion's owner learns one before it is applied")
        if is_follow(events[0][3]) and (following := followers(self._parts)):
            for model in following:
                model.learn_user(events)
            batch = super().learn_user([])
            batch.user_before = batch.user_after = np.zeros((0, record_width(self._parts)), dtype=np.float32)
            return batch
        records = [part.model.learn_user(events) for part in self._parts if part.is_owner]
        batch = super().learn_user(events)
        if records:
            join_records(batch, records)
        return batch

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_width(batch)
        for event in range(len(batch)):
            one = batch if len(batch) == 1 else batch.slice(event, event + 1)
            known = self._part_items.row(one.item_ids[one.item[0]]) >= 0
            found = self._part_items.resolve(one)
            asked = split_record(self._parts, one, found)
            if known and one.weight[0] > 0.0:
                self._learn_weights(one, found, asked)
            for part, record, part_rows in asked:
                part.model.apply(record, part_rows)
            self._state.counters[0] += 1
            if one.weight[0] > 0.0:
                fusion_kernels.fusion_push(found.item[0], self._ring_counts(), self._state)

    def retract(self, user: str, event_id: str) -> bool:
        unfollowed = [model.withdraw_follow(user, event_id) for model in followers(self._parts)]
        return any(unfollowed) or super().retract(user, event_id)

    def correct(self, batch: LearningBatch, rows: BatchRows) -> None:
        """Every part's own step: parts of counts and of pairs take back what factors can't."""
        if batch.kind != WITHDRAW:
            for part in self._parts:
                part.model.correct(batch, rows)
        elif len(batch):
            self._require_width(batch)
            withdraw_from(self._parts, batch, rows)

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        records = []
        for part in self._parts:
            if part.is_owner:
                records.append(dataclasses.replace(batch, item_ids=list(batch.item_ids)))
                part.model.unlearn_user(user, records[-1])
        if records:
            join_records(batch, records)

    def forget(self, user: str | None = None, *, item: str | None = None) -> None:
        if user is not None:
            forget_user(self._parts, user, self._recent, self._past)
            self.drop_user(user)
            self._share_users()
        if item is not None:
            self._forget_item(item)

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        for row in rows.tolist():
            self._part_items.free(self._part_items.ids[row])
        for part in self._parts:
            part.model.forget_rows(rows)
        self._state.ring[np.isin(self._state.ring, rows)] = -1
        self._ring_counts()[rows] = 0

    def forget_users(self, tokens: NDArray[np.uint64]) -> None:
        for part in self._parts:
            part.model.forget_users(tokens)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        for part in self._parts:
            part.model.drop_user(user)

    def learn_item(self, item: str, x: Context) -> None:
        super().learn_item(item, x)
        for part in self._parts:
            part.model.learn_item(item, x)

    def learn_profile(self, user: str, x: Context) -> None:
        super().learn_profile(user, x)
        for part in self._parts:
            part.model.learn_profile(user, x)

    def score_rows(
        self, user: str, rows: NDArray[np.int32], external: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Scores float32[n]; `external` float32[n] is one more source, as a ranker's logits, NaN where it
        knows nothing of an item: that item stands there where it stands among the parts, in standard
        deviations."""
        scores = np.zeros((len(self._parts), len(rows)), dtype=np.float32)
        bucket = fusion_kernels.bucket_of(len(self._recent.get(user, ())))
        for line, part, weight in zip(scores, self._parts, self._weights_of(bucket), strict=True):
            if weight != 0.0:  # else it is not asked: its opinion counts for nothing
                line[:] = part.model.score_rows(user, rows)
        out = np.empty(len(rows), dtype=np.float32)
        fusion_kernels.fusion_score(
            scores, self._is_logit, bucket, self.lowest_weight, self.highest_weight, self.floor, self._state,
            out,
        )  # fmt: skip
        return out if external is None else _with_external(out, external, self.external_weight)

    def weights(self) -> dict[str, dict[str, float]]:
        """The weights in force, by bucket and part, and under "shared" those that all buckets start from."""
        names = [part.name for part in self._parts]
        found = {
            bucket_name: dict(zip(names, self._weights_of(bucket), strict=True))
            for bucket, bucket_name in enumerate(_BUCKET_NAMES)
        }
        found["shared"] = dict(zip(names, self._state.weights[BUCKETS].tolist(), strict=True))
        return found

    def regret(self) -> dict[str, float | dict[str, float]]:
        """Events judged, and mean log losses (nats) on them: the fusion's, each part's alone (under its own
        weight, learned by the same steps), and how far the fusion's lies above the best part's."""
        judged = int(self._state.counters[1])
        fusion, *losses = (self._state.losses / max(judged, 1)).tolist()
        alone = dict(zip([part.name for part in self._parts], losses, strict=True))
        return {"events": judged, "fusion": fusion, "alone": alone, "regret": fusion - min(losses)}

    def nbytes(self) -> int:
        """Bytes of the parts' item state, of their item table, and of the weights and the ring."""
        own = sum(array.nbytes for array in self._state) + 4 * len(self.items)
        return own + self._part_items.nbytes() + sum(part.model.nbytes() for part in self._parts)

    def item_arrays(self) -> Arrays:
        arrays: Arrays = {_STATE + name: array.copy() for name, array in self._state._asdict().items()}
        for part in self._parts:
            arrays.update(prefixed(part.name, part.model.item_arrays()))
        return arrays

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._clear()
        for name, array in self._state._asdict().items():
            array[...] = arrays[_STATE + name]
        ring = self._state.ring
        np.add.at(self._ring_counts(), ring[ring >= 0], 1)
        for part in self._parts:
            part.model.load_item_arrays(stripped(part.name, arrays))

    def to_arrays(self) -> Arrays:
        arrays = super().to_arrays()
        for part in self._parts:
            if part.keeps_more:
                arrays.update(prefixed(part.name, part.model.to_arrays()))
        return arrays

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        for part in self._parts:
            if part.keeps_more:
                part.model.from_arrays(stripped(part.name, arrays))
                part.model.items = self._part_items
        self._share_users()

    def _learn_weights(
        self, one: LearningBatch, found: BatchRows, asked: Sequence[tuple[Part, LearningBatch, BatchRows]]
    ) -> None:
        """Ask the parts for the event's item and drawn ones, and let the weights take their step."""
        drawn = np.empty(self.candidates + 1, dtype=np.int32)
        log_share = np.empty(self.candidates + 1, dtype=np.float64)
        n = fusion_kernels.fusion_draw(
            self.seed, found.item[0], found.recent[0], self._part_items.given, len(self._part_items),
            self._ring_counts(), self._state, drawn, log_share,
        )  # fmt: skip
        scores = np.empty((len(self._parts), n), dtype=np.float32)
        for line, (part, record, rows) in zip(scores, asked, strict=True):
            line[:] = part.ask(record, rows, drawn[:n])
        history = int((one.recent[0] != -1).sum())
        fusion_kernels.fusion_learn(
            scores, n, log_share, self._is_logit, fusion_kernels.bucket_of(history),
            min(float(one.weight[0]), 1.0), self.learning_rate, self.lowest_weight, self.highest_weight,
            self.floor, self.shrinkage, self._state,
        )  # fmt: skip

    def _weights_of(self, bucket: int) -> list[float]:
        values = np.empty(len(self._parts))
        fusion_kernels.fusion_weights(bucket, self.lowest_weight, self.highest_weight, self._state, values)
        weights: list[float] = values.tolist()
        return weights

    def _ring_counts(self) -> NDArray[np.int32]:
        """How often each row is on the ring, int32[>= rows]."""
        self._ring_count = grown(self._ring_count, len(self._part_items), self._part_items.limit)
        return self._ring_count

    def _share_users(self) -> None:
        for part in self._parts:
            if not part.is_owner:
                part.model._recent, part.model._past = self._recent, self._past

    def _forget_item(self, item: str) -> None:
        super()._forget_item(item)
        for part in self._parts:  # the row is free already; what a part keeps by id or by user goes now
            part.model.forget(item=item)

    def _withdraw(self, user: str, place: int) -> bool:
        withdrawn = super()._withdraw(user, place)
        for part in self._parts:
            if withdrawn and part.is_owner:
                part.model._past[user] = list(self._past[user])
                part.model._recent[user] = list(self._recent[user])
        return withdrawn

    def _require_width(self, batch: LearningBatch) -> None:
        expected, found = record_width(self._parts), batch.user_before.shape[1]
        if found != expected and expected:
            raise ValueError(
                f"user_before: {found} dimensions, but these parts make {expected}; the record was made by "
                "other parts"
            )

    def _clear(self) -> None:
        parts = len(self._parts)
        weights = np.zeros((BUCKETS + 1, parts))
        weights[BUCKETS] = 1.0 / parts
        self._state = FusionState(
            weights=weights,
            squares=np.zeros((BUCKETS + 1, parts)),
            means=np.zeros((BUCKETS + 1, parts)),
            mean_squares=np.zeros((BUCKETS + 1, parts)),
            scaled=np.zeros(BUCKETS + 1, dtype=np.int64),
            alone=np.stack((np.ones(parts), np.zeros(parts))),
            losses=np.zeros(1 + parts),
            counters=np.zeros(3, dtype=np.int64),
            ring=np.full(self.ring_size, -1, dtype=np.int32),
        )
        self._ring_count = np.zeros(0, dtype=np.int32)


def _with_external(
    scores: NDArray[np.float32], external: NDArray[np.float32], weight: float
) -> NDArray[np.float32]:
    """scores + weight times the external ones in standard deviations of the known."""
    known = ~np.isnan(external)
    if not np.isfinite(external[known]).all():
        raise ValueError("external has infinite scores; NaN says that an item is unknown")
    if not known.any():
        return scores
    own, theirs = scores[known].astype(np.float64), external[known].astype(np.float64)
    standing = (scores - own.mean()) / (own.std() or 1.0)
    standing[known] = (theirs - theirs.mean()) / (theirs.std() or 1.0)
    blended: NDArray[np.float32] = (scores + weight * standing).astype(np.float32)
    return blended
