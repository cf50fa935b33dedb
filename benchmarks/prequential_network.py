"""A network retrained along a stream, exported and asked by ONNX Runtime as in service."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_models.evaluation.interactions import Interaction, weight_of
from serving.ranker.inputs import FEATURES, Contents, RankerInputs
from serving.ranker.session import RankerSession
from serving.training.dataset import EvaluationSlice, InteractionLog, LogSplit, split_by_time
from serving.training.export import export_onnx
from serving.training.fused import ExportedRanker
from serving.training.settings import TrainerSettings
from serving.training.train import TrainedNetwork, WarmStart, train

__all__ = ["Retrained", "Stream", "Training", "exported_model", "log_of", "logits_of", "prefix_settings"]

USERS = 64
"""Users asked at once."""
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stream:
    """The events by columns: item numbers and times in the stream's order, and grouped by user."""

    item_ids: tuple[str, ...]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    weight: Float32
    order: NDArray[np.int64]  # places in the stream, grouped by user
    place: NDArray[np.int64]  # where each event stands in `order`
    start: NDArray[np.int64]  # where each event's user begins in `order`

    @classmethod
    def of(cls, events: Sequence[Interaction]) -> Stream:
        items: dict[str, int] = {}
        users: dict[str, int] = {}
        user = np.array([users.setdefault(event.user, len(users)) for event in events], dtype=np.int64)
        item = np.array([items.setdefault(event.item, len(items)) for event in events], dtype=np.int64)
        order = np.argsort(user, kind="stable").astype(np.int64)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        times = np.array([int((event.x or {}).get("timestamp") or 0) for event in events], dtype=np.int64)
        weight = np.array([weight_of(event) for event in events], dtype=np.float32)
        start = np.searchsorted(user[order], user).astype(np.int64)
        return cls(tuple(items), user, item, times, weight, order, place, start)

    def __len__(self) -> int:
        return len(self.item)

    def asked(self, first: int, last: int) -> EvaluationSlice:
        """Events `first` to `last` - 1, each with what its user did before it."""
        at = np.arange(first, last)
        return EvaluationSlice(
            item_ids=self.item_ids, items=self.item[self.order], types=np.ones(len(self), dtype=np.int64),
            times_ms=self.time_ms[self.order], rows=self.order, starts=self.start[at],
            positions=self.place[at],
        )  # fmt: skip


def log_of(stream: Stream, count: int) -> InteractionLog:
    """The first `count` events as the learning log has them: users as `LocalWorker` numbers them."""
    log = InteractionLog()
    log.append(
        user=stream.user[:count].astype(np.uint64) + np.uint64(1),
        item_ids=stream.item_ids, item=stream.item[:count],
        time_ms=stream.time_ms[:count], event_type=np.zeros(count), weight=stream.weight[:count],
        offset=np.arange(count),
    )  # fmt: skip
    return log


def prefix_settings(settings: TrainerSettings, count: int) -> TrainerSettings:
    """`settings` with a held-out slice of one event: what comes next judges, so nothing need be kept back."""
    return msgspec.structs.replace(settings, slice_fraction=1.5 / count)


@dataclass(frozen=True, slots=True)
class Training:
    """What was trained on the first `count` events, and its export."""

    count: int
    split: LogSplit
    trained: TrainedNetwork
    session: RankerSession


@dataclass(slots=True)
class Retrained:
    """The newest network, and what it says of events to come. `trainings`: what each cost and reached."""

    stream: Stream
    settings: TrainerSettings
    contents: Contents | None = None
    is_warm: bool = False
    trainings: list[dict[str, Any]] = field(default_factory=list)
    newest: Training | None = None

    def retrain(self, count: int, until: int) -> tuple[Float32, NDArray[np.int64]]:
        """Train on the first `count` events, warm from the last time, and export.

        Gives logits float32[until - count, P] for the events from `count` up to `until`, each from its user's
        history before it, and int64[items], the column of each item number.
        """
        started_cpu_s, started_s = time.process_time(), time.monotonic()
        settings = prefix_settings(self.settings, count)
        split = split_by_time(log_of(self.stream, count), settings, self.contents)
        trained = train(split, settings, self._warm_start())
        session = RankerSession(exported_model(ExportedRanker(trained.network)), "cpu", 1)
        self.newest = Training(count, split, trained, session)
        self.trainings.append(
            {
                "events": count, "items": len(split.vocabulary), "epochs": len(trained.curve),
                "cpu_s": round(time.process_time() - started_cpu_s, 1),
                "seconds": round(time.monotonic() - started_s, 1),
                "validation_ndcg_at_10": round(trained.ndcg_at_10, 4),
            }
        )  # fmt: skip
        place, vectors = _places(self.stream.item_ids, split, self.contents)
        return logits_of(session, self.stream.asked(count, until), place, vectors, settings), place - 1

    def _warm_start(self) -> WarmStart | None:
        if self.newest is None or not self.is_warm:
            return None
        return WarmStart(self.newest.trained.vocabulary, self.newest.trained.weights())


def exported_model(ranker: ExportedRanker) -> bytes:
    """The ONNX file of a network, with its head if it has one."""
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(ranker, path)
        return path.read_bytes()


def _places(
    ids: Sequence[str], split: LogSplit, contents: Contents | None
) -> tuple[NDArray[np.int64], Float32]:
    """Place int64[items] of each item, and the vectors by place: unseen ones stand behind the vocabulary,
    each with its content where there is any, else all at one."""
    known = {item_id: place for place, item_id in enumerate(split.vocabulary, start=1)}
    unseen = len(known) + 1
    place = np.array([known.get(item_id, unseen) for item_id in ids], dtype=np.int64)
    if contents is None:
        return place, split.contents
    new = np.flatnonzero(place == unseen)
    place[new] = unseen + 1 + np.arange(len(new))
    return place, np.concatenate([split.contents, contents.of([ids[number] for number in new.tolist()])])


def logits_of(
    session: RankerSession,
    asked: EvaluationSlice,
    place: NDArray[np.int64],
    vectors: Float32,
    settings: TrainerSettings,
) -> Float32:
    """float32[n, P] of all places from 1 on."""
    length, places = settings.history_length, len(vectors) - 1
    histories, types = asked.histories(place, length), asked.history_types(length)
    gaps, context = asked.history_gaps_s(length), asked.context()
    every = np.arange(1, places + 1)
    logits = np.empty((len(asked), places), dtype=np.float32)
    for first in range(0, len(asked), USERS):
        at = slice(first, min(first + USERS, len(asked)))
        n = at.stop - at.start
        logits[at] = session.score(
            RankerInputs(
                history=histories[at], history_types=types[at], history_gaps_s=gaps[at], context=context[at],
                candidates=np.tile(every, (n, 1)),
                features=np.zeros((n, places, len(FEATURES)), dtype=np.float32), item_vectors=vectors,
            )
        )  # fmt: skip
    return logits
