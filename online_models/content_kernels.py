# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the content model: tastes, scores, and the metric's steps in log order.

A content vector has W = B + E components: B hashed ones, of which a slot holds the few that aren't 0, and E
of given embeddings, all held. An item's slot says where its content is; -1 = it has none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GIVEN, GONE, kernel

__all__ = ["EMPTY", "Contents", "Metric", "Rule", "fold", "learn", "score", "taste"]

EMPTY = -1
"""`length` of a slot that no item has."""
TRIES = 8
"""Draws for one negative before the event goes without it: in a small catalogue all may be the user's."""
MAX_DIFFERENCE = 30.0
"""The slope beyond it is 1e-13 of the step: nothing, and exp stays far from overflow."""
MAX_RATE = 0.5
MAX_DIAGONAL = np.float32(20.0)
MAX_LINEAR = np.float32(10.0)
FIRST_SQUARES = np.float32(0.01)
"""Adagrad's sum starts here: the first gradients, of some hundredths, then take a tenth of the full step."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Contents(NamedTuple):
    feature: Ints  # int32[slots, F]: hashed components
    value: Floats  # float32[slots, F]
    length: Ints  # int32[slots]: how many of F are used, EMPTY = no item
    dense: Floats  # float32[slots, E]


class Metric(NamedTuple):
    diagonal: Floats  # float32[W]
    linear: Floats  # float32[W]
    diagonal_squares: Floats  # float32[W]: sums of squared gradients (Adagrad)
    linear_squares: Floats  # float32[W]


class Rule(NamedTuple):
    """What a step and a draw obey."""

    rate: float
    linear_rate: float
    penalty: float
    start_weight: float
    decay: float
    query_length: int
    negatives: int
    seed: int


@kernel
def _add(slot: int, factor: float, contents: Contents, buckets: int, out: Floats) -> None:
    """out += factor * the content vector of a slot."""
    for position in range(contents.length[slot]):
        out[contents.feature[slot, position]] += factor * contents.value[slot, position]
    for k in range(contents.dense.shape[1]):
        out[buckets + k] += factor * contents.dense[slot, k]


@kernel
def taste(slots: Ints, weights: Floats, decay: float, buckets: int, contents: Contents, out: Floats) -> None:
    """Mean float32[W] of the contents of slots int32[n], newest first, weighed by weights times
    decay ** position; 0 where no slot has content."""
    out[:] = np.float32(0.0)
    total, share = np.float32(0.0), np.float32(1.0)
    for position in range(slots.shape[0]):
        if slots[position] >= 0:
            factor = share * weights[position]
            total += abs(factor)
            _add(slots[position], factor, contents, buckets, out)
        share *= np.float32(decay)
    if total > 0.0:
        for k in range(out.shape[0]):
            out[k] /= total


@kernel
def fold(user: Floats, metric: Metric, out: Floats) -> None:
    """diagonal * user + linear, float32[W]: what a content vector is multiplied with."""
    for k in range(user.shape[0]):
        out[k] = metric.diagonal[k] * user[k] + metric.linear[k]


@kernel
def _value(slot: int, folded: Floats, buckets: int, contents: Contents) -> float:
    total = np.float32(0.0)
    for position in range(contents.length[slot]):
        total += folded[contents.feature[slot, position]] * contents.value[slot, position]
    for k in range(contents.dense.shape[1]):
        total += folded[buckets + k] * contents.dense[slot, k]
    return total


@kernel
def score(slots: Ints, folded: Floats, buckets: int, contents: Contents, out: Floats) -> None:
    """Scores float32[n] of slots int32[n]; 0 where an item has no content."""
    for position in range(slots.shape[0]):
        slot = slots[position]
        out[position] = _value(slot, folded, buckets, contents) if slot >= 0 else np.float32(0.0)


@kernel
def _drawn(start: np.uint64, draw: int, slot: int, recent: Ints, used: int, contents: Contents) -> int:
    """The slot of a negative: of any item with content but the event's own and the user's recent ones; -1
    where none was found. SplitMix64 (Steele, Lea and Flood 2014)."""
    for attempt in range(TRIES):
        mixed = start + np.uint64(draw * TRIES + attempt + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        other = np.int64((mixed ^ (mixed >> np.uint64(31))) % np.uint64(used))
        free = other != slot and contents.length[other] != EMPTY
        for position in range(recent.shape[0]):
            free &= recent[position] != other
        if free:
            return other
    return -1


@kernel
def _move(
    k: int, difference: float, slope: float, rates: tuple[float, float], direction: float, user: Floats,
    metric: Metric, rule: Rule,
) -> None:  # fmt: skip
    """One component's step up the slope, or back down it."""
    linear = np.float32(slope) * difference
    diagonal = linear * user[k]
    if direction > 0.0:
        metric.linear_squares[k] += linear * linear
        metric.diagonal_squares[k] += diagonal * diagonal
    step = np.float32(rates[1] * direction) / np.sqrt(FIRST_SQUARES + metric.linear_squares[k])
    moved = metric.linear[k] + step * linear
    step = np.float32(rates[0] * direction) / np.sqrt(FIRST_SQUARES + metric.diagonal_squares[k])
    moved_diagonal = metric.diagonal[k] + step * diagonal
    if direction > 0.0:
        moved -= np.float32(rates[1] * rule.penalty) * moved
        pull = np.float32(rates[0] * rule.penalty) * (moved_diagonal - np.float32(rule.start_weight))
        moved_diagonal -= pull if user[k] != 0.0 else np.float32(0.0)
    metric.linear[k] = min(max(moved, -MAX_LINEAR), MAX_LINEAR)
    metric.diagonal[k] = min(max(moved_diagonal, np.float32(0.0)), MAX_DIAGONAL)


@kernel
def _move_pair(
    slot: int, other: int, weight: float, direction: float, buckets: int, user: Floats, contents: Contents,
    metric: Metric, rule: Rule, difference: Floats,
) -> None:  # fmt: skip
    """`difference` float32[W] is scratch, all 0 before and after."""
    _add(slot, np.float32(1.0), contents, buckets, difference)
    _add(other, np.float32(-1.0), contents, buckets, difference)
    sign, x = 1.0 if weight > 0.0 else -1.0, 0.0
    for number in range(2):
        one, side = (slot, 1.0) if number == 0 else (other, -1.0)
        for position in range(contents.length[one]):
            k = contents.feature[one, position]
            x += side * (metric.diagonal[k] * user[k] + metric.linear[k]) * contents.value[one, position]
    for k in range(buckets, user.shape[0]):
        x += (metric.diagonal[k] * user[k] + metric.linear[k]) * difference[k]
    slope = sign / (1.0 + np.exp(min(max(sign * x, -MAX_DIFFERENCE), MAX_DIFFERENCE)))
    rates = min(abs(weight) * rule.rate, MAX_RATE), min(abs(weight) * rule.linear_rate, MAX_RATE)
    for number in range(2):
        one = slot if number == 0 else other
        for position in range(contents.length[one]):
            k = contents.feature[one, position]
            if difference[k] != 0.0:
                _move(k, difference[k], slope, rates, direction, user, metric, rule)
                difference[k] = 0.0
    for k in range(buckets, user.shape[0]):
        _move(k, difference[k], slope, rates, direction, user, metric, rule)
        difference[k] = 0.0


@kernel
def _follow(changes: Ints, changed: int, event: int, slot_of_index: Ints, slot_of_row: Ints) -> int:
    """Move slot_of_row on by the table changes before an event; returns the first change that is left."""
    while changed < changes.shape[0] and changes[changed, 0] == event:
        if changes[changed, 1] == GIVEN:
            slot_of_row[changes[changed, 2]] = slot_of_index[changes[changed, 3]]
        elif changes[changed, 1] == GONE:
            slot_of_row[changes[changed, 2]] = -1
        changed += 1
    return changed


@kernel
def learn(
    changes: Ints, slot_of_index: Ints, item: Ints, recent: Ints, weight: Floats, users: NDArray[np.uint64],
    time_ms: Longs, direction: float, used: int, buckets: int, slot_of_row: Ints, contents: Contents,
    metric: Metric, rule: Rule, user: Floats, difference: Floats,
) -> None:  # fmt: skip
    """Learn events, direction 1, or take a step back from them, -1.

    slot_of_index int32[ids] of the batch's ids; item int32[n] and recent int32[n, R] rows; users uint64[n]
    tokens; slot_of_row int32[>= rows] is moved on by the changes; used: slots that have or had an item;
    user and difference float32[W] are scratch, the second all 0.
    """
    changed, length = 0, min(rule.query_length, recent.shape[1])
    slots, ones = np.empty(length, dtype=np.int32), np.ones(length, dtype=np.float32)
    for event in range(item.shape[0]):
        changed = _follow(changes, changed, event, slot_of_index, slot_of_row)
        slot = slot_of_row[item[event]]
        if slot < 0 or weight[event] == 0.0:
            continue
        for position in range(length):
            row = recent[event, position]
            slots[position] = slot_of_row[row] if row >= 0 else -1
        taste(slots, ones, rule.decay, buckets, contents, user)
        start = (np.uint64(rule.seed) ^ users[event]) + np.uint64(time_ms[event]) * np.uint64(
            0xD6E8FEB86659FD93
        )
        start += np.uint64(item[event]) * np.uint64(0xA0761D6478BD642F)
        for number in range(rule.negatives):
            draw = number if direction > 0.0 else rule.negatives - 1 - number
            other = _drawn(start, draw, slot, slots, used, contents)
            if other >= 0:
                _move_pair(
                    slot, other, weight[event], direction, buckets, user, contents, metric, rule, difference
                )
