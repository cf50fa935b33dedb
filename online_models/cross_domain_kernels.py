# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the cross-domain model: pairwise steps through each domain's mapping, in log order.

An item's row is float32[1 + d]: bias b and factor q. A domain is a slot: 0 is the common one, that of items
without a domain and of all domains for which no slot was left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import FREED, GIVEN, GONE, kernel

__all__ = ["GIVEN", "Domains", "Rule", "apply", "learn_user", "score", "slot_of"]

TRIES = 16
"""Draws for one negative at most: in a small catalogue all may be the user's, and a domain may be rare."""
MAX_COMPONENT = np.float32(10.0)
MAX_DIFFERENCE = 30.0
"""The slope beyond it is 1e-13 of the step: nothing, and exp stays far from overflow."""
MAX_RATE = 0.5

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Domains(NamedTuple):
    mapping: Floats  # float32[D, d, d]: W
    codes: Ints  # int32[D]: hash of each slot's name, 0 = none yet
    count: Longs  # int64[1]: slots in use, at least 1
    of_row: Ints  # int32[>= rows]: slot of each item


class Rule(NamedTuple):
    """What a step obeys."""

    candidates: int
    rate: float
    bias_rate: float
    mapping_rate: float
    penalty: float
    mapping_penalty: float


@kernel
def slot_of(code: int, domains: Domains) -> int:
    """A domain's slot; the common one for a domain without."""
    for slot in range(1, domains.count[0]):
        if domains.codes[slot] == code:
            return slot
    return 0


@kernel
def _slot_for(code: int, domains: Domains) -> int:
    """As `slot_of`, with a new slot, whose mapping is the identity as it stands, for a domain first seen."""
    slot = slot_of(code, domains)
    if slot == 0 and code != 0 and domains.count[0] < domains.codes.shape[0]:
        slot = domains.count[0]
        domains.codes[slot] = code
        domains.count[0] += 1
    return slot


@kernel
def _map(mapping: Floats, user: Floats, out: Floats) -> None:
    """out = W p, each component summed in order."""
    for row in range(user.shape[0]):
        total = np.float32(0.0)
        for k in range(user.shape[0]):
            total += mapping[row, k] * user[k]
        out[row] = total


@kernel
def _value(item: Floats, mapped: Floats) -> float:
    """b + (W p) . q"""
    total = np.float32(0.0)
    for k in range(mapped.shape[0]):
        total += item[1 + k] * mapped[k]
    return item[0] + total


@kernel
def _slope(x: float, sign: float) -> float:
    """d ln sigma(sign x) / dx = sign / (1 + exp(sign x))."""
    return sign / (1.0 + np.exp(min(max(sign * np.float64(x), -MAX_DIFFERENCE), MAX_DIFFERENCE)))


@kernel
def _bounded(value: float) -> float:
    return min(max(value, -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _is_free(drawn: int, row: int, recent: Ints, given: Longs) -> bool:
    """May the row stand for what the user did not choose?"""
    free = drawn != row and given[drawn] != FREED
    for position in range(recent.shape[0]):
        free &= recent[position] != drawn
    return free


@kernel
def _negative(
    event_hash: np.uint64, draw: int, row: int, slot: int, sign: float, recent: Ints, given: Longs,
    user: Floats, table: Floats, domains: Domains, candidates: int, mapped: Floats,
) -> int:  # fmt: skip
    """A negative's row, -1 = none found: of the first free ones drawn that whose sign * score is highest; for
    every second draw of those of the event's own domain, if there are any. SplitMix64 (Steele, Lea and Flood
    2014)."""
    best, other, found, best_score, known = -1, -1, 0, -np.inf, table.shape[0]
    for attempt in range(TRIES if known > 0 else 0):
        mixed = np.uint64(event_hash) + np.uint64(draw * TRIES + attempt + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        drawn = np.int64((mixed ^ (mixed >> np.uint64(31))) % np.uint64(known))
        if found == candidates or not _is_free(drawn, row, recent, given):
            continue
        if draw % 2 == 0 and domains.of_row[drawn] != slot:
            other = drawn if other < 0 else other
            continue
        _map(domains.mapping[domains.of_row[drawn]], user, mapped)
        value, found = sign * _value(table[drawn], mapped), found + 1
        if value > best_score:
            best, best_score = drawn, value
    return best if best >= 0 else other


@kernel
def _pull(item: Floats, mapping: Floats, step: float, out: Floats) -> None:
    """out += step W^T q"""
    for k in range(out.shape[0]):
        total = np.float32(0.0)
        for row in range(out.shape[0]):
            total += mapping[row, k] * item[1 + row]
        out[k] += np.float32(step) * total


@kernel
def learn_user(
    row: int, slot: int, item: Floats, weight: float, event_hash: np.uint64, recent: Ints, given: Longs,
    table: Floats, domains: Domains, rule: Rule, direction: float, user: Floats, drawn_out: Ints,
) -> None:  # fmt: skip
    """The owner's half of one event: draws negatives int32[m], -1 = none, and moves the user float32[d] up
    the slope (direction 1), or back down it (-1). Items and mappings are not changed.

    row of the event's item (-1 = it has none yet), slot of its domain, item float32[1 + d] its row or start
    row, recent int32[R] rows of the user's recent items, given int64[>= rows].
    """
    sign, rate = 1.0 if weight > 0.0 else -1.0, min(abs(weight) * rule.rate, MAX_RATE)
    mapped, gradient = np.empty_like(user), np.empty_like(user)
    for number in range(drawn_out.shape[0]):
        draw = number if direction > 0.0 else drawn_out.shape[0] - 1 - number
        drawn_out[draw] = -1
        if weight == 0.0:
            continue
        other = _negative(
            event_hash, draw, row, slot, sign, recent, given, user, table, domains, rule.candidates, mapped
        )
        drawn_out[draw] = other
        if other < 0:
            continue
        other_slot = domains.of_row[other]
        _map(domains.mapping[slot], user, mapped)
        x = _value(item, mapped)
        _map(domains.mapping[other_slot], user, mapped)
        slope = _slope(x - _value(table[other], mapped), sign)
        gradient[:] = np.float32(0.0)
        _pull(item, domains.mapping[slot], 1.0, gradient)
        _pull(table[other], domains.mapping[other_slot], -1.0, gradient)
        step, shrink = np.float32(direction * rate * slope), np.float32(rate * rule.penalty)
        for k in range(user.shape[0]):
            kept = user[k] - shrink * user[k] if direction > 0.0 else user[k]
            user[k] = _bounded(kept + step * gradient[k])


@kernel
def _move_item(item: Floats, mapped: Floats, step: float, bias_step: float, shrink: float) -> None:
    item[0] = _bounded(item[0] + np.float32(bias_step))
    for k in range(mapped.shape[0]):
        item[1 + k] = _bounded(item[1 + k] - np.float32(shrink) * item[1 + k] + np.float32(step) * mapped[k])


@kernel
def _move_mapping(mapping: Floats, item: Floats, user: Floats, step: float, shrink: float) -> None:
    """W += step q p^T - shrink (W - I)"""
    for row in range(user.shape[0]):
        for k in range(user.shape[0]):
            start = np.float32(1.0) if row == k else np.float32(0.0)
            moved = mapping[row, k] - np.float32(shrink) * (mapping[row, k] - start)
            mapping[row, k] = _bounded(moved + np.float32(step) * item[1 + row] * user[k])


@kernel
def _move_pair(
    row: int, other: int, user: Floats, weight: float, table: Floats, domains: Domains, rule: Rule,
    direction: float, mapped: Floats, other_mapped: Floats,
) -> None:  # fmt: skip
    slot, other_slot = domains.of_row[row], domains.of_row[other]
    _map(domains.mapping[slot], user, mapped)
    _map(domains.mapping[other_slot], user, other_mapped)
    size, sign = abs(weight), 1.0 if weight > 0.0 else -1.0
    slope = _slope(_value(table[row], mapped) - _value(table[other], other_mapped), sign) * direction
    rate, bias_rate = min(size * rule.rate, MAX_RATE), min(size * rule.bias_rate, MAX_RATE)
    mapping_rate = min(size * rule.mapping_rate, MAX_RATE)
    forward = 1.0 if direction > 0.0 else 0.0
    shrink, mapping_shrink = forward * rate * rule.penalty, forward * mapping_rate * rule.mapping_penalty
    step = mapping_rate * slope
    _move_mapping(domains.mapping[slot], table[row], user, step, mapping_shrink)
    _move_mapping(domains.mapping[other_slot], table[other], user, -step, mapping_shrink)
    _move_item(table[row], mapped, rate * slope, bias_rate * slope, shrink)
    _move_item(table[other], other_mapped, -rate * slope, -bias_rate * slope, shrink)


@kernel
def apply(
    changes: Ints, start: Floats, item: Ints, negatives: Ints, weight: Floats, users: Floats,
    table: Floats, domains: Domains, rule: Rule, direction: float,
) -> None:  # fmt: skip
    """Every replica's half, direction 1: moves the rows and the mappings of item and negatives in place; or
    takes a step back, direction -1.

    users float32[n, 1 + d]: the code of the item's domain, and the user before the event. A row that is given
    to an item gets the next of `start` float32[given, 1 + d] and the record's domain; one that is freed is 0.
    """
    changed, given, d = 0, 0, table.shape[1] - 1
    mapped, other_mapped = np.empty(d, dtype=np.float32), np.empty(d, dtype=np.float32)
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            row = changes[changed, 2]
            if changes[changed, 1] == GIVEN:
                table[row] = start[given]
                domains.of_row[row] = _slot_for(np.int64(users[event, 0]), domains)
                given += 1
            elif changes[changed, 1] == GONE:
                table[row] = np.float32(0.0)
                domains.of_row[row] = 0
            changed += 1
        for number in range(negatives.shape[1]):
            draw = number if direction > 0.0 else negatives.shape[1] - 1 - number
            other = negatives[event, draw]
            if other >= 0 and other != item[event] and weight[event] != 0.0:
                _move_pair(
                    item[event], other, users[event, 1:], weight[event], table, domains, rule, direction,
                    mapped, other_mapped,
                )  # fmt: skip


@kernel
def score(user: Floats, rows: Ints, table: Floats, domains: Domains, mapped: Floats, out: Floats) -> None:
    """Scores float32[n] of rows int32[n] for user float32[d]; 0 where a row is -1 or not in the table.
    `mapped` float32[D, d] is scratch."""
    for slot in range(domains.count[0]):
        _map(domains.mapping[slot], user, mapped[slot])
    for position in range(rows.shape[0]):
        row = rows[position]
        known = row >= 0 and row < table.shape[0]
        out[position] = _value(table[row], mapped[domains.of_row[row]]) if known else np.float32(0.0)
