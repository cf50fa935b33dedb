# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the factorisation machine: sequential, in log order.

A feature's block is float32[1 + d]: weight and factor; its moments are the sums of squared gradients of both.
An item's row float32[2 d + 6] is its block as the item in question, its block as one of the recent, and the
moments of each; the row float32[d + 3] of a bucket or user is a block and its moments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import FREED, GIVEN, GONE, kernel

__all__ = ["MOMENTS", "Asked", "Rule", "State", "apply", "learn_user", "score", "score_features"]

MOMENTS = 2
MAX_COMPONENT = np.float32(10.0)
MAX_SCORE = 30.0
"""The slope beyond it is 1e-13 of the step: nothing, and exp stays far from overflow."""
MAX_ERROR = 10.0
MAX_SQUARES = np.float32(1e30)
MAX_RATE = 0.5
TRIES = 8
"""Draws for one negative before the event goes without it: in a small catalogue all may be the user's."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Rule(NamedTuple):
    """What a step and a draw obey."""

    squared: bool
    use_ids: bool
    candidates: int
    rate: float
    weight_rate: float
    slowing: float
    penalty: float
    recent_length: int
    recent_decay: float


class State(NamedTuple):
    """What is replicated: items float32[rows, 2 d + 6], buckets float32[B, d + 3], world float32[3] (w_0 and
    its moments), and the items' features, feature int32[rows, F] buckets and amount float32[rows, F] (0 =
    none)."""

    items: Floats
    buckets: Floats
    world: Floats
    feature: Ints
    amount: Floats


class Asked(NamedTuple):
    """The side of an event that isn't the item: own float32[>= 1 + d], the user's block; context float32[C]
    buckets and value float32[C] (0 = none); recent int32[R] rows."""

    own: Floats
    context: Floats
    value: Floats
    recent: Ints


@kernel
def _dot(left: Floats, right: Floats) -> float:
    total = np.float32(0.0)
    for k in range(left.shape[0]):
        total += left[k] * right[k]
    return total


@kernel
def _bounded(value: float) -> float:
    return min(max(value, -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _add(block: Floats, x: float, total: Floats) -> float:
    """Add x times a block's factor to the total; returns x w - x^2 |v|^2 / 2."""
    square = np.float32(0.0)
    for k in range(total.shape[0]):
        part = x * block[1 + k]
        total[k] += part
        square += part * part
    return np.float64(x * block[0]) - 0.5 * square


@kernel
def _recent_weight(recent: Ints, state: State, rule: Rule) -> float:
    """What brings the weights decay^r of the known recent items to a sum of 1; 0 where there are none."""
    total, decay = 0.0, 1.0
    for position in range(min(rule.recent_length, recent.shape[0])):
        if 0 <= recent[position] < state.items.shape[0]:
            total += decay
        decay *= rule.recent_decay
    return 1.0 / total if total > 0.0 and rule.use_ids else 0.0


@kernel
def _user_side(asked: Asked, state: State, rule: Rule, total: Floats) -> float:
    """Fill total float32[d] with the sum of x v over the features that aren't the item's; returns w_0 + the
    sum of x w + the pairs among them."""
    d = total.shape[0]
    total[:] = 0.0
    value = np.float64(state.world[0])
    if rule.use_ids:
        value += _add(asked.own, np.float32(1.0), total)
    for place in range(asked.context.shape[0]):
        bucket = np.int64(asked.context[place])
        if asked.value[place] != 0.0 and 0 <= bucket < state.buckets.shape[0]:
            value += _add(state.buckets[bucket], asked.value[place], total)
    weight = _recent_weight(asked.recent, state, rule)
    for position in range(min(rule.recent_length, asked.recent.shape[0])):
        row = asked.recent[position]
        if weight > 0.0 and 0 <= row < state.items.shape[0]:
            value += _add(state.items[row, 1 + d : 2 + 2 * d], np.float32(weight), total)
        weight *= rule.recent_decay
    return value + 0.5 * _dot(total, total)


@kernel
def _item_side(
    block: Floats, feature: Ints, amount: Floats, state: State, rule: Rule, total: Floats
) -> float:
    """Fill total float32[d] with the sum of x v over an item's features; returns the sum of x w + the pairs
    among them."""
    total[:] = 0.0
    value = 0.0
    if rule.use_ids and block.shape[0] > 0:
        value += _add(block, np.float32(1.0), total)
    for place in range(feature.shape[0]):
        if amount[place] != 0.0:
            value += _add(state.buckets[feature[place]], amount[place], total)
    return value + 0.5 * _dot(total, total)


@kernel
def _slope(estimate: float, target: float, rule: Rule) -> float:
    """Minus the loss's derivative by the score, e of the model's docstring."""
    if rule.squared:
        return min(max(target - estimate, -MAX_ERROR), MAX_ERROR)
    return target - 1.0 / (1.0 + np.exp(-min(max(estimate, -MAX_SCORE), MAX_SCORE)))


@kernel
def _move(
    block: Floats, moments: Floats, moment: int, x: float, slope: float, pull: Floats, gain: float,
    undo: bool, rule: Rule,
) -> None:  # fmt: skip
    """One step of a feature of value x: its weight along x slope, its factor along x (pull - x slope v). The
    steps of values beyond 1 are shorter by x^2, by which the loss is steeper along them."""
    d, squares = pull.shape[0], np.float32(0.0)
    gain /= max(1.0, x * x)
    x, slope = np.float32(x), np.float32(slope)
    for k in range(d):
        g = x * (pull[k] - x * slope * block[1 + k])
        squares += g * g
    if not undo:
        moments[moment] = min(moments[moment] + (x * slope) ** 2, MAX_SQUARES)
        moments[moment + 1] = min(moments[moment + 1] + squares, MAX_SQUARES)
    rate = min(gain * rule.rate, max(rule.rate, MAX_RATE)) / np.sqrt(1.0 + rule.slowing * moments[moment + 1])
    step = np.float32(-rate if undo else rate)
    keep = np.float32(1.0 if undo else max(1.0 - rate * rule.penalty, 0.0))
    for k in range(d):
        g = x * (pull[k] - x * slope * block[1 + k])
        block[1 + k] = _bounded(keep * block[1 + k] + step * g)
    rate = min(gain * rule.weight_rate, max(rule.weight_rate, MAX_RATE))
    step = np.float32((-rate if undo else rate) / np.sqrt(1.0 + rule.slowing * moments[moment]))
    block[0] = _bounded(block[0] + step * x * slope)


@kernel
def _gain(weight: float, rule: Rule) -> float:
    return 1.0 if rule.squared else abs(weight)


@kernel
def _hashed(event_hash: np.uint64, number: int) -> np.uint64:
    """The number-th draw of an event; SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = np.uint64(event_hash) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@kernel
def _is_free(drawn: int, row: int, avoided: Ints, given: Longs) -> bool:
    """May the row stand for what the user did not choose?"""
    if drawn == row or given[drawn] == FREED:
        return False
    free = True
    for position in range(avoided.shape[0]):
        free &= avoided[position] != drawn
    return free


@kernel
def _negative(
    event_hash: np.uint64, draw: int, row: int, avoided: Ints, given: Longs, total: Floats, state: State,
    rule: Rule, found: Floats,
) -> int:  # fmt: skip
    """A negative's row, -1 = none: the first free one drawn, or the best scored of `candidates` draws."""
    known, d = state.items.shape[0], total.shape[0]
    tries, best, best_score = rule.candidates if rule.candidates > 1 else TRIES, -1, -np.inf
    for attempt in range(tries if known > 0 else 0):
        drawn = np.int64(_hashed(event_hash, draw * tries + attempt) % np.uint64(known))
        if not _is_free(drawn, row, avoided, given):
            continue
        if rule.candidates <= 1:
            return drawn
        value = _item_side(
            state.items[drawn, : 1 + d], state.feature[drawn], state.amount[drawn], state, rule, found
        )
        value += _dot(total, found)
        if value > best_score:
            best, best_score = drawn, value
    return best


@kernel
def _teaches(weight: float, value: float, rule: Rule) -> bool:
    return not np.isnan(value) if rule.squared else weight != 0.0


@kernel
def _target(weight: float, value: float, rule: Rule) -> float:
    return value if rule.squared else (1.0 if weight > 0.0 else 0.0)


@kernel
def learn_user(
    row: int, block: Floats, feature: Ints, amount: Floats, weight: float, value: float,
    event_hash: np.uint64, avoided: Ints, given: Longs, asked: Asked, undo: bool, state: State, rule: Rule,
    own: Floats, drawn_out: Ints,
) -> None:  # fmt: skip
    """The owner's half of one event: draws negatives int32[m], -1 = none, and moves the user's row `own`.

    row of the event's item (-1 = it has none yet), its block float32[1 + d] and features int32[F],
    float32[F]; avoided int32[any], rows not to be drawn; `asked.own` is a copy of the user's row from before.
    The state is not changed.
    """
    d = own.shape[0] - 3
    total, found, pull = np.empty(d, np.float32), np.empty(d, np.float32), np.zeros(d, np.float32)
    drawn_out[:] = -1
    if not _teaches(weight, value, rule):
        return
    base = _user_side(asked, state, rule, total)
    estimate = base + _item_side(block, feature, amount, state, rule, found) + _dot(total, found)
    slopes = _slope(estimate, _target(weight, value, rule), rule)
    pull += np.float32(slopes) * found
    for draw in range(drawn_out.shape[0] if weight > 0.0 else 0):
        other = _negative(event_hash, draw, row, avoided, given, total, state, rule, found)
        drawn_out[draw] = other
        if other >= 0:
            part = _item_side(
                state.items[other, : 1 + d], state.feature[other], state.amount[other], state, rule, found
            )
            slope = _slope(base + part + _dot(total, found), 0.0, rule)
            slopes += slope
            pull += np.float32(slope) * found
    pull += np.float32(slopes) * total
    if rule.use_ids:
        _move(own, own, 1 + d, np.float32(1.0), slopes, pull, _gain(weight, rule), undo, rule)


@kernel
def _move_item(
    row: int, slope: float, pull: Floats, gain: float, undo: bool, state: State, rule: Rule
) -> None:
    """Move an item's own block and its features'."""
    d = pull.shape[0]
    if rule.use_ids:
        items = state.items[row]
        _move(items[: 1 + d], items, 2 + 2 * d, np.float32(1.0), slope, pull, gain, undo, rule)
    for place in range(state.feature.shape[1]):
        if state.amount[row, place] != 0.0:
            bucket = state.buckets[state.feature[row, place]]
            _move(bucket, bucket, 1 + d, state.amount[row, place], slope, pull, gain, undo, rule)


@kernel
def _move_user_side(
    asked: Asked, slopes: float, pull: Floats, gain: float, undo: bool, state: State, rule: Rule
) -> None:  # fmt: skip
    """Move w_0, and the context's and the recent items' blocks."""
    d = pull.shape[0]
    _move(state.world, state.world, 1, np.float32(1.0), slopes, pull[:0], gain, undo, rule)
    for place in range(asked.context.shape[0]):
        bucket = np.int64(asked.context[place])
        if asked.value[place] != 0.0 and 0 <= bucket < state.buckets.shape[0]:
            block = state.buckets[bucket]
            _move(block, block, 1 + d, asked.value[place], slopes, pull, gain, undo, rule)
    weight = _recent_weight(asked.recent, state, rule)
    for position in range(min(rule.recent_length, asked.recent.shape[0])):
        row = asked.recent[position]
        if weight > 0.0 and 0 <= row < state.items.shape[0]:
            items = state.items[row]
            _move(
                items[1 + d : 2 + 2 * d], items, 4 + 2 * d, np.float32(weight), slopes, pull, gain, undo, rule
            )
        weight *= rule.recent_decay


@kernel
def _learn_one(
    item: int, negatives: Ints, weight: float, value: float, asked: Asked, undo: bool, state: State,
    rule: Rule, total: Floats, sums: Floats, slopes: Floats, pull: Floats,
) -> None:  # fmt: skip
    """One event; every gradient is taken at the sums from before it. sums float32[1 + m, d]."""
    d = total.shape[0]
    base, gain = _user_side(asked, state, rule, total), _gain(weight, rule)
    for place in range(sums.shape[0]):
        row = item if place == 0 else negatives[place - 1]
        slopes[place] = 0.0
        if row >= 0 and (place == 0 or row != item):
            part = _item_side(
                state.items[row, : 1 + d], state.feature[row], state.amount[row], state, rule, sums[place]
            )
            target = _target(weight, value, rule) if place == 0 else 0.0
            slopes[place] = _slope(base + part + _dot(total, sums[place]), target, rule)
    for place in range(sums.shape[0]):
        if slopes[place] != 0.0:
            pull[:] = slopes[place] * (total + sums[place])
            row = item if place == 0 else negatives[place - 1]
            _move_item(row, slopes[place], pull, gain, undo, state, rule)
    pull[:] = slopes.sum() * total
    for place in range(sums.shape[0]):
        if slopes[place] != 0.0:
            pull += slopes[place] * sums[place]
    _move_user_side(asked, slopes.sum(), pull, gain, undo, state, rule)


@kernel
def apply(
    changes: Ints, start: Floats, start_feature: Ints, start_amount: Floats, item: Ints, negatives: Ints,
    recent: Ints, weight: Floats, value: Floats, users: Floats, undo: bool, state: State, rule: Rule,
) -> None:  # fmt: skip
    """Every replica's half: moves w_0 and the rows of items, recent items and buckets in place.

    users float32[n, 1 + d + 2 C]: the user's block, the buckets of the context, its values. A row that is
    given to an item gets the next of `start` and of its features, one that is freed is 0. undo: step back,
    where the events are withdrawn.
    """
    d, changed, given = (state.items.shape[1] - 6) // 2, 0, 0
    columns = (users.shape[1] - 1 - d) // 2
    total, pull = np.empty(d, np.float32), np.empty(d, np.float32)
    sums = np.empty((1 + negatives.shape[1], d), np.float32)
    slopes = np.empty(1 + negatives.shape[1], np.float32)
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            row = changes[changed, 2]
            if changes[changed, 1] == GIVEN:
                state.items[row] = start[given]
                state.feature[row], state.amount[row] = start_feature[given], start_amount[given]
                given += 1
            elif changes[changed, 1] == GONE:
                state.items[row], state.feature[row], state.amount[row] = 0.0, 0, 0.0
            changed += 1
        user = users[event]
        asked = Asked(user[: 1 + d], user[1 + d : 1 + d + columns], user[1 + d + columns :], recent[event])
        if _teaches(weight[event], value[event], rule):
            _learn_one(
                item[event], negatives[event], weight[event], value[event], asked, undo, state, rule,
                total, sums, slopes, pull,
            )  # fmt: skip


@kernel
def score(asked: Asked, rows: Ints, state: State, rule: Rule, out: Floats) -> None:
    """Scores float32[n] of rows int32[n]; of a row that is -1 or not in the table, without an item."""
    d = (state.items.shape[1] - 6) // 2
    total, found = np.empty(d, np.float32), np.empty(d, np.float32)
    base = _user_side(asked, state, rule, total)
    for position in range(rows.shape[0]):
        row, value = rows[position], base
        if 0 <= row < state.items.shape[0]:
            value += _item_side(
                state.items[row, : 1 + d], state.feature[row], state.amount[row], state, rule, found
            )
            value += _dot(total, found)
        out[position] = value


@kernel
def score_features(asked: Asked, feature: Ints, amount: Floats, state: State, rule: Rule) -> float:
    """Score of an item that has no row, by its features int32[F], float32[F] alone."""
    d = (state.items.shape[1] - 6) // 2
    total, found = np.empty(d, np.float32), np.empty(d, np.float32)
    value = _user_side(asked, state, rule, total)
    value += _item_side(total[:0], feature, amount, state, rule, found)
    return np.float32(value + _dot(total, found))
