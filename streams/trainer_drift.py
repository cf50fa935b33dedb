"""Whether what users do has moved away from what the models know: one of the schedule's reasons to train.

The signal is the online models' own: for each interaction that the replay of the learning log makes an
example of, whether its item stood among the first ten of the list that they would have given without a
ranker. It needs no list to be served, no worker's report, and not the champion, whose scores for every event
would cost as much as serving does. The online models learn from each event, so a fall that shows in them is
one that the network, which stands still between trainings, has met too.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from online_models.drift import DriftMonitor

__all__ = ["DriftWatch", "hits_at_10"]

log = logging.getLogger("freshet.trainer")

CUTOFF = 10


class DriftWatch:
    """Reads hits in the log's order; `due` from an alarm for the worse until `trained` is called."""

    def __init__(self, detector: str = "adwin") -> None:
        self._monitor = DriftMonitor(detector, answer="retrain")
        self._why = ""

    @property
    def due(self) -> bool:
        return bool(self._monitor.retrain_due)

    @property
    def why(self) -> str:
        """The alarm that is due, in words and numbers; "" where none is."""
        return self._why if self.due else ""

    def judge(
        self,
        online: npt.NDArray[np.float32],
        targets: npt.NDArray[np.int32],
        length: npt.NDArray[np.int32],
        times_ms: npt.NDArray[np.int64],
    ) -> None:
        """Take in examples as the replay makes them; see `hits_at_10`."""
        self.add(hits_at_10(online, targets, length), times_ms)

    def add(self, hits: npt.NDArray[np.bool_], times_ms: npt.NDArray[np.int64]) -> None:
        """Hits bool[n] of n interactions at times int64[n], ms."""
        for hit, at in zip(hits.tolist(), times_ms.tolist(), strict=True):
            alarm = self._monitor.update(float(hit), at)
            if alarm is None:
                continue
            told = (
                f"drift at {alarm.time_ms} ms: HR@10 of the online models went from {alarm.before:.4f} to"
                f" {alarm.after:.4f}"
            )
            log.info("%s (%s)", told, alarm.kind)
            if alarm.kind == "worse":
                self._why = told

    def trained(self) -> None:
        """The alarm has been answered."""
        self._monitor.retrained()


def hits_at_10(
    online: npt.NDArray[np.float32], targets: npt.NDArray[np.int32], length: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """bool[n]: fewer than ten of the candidates' scores online float32[n, C] are above the target's, a tie
    counting half; no hit where the target's column int32[n] is -1 or behind the `length` that were found.

    >>> scores = np.array([[0.5, 0.2], [0.5, 0.2]], np.float32)
    >>> hits_at_10(scores, np.array([1, -1], np.int32), np.array([2, 2], np.int32)).tolist()
    [True, False]
    """
    if not online.shape[1]:
        return np.zeros(len(targets), dtype=np.bool_)
    found = (targets >= 0) & (targets < length)
    mine = np.take_along_axis(online, np.maximum(targets, 0)[:, None].astype(np.int64), axis=1)
    inside = np.arange(online.shape[1])[None, :] < length[:, None]
    above = ((online > mine) & inside).sum(axis=1)
    tied = ((online == mine) & inside).sum(axis=1) - 1
    return np.asarray(found & (above + 0.5 * tied < CUTOFF))
