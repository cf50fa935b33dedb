# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the users' histories that a replica keeps: who used what, by user and by item.

They call no kernel of another file: numba's disk cache would not notice a change there.

A use is a node: node n belongs to the user in slot n // length and stands at place n % length of that user's
ring, the newest overwriting the oldest. The nodes of one item are linked from its newest use to its oldest,
so the histories are their own inverted index, and dropping a use costs the same wherever it stands.

A use that a later one of the same item superseded stays in its place as long as that has not been written
over, linked to nothing: it comes back when the later one is withdrawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, SWEEP, kernel

__all__ = [
    "USERS",
    "Histories",
    "find_slot",
    "histories_forget_items",
    "histories_forget_users",
    "histories_learn",
    "histories_unlearn",
    "rebuild_index",
]

USERS, IDLEST, NEWEST = range(3)
"""Places in `Histories.marks`: slots in use, the user idle longest and the one who acted last (-1 = none)."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Histories(NamedTuple):
    row: Ints  # int32[slots * length]: item row of each use, -1 = none, -2 - row = superseded
    value: Floats  # float32[slots * length]: what the model keeps of a use
    time_ms: Longs  # int64[slots * length]
    older: Ints  # int32[slots * length]: the use of the same item before this one, -1 = it is the oldest
    newer: Ints  # int32[slots * length]: the one after it
    head: Ints  # int32[items]: an item's newest use, -1 = nobody has it
    token: NDArray[np.uint64]  # uint64[slots]: whose slot it is
    uses: Longs  # int64[slots]: uses ever written; the next goes to place uses % length
    held: Ints  # int32[slots]: uses kept, each of another item
    total: NDArray[np.float64]  # float64[slots]: sum of all values ever given, for the running mean
    owed: Ints  # int32[slots]: uses to be withdrawn that were written over, so that they may not come again
    idler: Ints  # int32[slots]: neighbours in the list by last event
    fresher: Ints  # int32[slots]
    index: Ints  # int32[a power of two]: open-addressing table from token to slot, -1 = empty
    marks: Longs  # int64[3]


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
def _link_user(store: Histories, slot: int) -> None:
    """Let a user's neighbours in the list by last event know where he stands."""
    idler, fresher = store.idler[slot], store.fresher[slot]
    if idler >= 0:
        store.fresher[idler] = slot
    else:
        store.marks[IDLEST] = slot
    if fresher >= 0:
        store.idler[fresher] = slot
    else:
        store.marks[NEWEST] = slot


@kernel
def _unlink(store: Histories, node: int) -> None:
    """Take one use out of its item's list."""
    row, older, newer = store.row[node], store.older[node], store.newer[node]
    if newer >= 0:
        store.older[newer] = older
    else:
        store.head[row] = older
    if older >= 0:
        store.newer[older] = newer
    store.older[node] = store.newer[node] = -1


@kernel
def _link(store: Histories, node: int) -> None:
    """Let a use's neighbours in its item's list know where it stands."""
    older, newer = store.older[node], store.newer[node]
    if newer >= 0:
        store.older[newer] = node
    else:
        store.head[store.row[node]] = node
    if older >= 0:
        store.newer[older] = node


@kernel
def _wipe(store: Histories, node: int) -> None:
    store.row[node] = store.older[node] = store.newer[node] = -1
    store.value[node], store.time_ms[node] = 0.0, 0


@kernel
def _drop(store: Histories, node: int, length: int) -> None:
    """Take one use out of its user's and its item's history."""
    if store.row[node] >= 0:
        _unlink(store, node)
        store.held[node // length] -= 1
    _wipe(store, node)


@kernel
def _drop_item(store: Histories, slot: int, row: int, length: int) -> None:
    """Take all uses of an item out of one user's history."""
    for node in range(slot * length, slot * length + min(store.uses[slot], length)):
        if store.row[node] == row or store.row[node] == -2 - row:
            _drop(store, node, length)


@kernel
def _supersede(store: Histories, slot: int, row: int, length: int) -> None:
    """Set the use of an item aside, of which there is one at most, before a newer one is written."""
    for node in range(slot * length, slot * length + min(store.uses[slot], length)):
        if store.row[node] == row:
            _unlink(store, node)
            store.row[node] = -2 - row
            store.held[slot] -= 1
            return


@kernel
def _restore(store: Histories, slot: int, row: int, length: int) -> None:
    """Bring the newest use that was superseded back, to its place by time among the item's others."""
    uses = store.uses[slot]
    for back in range(min(uses, length)):
        node = slot * length + (uses - 1 - back) % length
        if store.row[node] == -2 - row:
            newer, older = -1, store.head[row]
            while older >= 0 and store.time_ms[older] > store.time_ms[node]:
                newer, older = older, store.older[older]
            store.row[node], store.newer[node], store.older[node] = row, newer, older
            _link(store, node)
            store.held[slot] += 1
            return


@kernel
def _put(store: Histories, slot: int, row: int, value: float, time_ms: int, length: int) -> None:
    """Write a use over the user's oldest, in front of the item's other uses."""
    node = slot * length + store.uses[slot] % length
    _drop(store, node, length)
    store.row[node], store.value[node], store.time_ms[node] = row, value, time_ms
    store.older[node], store.newer[node] = store.head[row], -1
    _link(store, node)
    store.uses[slot] += 1
    store.held[slot] += 1


@kernel
def _move(store: Histories, node: int, to: int) -> None:
    """Move a use to an empty place."""
    store.row[to], store.older[to], store.newer[to] = store.row[node], store.older[node], store.newer[node]
    store.value[to], store.time_ms[to] = store.value[node], store.time_ms[node]
    if store.row[to] >= 0:
        _link(store, to)
    _wipe(store, node)


@kernel
def _close_gap(store: Histories, slot: int, back: int, length: int) -> None:
    """Move the `back` newest uses of a user down by one, over an empty place."""
    first, uses = slot * length, store.uses[slot]
    for step in range(back, 0, -1):
        _move(store, first + (uses - step) % length, first + (uses - 1 - step) % length)
    store.uses[slot] -= 1


@kernel
def _empty(store: Histories, slot: int, length: int) -> None:
    """Take a user out of everything but his slot."""
    for node in range(slot * length, slot * length + min(store.uses[slot], length)):
        _drop(store, node, length)
    _unlink_user(store, slot)
    _leave_index(_find(store.token[slot], store.token, store.index), store.token, store.index)


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
            _empty(store, slot, length)
        store.token[slot], store.uses[slot], store.total[slot], store.owed[slot] = token, 0, 0.0, 0
        store.index[-1 - _find(token, store.token, store.index)] = slot
    store.idler[slot], store.fresher[slot] = store.marks[NEWEST], -1
    _link_user(store, slot)
    return slot


@kernel
def _read(store: Histories, slot: int, length: int, out_rows: Ints, out_values: Floats) -> None:
    """Copy the user's newest uses, newest first; -1 where a use is gone or superseded."""
    uses = store.uses[slot]
    for back in range(min(min(uses, length), out_rows.shape[0])):
        node = slot * length + (uses - 1 - back) % length
        if store.row[node] >= 0:
            out_rows[back], out_values[back] = store.row[node], store.value[node]


@kernel
def _follow(store: Histories, kind: int, row: int, length: int) -> None:
    if kind != SWEEP:
        while kind == GONE and store.head[row] >= 0:
            _drop_item(store, store.head[row] // length, row, length)
        store.head[row] = -1


@kernel
def histories_learn(
    first: int, last: int, changes: Ints, changed: int, tokens: NDArray[np.uint64], item: Ints,
    sign: NDArray[np.int8], value: Floats, time_ms: Longs, centred: bool, again: bool, store: Histories,
    max_users: int, length: int, out_value: Floats, out_rows: Ints, out_values: Floats,
) -> int:  # fmt: skip
    """Move the histories on by events first to last - 1; returns the first table change that is left.

    An event of token 0 is nobody's and leaves no trace. One of sign int8 1 or -1 takes its item's older use
    out of the user's history; 1 then writes the new one, with its value, or with the value less the running
    mean of the user's values so far (this one included) when `centred`. out_value float32[n] is what was
    written; out_rows int32[n, R] and out_values float32[n, R], both filled by the caller with -1 and 0, get
    the user's uses before the event, newest first. Events that come `again` count only where
    `histories_unlearn` took them back.
    """
    for event in range(first, last):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            _follow(store, changes[changed, 1], changes[changed, 2], length)
            changed += 1
        if tokens[event] == 0:
            continue
        if again:
            slot = find_slot(tokens[event], store.token, store.index)
            if slot < 0 or store.owed[slot] > 0:
                if slot >= 0:
                    store.owed[slot] -= 1
                continue
        slot, row, amount = _slot_for(store, tokens[event], max_users, length), item[event], value[event]
        _read(store, slot, length, out_rows[event], out_values[event])
        if sign[event] < 0:
            _drop_item(store, slot, row, length)
        elif sign[event] > 0:
            _supersede(store, slot, row, length)
            store.total[slot] += amount
            if centred:
                amount = np.float32(amount - store.total[slot] / (store.uses[slot] + 1))
            _put(store, slot, row, amount, time_ms[event], length)
            out_value[event] = amount
    return changed


@kernel
def histories_unlearn(
    tokens: NDArray[np.uint64], item: Ints, sign: NDArray[np.int8], value: Floats, time_ms: Longs,
    comes_again: bool, store: Histories, length: int, out_value: Floats, out_rows: Ints, out_values: Floats,
) -> None:  # fmt: skip
    """Take uses of sign 1 back; the outputs are what `histories_learn` gave of them, of what is still here.

    The places behind a use move up. What a sign of -1 took out does not come back, and what is older than
    the history that was kept can't; where the event will come again, that is noted as owed.
    """
    for event in range(item.shape[0]):
        slot = find_slot(tokens[event], store.token, store.index) if tokens[event] != 0 else -1
        if slot < 0 or sign[event] <= 0:
            continue
        uses, row, found = store.uses[slot], item[event], -1
        for back in range(min(uses, length)):
            node = slot * length + (uses - 1 - back) % length
            here = store.row[node]
            if (here == row or here == -2 - row) and store.time_ms[node] == time_ms[event]:
                found = back
                break
        if found < 0:
            store.owed[slot] += comes_again
            continue
        out_value[event] = store.value[node]
        place = 0
        for back in range(found + 1, min(uses, length)):
            older = slot * length + (uses - 1 - back) % length
            if place < out_rows.shape[1]:
                here = store.row[older]
                out_rows[event, place] = here if here >= -1 else -2 - here
                out_values[event, place] = store.value[older]
                place += 1
        is_newest = store.row[node] >= 0
        _drop(store, node, length)
        store.total[slot] -= value[event]
        _close_gap(store, slot, found, length)
        if is_newest:
            _restore(store, slot, row, length)


@kernel
def histories_forget_items(rows: Ints, store: Histories, length: int) -> None:
    """Take items out of every history."""
    for row in rows:
        _follow(store, GONE, row, length)


@kernel
def histories_forget_users(tokens: NDArray[np.uint64], store: Histories, length: int) -> None:
    """Drop users; the last slot in use moves to each place that becomes free."""
    for token in tokens:
        slot = find_slot(token, store.token, store.index) if token != 0 else -1
        if slot < 0:
            continue
        _empty(store, slot, length)
        store.owed[slot] = 0
        store.marks[USERS] -= 1
        last = store.marks[USERS]
        if last != slot:
            for place in range(length):
                _move(store, last * length + place, slot * length + place)
            store.index[_find(store.token[last], store.token, store.index)] = slot
            store.token[slot], store.uses[slot], store.held[slot] = (
                store.token[last], store.uses[last], store.held[last],
            )  # fmt: skip
            store.total[slot], store.owed[slot], store.owed[last] = store.total[last], store.owed[last], 0
            store.idler[slot], store.fresher[slot] = store.idler[last], store.fresher[last]
            _link_user(store, slot)
        store.token[last], store.uses[last], store.held[last], store.total[last] = 0, 0, 0, 0.0
