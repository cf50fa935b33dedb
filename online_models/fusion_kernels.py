# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the fusion: drawing candidates, one step of its weights, and the blended score.

They call no kernel of another file: numba's disk cache would not notice a change there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import FREED, kernel

__all__ = [
    "BUCKETS",
    "FusionState",
    "bucket_of",
    "fusion_draw",
    "fusion_learn",
    "fusion_push",
    "fusion_score",
    "fusion_weights",
]

BUCKETS = 4
"""Histories of 0, 1 to 4, 5 to 9, and 10 or more items."""
SHARED = BUCKETS
"""Row of what all buckets share, behind the buckets' own."""
MAX_RATIO = 1e9
"""A score this many times the mean one's counts for no more: its logarithm is bounded, whatever comes."""
MAX_DEVIATIONS = 8.0
SCALE_RATE = 0.005
"""Least rate of the running means and spreads of scores: they follow the last few hundred events."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class FusionState(NamedTuple):
    """What the fusion learns of S parts, all of it replicated. Rows are the buckets', then the shared one."""

    weights: Doubles  # float64[5, S]: shared weights, and what each bucket adds to them
    squares: Doubles  # float64[5, S]: sums of squared gradients (Adagrad)
    means: Doubles  # float64[5, S]: running mean of each part's scores over the catalogue
    mean_squares: Doubles  # float64[5, S]
    scaled: Longs  # int64[5]: events that the running means have seen
    alone: Doubles  # float64[2, S]: each part's weight were it alone, and its sum of squared gradients
    losses: Doubles  # float64[1 + S]: summed log losses of the fusion, and of each part alone
    counters: Longs  # int64[3]: events, events judged, place of the ring's next entry
    ring: Ints  # int32[R]: items of the last positive events, -1 = none yet


@kernel
def bucket_of(history: int) -> int:
    """Bucket of a user with so many items behind him."""
    if history == 0:
        return 0
    return 1 if history < 5 else (2 if history < 10 else 3)


@kernel
def _mixed(number: int) -> int:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    mixed = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@kernel
def _may_stand(row: int, target: int, recent: Ints, given: Longs) -> bool:
    """May this row stand against the target? Not the target itself, a freed row, or what the user has had."""
    if row < 0 or row == target or given[row] == FREED:
        return False
    had = False
    for position in range(recent.shape[0]):
        had |= recent[position] == row
    return not had


@kernel
def fusion_draw(
    seed: int, target: int, recent: Ints, given: Longs, rows: int, ring_count: Ints, state: FusionState,
    out: Ints, log_share: Doubles,
) -> int:  # fmt: skip
    """Draw what the target must stand against; returns how many are in `out`, the target first.

    All rows when there are no more than out has room for; else half of the draws fall on the ring of recent
    events, so on items as they were used of late, and half on any row. log_share[j] is -log(m q_j), q_j the
    chance of that row at each of the m draws: it makes the sum over draws an estimate of the sum over all.
    """
    out[0], log_share[0], n, room = target, 0.0, 1, out.shape[0] - 1
    if rows <= room:
        for row in range(rows):
            if _may_stand(row, target, recent, given):
                out[n], log_share[n] = row, 0.0
                n += 1
        return n
    ring = state.ring
    filled = min(state.counters[2], ring.shape[0])
    start = _mixed(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(state.counters[0]))
    for draw in range(room):
        bits = _mixed(start + np.uint64(draw + 1) * np.uint64(0x9E3779B97F4A7C15))
        row = np.int64(bits % np.uint64(rows))
        if draw % 2 == 0 and filled > 0:
            row = np.int64(ring[np.int64(bits % np.uint64(filled))])
        if _may_stand(row, target, recent, given):
            of_ring = ring_count[row] / filled if filled > 0 else 1.0 / rows
            out[n] = row
            log_share[n] = -np.log(room * 0.5 * (of_ring + 1.0 / rows))
            n += 1
    return n


@kernel
def fusion_push(row: int, ring_count: Ints, state: FusionState) -> None:
    """Put a positive event's row on the ring, over the oldest one."""
    ring, counters = state.ring, state.counters
    place = counters[2] % ring.shape[0]
    if ring[place] >= 0:
        ring_count[ring[place]] -= 1
    ring[place] = row
    ring_count[row] += 1
    counters[2] += 1


@kernel
def _feature(score: float, is_logit: bool, mean: float, mean_square: float, floor: float) -> float:
    """A part's opinion of an item: the log of its share up to a constant of the user, or a standard score."""
    if is_logit:
        spread = np.sqrt(max(mean_square - mean * mean, 0.0))
        if spread <= 1e-9:
            return 0.0
        return min(max((score - mean) / spread, -MAX_DEVIATIONS), MAX_DEVIATIONS)
    if score <= 0.0 or mean <= 0.0:
        return 0.0
    return np.log(1.0 + min(score / (floor * mean), MAX_RATIO))


@kernel
def _scale_row(bucket: int, state: FusionState) -> int:
    return bucket if state.scaled[bucket] >= 20 else SHARED


@kernel
def _move_scale(row: int, mean: Doubles, mean_square: Doubles, state: FusionState) -> None:
    state.scaled[row] += 1
    rate = max(1.0 / state.scaled[row], SCALE_RATE)
    for part in range(mean.shape[0]):
        state.means[row, part] += rate * (mean[part] - state.means[row, part])
        state.mean_squares[row, part] += rate * (mean_square[part] - state.mean_squares[row, part])


@kernel
def _learn_scales(scores: Floats, n: int, log_share: Doubles, bucket: int, state: FusionState) -> None:
    """Move the running means on by the drawn items, each weighted to stand for the whole catalogue."""
    parts = scores.shape[0]
    mean, mean_square, total = np.zeros(parts), np.zeros(parts), 0.0
    for column in range(1, n):
        share = np.exp(log_share[column])
        total += share
        for part in range(parts):
            score = np.float64(scores[part, column])
            mean[part] += share * score
            mean_square[part] += share * score * score
    if total > 0.0:
        for part in range(parts):
            mean[part] /= total
            mean_square[part] /= total
        _move_scale(bucket, mean, mean_square, state)
        _move_scale(SHARED, mean, mean_square, state)


@kernel
def _softmax(logits: Doubles, n: int) -> float:
    """Logits to probabilities, in place; returns the log loss of the first."""
    highest, first, total = logits[0], logits[0], 0.0
    for column in range(1, n):
        highest = max(highest, logits[column])
    for column in range(n):
        logits[column] = np.exp(logits[column] - highest)
        total += logits[column]
    for column in range(n):
        logits[column] /= total
    return highest + np.log(total) - first


@kernel
def fusion_weights(bucket: int, lowest: float, highest: float, state: FusionState, out: Doubles) -> None:
    """Weights float64[S] in force for a bucket: the shared ones and its own, within their bounds."""
    for part in range(out.shape[0]):
        own = state.weights[SHARED, part] + state.weights[bucket, part]
        out[part] = min(max(own, lowest), highest)


@kernel
def _step(value: float, gradient: float, squares: Doubles, at: int, rate: float) -> float:
    squares[at] += gradient * gradient
    return value - rate * gradient / np.sqrt(squares[at] + 1e-9)


@kernel
def fusion_learn(
    scores: Floats, n: int, log_share: Doubles, is_logit: NDArray[np.uint8], bucket: int, amount: float,
    rate: float, lowest: float, highest: float, floor: float, shrink: float, state: FusionState,
) -> None:  # fmt: skip
    """Judge, then learn: one step down the log loss of the first of n drawn items, scores float32[S, n]."""
    parts = scores.shape[0]
    features, logits, weights = np.empty((parts, n)), np.empty(n), np.empty(parts)
    by = _scale_row(bucket, state)
    for part in range(parts):
        mean, mean_square = state.means[by, part], state.mean_squares[by, part]
        for column in range(n):
            score = np.float64(scores[part, column])
            features[part, column] = _feature(score, is_logit[part] != 0, mean, mean_square, floor)
    fusion_weights(bucket, lowest, highest, state, weights)
    state.counters[1] += 1
    for part in range(parts):
        for column in range(n):
            logits[column] = log_share[column] + state.alone[0, part] * features[part, column]
        state.losses[1 + part] += amount * _softmax(logits, n)
        gradient = -features[part, 0]
        for column in range(n):
            gradient += logits[column] * features[part, column]
        moved = _step(state.alone[0, part], amount * gradient, state.alone[1], part, rate)
        state.alone[0, part] = min(max(moved, 0.0), highest)
    for column in range(n):
        logits[column] = log_share[column]
        for part in range(parts):
            logits[column] += weights[part] * features[part, column]
    state.losses[0] += amount * _softmax(logits, n)
    for part in range(parts):
        gradient = -features[part, 0]
        for column in range(n):
            gradient += logits[column] * features[part, column]
        gradient *= amount
        own, shared = state.weights[bucket, part], state.weights[SHARED, part]
        shared = min(max(_step(shared, gradient, state.squares[SHARED], part, rate), lowest), highest)
        own = _step(own, gradient + amount * shrink * own, state.squares[bucket], part, rate)
        state.weights[SHARED, part] = shared
        state.weights[bucket, part] = min(max(own, lowest - shared), highest - shared)
    _learn_scales(scores, n, log_share, bucket, state)


@kernel
def fusion_score(
    scores: Floats, is_logit: NDArray[np.uint8], bucket: int, lowest: float, highest: float, floor: float,
    state: FusionState, out: Floats,
) -> None:  # fmt: skip
    """Blended scores float32[n] of items with the parts' scores float32[S, n], each by itself."""
    parts = scores.shape[0]
    weights, by = np.empty(parts), _scale_row(bucket, state)
    fusion_weights(bucket, lowest, highest, state, weights)
    for column in range(scores.shape[1]):
        total = 0.0
        for part in range(parts):
            if weights[part] == 0.0:
                continue
            mean, mean_square = state.means[by, part], state.mean_squares[by, part]
            score = np.float64(scores[part, column])
            total += weights[part] * _feature(score, is_logit[part] != 0, mean, mean_square, floor)
        out[column] = total
