"""Small things that models do with arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "contiguous_rows", "digest_arrays", "largest"]

Arrays = dict[str, NDArray[np.generic]]


def digest_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, in the order of names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def contiguous_rows(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows as the kernels take them: int32, C order."""
    return np.ascontiguousarray(rows, dtype=np.int32)


def largest(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Places of the k largest, falling; equal ones in their order."""
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - max(k, 1))[len(scores) - max(k, 1)]
    places = np.flatnonzero(scores >= least)
    return places[np.argsort(-scores[places], kind="stable")[:k]]
