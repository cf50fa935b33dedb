# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the users' histories that a replica keeps: who used what, by user and by item.

They call no kernel of another file: numba's disk cache would not notice a change there.

A use is a node: node n belongs to the user in slot n // length and stands at place n % length of that user's
ring, the newest overwriting the oldest. The nodes of one item are linked from its newest use to its oldest,
so the histories are their own inverted index, and dropping a use costs the same wherever it stands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, SWEEP, kernel

__all__ = [
    "IDLEST",
    "MARKS",
    "NEWEST",
    "USERS",
    "Histories",
    "find_slot",
    "histories_learn",
    "rebuild_index",
]

MARKS = 3
USERS, IDLEST, NEWEST = range(MARKS)
"""Places in `Histories.marks`: slots in use, the user idle longest and the one who acted last (-1 = none)."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Histories(NamedTuple):
    row: Ints  # int32[slots * length]: item row of each use, -1 = none
    value: Floats  # float32[slots * length]: what the model keeps of a use
    older: Ints  # int32[slots * length]: the use of the same item before this one, -1 = it is the oldest
    newer: Ints  # int32[slots * length]: the one after it
    head: Ints  # int32[items]: an item's newest use, -1 = nobody has it
    token: NDArray[np.uint64]  # uint64[slots]: whose slot it is
    uses: Longs  # int64[slots]: uses ever written; the next goes to place uses % length
    held: Ints  # int32[slots]: uses kept, each of another item
    total: NDArray[np.float64]  # float64[slots]: sum of all values ever given, for the running mean
    idler: Ints  # int32[slots]: neighbours in the list by last event
    fresher: Ints  # int32[slots]
    index: Ints  # int32[a power of two]: open-addressing table from token to slot, -1 = empty
    marks: Longs  # int64[MARKS]


@kernel
def _home(token: int, mask: int) -> int:
    mixed = np.uint64(token) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the high bits are good
    return np.int64(mixed >> np.uint64(33)) & mask


@kernel
def _find(token: int, tokens: NDArray[np.uint64], index: Ints) -> int:
    """Place of a token in the index, or -1 - (the empty place where it belongs)."""
    mask = index.shape[0] - 1
    place = _home(token, mask)
    while index[place] >= 0:
        if tokens[index[place]] == token:
            return place
        place = (place + 1) & mask
    return -1 - place


@kernel
def find_slot(token: int, tokens: NDArray[np.uint64], index: Ints) -> int:
    """Slot of a user, -1 when nothing is kept of him."""
    place = _find(token, tokens, index)
    return index[place] if place >= 0 else -1


@kernel
def rebuild_index(users: int, tokens: NDArray[np.uint64], index: Ints) -> None:
    """Enter all users anew, after the index grew or was restored."""
    index[:] = -1
    for slot in range(users):
        index[-1 - _find(tokens[slot], tokens, index)] = slot


@kernel
def _leave_index(place: int, tokens: NDArray[np.uint64], index: Ints) -> None:
    """Empty a place and move up those who stand behind it, so that no search stops early."""
    mask = index.shape[0] - 1
    index[place] = -1
    other = (place + 1) & mask
    while index[other] >= 0:
        home = _home(tokens[index[other]], mask)
        if ((other - home) & mask) >= ((other - place) & mask):
            index[place], index[other] = index[other], -1
            place = other
        other = (other + 1) & mask


@kernel
def _unlink_user(store: Histories, slot: int) -> None:
    idler, fresher = store.idler[slot], store.fresher[slot]
    if idler >= 0:
        store.fresher[idler] = fresher
    else:
        store.marks[IDLEST] = fresher
    if fresher >= 0:
        store.idler[fresher] = idler
    else:
        store.marks[NEWEST] = idler


@kernel
def _append_user(store: Histories, slot: int) -> None:
    newest = store.marks[NEWEST]
    store.idler[slot], store.fresher[slot] = newest, -1
    if newest >= 0:
        store.fresher[newest] = slot
    else:
        store.marks[IDLEST] = slot
    store.marks[NEWEST] = slot


@kernel
def _drop(store: Histories, node: int, length: int) -> None:
    """Take one use out of its user's and its item's history."""
    row, older, newer = store.row[node], store.older[node], store.newer[node]
    if newer >= 0:
        store.older[newer] = older
    else:
        store.head[row] = older
    if older >= 0:
        store.newer[older] = newer
    store.row[node] = store.older[node] = store.newer[node] = -1
    store.value[node] = 0.0
    store.held[node // length] -= 1


@kernel
def _drop_item(store: Histories, slot: int, row: int, length: int) -> None:
    """Take an item out of one user's history, where it stands once at most."""
    first = slot * length
    for node in range(first, first + min(store.uses[slot], length)):
        if store.row[node] == row:
            _drop(store, node, length)
            return


@kernel
def _put(store: Histories, slot: int, row: int, value: float, length: int) -> None:
    """Write a use over the user's oldest, in front of the item's other uses."""
    node = slot * length + store.uses[slot] % length
    if store.row[node] >= 0:
        _drop(store, node, length)
    older = store.head[row]
    store.row[node], store.value[node] = row, value
    store.older[node], store.newer[node] = older, -1
    if older >= 0:
        store.newer[older] = node
    store.head[row] = node
    store.uses[slot] += 1
    store.held[slot] += 1


@kernel
def _slot_for(store: Histories, token: int, max_users: int, length: int) -> int:
    """The user's slot, as the one who acted last; a new user of a full table gets the idlest one's."""
    place = _find(token, store.token, store.index)
    if place >= 0:
        slot = store.index[place]
        _unlink_user(store, slot)
    else:
        slot = store.marks[USERS]
        if slot < max_users:
            store.marks[USERS] += 1
        else:
            slot = store.marks[IDLEST]
            for node in range(slot * length, slot * length + min(store.uses[slot], length)):
                if store.row[node] >= 0:
                    _drop(store, node, length)
            _unlink_user(store, slot)
            _leave_index(_find(store.token[slot], store.token, store.index), store.token, store.index)
        store.token[slot], store.uses[slot], store.total[slot] = token, 0, 0.0
        store.index[-1 - _find(token, store.token, store.index)] = slot
    _append_user(store, slot)
    return slot


@kernel
def _read(store: Histories, slot: int, length: int, out_rows: Ints, out_values: Floats) -> None:
    """Copy the user's newest uses, newest first; -1 where a use is gone."""
    uses = store.uses[slot]
    for back in range(min(min(uses, length), out_rows.shape[0])):
        node = slot * length + (uses - 1 - back) % length
        out_rows[back], out_values[back] = store.row[node], store.value[node]


@kernel
def _follow(store: Histories, kind: int, row: int, length: int) -> None:
    if kind != SWEEP:
        while kind == GONE and store.head[row] >= 0:
            _drop(store, store.head[row], length)
        store.head[row] = -1


@kernel
def histories_learn(
    first: int, last: int, changes: Ints, changed: int, tokens: NDArray[np.uint64], item: Ints,
    sign: NDArray[np.int8], value: Floats, centred: bool, store: Histories, max_users: int, length: int,
    out_value: Floats, out_rows: Ints, out_values: Floats,
) -> int:  # fmt: skip
    """Move the histories on by events first to last - 1; returns the first table change that is left.

    An event of token 0 is nobody's and leaves no trace. One of sign int8 1 or -1 takes its item's older use
    out of the user's history; 1 then writes the new one, with its value, or with the value less the running
    mean of the user's values so far (this one included) when `centred`. out_value float32[n] is what was
    written; out_rows int32[n, R] and out_values float32[n, R], both filled by the caller with -1 and 0, get
    the user's uses before the event, newest first.
    """
    for event in range(first, last):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            _follow(store, changes[changed, 1], changes[changed, 2], length)
            changed += 1
        if tokens[event] != 0:
            slot, row, amount = _slot_for(store, tokens[event], max_users, length), item[event], value[event]
            _read(store, slot, length, out_rows[event], out_values[event])
            if sign[event] != 0:
                _drop_item(store, slot, row, length)
            if sign[event] > 0:
                store.total[slot] += amount
                if centred:
                    amount = np.float32(amount - store.total[slot] / (store.uses[slot] + 1))
                _put(store, slot, row, amount, length)
                out_value[event] = amount
    return changed
