"""Sizes of a call rounded up to a few: a device plans for, and records, each shape once.

Padding changes no score: a user of zeros is an empty history, and candidate 0 is none. The history's length
is rounded by `serving.ranker.ranker.Ranker`, which knows the longest that the network takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import RankerInputs

__all__ = ["Buckets"]


@dataclass(frozen=True, slots=True)
class Buckets:
    """Users are rounded up to powers of two, candidates to multiples of `candidate_step` up to eight of them,
    then to powers of two.

    >>> Buckets().sizes(9, 200), Buckets().sizes(1, 513)
    ((16, 256), (1, 1024))
    """

    candidate_step: int = 64

    def sizes(self, users: int, candidates: int) -> tuple[int, int]:
        """The bucket of a call."""
        step = self.candidate_step
        wide = -(-max(1, candidates) // step) * step if candidates <= 8 * step else _power(candidates)
        return _power(users), wide

    def pad(self, inputs: RankerInputs) -> RankerInputs:
        """The same call in its bucket's size; the item vectors are the same array."""
        users, candidates = inputs.candidates.shape
        rows, wide = self.sizes(users, candidates)
        if (rows, wide) == (users, candidates):
            return inputs
        length = inputs.history.shape[1]
        return RankerInputs(
            history=_padded(inputs.history, (rows, length)),
            history_types=_padded(inputs.history_types, (rows, length)),
            history_gaps_s=_padded(inputs.history_gaps_s, (rows, length)),
            context=_padded(inputs.context, (rows, inputs.context.shape[1])),
            candidates=_padded(inputs.candidates, (rows, wide)),
            features=_padded(inputs.features, (rows, wide, inputs.features.shape[2])),
            item_vectors=inputs.item_vectors,
        )


def _power(size: int) -> int:
    return 1 << (max(1, size) - 1).bit_length()


def _padded(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Zeros of `shape` with `array` at their start."""
    whole = np.zeros(shape, dtype=array.dtype)
    whole[: array.shape[0], : array.shape[1]] = array
    return whole
