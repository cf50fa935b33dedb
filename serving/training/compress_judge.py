"""What a graph is worth on the gate's events, so that two graphs can be compared in pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.training.dataset import Int64, LogSplit
from serving.training.fused import ExportedRanker
from serving.training.gate_ranks import CUTOFF, Catalogue, Contest, Scores, ranker_scores, ranking_of
from serving.training.settings import TrainerSettings

__all__ = ["Judge", "catalogue_judge"]

Float64 = npt.NDArray[np.float64]


class Judge:
    """NDCG@10 of any graph of one ranker on the events of a contest, where `scores_of` serves it as the gate
    does."""

    def __init__(self, contest: Contest, scores_of: Callable[[RankerSession], Scores]) -> None:
        self._contest = contest
        self._scores_of = scores_of
        starts = contest.newest.starts[contest.events]
        self.users: Int64 = np.unique(starts, return_inverse=True)[1].astype(np.int64)
        """int64[n]: number of each event's user, from 0."""

    def gains(self, session: RankerSession) -> Float64:
        """float64[n]: 1 / log2(1 + rank) of each event's item within the first ten, else 0. Raises
        RankerError for a score that is no number."""
        ranks = ranking_of(self._contest, self._scores_of(session)).ranks
        return np.where(ranks < CUTOFF, 1.0 / np.log2(np.minimum(ranks, CUTOFF) + 2.0), 0.0)


def catalogue_judge(
    ranker: ExportedRanker, session: RankerSession, split: LogSplit, settings: TrainerSettings
) -> Judge:
    """The whole vocabulary ranked for each of the newest events, less what their users had."""

    def served(graph: RankerSession) -> Ranker:
        return Ranker(
            graph,
            split.vocabulary,
            version="candidate",
            history_length=settings.history_length,
            event_types=split.event_type_names,
            fused=ranker.head is not None,
            contents=split.contents,
        )

    contest = Catalogue(split.newest, [served(session)], settings.gate.max_scored_pairs)
    return Judge(
        contest, lambda graph: ranker_scores(contest, served(graph), split.event_type_names, None, 1.0)
    )
