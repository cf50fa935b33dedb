"""The same stream as a worker would serve it: retrieval, features and the fused ranker in force at the time.

Lists are made by serving's own code, from an item state that has learned every event before
(`serving.training.replay`, whose lists are the pipeline's, bit for bit), and ranked by the version exported
at the last cut; what retrieval did not give is a miss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.prequential_network import Retrained, Stream, Training, exported_model, log_of
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.training.examples import Examples
from serving.training.fit_head import FittedHead, fit_head
from serving.training.fused import ExportedRanker
from serving.training.gate_ranks import Lists, online_scores, ranker_scores, ranking_of
from serving.training.replay import FeatureReplay
from streams.events import Event
from streams.learning_log import LogRecord, learn_record
from streams.settings import Settings
from streams.trainer_dataset import LocalWorker

__all__ = ["Served"]

RANKER_WEIGHT = Settings().serving.ranker_weight


class Served:
    """Follows the stream, keeping the lists of the newest `capacity` events, and judges part after part."""

    def __init__(self, events: Sequence[Event], stream: Stream, capacity: int) -> None:
        settings = Settings()
        self._stream = stream
        self._worker = LocalWorker(settings, batch_events=1)
        self._records: Iterator[LogRecord] = self._worker.records(events)
        self._replay = FeatureReplay(settings.models, settings.serving, capacity)
        self._followed = 0
        n = len(stream)
        self.ranks = {name: np.full(n, np.inf) for name in ("online", "fixed_blend", "fused")}
        """Of each event, in the stream's order, by who ranked its list."""
        self.heads: list[dict[str, Any]] = []

    def judge(self, network: Retrained, until: int) -> None:
        """Events from the last cut up to `until`, by the version that was trained at that cut."""
        first = self._followed
        training = network.newest if network.newest is not None and network.newest.count == first else None
        fitted, rankers = None, {}
        if training is not None:
            fitted = self._fitted(training)
            rankers = _rankers(training, fitted)
        self._follow(until)
        asked = self._stream.asked(first, until)
        lists = Lists(asked, self._examples(until))
        places = asked.rows[asked.positions[lists.events]]
        self.ranks["online"][places] = online = ranking_of(lists, online_scores).ranks
        for name in ("fixed_blend", "fused"):
            self.ranks[name][places] = online
        for name, ranker in rankers.items():
            scores = ranker_scores(lists, ranker, (), None, RANKER_WEIGHT)
            self.ranks[name][places] = ranking_of(lists, scores).ranks
        if training is not None and fitted is None:
            self.ranks["fused"][places] = self.ranks["fixed_blend"][places]
        self.heads.append({"from": first, "listed": len(places), **_told(fitted)})

    def _fitted(self, training: Training) -> FittedHead | None:
        examples = self._examples(training.count)
        return fit_head(training.trained.network, training.split, examples, training.trained.settings)

    def _follow(self, until: int) -> None:
        for number in range(self._followed, until):
            self._replay.offset = number
            learn_record(self._replay, next(self._records), "the data set")
        self._followed = until
        if self._worker.left_out:
            raise ValueError(f"{self._worker.left_out} events are refused: {self._worker.rejected}")

    def _examples(self, count: int) -> Examples:
        return self._replay.examples().located(log_of(self._stream, count))


def _rankers(training: Training, fitted: FittedHead | None) -> dict[str, Ranker]:
    """What would be served: the network blended at a fixed weight, and joined by the head."""
    trained = training.trained
    about: dict[str, Any] = {"version": "bench", "history_length": trained.settings.history_length}
    rankers = {"fixed_blend": Ranker(training.session, trained.vocabulary, **about)}
    if fitted is not None:
        model = exported_model(ExportedRanker(trained.network, fitted.head))
        rankers["fused"] = Ranker(RankerSession(model, "cpu", 1), trained.vocabulary, fused=True, **about)
    return rankers


def _told(fitted: FittedHead | None) -> dict[str, float]:
    if fitted is None:
        return {}
    return {
        "head_examples": fitted.examples, "head_ndcg_at_10": round(fitted.ndcg_at_10, 4),
        "blend_ndcg_at_10": round(fitted.blend_ndcg_at_10, 4),
        "online_ndcg_at_10": round(fitted.online_ndcg_at_10, 4),
    }  # fmt: skip
