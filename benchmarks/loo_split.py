"""Each user's last event held out, in the arrays that networks and online models are asked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from online_models.base import OnlineRanker
from online_models.evaluation.interactions import Interaction
from serving.training.dataset import EvaluationSlice, LogSplit, Sequences
from serving.training.networks.base import SequenceNetwork, tokens_of
from serving.training.windows import with_ties_shuffled

__all__ = ["LeaveOneOut", "log_softmax", "ranks_of"]

USERS = 256
"""Users asked at once."""
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Users of three events or more: all but the last two train, the one before the last validates, the last
    is the test. Places of items are 1 to V over the whole catalogue."""

    item_ids: tuple[str, ...]
    users: tuple[str, ...]
    sequences: Sequences  # all events, grouped by user, in order of time

    @classmethod
    def of(cls, events: Sequence[Interaction], tie_seed: int = 0) -> LeaveOneOut:
        """Events come in order of time, equal times as the file has them; with a `tie_seed` those of one user
        and time are shuffled."""
        by_user: dict[str, list[Interaction]] = {}
        for event in events:
            by_user.setdefault(event.user, []).append(event)
        users = tuple(user for user, own in by_user.items() if len(own) >= 3)
        items = {item: place for place, item in enumerate(dict.fromkeys(e.item for e in events), start=1)}
        rows = [event for user in users for event in by_user[user]]
        ends = np.cumsum([len(by_user[user]) for user in users])
        times = np.array([int((e.x or {}).get("timestamp") or 0) for e in rows], dtype=np.int64)
        sequences = Sequences(
            starts=np.concatenate([[0], ends]).astype(np.int64),
            items=np.array([items[event.item] for event in rows], dtype=np.int64),
            types=np.ones(len(rows), dtype=np.int64),
            times_ms=times,
            targets=np.ones(len(rows), dtype=np.bool_),
        )
        if tie_seed:
            sequences = with_ties_shuffled(sequences, np.random.default_rng(tie_seed))
        return cls(tuple(items), users, sequences)

    def targets(self, back: int) -> Int64:
        """int64[U]: rows of the test items (`back` = 1) or of the validation items (2)."""
        rows: Int64 = self.sequences.starts[1:] - back
        return rows

    def split(self, with_times: bool = True) -> LogSplit:
        """What `train` is given: all but the test items, early stopping by the validation items alone.

        Without times all events happened at once: no gaps, and no ties to tell.
        """
        whole, keep = self.sequences, np.ones(len(self.sequences.items), dtype=np.bool_)
        keep[self.targets(1)] = False
        judged = np.zeros(len(keep), dtype=np.bool_)
        judged[self.targets(2)] = True
        train = whole.chosen(keep, whole.starts - np.arange(len(whole.starts)))
        train = replace(train, times_ms=train.times_ms * with_times)
        counts = np.bincount(train.items, minlength=len(self.item_ids) + 1)[1:]
        return LogSplit(
            vocabulary=self.item_ids, train=train, event_types=1, newest=self.slice(1),
            contents=np.zeros((len(self.item_ids) + 2, 1), dtype=np.float32),
            popularity=dict(zip(self.item_ids, counts.astype(float).tolist(), strict=True)),
            from_offset=0, to_offset=len(keep) - 1, interactions=len(keep), judged=judged[keep],
        )  # fmt: skip

    def slice(self, back: int) -> EvaluationSlice:
        """The targets with what their users did before them; items are places."""
        whole = self.sequences
        return EvaluationSlice(
            item_ids=("", *self.item_ids), items=whole.items, types=whole.types, times_ms=whole.times_ms,
            rows=np.arange(len(whole.items)), starts=whole.starts[:-1], positions=self.targets(back),
        )  # fmt: skip

    def masked(self, scores: Float64, back: int) -> Float64:
        """Scores float64[U, V + 1] with -inf where the user had the item before, and in column 0."""
        masked = scores.copy()
        masked[:, 0] = -np.inf
        for user, (start, row) in enumerate(zip(self.sequences.starts, self.targets(back), strict=False)):
            masked[user, self.sequences.items[start:row]] = -np.inf
        return masked

    def network_scores(self, network: SequenceNetwork, back: int, with_times: bool = True) -> Float64:
        """log softmax over what the user had not, float64[U, V + 1]."""
        asked, length = self.slice(back), network.history_length
        places = np.arange(len(self.item_ids) + 1)
        given = (
            torch.from_numpy(asked.histories(places, length)),
            torch.from_numpy(asked.history_types(length)),
            torch.from_numpy(asked.history_gaps_s(length) * np.float32(with_times)),
        )
        contents = torch.zeros(len(self.item_ids) + 2, 1)
        found = []
        with torch.no_grad():
            for at in range(0, len(self.users), USERS):
                tokens, column = tokens_of(*(x[at : at + USERS] for x in given))
                states = network.encode(tokens, column, contents)
                found.append(network.logits(states, contents)[:, :-1].double().numpy())
        return log_softmax(self.masked(np.concatenate(found), back))

    def learn(self, model: OnlineRanker, back: int, learned: int | None = None) -> None:
        """Let an online model learn all events before the targets, in order of time; those of before the
        targets `learned` back it has had."""
        whole = self.sequences
        ends = self.targets(back)
        begins = whole.starts[:-1] if learned is None else self.targets(learned)
        rows = np.concatenate([np.arange(one, end) for one, end in zip(begins, ends, strict=True)])
        user = np.searchsorted(whole.starts, rows, side="right") - 1
        for k in np.lexsort((rows, whole.times_ms[rows])).tolist():
            item = self.item_ids[whole.items[rows[k]] - 1]
            x = {"weight": 1.0, "timestamp": int(whole.times_ms[rows[k]])}
            model.learn_one(self.users[user[k]], item, 1.0, x)

    def online_scores(self, model: OnlineRanker) -> Float64:
        """float64[U, V + 1]; NaN where the model knows nothing of the item."""
        rows = model.items.rows(self.item_ids)
        scores = np.full((len(self.users), len(self.item_ids) + 1), np.nan)
        for user, name in enumerate(self.users):
            scores[user, 1:][rows >= 0] = model.score_rows(name, rows[rows >= 0])
        return scores

    def ranks(self, scores: Float64, back: int) -> Float64:
        """Ranks of the targets from 0 by scores float64[U, V + 1], half for ties; -inf is never listed."""
        return ranks_of(self.masked(scores, back), self.sequences.items[self.targets(back)])


def ranks_of(scores: Float64, targets: Int64) -> Float64:
    """Rank of each row's target from 0, float64[n], half for ties. Raises ValueError for NaN, and where a
    target has no score, for then it could not be told from a hit.

    >>> ranks_of(np.array([[-np.inf, 3.0, 1.0, 1.0], [-np.inf, 2.0, 5.0, 7.0]]), np.array([2, 3])).tolist()
    [1.5, 0.0]
    """
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    if np.isnan(scores).any() or not np.isfinite(own).all():
        raise ValueError("scores hold NaN, or none for a target")
    ahead: Float64 = (scores > own).sum(axis=1) + 0.5 * ((scores == own).sum(axis=1) - 1)
    return ahead


def log_softmax(scores: Float64) -> Float64:
    """Over each row's finite scores; -inf stays.

    >>> np.exp(log_softmax(np.array([[0.0, np.log(3.0), -np.inf]]))).round(6).tolist()
    [[0.25, 0.75, 0.0]]
    """
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
