# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the biased matrix factorisation: sequential, in log order.

A row is float32[1 + d + 2]: bias, factor, and the sums of both's squared gradients. The user that a
record carries has no moments: float32[1 + d].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GIVEN, GONE, kernel

__all__ = ["Rule", "apply", "learn_user", "score", "uncount", "unlearn", "unlearn_user"]

MAX_BIAS = np.float32(1e3)
MAX_COMPONENT = np.float32(10.0)
MAX_MOMENT = np.float32(1e30)
MOST_UNDONE = 0.5
"""Of a step that took more of the error than this, only a part is undone: its inverse would be unstable."""
UNDO_ROUNDS = 8
"""Bounds on a row's parts: with that on the error, no stream reaches an infinity or NaN."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]


class Rule(NamedTuple):
    """What a step obeys: rates, 0 of the bias = no biases and no mean; penalties are 2 lambda."""

    adaptive: bool
    bias_rate: float
    rate: float
    bias_penalty: float
    penalty: float
    low: float
    high: float
    max_error: float


@kernel
def _dot(left: Floats, right: Floats) -> float:
    """Inner product in a fixed order: four partial sums, which may share one vector register."""
    s0 = s1 = s2 = s3 = np.float32(0.0)
    whole = left.shape[0] // 4 * 4
    for k in range(0, whole, 4):
        s0 += left[k] * right[k]
        s1 += left[k + 1] * right[k + 1]
        s2 += left[k + 2] * right[k + 2]
        s3 += left[k + 3] * right[k + 3]
    total = (s0 + s1) + (s2 + s3)
    for k in range(whole, left.shape[0]):
        total += left[k] * right[k]
    return total


@kernel
def _rating(value: float, weight: float, rule: Rule) -> float:
    """The rating that an event states, within its bounds; NaN where it states none."""
    if np.isnan(value):
        return rule.low if weight < 0.0 and rule.low > -np.inf else np.nan
    return min(max(value, rule.low), rule.high)


@kernel
def _mean(totals: Doubles, rule: Rule) -> float:
    return totals[0] / totals[1] if rule.bias_rate > 0.0 and totals[1] > 0.0 else 0.0


@kernel
def _step_size(rate: float, moment: float, adaptive: bool) -> float:
    """The rate, or Adagrad's after gradients whose squares sum to `moment`."""
    return rate / np.sqrt(1.0 + moment) if adaptive else rate


@kernel
def _move(moved: Floats, fixed: Floats, error: float, d: int, rule: Rule) -> None:
    """One gradient step of a row: bias by error, factor by error times the other's factor, less penalties."""
    slope = np.float32(error)
    gradient = slope - np.float32(rule.bias_penalty) * moved[0]
    square = np.float32(0.0)
    for k in range(1, 1 + d):
        part = slope * fixed[k] - np.float32(rule.penalty) * moved[k]
        square += part * part
    if rule.adaptive:
        moved[1 + d] = min(moved[1 + d] + gradient * gradient, MAX_MOMENT)
        moved[2 + d] = min(moved[2 + d] + square / np.float32(d), MAX_MOMENT)
    bias_size = np.float32(_step_size(rule.bias_rate, moved[1 + d], rule.adaptive))
    size = np.float32(_step_size(rule.rate, moved[2 + d], rule.adaptive))
    moved[0] = min(max(moved[0] + bias_size * gradient, -MAX_BIAS), MAX_BIAS)
    for k in range(1, 1 + d):
        part = slope * fixed[k] - np.float32(rule.penalty) * moved[k]
        moved[k] = min(max(moved[k] + size * part, -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _error(rating: float, mean: float, user: Floats, item: Floats, d: int, rule: Rule) -> float:
    error = rating - (mean + user[0] + item[0] + _dot(user[1 : 1 + d], item[1 : 1 + d]))
    return min(max(error, -rule.max_error), rule.max_error)


@kernel
def _move_back(
    moved: Floats, fixed: Floats, rating: float, mean: float, d: int, rule: Rule, out: Floats
) -> float:
    """Inverse of `_move` into out float32[1 + d], from the sizes of its end, which it used; returns the error
    that it moved by. What regularization took stays taken."""
    bias_size = _step_size(rule.bias_rate, moved[1 + d], rule.adaptive)
    size = _step_size(rule.rate, moved[2 + d], rule.adaptive)
    taken = bias_size + size * np.float64(_dot(fixed[1 : 1 + d], fixed[1 : 1 + d]))
    part = min(1.0, MOST_UNDONE / max(taken, 1e-9))
    error = rating - (mean + fixed[0] + moved[0] + _dot(moved[1 : 1 + d], fixed[1 : 1 + d]))
    error = min(max(error / (1.0 - part * taken), -rule.max_error), rule.max_error)
    bias_step, step = np.float32(part * bias_size * error), np.float32(part * size * error)
    out[0] = min(max(moved[0] - bias_step, -MAX_BIAS), MAX_BIAS)
    for k in range(1, 1 + d):
        out[k] = min(max(moved[k] - step * fixed[k], -MAX_COMPONENT), MAX_COMPONENT)
    return error


@kernel
def _lessen_moments(moved: Floats, fixed: Floats, error: float, d: int, rule: Rule) -> None:
    """Subtract a step's squared gradients from a row's sums of them."""
    if rule.adaptive:
        square = _dot(fixed[1 : 1 + d], fixed[1 : 1 + d]) / np.float32(d)
        moved[1 + d] = max(moved[1 + d] - np.float32(error * error), np.float32(0.0))
        moved[2 + d] = max(moved[2 + d] - np.float32(error * error) * square, np.float32(0.0))


@kernel
def _mean_without(rating: float, totals: Doubles, rule: Rule) -> float:
    more = rule.bias_rate > 0.0 and totals[1] > 1.5
    return (totals[0] - rating) / (totals[1] - 1.0) if more else 0.0


@kernel
def unlearn_user(
    value: float, weight: float, totals: Doubles, item: Floats, user: Floats, rule: Rule
) -> None:
    """The owner's half of withdrawing an event. The item has learned it since: what it was before follows
    from the user before, and the other way round, in a few rounds."""
    rating, d = _rating(value, weight, rule), item.shape[0] - 3
    if np.isnan(rating):
        return
    mean, error = _mean_without(rating, totals, rule), 0.0
    before, item_before = user[: 1 + d].copy(), item[: 1 + d].copy()
    for _ in range(UNDO_ROUNDS):
        error = _move_back(user, item_before, rating, mean, d, rule, before)
        _move_back(item, before, rating, mean, d, rule, item_before)
    user[: 1 + d] = before
    _lessen_moments(user, item_before, error, d, rule)


@kernel
def uncount(item: Ints, value: Floats, weight: Floats, totals: Doubles, rule: Rule) -> None:
    """Take ratings out of the mean."""
    for event in range(item.shape[0]):
        rating = _rating(value[event], weight[event], rule)
        if not np.isnan(rating):
            more = totals[1] > 1.5
            totals[0], totals[1] = (totals[0] - rating, totals[1] - 1.0) if more else (0.0, 0.0)


@kernel
def unlearn(
    item: Ints, value: Floats, weight: Floats, users: Floats, totals: Doubles, table: Floats, rule: Rule
) -> None:
    """Every replica's half: the inverse of `apply`, with users float32[n, 1 + d] as their owners took them
    back."""
    d = table.shape[1] - 3
    found = np.empty(1 + d, dtype=np.float32)
    for event in range(item.shape[0]):
        rating = _rating(value[event], weight[event], rule)
        if not np.isnan(rating):
            row, user = table[item[event]], users[event]
            error = _move_back(row, user, rating, _mean_without(rating, totals, rule), d, rule, found)
            row[: 1 + d] = found
            _lessen_moments(row, user, error, d, rule)
            uncount(
                item[event : event + 1], value[event : event + 1], weight[event : event + 1], totals, rule
            )


@kernel
def learn_user(value: float, weight: float, totals: Doubles, item: Floats, user: Floats, rule: Rule) -> None:
    """The owner's half of one event: moves the user's row, from the item's and the mean before the event."""
    rating = _rating(value, weight, rule)
    if not np.isnan(rating):
        d = item.shape[0] - 3
        _move(user, item, _error(rating, _mean(totals, rule), user, item, d, rule), d, rule)


@kernel
def apply(
    changes: Ints, start: Floats, item: Ints, value: Floats, weight: Floats, users: Floats,
    totals: Doubles, table: Floats, rule: Rule,
) -> None:  # fmt: skip
    """Every replica's half: moves items' rows and the mean in place, from the users before their own step.

    users float32[n, 1 + d]; totals float64[2], sum and number of the ratings; table float32[items, d + 3].
    A row that is given to an item gets the next of `start` float32[given, d + 3], one that is freed is 0.
    """
    changed, given, d = 0, 0, table.shape[1] - 3
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GIVEN:
                table[changes[changed, 2]] = start[given]
                given += 1
            elif changes[changed, 1] == GONE:
                table[changes[changed, 2]] = 0.0
            changed += 1
        rating = _rating(value[event], weight[event], rule)
        if not np.isnan(rating):
            row, user = table[item[event]], users[event]
            _move(row, user, _error(rating, _mean(totals, rule), user, row, d, rule), d, rule)
            totals[0] += rating
            totals[1] += 1.0


@kernel
def score(user: Floats, rows: Ints, totals: Doubles, table: Floats, rule: Rule, out: Floats) -> None:
    """Estimates float32[n] of rows int32[n] for user float32[>= 1 + d], within the bounds; an unknown item
    (-1) has neither bias nor factor."""
    d, mean = table.shape[1] - 3, _mean(totals, rule)
    for position in range(rows.shape[0]):
        row, estimate = rows[position], mean + user[0]
        if row >= 0 and row < table.shape[0]:
            estimate += table[row, 0] + _dot(user[1 : 1 + d], table[row, 1 : 1 + d])
        out[position] = min(max(estimate, rule.low), rule.high)
