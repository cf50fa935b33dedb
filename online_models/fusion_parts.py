"""The parts of a fusion: models that share an item table, and how a record of the log asks them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.base import Arrays, OnlineRanker
from online_models.corrections import Past
from online_models.learning_batch import BatchRows, LearningBatch

__all__ = [
    "OWN_NAMES",
    "Part",
    "followers",
    "forget_user",
    "join_records",
    "made_parts",
    "prefixed",
    "record_width",
    "split_record",
    "stripped",
    "withdraw_from",
]

Asker = Callable[[Any, LearningBatch, BatchRows, NDArray[np.int32]], NDArray[np.float32]]
"""(model, record of one event, its rows, candidate rows int32[C]) to scores float32[C]."""

_ASKERS: dict[tuple[str, ...], Asker] = {
    ("recent_rows", "candidate_rows"): lambda model, record, rows, asked: model.score(
        rows.recent, asked[None, :]
    )[0],
    ("recent_rows", "candidate_rows", "users"): lambda model, record, rows, asked: model.score(
        rows.recent, asked[None, :], record.user
    )[0],
    ("token", "recent_rows", "candidate_rows"): lambda model, record, rows, asked: model.score(
        int(record.user[0]), rows.recent[0], asked
    ),
    ("user_factors", "candidate_rows"): lambda model, record, rows, asked: model.score(
        record.user_before, asked[None, :]
    )[0],
    ("rows",): lambda model, record, rows, asked: model.score(asked),
    ("record",): lambda model, record, rows, asked: model.score_record(record, rows, asked),
}
"""How a record asks a model, by the parameters of the model's `score`, or by its own `score_record`."""


_COUNTS = {"source_exponent": 0.5, "target_exponent": 0.25, "shrinkage": 0.0}
OWN_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "short_term": (
        "covisitation",
        {
            **_COUNTS,
            "window": 2,
            "gap_decay": 1.0,
            "backward_weight": 1.0,
            "query_length": 2,
            "query_decay": 0.5,
        },
    ),
    "long_term": (
        "covisitation",
        {
            **_COUNTS,
            "window": 30,
            "gap_decay": 0.9,
            "backward_weight": 0.6,
            "query_length": 30,
            "query_decay": 0.9,
        },
    ),
    "popular_now": ("popularity", {"half_life_s": 2 * 86_400.0}),
}
"""Parts by names of their own: a model of the registry, and its parameters."""


@dataclass(slots=True)
class Part:
    """One model of a fusion.

    is_owner: its owner's step makes a record of its own (factors, negatives), `width` columns of factors.
    keeps_more: its own snapshot has more than item state.
    is_logit: its scores are inner products, of either sign; else counts or sums, 0 where nothing is known.
    """

    name: str
    model: OnlineRanker
    asked_by: tuple[str, ...]
    is_owner: bool
    keeps_more: bool
    is_logit: bool
    width: int

    def ask(
        self, record: LearningBatch, rows: BatchRows, candidates: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Scores float32[C] of candidate rows int32[C] for the user of a record of one event, as he was
        before it, from the record and replicated state alone."""
        return _ASKERS[self.asked_by](self.model, record, rows, candidates)

    def cut(
        self, one: LearningBatch, rows: BatchRows, column: int, negatives: slice
    ) -> tuple[Part, LearningBatch, BatchRows]:
        """The part, and a joint record of one event with only this part's factors and negatives."""
        factors = slice(column, column + self.width)
        record = dataclasses.replace(
            one,
            user_before=np.ascontiguousarray(one.user_before[:, factors]),
            user_after=np.ascontiguousarray(one.user_after[:, factors]),
            negatives=np.ascontiguousarray(one.negatives[:, negatives]),
        )
        found = dataclasses.replace(rows, negatives=np.ascontiguousarray(rows.negatives[:, negatives]))
        return self, record, found


def made_parts(parts: Mapping[str, OnlineRanker] | str, seed: int) -> list[Part]:
    """Fresh parts: of models by name, clones; of names separated by commas, those of `OWN_NAMES` and of the
    registry.

    Raises ValueError where there is none or a name won't do, TypeError for a model that a record can't ask.
    """
    if isinstance(parts, str):
        from online_models.registry import make_model  # it may name this package's fusion

        names = [name.strip() for name in parts.split(",") if name.strip()]
        if len(set(names)) < len(names) or "fusion" in names:
            raise ValueError(f"parts are {parts!r}, but each must be named once, and fusion not at all")
        models = {}
        for name in names:
            model, parameters = OWN_NAMES.get(name, (name, {}))
            models[name] = make_model(model, {**parameters, "seed": seed})
    else:
        models = {name: model.clone() for name, model in parts.items()}
    if not models or any("/" in name or not name or name == "fusion" for name in models):
        raise ValueError(f"parts are {list(models)}, but at least one, named without '/', is needed")
    return [_made_part(name, model) for name, model in models.items()]


def join_records(batch: LearningBatch, records: Sequence[LearningBatch]) -> None:
    """Put the owners' records of one event into the batch: factors side by side, then how many negatives each
    but the last has; negatives one behind the other."""
    index_of = {item_id: index for index, item_id in enumerate(batch.item_ids)}
    negatives: list[int] = []
    for record in records:
        for index in record.negatives[0].tolist():
            item_id = record.item_ids[index] if index >= 0 else None
            negatives.append(-1 if item_id is None else index_of.setdefault(item_id, len(index_of)))
    counts = np.array([[record.negatives.shape[1] for record in records[:-1]]], dtype=np.float32)
    batch.item_ids = list(index_of)
    batch.negatives = np.array([negatives], dtype=np.int32).reshape(1, len(negatives))
    batch.user_before = np.concatenate([*(record.user_before for record in records), counts], axis=1)
    batch.user_after = np.concatenate([*(record.user_after for record in records), counts], axis=1)


def followers(parts: Sequence[Part]) -> list[Any]:
    """The parts' models that know whom a user follows."""
    return [part.model for part in parts if hasattr(part.model, "withdraw_follow")]


def record_width(parts: Sequence[Part]) -> int:
    """Columns of `user_before` in a joint record: the factors, and how many negatives each owner but the last
    has."""
    owners = sum(part.is_owner for part in parts)
    return sum(part.width for part in parts) + max(owners - 1, 0)


def split_record(
    parts: Sequence[Part], one: LearningBatch, rows: BatchRows
) -> list[tuple[Part, LearningBatch, BatchRows]]:
    """A joint record of one event as each part recorded it: its own factors and negatives."""
    owners = sum(part.is_owner for part in parts)
    if owners < 2:
        return [(part, one, rows) for part in parts]
    counts = one.user_before[0, one.user_before.shape[1] - owners + 1 :].astype(np.int64).tolist()
    found, column, negative = [], 0, 0
    for part in parts:
        if part.is_owner:
            end = negative + counts.pop(0) if counts else one.negatives.shape[1]
            found.append(part.cut(one, rows, column, slice(negative, end)))
            column, negative = column + part.width, end
        else:
            found.append((part, one, rows))
    return found


def withdraw_from(parts: Sequence[Part], batch: LearningBatch, rows: BatchRows) -> None:
    """Every part takes the events of joint records back, one by one."""
    for event in range(len(batch)):
        one = batch if len(batch) == 1 else batch.take(np.array([event], dtype=np.intp))
        found = BatchRows(rows.item[[event]], rows.recent[[event]], rows.negatives[[event]])
        for part, record, part_rows in split_record(parts, one, found):
            part.model.correct(record, part_rows)


def forget_user(
    parts: Sequence[Part], user: str, recent: Mapping[str, list[str]], past: Mapping[str, list[Past]]
) -> None:
    """Every part forgets a user by itself, each with a past of its own: the shared one is gone after the
    first."""
    for part in parts:
        if not part.is_owner and user in past:
            part.model._recent, part.model._past = {user: recent[user]}, {user: past[user]}
        part.model.forget(user)


def prefixed(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """A part's arrays, without the item table's, under its name."""
    return {f"{name}/{key}": array for key, array in arrays.items() if not key.startswith("items.")}


def stripped(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """A part's own arrays by their own names, and the item table's."""
    prefix = f"{name}/"
    own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    return {**own, **{key: array for key, array in arrays.items() if key.startswith("items.")}}


def _made_part(name: str, model: OnlineRanker) -> Part:
    score = getattr(model, "score", None)
    names = tuple(inspect.signature(score).parameters) if score else ()
    names = ("record",) if hasattr(model, "score_record") else names
    if names not in _ASKERS:
        raise TypeError(
            f"part {name!r}: a record of the log can't ask {type(model).__name__}; it needs a method "
            "score_record(batch, rows, candidate_rows), or score of "
            + " or ".join(f"({', '.join(known)})" for known in list(_ASKERS)[:-1])
        )
    is_owner = type(model).learn_user is not OnlineRanker.learn_user
    width = 0
    if is_owner:
        width = model.clone().learn_user([("user", "item", 1.0, None)]).user_before.shape[1]
    is_logit = bool(getattr(model, "scores_are_logits", "user_factors" in names))
    keeps_more = is_owner or type(model).to_arrays is not OnlineRanker.to_arrays
    return Part(name, model, names, is_owner, keeps_more, is_logit, width)
