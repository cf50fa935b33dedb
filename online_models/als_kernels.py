# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of alternating least squares: interactions in bounded lists, exact and element-wise steps.

They call no kernel of another file: numba's disk cache would not notice a change there.

Both models move one vector x at a time to, or towards, the minimum of

    sum over held e of (a_e (x . y_e)**2 - 2 b_e (x . y_e)) + s x'Gx + r x'x

with y_e the other side's vectors, G their Gram matrix over everything, s what the unobserved counts and r the
ridge. Sums are in float64 and in one order; what is kept of a vector is float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GIVEN, GONE, kernel

__all__ = [
    "Factors",
    "Held",
    "Objective",
    "Work",
    "drop_item",
    "find_user",
    "forget_user",
    "learn",
    "query",
    "rehash",
    "score",
    "sweep",
    "unlearn",
]

MAX_COMPONENT = 10.0
MAX_HELD_WEIGHT = 1000.0
"""Bounds on a vector's component and on what one user says of one item: no stream reaches an infinity."""

MARKS = 11
USERS, FREE_USER, LIVE_USERS, OLDEST, NEWEST, ENTRIES, FREE_ENTRY, LIVE_ENTRIES = range(8)
ROWS, TURN_USER, TURN_ITEM = range(8, MARKS)
"""Places in `Held.marks`: slots and entries ever used, heads of the free ones, how many are live, the users'
list by last event; item rows ever used; the next ones to be solved again in turn."""
COUNTED = (USERS, LIVE_USERS, ENTRIES, LIVE_ENTRIES, ROWS, TURN_USER, TURN_ITEM)
"""Marks that start at 0; the others are -1, no one."""
ASK, LEARN, WITHDRAW = range(3)
"""What a user's factor is found for."""
COLUMNS = (5, 3, 6)
"""Columns of `Held.users`, `Held.items` and `Held.entries`."""
FIRST, COUNT, IN_USE = range(3)
LAST, NEWER, OLDER = range(2, 5)
USER, ITEM, USER_NEWER, USER_OLDER, ITEM_NEWER, ITEM_OLDER = range(6)

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Tokens = NDArray[np.uint64]


class Held(NamedTuple):
    """The interactions held: a sparse matrix whose entries stand in a list by user and in one by item, newest
    first. A free slot or entry has token 0 or user -1; NEWER then leads to the next free one."""

    tokens: Tokens  # uint64[users]
    places: Ints  # int32[2**k >= 2 users]: open addressing from token to slot, -1 = empty
    users: Ints  # int32[users, 5]: FIRST, COUNT, LAST entry, NEWER and OLDER user by last event
    items: Ints  # int32[items, 3]: FIRST, COUNT, IN_USE
    entries: Ints  # int32[entries, 6]: USER, ITEM and the links of both lists
    weights: Floats  # float32[entries]
    marks: Longs  # int64[MARKS]


class Factors(NamedTuple):
    users: Floats  # float32[users, d]
    items: Floats  # float32[items, d]
    mass: Doubles  # float64[items]: what an item's row counts in its Gram matrix
    user_gram: Doubles  # float64[d, d]
    item_gram: Doubles  # float64[d, d]
    user_sum: Doubles  # float64[d]
    mass_sum: Doubles  # float64[1]


class Work(NamedTuple):
    """Scratch of one solve; nothing in it outlives a call."""

    rows: Doubles  # float64[m, d], for the exact step
    columns: Doubles  # float64[d, m], for the element-wise one
    linear: Doubles  # float64[m]
    quadratic: Doubles  # float64[m]
    score: Doubles  # float64[m]
    matrix: Doubles  # float64[d, d]
    right: Doubles  # float64[d]
    out: Floats  # float32[d]
    taken: Ints  # int32[m]: rows in a query


class Objective(NamedTuple):
    unobserved: float  # weight of all that is not observed; shared out by mass where `shared`
    shared: bool  # and then not counted for observed pairs
    exponent: float  # mass = count ** exponent
    ridge: float
    ridge_exponent: float
    passes: int  # element-wise passes a step, 0 = exact solution
    user_boost: float  # the r-th newest interaction of a user counts 1 + user_boost * user_decay ** r times
    user_decay: float
    query_boost: float  # the same when predicting
    query_decay: float
    item_boost: float  # the newest interaction of an item counts 1 + item_boost times
    history: int  # interactions held of a user
    per_item: int  # newest interactions that an item's step reads
    turns: int  # users and items solved again, in turn, with every event


@kernel
def _place_of(held: Held, token: np.uint64) -> int:
    """Where a token stands in `places`, or the empty place where it would."""
    last = len(held.places) - 1
    place = np.int64((token * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)) & last
    while held.places[place] >= 0 and held.tokens[held.places[place]] != token:
        place = (place + 1) & last
    return place


@kernel
def find_user(held: Held, token: np.uint64) -> int:
    """The slot of a user, -1 when nothing is held of him."""
    return held.places[_place_of(held, token)]


@kernel
def rehash(held: Held) -> None:
    """Fill `places` anew from the tokens."""
    held.places[:] = -1
    for slot in range(held.marks[USERS]):
        if held.tokens[slot] != np.uint64(0):
            held.places[_place_of(held, held.tokens[slot])] = slot


@kernel
def _forget_place(held: Held, token: np.uint64) -> None:
    """Take a token out of `places`; those behind it that hashed before it move up."""
    last = len(held.places) - 1
    hole = _place_of(held, token)
    held.places[hole] = -1
    place = (hole + 1) & last
    while held.places[place] >= 0:
        slot = held.places[place]
        held.places[place] = -1
        held.places[_place_of(held, held.tokens[slot])] = slot
        place = (place + 1) & last


@kernel
def _leave_order(held: Held, slot: int) -> None:
    users, marks = held.users, held.marks
    newer, older = users[slot, NEWER], users[slot, OLDER]
    if older >= 0:
        users[older, NEWER] = newer
    else:
        marks[OLDEST] = newer
    if newer >= 0:
        users[newer, OLDER] = older
    else:
        marks[NEWEST] = older


@kernel
def _join_order(held: Held, slot: int) -> None:
    users, marks = held.users, held.marks
    users[slot, NEWER], users[slot, OLDER] = -1, marks[NEWEST]
    if marks[NEWEST] >= 0:
        users[marks[NEWEST], NEWER] = slot
    else:
        marks[OLDEST] = slot
    marks[NEWEST] = slot


@kernel
def _unlink(held: Held, entry: int) -> None:
    """Take an entry out of its user's and its item's list."""
    entries = held.entries
    slot, row = entries[entry, USER], entries[entry, ITEM]
    newer, older = entries[entry, USER_NEWER], entries[entry, USER_OLDER]
    if newer >= 0:
        entries[newer, USER_OLDER] = older
    else:
        held.users[slot, FIRST] = older
    if older >= 0:
        entries[older, USER_NEWER] = newer
    else:
        held.users[slot, LAST] = newer
    newer, older = entries[entry, ITEM_NEWER], entries[entry, ITEM_OLDER]
    if newer >= 0:
        entries[newer, ITEM_OLDER] = older
    else:
        held.items[row, FIRST] = older
    if older >= 0:
        entries[older, ITEM_NEWER] = newer
    held.users[slot, COUNT] -= 1
    held.items[row, COUNT] -= 1


@kernel
def _link(held: Held, entry: int, slot: int, row: int) -> None:
    """Put an entry first in its user's and its item's list."""
    entries, users, items = held.entries, held.users, held.items
    entries[entry, USER], entries[entry, ITEM] = slot, row
    entries[entry, USER_NEWER], entries[entry, USER_OLDER] = -1, users[slot, FIRST]
    entries[entry, ITEM_NEWER], entries[entry, ITEM_OLDER] = -1, items[row, FIRST]
    if users[slot, FIRST] >= 0:
        entries[users[slot, FIRST], USER_NEWER] = entry
    else:
        users[slot, LAST] = entry
    if items[row, FIRST] >= 0:
        entries[items[row, FIRST], ITEM_NEWER] = entry
    users[slot, FIRST] = items[row, FIRST] = entry
    users[slot, COUNT] += 1
    items[row, COUNT] += 1


@kernel
def _drop_entry(held: Held, entry: int) -> None:
    _unlink(held, entry)
    held.entries[entry] = -1
    held.weights[entry] = 0.0
    held.entries[entry, USER_NEWER] = held.marks[FREE_ENTRY]
    held.marks[FREE_ENTRY] = entry
    held.marks[LIVE_ENTRIES] -= 1


@kernel
def _drop_user(held: Held, factors: Factors, slot: int) -> None:
    """Forget a user with all that is held of him."""
    while held.users[slot, FIRST] >= 0:
        _drop_entry(held, held.users[slot, FIRST])
    _forget_place(held, held.tokens[slot])
    _leave_order(held, slot)
    _add_square(factors.user_gram, factors.users[slot], -1.0)
    factors.user_sum[:] -= factors.users[slot]
    factors.users[slot] = 0.0
    held.tokens[slot] = 0
    held.users[slot, NEWER] = held.marks[FREE_USER]
    held.marks[FREE_USER] = slot
    held.marks[LIVE_USERS] -= 1


@kernel
def drop_item(held: Held, factors: Factors, row: int) -> None:
    """Forget what is held of the item that had a row; those who used it keep their factors."""
    while held.items[row, FIRST] >= 0:
        _drop_entry(held, held.items[row, FIRST])
    held.items[row, IN_USE] = 0
    _add_square(factors.item_gram, factors.items[row], -factors.mass[row])
    factors.mass_sum[0] -= factors.mass[row]
    factors.mass[row] = 0.0
    factors.items[row] = 0.0


@kernel
def _take_user(held: Held, factors: Factors, token: np.uint64, max_users: int) -> int:
    """The slot of a user, made last in use; a new one takes the idlest user's when all are taken."""
    marks = held.marks
    slot = held.places[_place_of(held, token)]
    if slot >= 0:
        _leave_order(held, slot)
        _join_order(held, slot)
        return slot
    if marks[LIVE_USERS] >= max_users:
        _drop_user(held, factors, marks[OLDEST])
    slot = marks[FREE_USER]
    if slot >= 0:
        marks[FREE_USER] = held.users[slot, NEWER]
    else:
        slot = marks[USERS]
        marks[USERS] += 1
    held.tokens[slot] = token
    held.places[_place_of(held, token)] = slot
    held.users[slot] = -1
    held.users[slot, COUNT] = 0
    marks[LIVE_USERS] += 1
    _join_order(held, slot)
    return slot


@kernel
def _merged(before: float, weight: float) -> float:
    """What a user says of an item after one event more: the like adds up, else the newer stands."""
    if weight == 0.0:
        return before
    total = before + weight if before * weight > 0.0 else weight
    return min(max(total, -MAX_HELD_WEIGHT), MAX_HELD_WEIGHT)


@kernel
def _left(before: float, weight: float) -> float:
    """What a user says of an item when an event of this weight is withdrawn, 0 = nothing; one that the other
    sign has replaced is gone already."""
    left = before - weight
    if before * weight < 0.0:
        return before
    return left if left * before > 0.0 and abs(left) > 1e-6 * abs(weight) else 0.0


@kernel
def _hold(
    held: Held, factors: Factors, slot: int, row: int, weight: float, history: int, max_entries: int
) -> None:
    """Note an event. A full history loses its oldest item; a full table its idlest users."""
    entry = held.users[slot, FIRST]
    while entry >= 0 and held.entries[entry, ITEM] != row:
        entry = held.entries[entry, USER_OLDER]
    before = 0.0
    if entry >= 0:
        before = held.weights[entry]
        _unlink(held, entry)
    else:
        if held.users[slot, COUNT] >= history:
            _drop_entry(held, held.users[slot, LAST])
        while held.marks[LIVE_ENTRIES] >= max_entries:
            _drop_user(held, factors, held.marks[OLDEST])
        entry = held.marks[FREE_ENTRY]
        if entry >= 0:
            held.marks[FREE_ENTRY] = held.entries[entry, USER_NEWER]
        else:
            entry = held.marks[ENTRIES]
            held.marks[ENTRIES] += 1
        held.marks[LIVE_ENTRIES] += 1
    _link(held, entry, slot, row)
    held.weights[entry] = _merged(before, weight)


@kernel
def _add_square(gram: Doubles, vector: Floats, scale: float) -> None:
    """gram += scale vector vector'."""
    for a in range(vector.shape[0]):
        left = scale * np.float64(vector[a])
        for b in range(vector.shape[0]):
            gram[a, b] += left * vector[b]


@kernel
def _put_user(factors: Factors, slot: int, vector: Floats) -> None:
    old = factors.users[slot]
    _add_square(factors.user_gram, old, -1.0)
    for k in range(vector.shape[0]):
        component = min(max(np.float64(vector[k]), -MAX_COMPONENT), MAX_COMPONENT)
        factors.user_sum[k] += component - np.float64(old[k])
        old[k] = component
    _add_square(factors.user_gram, old, 1.0)


@kernel
def _put_item(held: Held, factors: Factors, row: int, vector: Floats, exponent: float) -> None:
    old = factors.items[row]
    mass = _mass(held, row, exponent)
    _add_square(factors.item_gram, old, -factors.mass[row])
    _add_square(factors.item_gram, vector, mass)
    factors.mass_sum[0] += mass - factors.mass[row]
    factors.mass[row] = mass
    old[:] = vector


@kernel
def _mass(held: Held, row: int, exponent: float) -> float:
    if held.items[row, IN_USE] == 0:
        return 0.0
    return 1.0 if exponent == 0.0 else float(held.items[row, COUNT]) ** exponent


@kernel
def _unit(factors: Factors, objective: Objective) -> float:
    """What the unobserved counts per unit of mass."""
    if not objective.shared:
        return objective.unobserved
    return objective.unobserved / factors.mass_sum[0] if factors.mass_sum[0] > 0.0 else 0.0


@kernel
def _emit(
    work: Work, n: int, vector: Floats, weight: float, times: float, missing: float, exact: bool
) -> int:
    """Add one interaction to the system of the next step."""
    if exact:
        for k in range(vector.shape[0]):
            work.rows[n, k] = vector[k]
    else:
        for k in range(vector.shape[0]):
            work.columns[k, n] = vector[k]
    work.quadratic[n] = abs(weight) * times - missing
    work.linear[n] = weight * times if weight > 0.0 else 0.0
    return n + 1


@kernel
def _step(work: Work, n: int, gram: Doubles, scale: float, ridge: float, passes: int) -> None:
    """Move `work.out`: to the minimum, or by element-wise passes."""
    if passes == 0:
        _exact(work, n, gram, scale, ridge)
    else:
        _elementwise(work, n, gram, scale, ridge, passes)
    for k in range(work.out.shape[0]):
        work.out[k] = min(max(work.right[k], -MAX_COMPONENT), MAX_COMPONENT)


@kernel
def _exact(work: Work, n: int, gram: Doubles, scale: float, ridge: float) -> None:
    """The normal equations, four interactions at a time; upper triangle only."""
    matrix, right, rows = work.matrix, work.right, work.rows
    linear, quadratic, d = work.linear, work.quadratic, work.out.shape[0]
    for a in range(d):
        right[a] = 0.0
        for b in range(a, d):
            matrix[a, b] = scale * gram[a, b]
        matrix[a, a] += ridge
    for e in range(n, (n + 3) // 4 * 4):
        linear[e] = quadratic[e] = 0.0
    for e in range(0, n, 4):
        for a in range(d):
            x0, x1, x2, x3 = rows[e, a], rows[e + 1, a], rows[e + 2, a], rows[e + 3, a]
            right[a] += (linear[e] * x0 + linear[e + 1] * x1) + (linear[e + 2] * x2 + linear[e + 3] * x3)
            x0, x1 = quadratic[e] * x0, quadratic[e + 1] * x1
            x2, x3 = quadratic[e + 2] * x2, quadratic[e + 3] * x3
            for b in range(a, d):
                matrix[a, b] += (x0 * rows[e, b] + x1 * rows[e + 1, b]) + (
                    x2 * rows[e + 2, b] + x3 * rows[e + 3, b]
                )
    _solve(matrix, right, ridge)


@kernel
def _solve(matrix: Doubles, right: Doubles, least: float) -> None:
    """Solve by Cholesky's factorisation U'U, in place; no pivot can truly be below `least`."""
    d = right.shape[0]
    for k in range(d):
        root = np.sqrt(max(matrix[k, k], least))
        inverse = 1.0 / root
        matrix[k, k] = root
        for b in range(k + 1, d):
            matrix[k, b] *= inverse
        for a in range(k + 1, d):
            times = matrix[k, a]
            for b in range(a, d):
                matrix[a, b] -= times * matrix[k, b]
        right[k] *= inverse
        for b in range(k + 1, d):
            right[b] -= matrix[k, b] * right[k]
    for k in range(d - 1, -1, -1):
        total = right[k]
        for b in range(k + 1, d):
            total -= matrix[k, b] * right[b]
        right[k] = total / matrix[k, k]


@kernel
def _elementwise(work: Work, n: int, gram: Doubles, scale: float, ridge: float, passes: int) -> None:
    """Coordinate descent from `work.right`: O(n + d) a component, predictions kept up to date."""
    vector, columns, linear, quadratic, found = (
        work.right, work.columns, work.linear, work.quadratic, work.score
    )  # fmt: skip
    d = vector.shape[0]
    for e in range(n):
        found[e] = 0.0
    for f in range(d):
        for e in range(n):
            found[e] += vector[f] * columns[f, e]
    for _ in range(passes):
        for f in range(d):
            old, above, below, rest = vector[f], 0.0, scale * gram[f, f] + ridge, 0.0
            for e in range(n):
                x = columns[f, e]
                above += (linear[e] - quadratic[e] * (found[e] - old * x)) * x
                below += quadratic[e] * x * x
            for k in range(d):
                rest += gram[f, k] * vector[k]
            above -= scale * (rest - gram[f, f] * old)
            vector[f] = min(max(above / max(below, ridge), -MAX_COMPONENT), MAX_COMPONENT)
            for e in range(n):
                found[e] += (vector[f] - old) * columns[f, e]


@kernel
def _ridge(objective: Objective, n: int, others: float) -> float:
    if objective.ridge_exponent == 0.0:
        return objective.ridge
    return objective.ridge * (n + objective.unobserved * others) ** objective.ridge_exponent


@kernel
def _refit_user(held: Held, factors: Factors, work: Work, objective: Objective, slot: int) -> None:
    """`work.out`: a user's factor by one step from what is held of him."""
    entries, unit, n = held.entries, _unit(factors, objective), 0
    work.right[:] = factors.users[slot]
    entry = held.users[slot, FIRST]
    while entry >= 0:
        row = entries[entry, ITEM]
        missing = unit * factors.mass[row] if objective.shared else 0.0
        n = _emit(work, n, factors.items[row], held.weights[entry], 1.0, missing, objective.passes == 0)
        entry = entries[entry, USER_OLDER]
    ridge = _ridge(objective, n, factors.mass_sum[0])
    _step(work, n, factors.item_gram, unit, ridge, objective.passes)


@kernel
def _refit_item(
    held: Held, factors: Factors, work: Work, objective: Objective, row: int, boost: float
) -> None:
    """`work.out`: an item's factor by one step from its newest users, who stand for all that it has; an item
    that nobody likes keeps its factor."""
    entries, n, liked, count = held.entries, 0, False, held.items[row, COUNT]
    work.out[:] = factors.items[row]
    work.right[:] = factors.items[row]
    missing = _unit(factors, objective) * _mass(held, row, objective.exponent)
    share = max(1.0, count / objective.per_item)
    entry = held.items[row, FIRST]
    while entry >= 0 and n < objective.per_item:
        weight, times = held.weights[entry], share * (1.0 + boost if n == 0 else 1.0)
        liked = liked or weight > 0.0
        known = share * missing if objective.shared else 0.0
        vector = factors.users[entries[entry, USER]]
        n = _emit(work, n, vector, weight, times, known, objective.passes == 0)
        entry = entries[entry, ITEM_OLDER]
    if liked:
        ridge = _ridge(objective, count, held.marks[LIVE_USERS])
        _step(work, n, factors.user_gram, missing, ridge, objective.passes)


@kernel
def _take_turns(held: Held, factors: Factors, work: Work, objective: Objective) -> None:
    """Solve the next users and items again, in turn: what stood still follows what moved."""
    marks = held.marks
    for _ in range(objective.turns):
        slot = marks[TURN_USER] if marks[TURN_USER] < marks[USERS] else 0
        marks[TURN_USER] = slot + 1
        if held.users[slot, COUNT] > 0 and held.tokens[slot] != np.uint64(0):
            _refit_user(held, factors, work, objective, slot)
            _put_user(factors, slot, work.out)
        row = marks[TURN_ITEM] if marks[TURN_ITEM] < marks[ROWS] else 0
        marks[TURN_ITEM] = row + 1
        if held.items[row, COUNT] > 0:
            _refit_item(held, factors, work, objective, row, 0.0)
            _put_item(held, factors, row, work.out, objective.exponent)


@kernel
def learn(
    changes: Ints, vectors: Floats, item: Ints, weight: Floats, tokens: Tokens, users_after: Floats,
    max_users: int, max_entries: int, held: Held, factors: Factors, work: Work, objective: Objective,
) -> None:  # fmt: skip
    """Every replica's half: takes the users' new factors, holds the interactions, moves the items.

    A row that is given to an item gets the next of `vectors` float32[given, d]. Events without a user's token
    are not held.
    """
    changed, given = 0, 0
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            row = changes[changed, 2]
            if changes[changed, 1] == GIVEN:
                held.items[row, IN_USE] = 1
                held.marks[ROWS] = max(held.marks[ROWS], row + 1)
                _put_item(held, factors, row, vectors[given], objective.exponent)
                given += 1
            elif changes[changed, 1] == GONE:
                drop_item(held, factors, row)
            changed += 1
        if tokens[event] == np.uint64(0):
            continue
        row = item[event]
        held.items[row, IN_USE] = 1
        held.marks[ROWS] = max(held.marks[ROWS], row + 1)
        slot = _take_user(held, factors, tokens[event], max_users)
        _put_user(factors, slot, users_after[event])
        _hold(held, factors, slot, row, weight[event], objective.history, max_entries)
        _refit_item(held, factors, work, objective, row, objective.item_boost)
        _put_item(held, factors, row, work.out, objective.exponent)
        _take_turns(held, factors, work, objective)


@kernel
def _settle_item(
    held: Held, factors: Factors, work: Work, objective: Objective, row: int, start: Floats
) -> None:
    """Solve for an item that lost users; one without any is as new."""
    if held.items[row, COUNT] > 0:
        _refit_item(held, factors, work, objective, row, 0.0)
        _put_item(held, factors, row, work.out, objective.exponent)
    else:
        _put_item(held, factors, row, start, objective.exponent)


@kernel
def unlearn(
    item: Ints, weight: Floats, tokens: Tokens, users_after: Floats, starts: Floats, held: Held,
    factors: Factors, work: Work, objective: Objective,
) -> None:  # fmt: skip
    """Take events out of what is held; the users get their factors without them, then the items follow.

    starts float32[n, d]: the items' start vectors. A user of whom nothing is left goes.
    """
    for event in range(item.shape[0]):
        row, slot = item[event], find_user(held, tokens[event]) if tokens[event] != np.uint64(0) else -1
        entry = held.users[slot, FIRST] if slot >= 0 else -1
        while entry >= 0 and held.entries[entry, ITEM] != row:
            entry = held.entries[entry, USER_OLDER]
        if entry < 0:
            continue
        held.weights[entry] = _left(held.weights[entry], weight[event])
        if held.weights[entry] == 0.0:
            _drop_entry(held, entry)
        if held.users[slot, COUNT] > 0:
            _put_user(factors, slot, users_after[event])
        else:
            _drop_user(held, factors, slot)
        _settle_item(held, factors, work, objective, row, starts[event])


@kernel
def forget_user(
    slot: int, rows: Ints, starts: Floats, held: Held, factors: Factors, work: Work, objective: Objective
) -> None:
    """Drop a user, and solve for the items that he used, whose start vectors are float32[n, d]."""
    _drop_user(held, factors, slot)
    for place in range(rows.shape[0]):
        _settle_item(held, factors, work, objective, rows[place], starts[place])


@kernel
def _rows_taken(held: Held, slot: int, recent: Ints, item_row: int, taken: Ints) -> int:
    """Rows of a query: recent items that are not held of the user yet come first; how many are new."""
    n = 0
    for place in range(recent.shape[0]):
        row = recent[place]
        known = row < 0 or row == item_row
        for other in range(n):
            known = known or taken[other] == row
        entry = held.users[slot, FIRST] if slot >= 0 and not known else -1
        while entry >= 0 and not known:
            known = held.entries[entry, ITEM] == row
            entry = held.entries[entry, USER_OLDER]
        if not known:
            taken[n] = row
            n += 1
    return n


@kernel
def query(
    token: np.uint64, recent: Ints, item_row: int, item_vector: Floats, weight: float, purpose: int,
    held: Held, factors: Factors, work: Work, objective: Objective,
) -> None:  # fmt: skip
    """`work.out`: a user's factor now, newest interaction first: to learn, the event's (row -1 = new); then
    recent items that are not held of him (weight 1); then what is held, to withdraw without the event's
    weight. Without any, the mean user's.
    """
    slot, unit, exact = held.places[_place_of(held, token)], _unit(factors, objective), objective.passes == 0
    learning = purpose == LEARN
    boost = objective.user_boost if learning else objective.query_boost if purpose == ASK else 0.0
    decay = objective.user_decay if learning else objective.query_decay
    for k in range(work.out.shape[0]):
        work.right[k] = factors.users[slot, k] if slot >= 0 else 0.0
    fresh, capacity = _rows_taken(held, slot, recent, item_row, work.taken), work.linear.shape[0] - 4
    n = 1 if learning else 0  # the event's place; it is filled below, when its weight so far is known
    boost *= decay if learning else 1.0
    for place in range(fresh):
        row = work.taken[place]
        missing = unit * factors.mass[row] if objective.shared else 0.0
        n = _emit(work, n, factors.items[row], 1.0, 1.0 + boost, missing, exact)
        boost *= decay
    before, entry = 0.0, held.users[slot, FIRST] if slot >= 0 else -1
    while entry >= 0 and n < capacity:
        row = held.entries[entry, ITEM]
        said = held.weights[entry]
        if row == item_row:
            before, said = said, _left(said, weight)
        if row != item_row or (purpose == WITHDRAW and said != 0.0):
            missing = unit * factors.mass[row] if objective.shared else 0.0
            n = _emit(work, n, factors.items[row], said, 1.0 + boost, missing, exact)
            boost *= decay
        entry = held.entries[entry, USER_OLDER]
    if learning:
        missing = unit * factors.mass[item_row] if objective.shared and item_row >= 0 else 0.0
        times = 1.0 + objective.user_boost
        _emit(work, 0, item_vector, _merged(before, weight), times, missing, exact)
    if n > 0:
        ridge = _ridge(objective, n, factors.mass_sum[0])
        _step(work, n, factors.item_gram, unit, ridge, objective.passes)
    else:
        work.out[:] = factors.user_sum / max(held.marks[LIVE_USERS], 1)


@kernel
def sweep(held: Held, factors: Factors, work: Work, objective: Objective) -> None:
    """Move every user, then every item, once; Gram matrices and masses are summed anew."""
    factors.mass_sum[0] = 0.0
    for row in range(held.marks[ROWS]):
        factors.mass[row] = _mass(held, row, objective.exponent)
        factors.mass_sum[0] += factors.mass[row]
    _sum_items(held, factors)
    factors.user_gram[:] = 0.0
    factors.user_sum[:] = 0.0
    for slot in range(held.marks[USERS]):
        if held.tokens[slot] != np.uint64(0):
            _refit_user(held, factors, work, objective, slot)
            factors.users[slot] = work.out
            _add_square(factors.user_gram, work.out, 1.0)
            factors.user_sum[:] += work.out
    for row in range(held.marks[ROWS]):
        if held.items[row, COUNT] > 0:
            _refit_item(held, factors, work, objective, row, 0.0)
            factors.items[row] = work.out
    _sum_items(held, factors)


@kernel
def _sum_items(held: Held, factors: Factors) -> None:
    factors.item_gram[:] = 0.0
    for row in range(held.marks[ROWS]):
        _add_square(factors.item_gram, factors.items[row], factors.mass[row])


@kernel
def score(user: Floats, rows: Ints, items: Floats, out: Floats) -> None:
    """Inner products with given rows; 0 where a row is -1 or not in the table."""
    d = user.shape[0]
    whole = d // 8 * 8
    for place in range(rows.shape[0]):
        row = rows[place]
        if row < 0 or row >= items.shape[0]:
            continue
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0.0)
        for k in range(0, whole, 8):
            s0 += user[k] * items[row, k]
            s1 += user[k + 1] * items[row, k + 1]
            s2 += user[k + 2] * items[row, k + 2]
            s3 += user[k + 3] * items[row, k + 3]
            s4 += user[k + 4] * items[row, k + 4]
            s5 += user[k + 5] * items[row, k + 5]
            s6 += user[k + 6] * items[row, k + 6]
            s7 += user[k + 7] * items[row, k + 7]
        total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
        for k in range(whole, d):
            total += user[k] * items[row, k]
        out[place] = total
