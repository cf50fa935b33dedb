"""Popularity among people of the same group (age, gender, country, ...), with everybody's behind it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.base import COUNTS, Arrays, Context, OnlineRanker, user_token
from online_models.corrections import PAST_KEPT, forgetting
from online_models.decayed_counts import DecayedCounts
from online_models.forward_decay import require_half_life
from online_models.item_table import pack_ids, unpack_ids
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = ["GroupPopularity", "group_code"]

CODES = 2**24 - 1
"""Groups are told apart by a number from 1 to this, which a float32 holds exactly; 0 = no group."""
NOTHING = 1e-9
"""A sum of counts below this is what rounding left of none."""


class GroupPopularity(OnlineRanker):
    r"""Decayed popularity in the user's group g, shrunk towards that of all.

    With c the counts of `DecayedCounts` (half-life H) by item and by group, and C their sums:

    $$P(i) = \frac{c_i}{C}, \qquad n_g = \max(C_g - m, 0), \qquad
    p(i \mid g) = \frac{n_g\, c_{i,g} / C_g + \alpha P(i)}{n_g + \alpha}$$

    With m = 0 this is the posterior mean under a Dirichlet prior of strength α and mean P. A group that has
    fewer than m (decayed) events, and a user of no group, get P alone: a small group would tell what its
    members did; beyond m the group's say grows smoothly. Scores are shares, from -1 (disliked) to 1.

    A user's group is what `learn_profile` says under `keys`; numbers are taken in steps of `numeric_step`
    (ages 20 to 29). Only the owner knows it: the log's record carries the group's code at the event (one
    float32 in user_before), and replicas count by code, for the first `max_groups` that come up; later ones
    count as none. A withdrawn event is taken out of the group in which it was counted.

    Parameters: keys, half_life_s H (seconds of event time; 0 = no decay), strength α (events), min_count m
    (events), max_groups, numeric_step (0 = numbers are names like others), seed (unused). Memory: 8 bytes for
    each item and group. An event costs the same whatever the number of items and groups.

    Reference: Zhai and Lafferty, A Study of Smoothing Methods for Language Models Applied to Ad Hoc
    Information Retrieval, SIGIR 2001 (Dirichlet smoothing).

    >>> model = GroupPopularity(keys=("gender",), strength=2.0, half_life_s=0.0)
    >>> for user, gender, item in [("ann", "F", "tea"), ("eve", "F", "tea"), ("bob", "M", "ale")]:
    ...     model.learn_profile(user, {"labels": {"gender": gender}})
    ...     model.learn_one(user, item)
    >>> model.learn_profile("zoe", {"labels": {"gender": "F"}})
    >>> [round(model.predict_one("zoe", item), 4) for item in ("tea", "ale", "unknown")]
    [0.8333, 0.1667, 0.0]
    >>> [round(model.predict_one("stranger", item), 4) for item in ("tea", "ale")]
    [0.6667, 0.3333]
    """

    learns = COUNTS

    def __init__(
        self,
        keys: Sequence[str] = ("age", "gender"),
        half_life_s: float = 20 * 86_400.0,
        strength: float = 2000.0,
        min_count: float = 0.0,
        max_groups: int = 64,
        numeric_step: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        require_half_life(half_life_s)
        if isinstance(keys, str) or not keys or not all(isinstance(key, str) and key for key in keys):
            raise ValueError(f"keys is {keys!r}, but at least one label's name is needed, in a sequence")
        for name, value in [("min_count", min_count), ("numeric_step", numeric_step)]:
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} is {value}, but a finite number of at least 0 is needed")
        if not (math.isfinite(strength) and strength > 0.0):
            raise ValueError(f"strength is {strength}, but a finite number above 0 is needed")
        if not 1 <= max_groups <= 65_535:
            raise ValueError(f"max_groups is {max_groups}, but 1 to 65535 are needed")
        self.keys = keys
        self.half_life_s = half_life_s
        self.strength = strength
        self.min_count = min_count
        self.max_groups = max_groups
        self.numeric_step = numeric_step
        self._counts = DecayedCounts(half_life_s)
        self._column_of: dict[int, int] = {}
        self._group: dict[str, int] = {}
        self._past_groups: dict[str, list[int]] = {}  # of the events in self._past
        self._withdrawn_group = 0

    def learn_profile(self, user: str, x: Context) -> None:
        """Take in a user's labels, as x["labels"] or as x itself; they replace those of before. His earlier
        events stay counted where they were."""
        super().learn_profile(user, x)
        labels = x.get("labels", x)
        if not isinstance(labels, Mapping):
            raise TypeError(f"labels must map names to values, got {labels!r} ({type(labels).__name__})")
        code = group_code(labels, self.keys, self.numeric_step)
        if code:
            self._group[user] = code
        else:
            self._group.pop(user, None)

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        batch = super().learn_user(events)
        codes = [self._group.get(user, 0) for user, *_ in events]
        batch.user_before = _column(codes)
        batch.user_after = batch.user_before.copy()
        for (user, *_), code in zip(events, codes, strict=True):
            groups = self._past_groups.setdefault(user, [])
            groups.insert(0, code)
            del groups[PAST_KEPT:]
        return batch

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        codes = _codes(batch)
        for code in codes:
            if code and code not in self._column_of and len(self._column_of) < self.max_groups:
                self._column_of[code] = len(self._column_of) + 1
        self._counts.learn(batch, rows, self._columns(codes), self.items)

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._counts.unlearn(batch, rows, self._columns(_codes(batch)))

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        self._counts.forget_rows(rows)

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        batch.user_before = _column([self._withdrawn_group] * len(batch))
        batch.user_after = batch.user_before.copy()

    def forget(self, user: str | None = None, *, item: str | None = None) -> None:
        if user is not None and user in self._past:
            groups = self._past_groups[user]
            for record, code in zip(forgetting(user_token(user), self._past[user]), groups, strict=True):
                record.user_before = record.user_after = _column([code])
                self.correct(*self.items.find(record))
            self._past[user] = []  # they are taken back
        super().forget(user, item=item)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._group.pop(user, None)
        self._past_groups.pop(user, None)

    def score(self, code: int, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Scores float32[n] of rows int32[n] for a user of a group (0 = none); 0 for -1."""
        counts, column = self._counts, self._column_of.get(code, 0)
        shares = _shares(counts.of(rows), counts.total())
        if column and column < len(counts.totals):
            total = counts.total(column)
            trusted = max(total - self.min_count, 0.0)
            own = _shares(counts.of(rows, column), total)
            shares = (trusted * own + self.strength * shares) / (trusted + self.strength)
        return shares.astype(np.float32)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.score(self._group.get(user, 0), rows)

    def item_arrays(self) -> Arrays:
        return {
            **self._counts.to_arrays("group_popularity", self.items),
            "group_popularity.groups": np.array(list(self._column_of), dtype=np.int32),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._counts.load("group_popularity", arrays, self.items)
        codes = arrays["group_popularity.groups"].tolist()
        self._column_of = {code: column for column, code in enumerate(codes, start=1)}

    def nbytes(self) -> int:
        """Bytes of the counts of the items in use."""
        return self._counts.nbytes(len(self.items))

    def to_arrays(self) -> Arrays:
        groups = [code for user in self._recent for code in self._past_groups[user]]
        return {
            **super().to_arrays(),
            **pack_ids("users.profiled", list(self._group)),
            "users.group": np.array(list(self._group.values()), dtype=np.int32),
            "users.past.group": np.array(groups, dtype=np.int32),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        profiled = unpack_ids("users.profiled", arrays)
        self._group = dict(zip(profiled, arrays["users.group"].tolist(), strict=True))
        groups = iter(arrays["users.past.group"].tolist())
        self._past_groups = {user: list(islice(groups, len(pasts))) for user, pasts in self._past.items()}

    def _columns(self, codes: Sequence[int]) -> NDArray[np.int32]:
        return np.array([self._column_of.get(code, 0) for code in codes], dtype=np.int32)

    def _withdraw(self, user: str, place: int) -> bool:
        self._withdrawn_group = self._past_groups[user][place] if place >= 0 else 0
        if withdrawn := super()._withdraw(user, place):
            del self._past_groups[user][place]
        return withdrawn


def group_code(labels: Mapping[str, Any], keys: Sequence[str], numeric_step: float = 10.0) -> int:
    """Code of a user's group, 1 to 2**24 - 1; 0 where the labels say nothing under these keys.

    >>> ages = [group_code({"age": age}, ("age", "gender")) for age in (20, 29.5, 30)]
    >>> ages[0] == ages[1], ages[1] == ages[2], group_code({}, ("age",))
    (True, False, 0)
    """
    said = {key: labels[key] for key in sorted(keys) if labels.get(key) is not None}
    if not said:
        return 0
    text = "\x1f".join(f"{key}\x1e{_named(value, numeric_step)}" for key, value in said.items())
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % CODES


def _named(value: object, numeric_step: float) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return f"[{math.floor(value / numeric_step)}]" if numeric_step > 0.0 else str(value)
    return str(value)


def _column(codes: Sequence[int]) -> NDArray[np.float32]:
    return np.array(codes, dtype=np.float32).reshape(-1, 1)


def _codes(batch: LearningBatch) -> list[int]:
    """The events' group codes; 0 from a writer that gave none."""
    if batch.user_before.shape[1] != 1:
        return [0] * len(batch)
    given = batch.user_before[:, 0]
    codes: list[int] = np.where((given >= 0.0) & (given <= CODES), given, 0.0).astype(np.int64).tolist()
    return codes


def _shares(counts: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    if total <= NOTHING:
        return np.clip(counts, -1.0, 0.0)
    shares: NDArray[np.float64] = np.clip(counts / total, -1.0, 1.0)
    return shares
