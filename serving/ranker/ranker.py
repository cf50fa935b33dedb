"""A ranker: one loaded network with the vocabulary it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.ranker.errors import RankerError
from serving.ranker.layout import hide_unknown, lay_out

__all__ = ["Ranker", "Scorer"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

UNKNOWN = -1
PADDING = 0
_TRIM = 8
"""A batch's history is cut to its longest row, rounded up to this: fewer shapes for the runtime to plan
for."""
MAX_CELLS = 65_536
"""Candidates that the network scores at a time, padding included: bounds the runtime's memory (with 64
dimensions, 16 MB a layer)."""


class Scorer(Protocol):
    """What a session gives a ranker."""

    @property
    def providers_in_force(self) -> list[str]: ...

    def score(self, history: Int64, candidates: Int64) -> Float32: ...


class Ranker:
    """Scores candidates for users by their recent items. Item ids become indices: 0 is padding, -1 unknown.

    An unknown item in a history is passed over; an unknown candidate's score is NaN, for the caller to fill.
    """

    def __init__(
        self,
        session: Scorer,
        vocabulary: Sequence[str],
        *,
        version: str,
        history_length: int,
        digest: str = "",
    ) -> None:
        self.session = session
        self.version = version
        self.digest = digest
        self.history_length = history_length
        self.vocabulary: tuple[str, ...] = tuple(vocabulary)
        self._index = {item_id: index for index, item_id in enumerate(self.vocabulary, start=1)}
        if len(self._index) != len(self.vocabulary):
            raise RankerError(
                f"{version}: the vocabulary of {len(self.vocabulary)} holds an item id more than once"
            )

    def index_of(self, item_ids: Sequence[str]) -> Int64:
        """int64[n]: each id's index in the vocabulary, from 1, or -1."""
        get = self._index.get
        return np.fromiter(
            (get(item_id, UNKNOWN) for item_id in item_ids), dtype=np.int64, count=len(item_ids)
        )

    def score_rows(self, recent: Int32, rows: Int32, index: Int32) -> Float32:
        """float32[B, C], NaN where a candidate is unknown: `recent` int32[B, L] newest first and `rows`
        int32[B, C], -1 padded, are rows of an item table, and `index` int32[item rows] leads from there to
        the vocabulary, 0 where unknown. Raises RankerError as `score_indices`."""
        n, width = rows.shape
        history = np.empty((n, self.history_length), dtype=np.int64)
        candidates = np.empty((n, width), dtype=np.int64)
        longest = lay_out(recent, rows, index, history, candidates)
        if not rows.size:
            return np.empty(rows.shape, dtype=np.float32)
        history = history[:, -self._trimmed(longest) :]
        step = max(1, MAX_CELLS // width)
        parts = [
            self.session.score(history[start : start + step], candidates[start : start + step])
            for start in range(0, n, step)
        ]
        scores = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if bad := hide_unknown(scores, candidates):
            raise RankerError(
                f"{self.version}: {bad} of {np.count_nonzero(candidates)} scores are not finite"
            )
        return scores

    def score_indices(self, history: Int64, candidates: Int64) -> Float32:
        """float32[B, C], NaN where a candidate is unknown (-1) or padding (0).

        `history`, int64[B, L], oldest first with 0 on the left; -1 and 0 elsewhere are passed over, and only
        the newest
        `history_length` columns count. Raises RankerError when shapes don't fit, an index is outside the
        vocabulary, or a known item's score is not finite.
        """
        self._check(history, candidates)
        known = candidates > 0
        if not candidates.shape[0] or not candidates.shape[1]:
            return np.empty(candidates.shape, dtype=np.float32)
        scores = self.session.score(self._lay_out(history), np.where(known, candidates, PADDING))
        if not np.isfinite(scores[known]).all():
            bad = int((~np.isfinite(scores[known])).sum())
            raise RankerError(f"{self.version}: {bad} of {int(known.sum())} scores are not finite")
        return np.where(known, scores, np.float32(np.nan))

    def score(self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> Float32:
        """float32[B, longest of candidates], NaN where unknown or past a row's end; histories oldest
        first."""
        if len(histories) != len(candidates):
            raise RankerError(f"{len(histories)} histories for {len(candidates)} lists of candidates")
        history = np.zeros((len(histories), self.history_length), dtype=np.int64)
        for row, ids in enumerate(histories):
            recent = self.index_of(list(ids)[-self.history_length :])
            history[row, self.history_length - len(recent) :] = recent
        width = max((len(ids) for ids in candidates), default=0)
        indices = np.full((len(candidates), width), UNKNOWN, dtype=np.int64)
        for row, ids in enumerate(candidates):
            indices[row, : len(ids)] = self.index_of(ids)
        return self.score_indices(history, indices)

    def _check(self, history: Int64, candidates: Int64) -> None:
        if history.ndim != 2 or candidates.ndim != 2 or len(history) != len(candidates):
            raise RankerError(
                f"history {history.shape} and candidates {candidates.shape}: expected [B, L], [B, C]"
            )
        for name, indices in (("history", history), ("candidates", candidates)):
            if indices.size and (indices.min() < UNKNOWN or indices.max() > len(self.vocabulary)):
                raise RankerError(
                    f"{name}: indices {indices.min()}..{indices.max()} outside -1..{len(self.vocabulary)} "
                    f"of {self.version}"
                )

    def _lay_out(self, history: Int64) -> Int64:
        """Newest `history_length` columns, known items moved to the right in order, leading columns of zeros
        cut off."""
        history = history[:, -self.history_length :]
        known = history > 0
        lengths = known.sum(axis=1)
        gaps = known[:, :-1] & ~known[:, 1:]
        if gaps.any() or (history < 0).any():
            order = np.argsort(known, axis=1, kind="stable")
            history = np.take_along_axis(np.where(known, history, PADDING), order, axis=1)
        width = self._trimmed(int(lengths.max()))
        if history.shape[1] < width:
            history = np.pad(history, ((0, 0), (width - history.shape[1], 0)))
        return history[:, -width:]

    def _trimmed(self, longest: int) -> int:
        return min(self.history_length, -(-max(1, longest) // _TRIM) * _TRIM)
