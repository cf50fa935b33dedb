# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of `ease.RecencyEASE`'s weights: the inverse of the counts, a part of it with each event.

They call no kernel of another file: numba's disk cache would not notice a change there. The inverse is
computed here, in one fixed order, and not by LAPACK, whose bits depend on the number of threads: weights are
part of what replicas must agree on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel

__all__ = ["FIRST", "ROW", "SIZE", "Sweep", "advance", "begin"]

SIZE, FIRST, ROW = range(3)
"""Places in `Sweep.marks`: rows of the matrix, 0 = no sweep is under way; the first pivot of the block that
is being swept, rows and more = all are; the next row to work on, -1 = the block is still to be taken."""
BLOCK, STEP = 32, 8
"""Pivots of the inverse taken at once, so that the matrix passes through memory a 32nd as often; and such as
one inner loop takes."""
MAX_WEIGHT = 100.0
"""Bounds a weight between items: what no counts of real use come near."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Longs = NDArray[np.int64]


class Sweep(NamedTuple):
    """An inversion under way: the lower triangle of a symmetric matrix, row behind row."""

    work: Doubles  # float64[n (n + 1) / 2]
    panel: Doubles  # float64[BLOCK, n]: the block's rows, before it is swept
    scaled: Doubles  # float64[n, BLOCK]: the same times the inverse of its pivots
    ridge: Doubles  # float64[1]: what was added to the diagonal
    marks: Longs  # int64[3]


@kernel
def _invert_block(block: Doubles, floor: float) -> bool:
    """The inverse of a small symmetric matrix, in place; False when a pivot is below `floor`."""
    n = block.shape[0]
    for k in range(n):
        if not block[k, k] >= floor:
            return False
        scale = 1.0 / block[k, k]
        for i in range(n):
            if i != k:
                step = block[i, k] * scale
                for j in range(n):
                    if j != k:
                        block[i, j] -= step * block[k, j]
        for i in range(n):
            block[i, k] *= scale
            block[k, i] = block[i, k]
        block[k, k] = -scale
    for i in range(n):
        for j in range(n):
            block[i, j] = -block[i, j]
    return True


@kernel
def _subtract(row: Doubles, panel: Doubles, by: Doubles) -> None:
    """row -= by panel, over the row's length, for by float64[STEP] and panel float64[STEP, n]."""
    p0, p1, p2, p3, p4, p5, p6, p7 = (
        panel[0], panel[1], panel[2], panel[3], panel[4], panel[5], panel[6], panel[7],
    )  # fmt: skip
    b0, b1, b2, b3, b4, b5, b6, b7 = by[0], by[1], by[2], by[3], by[4], by[5], by[6], by[7]
    for j in range(row.shape[0]):
        row[j] -= (
            b0 * p0[j] + b1 * p1[j] + b2 * p2[j] + b3 * p3[j]
            + b4 * p4[j] + b5 * p5[j] + b6 * p6[j] + b7 * p7[j]
        )  # fmt: skip


@kernel
def begin(pairs: Floats, n: int, ridge: float, sweep: Sweep) -> None:
    """Take over the counts of n slots."""
    sweep.work[:] = pairs[: n * (n + 1) // 2]
    for k in range(n):
        sweep.work[k * (k + 1) // 2 + k] += ridge
    sweep.ridge[0] = ridge
    sweep.marks[SIZE], sweep.marks[FIRST], sweep.marks[ROW] = n, 0, -1


@kernel
def _take_block(sweep: Sweep, n: int, first: int, size: int, floor: float) -> bool:
    """Set up the pivots from `first` on; False when one is below `floor`: then the matrix is spent."""
    panel, scaled = sweep.panel, sweep.scaled
    panel[size:] = 0.0
    scaled[:, size:] = 0.0
    for q in range(size):
        k = first + q
        for j in range(n):
            panel[q, j] = sweep.work[k * (k + 1) // 2 + j] if j <= k else sweep.work[j * (j + 1) // 2 + k]
    inverse = panel[:size, first : first + size].copy()
    if not _invert_block(inverse, floor):
        return False
    for i in range(n):
        for q in range(size):
            total = 0.0
            for p in range(size):
                total += inverse[q, p] * panel[p, i]
            scaled[i, q] = total
    return True


@kernel
def _put_block(sweep: Sweep, n: int, first: int, size: int) -> None:
    """Write the pivots' own rows and columns, when all others have been swept."""
    inverse = sweep.panel[:size, first : first + size].copy()
    _invert_block(inverse, -np.inf)
    for q in range(size):
        k = first + q
        for j in range(n):
            value = -inverse[q, j - first] if first <= j < first + size else sweep.scaled[j, q]
            if j <= k:
                sweep.work[k * (k + 1) // 2 + j] = value
            else:
                sweep.work[j * (j + 1) // 2 + k] = value


@kernel
def _write_row(sweep: Sweep, i: int, stale: NDArray[np.uint8], weights: Floats) -> None:
    """Weights of slot i with those before it; none where a slot has another item than the sweep knows."""
    work = sweep.work
    own = work[i * (i + 1) // 2 + i]
    for j in range(i):
        both, other = -work[i * (i + 1) // 2 + j], work[j * (j + 1) // 2 + j]
        if stale[i] or stale[j]:
            both = 0.0
        weights[i, j] = min(max(both / other, -MAX_WEIGHT), MAX_WEIGHT)
        weights[j, i] = min(max(both / own, -MAX_WEIGHT), MAX_WEIGHT)
    weights[i, i] = 0.0


@kernel
def advance(sweep: Sweep, pairs: Floats, stale: NDArray[np.uint8], weights: Floats, budget: int) -> int:
    """Go on with a sweep until it is through or `budget` multiplications are done; returns how many were:
    more by (2 BLOCK + 1) BLOCK n + 2 BLOCK**3 at most, or n**2 / 2 where the counts are taken over anew.

    The sweep operator, BLOCK pivots at once: with D the inverse of the pivots' block,
    A_ij -= A_iK D A_Kj, A_iK = A_iK D, A_KK = -D, which makes of A minus its inverse. Counts of windows are
    positive semidefinite: then no pivot is below the ridge. Where bounds at 0 broke that, the ridge is
    doubled until none is below half of it.
    """
    marks, done = sweep.marks, 0
    while marks[SIZE] > 0 and done < budget:
        n, first, row = marks[SIZE], marks[FIRST], marks[ROW]
        if first >= n:
            _write_row(sweep, row, stale, weights)
            done += row + 1
            marks[ROW] += 1
            if marks[ROW] == n:
                marks[SIZE] = 0
            continue
        size = min(BLOCK, n - first)
        if row < 0:
            done += size * size * (n + size)
            if not _take_block(sweep, n, first, size, 0.5 * sweep.ridge[0]):
                begin(pairs, n, 2.0 * sweep.ridge[0], sweep)
                stale[:] = 0
                done += n * (n + 1) // 2
                continue
            row = np.int64(0)
        while row < n and done < budget:
            at = row * (row + 1) // 2
            for q in range(0, size, STEP):
                _subtract(
                    sweep.work[at : at + row + 1], sweep.panel[q : q + STEP], sweep.scaled[row, q : q + STEP]
                )
            done += (row + 1) * size
            row += 1
        marks[ROW] = row
        if row == n:
            _put_block(sweep, n, first, size)
            done += size * (n + size * size)
            marks[FIRST], marks[ROW] = first + BLOCK, -1 if first + BLOCK < n else 0
    return done
