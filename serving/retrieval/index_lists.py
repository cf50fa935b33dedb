"""Lists of an index: how many, how they are trained, how they grow."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.retrieval import kernels_lists as kernels
from serving.retrieval.kernels_vector import CHUNK

__all__ = ["empty_lists", "list_count", "train", "with_room"]

A = TypeVar("A", bound=np.generic)
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

_POINTS = 64
"""Points of the sample for each centroid."""
_OUTLIERS = 0.005
"""Share of items in list 0: looking at five thousand of a million costs a search about 20 us."""
_ROUNDS = 6
"""Of Lloyd's algorithm: later ones change the residuals by less than 1%."""


def list_count(items: int, untrained_below: int) -> int:
    """Lists for so many items: the power of two next to their square root, so that a search spends about as
    much on centroids as on the lists that it looks at; 1 for a few."""
    return 1 if items < untrained_below else int(2 ** round(math.log2(math.sqrt(items))))


def empty_lists(
    dimension: int,
    seed: int,
    items: int = 0,
    centroids: Floats | None = None,
    residuals: Floats | None = None,
) -> kernels.Lists:
    """List 0 and one around each of the centroids float32[C - 1, d] (in rotated axes), with chunks for so
    many items.

    `residuals` float32[m, d] of a sample say what is too far from a centroid, and in which directions items
    differ that have the same one.
    """
    zero = np.zeros((1, dimension), dtype=np.float32)
    centroids = zero if centroids is None else np.concatenate([zero, centroids])
    residuals = zero if residuals is None else residuals
    offset = np.float32(0.5) * np.square(centroids).sum(axis=1)
    offset[0] = np.inf
    n, words = len(centroids), (dimension + 63) // 64
    chunks = items // CHUNK + n + 64
    following = np.arange(1, chunks + 1, dtype=np.int32)
    following[-1] = -1
    return kernels.Lists(
        rotation=_rotation(dimension, seed),
        spread=_spread(residuals),
        centroids=centroids,
        offset=offset,
        limit=np.array([np.quantile(np.square(residuals).sum(axis=1), 1.0 - _OUTLIERS)], dtype=np.float32),
        squares=np.zeros(n),
        radial=np.zeros(n),
        head=np.full(n, -1, dtype=np.int32),
        length=np.zeros(n, dtype=np.int32),
        following=following,
        owner=np.zeros(chunks, dtype=np.int32),
        signs=np.zeros((chunks, words, CHUNK), dtype=np.uint64),
        scales=np.zeros((chunks, CHUNK), dtype=np.float32),
        codes=np.zeros((chunks, CHUNK, dimension), dtype=np.int8),
        rows=np.zeros((chunks, CHUNK), dtype=np.int32),
        place=np.empty(0, dtype=np.int32),
        free=np.array([0, chunks], dtype=np.int32),
    )


def train(vectors: Floats, rows: Ints, lists: int, seed: int) -> kernels.Lists:
    """Empty lists, with room for `rows` of vectors float32[N, d], around centroids of a sample of them.

    Lloyd's algorithm (1982) on squared distance: it makes residuals small, and the less is left to
    residuals, the better an item is known by its list.
    """
    dimension, rng = vectors.shape[1], np.random.default_rng(seed)
    if lists == 1:
        return with_room(empty_lists(dimension, seed, len(rows)), len(vectors), 0)
    drawn = rng.choice(rows, size=min(len(rows), _POINTS * lists), replace=False)
    sample = np.ascontiguousarray(vectors[drawn] @ _rotation(dimension, seed).T)
    centroids = sample[: lists - 1].copy()
    offset = np.float32(0.5) * np.square(centroids).sum(axis=1)
    for _ in range(_ROUNDS):
        kernels.refine(centroids, offset, sample)
    residuals = np.empty_like(sample)
    for first in range(0, len(sample), 4096):
        points = sample[first : first + 4096]
        residuals[first : first + 4096] = points - centroids[(points @ centroids.T - offset).argmax(axis=1)]
    made = empty_lists(dimension, seed, len(rows), centroids, residuals)
    return with_room(made, len(vectors), 0)


def with_room(lists: kernels.Lists, rows: int, changes: int) -> kernels.Lists:
    """The same lists, with places for rows 0 to rows - 1 and a free chunk for each of so many changes."""
    if rows > len(lists.place):
        place = np.full(rows, -1, dtype=np.int32)
        place[: len(lists.place)] = lists.place
        lists = lists._replace(place=place)
    if lists.free[1] >= changes:
        return lists
    old = len(lists.owner)
    more = max(changes, old // 4)
    following = np.concatenate([lists.following, np.arange(old + 1, old + more + 1, dtype=np.int32)])
    following[-1] = lists.free[0]
    return lists._replace(
        following=following,
        owner=_longer(lists.owner, more),
        signs=_longer(lists.signs, more),
        scales=_longer(lists.scales, more),
        codes=_longer(lists.codes, more),
        rows=_longer(lists.rows, more),
        free=np.array([old, lists.free[1] + more], dtype=np.int32),
    )


def _longer(array: NDArray[A], more: int) -> NDArray[A]:
    longer = np.zeros((len(array) + more, *array.shape[1:]), dtype=array.dtype)
    longer[: len(array)] = array
    return longer


def _rotation(dimension: int, seed: int) -> Floats:
    """float32[d, d], a random orthogonal matrix: no axis of the factors is special to the codes."""
    drawn = np.random.default_rng(seed).standard_normal((dimension, dimension))
    return np.ascontiguousarray(np.linalg.qr(drawn)[0], dtype=np.float32)


def _spread(residuals: Floats) -> Floats:
    """float32[d, d]: covariance of residuals float32[m, d] over their mean variance."""
    total = residuals.T.astype(np.float64) @ residuals
    dimension, trace = len(total), float(np.trace(total))
    return (total * (dimension / trace) if trace > 0.0 else np.eye(dimension)).astype(np.float32)
