# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of Bayesian personalised ranking: sequential, in log order.

An item's row is float32[1 + d]: bias and factor. `tree` is a Fenwick tree (Fenwick 1994) over whole-numbered
weights, so that it is the same however it was built; int64[1 + 2**h], or of length 1 where it isn't needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import FREED, GIVEN, GONE, kernel

__all__ = [
    "DYNAMIC",
    "POPULARITY",
    "UNIFORM",
    "Rule",
    "apply",
    "build_tree",
    "forget",
    "learn_user",
    "score",
    "uncount",
    "unlearn",
    "unlearn_user",
]

UNIFORM, POPULARITY, DYNAMIC = range(3)
TRIES = 8
"""Draws for one negative before the event goes without it: in a small catalogue all may be the user's."""
WEIGHT_UNIT = 256.0
"""Sampling weights are whole numbers of 1 / 256: 1e6 items of 1e9 events each stay within int64."""
MAX_COMPONENT = np.float32(10.0)
MAX_DIFFERENCE = 30.0
"""The slope beyond it is 1e-13 of the step: nothing, and exp stays far from overflow."""
MAX_RATE = 0.5
UNDO_ROUNDS = 4
"""Where a step came from is a fixed point: it is looked for so many times."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Rule(NamedTuple):
    """What a step and a draw obey."""

    sampling: int
    exponent: float
    candidates: int
    rate: float
    bias_rate: float
    penalty: float
    bias_penalty: float


@kernel
def _dot(left: Floats, right: Floats) -> float:
    """Inner product in a fixed order: eight partial sums, which may share one vector register."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0.0)
    whole = left.shape[0] // 8 * 8
    for k in range(0, whole, 8):
        s0 += left[k] * right[k]
        s1 += left[k + 1] * right[k + 1]
        s2 += left[k + 2] * right[k + 2]
        s3 += left[k + 3] * right[k + 3]
        s4 += left[k + 4] * right[k + 4]
        s5 += left[k + 5] * right[k + 5]
        s6 += left[k + 6] * right[k + 6]
        s7 += left[k + 7] * right[k + 7]
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for k in range(whole, left.shape[0]):
        total += left[k] * right[k]
    return total


@kernel
def _tree_weight(count: int, exponent: float) -> int:
    return np.int64(WEIGHT_UNIT * np.float64(count) ** exponent) if count > 0 else np.int64(0)


@kernel
def _add(tree: Longs, row: int, amount: int) -> None:
    place = row + 1
    while place < tree.shape[0]:
        tree[place] += amount
        place += place & -place


@kernel
def build_tree(counts: Longs, exponent: float, tree: Longs) -> None:
    """Fill a tree of zeros with the weights count ** exponent of the rows."""
    for row in range(counts.shape[0]):
        _add(tree, row, _tree_weight(counts[row], exponent))


@kernel
def _row_at(tree: Longs, target: int) -> int:
    """The row within whose weight `target` falls, 0 <= target < sum of all weights."""
    place, step = 0, (tree.shape[0] - 1)
    while step > 0:
        if place + step < tree.shape[0] and tree[place + step] <= target:
            place += step
            target -= tree[place]
        step //= 2
    return place


@kernel
def _drawn(event_hash: np.uint64, number: int, known: int, tree: Longs, sampling: int) -> int:
    """The number-th row drawn for an event, -1 where none can be; SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = np.uint64(event_hash) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    if sampling == POPULARITY:
        total = tree[tree.shape[0] - 1]
        return _row_at(tree, np.int64(mixed % np.uint64(total))) if total > 0 else -1
    return np.int64(mixed % np.uint64(known)) if known > 0 else -1


@kernel
def _is_free(drawn: int, row: int, recent: Ints, given: Longs, known: int) -> bool:
    """May the row stand for what the user did not choose?"""
    if drawn < 0 or drawn >= known or drawn == row or given[drawn] == FREED:
        return False
    free = True
    for position in range(recent.shape[0]):
        free &= recent[position] != drawn
    return free


@kernel
def _negative(
    event_hash: np.uint64, draw: int, row: int, sign: float, recent: Ints, given: Longs, user: Floats,
    table: Floats, tree: Longs, rule: Rule,
) -> int:  # fmt: skip
    """A negative's row, -1 = none found: the first free one drawn, or, dynamic, that whose sign * score is
    highest."""
    dynamic, known = rule.sampling == DYNAMIC, table.shape[0]
    tries, best, best_score = rule.candidates if dynamic else TRIES, -1, -np.inf
    for attempt in range(tries):
        drawn = _drawn(event_hash, draw * tries + attempt, known, tree, rule.sampling)
        if not _is_free(drawn, row, recent, given, known):
            continue
        if not dynamic:
            return drawn
        value = sign * (table[drawn, 0] + _dot(user, table[drawn, 1:]))
        if value > best_score:
            best, best_score = drawn, value
    return best


@kernel
def _slope(user: Floats, item: Floats, other: Floats, sign: float) -> float:
    """d ln sigma(sign x) / dx of x = x_uij: sign / (1 + exp(sign x))."""
    x = np.float64(item[0] - other[0]) + _dot(user, item[1:]) - _dot(user, other[1:])
    return sign / (1.0 + np.exp(min(max(sign * x, -MAX_DIFFERENCE), MAX_DIFFERENCE)))


@kernel
def _bounded(value: float) -> float:
    return min(max(value, -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _rates(weight: float, rule: Rule) -> tuple[float, float]:
    return min(abs(weight) * rule.rate, MAX_RATE), min(abs(weight) * rule.bias_rate, MAX_RATE)


@kernel
def learn_user(
    row: int, item: Floats, weight: float, event_hash: np.uint64, recent: Ints, given: Longs, table: Floats,
    tree: Longs, rule: Rule, user: Floats, drawn_out: Ints,
) -> None:  # fmt: skip
    """The owner's half of one event: draws negatives int32[m], -1 = none, and moves the user float32[d].

    row of the event's item (-1 = it has none yet), item float32[1 + d] its row or start row, recent int32[R]
    rows of the user's recent items, given int64[>= rows]; table float32[rows, 1 + d] is not changed.
    """
    sign, (rate, _) = 1.0 if weight > 0.0 else -1.0, _rates(weight, rule)
    keep = np.float32(1.0) - np.float32(rate * rule.penalty)
    for draw in range(drawn_out.shape[0]):
        drawn_out[draw] = -1
        if weight == 0.0:
            continue
        other = _negative(event_hash, draw, row, sign, recent, given, user, table, tree, rule)
        drawn_out[draw] = other
        if other >= 0:
            step = np.float32(rate * _slope(user, item, table[other], sign))
            for k in range(user.shape[0]):
                difference = item[1 + k] - table[other, 1 + k]
                user[k] = _bounded(keep * user[k] + step * difference)


@kernel
def _move_pair(item: Floats, other: Floats, user: Floats, weight: float, rule: Rule) -> None:
    sign, (rate, bias_rate) = 1.0 if weight > 0.0 else -1.0, _rates(weight, rule)
    slope = _slope(user, item, other, sign)
    step, bias_step = np.float32(rate * slope), np.float32(bias_rate * slope)
    keep = np.float32(1.0) - np.float32(rate * rule.penalty)
    keep_bias = np.float32(1.0) - np.float32(bias_rate * rule.bias_penalty)
    item[0] = _bounded(keep_bias * item[0] + bias_step)
    other[0] = _bounded(keep_bias * other[0] - bias_step)
    for k in range(user.shape[0]):
        item[1 + k] = _bounded(keep * item[1 + k] + step * user[k])
        other[1 + k] = _bounded(keep * other[1 + k] - step * user[k])


@kernel
def _move_pair_back(item: Floats, other: Floats, user: Floats, weight: float, rule: Rule) -> None:
    """Inverse of `_move_pair`; what regularization took stays taken."""
    sign, (rate, bias_rate) = 1.0 if weight > 0.0 else -1.0, _rates(weight, rule)
    item_after, other_after = item.copy(), other.copy()
    for _ in range(UNDO_ROUNDS):
        slope = _slope(user, item, other, sign)
        step, bias_step = np.float32(rate * slope), np.float32(bias_rate * slope)
        item[0], other[0] = _bounded(item_after[0] - bias_step), _bounded(other_after[0] + bias_step)
        for k in range(1, item.shape[0]):
            item[k] = _bounded(item_after[k] - step * user[k - 1])
            other[k] = _bounded(other_after[k] + step * user[k - 1])


@kernel
def _count(row: int, count: int, counts: Longs, tree: Longs, exponent: float) -> None:
    if tree.shape[0] > 1:
        _add(tree, row, _tree_weight(count, exponent) - _tree_weight(counts[row], exponent))
    counts[row] = count


@kernel
def unlearn_user(
    row: int, item: Floats, weight: float, event_hash: np.uint64, recent: Ints, given: Longs, table: Floats,
    tree: Longs, rule: Rule, user: Floats, drawn_out: Ints, counts: Longs,
) -> None:  # fmt: skip
    """The owner's half of withdrawing an event: draws by the same hash, moves the user back, last pair first.

    The slope of a step is that at its start, which is found by going back from its end a few times. Draws by
    popularity leave the event itself out; tree and counts are as before afterwards.
    """
    sign, (rate, _) = 1.0 if weight > 0.0 else -1.0, _rates(weight, rule)
    now, count = user.copy(), counts[row] if 0 <= row < counts.shape[0] and weight > 0.0 else 0
    if count > 0:
        _count(row, count - 1, counts, tree, rule.exponent)
    for draw in range(drawn_out.shape[0]):
        drawn_out[draw] = -1
        if weight != 0.0:
            drawn_out[draw] = _negative(event_hash, draw, row, sign, recent, given, now, table, tree, rule)
    if count > 0:
        _count(row, count, counts, tree, rule.exponent)
    for draw in range(drawn_out.shape[0] - 1, -1, -1):
        if drawn_out[draw] >= 0:
            other, after = table[drawn_out[draw]], user.copy()
            for _ in range(UNDO_ROUNDS):
                step = np.float32(rate * _slope(user, item, other, sign))
                for k in range(user.shape[0]):
                    user[k] = _bounded(after[k] - step * (item[1 + k] - other[1 + k]))


@kernel
def apply(
    changes: Ints, start: Floats, item: Ints, negatives: Ints, weight: Floats, users: Floats,
    table: Floats, counts: Longs, tree: Longs, rule: Rule,
) -> None:  # fmt: skip
    """Every replica's half: moves the rows of item and negatives in place, from the users before their own
    step, and counts events of positive weight.

    users float32[n, d]; counts int64[>= rows]. A row that is given to an item gets the next of `start`
    float32[given, 1 + d], one that is freed is 0.
    """
    changed, given = 0, 0
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            row = changes[changed, 2]
            if changes[changed, 1] == GIVEN:
                table[row] = start[given]
                given += 1
            elif changes[changed, 1] == GONE:
                table[row] = 0.0
                _count(row, 0, counts, tree, rule.exponent)
            changed += 1
        row = item[event]
        for draw in range(negatives.shape[1]):
            other = negatives[event, draw]
            if other >= 0 and other != row and weight[event] != 0.0:
                _move_pair(table[row], table[other], users[event], weight[event], rule)
        if weight[event] > 0.0:
            _count(row, counts[row] + 1, counts, tree, rule.exponent)


@kernel
def uncount(item: Ints, weight: Floats, counts: Longs, tree: Longs, rule: Rule) -> None:
    """Subtract events of positive weight from their items' counts."""
    for event in range(item.shape[0]):
        if weight[event] > 0.0 and counts[item[event]] > 0:
            _count(item[event], counts[item[event]] - 1, counts, tree, rule.exponent)


@kernel
def unlearn(
    item: Ints, negatives: Ints, weight: Floats, users: Floats, table: Floats, counts: Longs, tree: Longs,
    rule: Rule,
) -> None:  # fmt: skip
    """Every replica's half of withdrawing: the inverse of `apply`, with users float32[n, d] as their owners
    took them back."""
    for event in range(item.shape[0]):
        row = item[event]
        for draw in range(negatives.shape[1] - 1, -1, -1):
            other = negatives[event, draw]
            if other >= 0 and other != row and weight[event] != 0.0:
                _move_pair_back(table[row], table[other], users[event], weight[event], rule)
    uncount(item, weight, counts, tree, rule)


@kernel
def forget(rows: Ints, table: Floats, counts: Longs, tree: Longs, rule: Rule) -> None:
    """Forget rows whose items are gone."""
    for place in range(rows.shape[0]):
        table[rows[place]] = 0.0
        _count(rows[place], 0, counts, tree, rule.exponent)


@kernel
def score(user: Floats, rows: Ints, table: Floats, out: Floats) -> None:
    """Scores float32[n] of rows int32[n] for user float32[d]; 0 where a row is -1 or not in the table."""
    for position in range(rows.shape[0]):
        row = rows[position]
        known = row >= 0 and row < table.shape[0]
        out[position] = table[row, 0] + _dot(user, table[row, 1:]) if known else np.float32(0.0)
