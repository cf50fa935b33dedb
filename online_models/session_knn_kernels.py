# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the sessions that `session_knn.SessionKNN` keeps, and of its nearest neighbours.

They call no kernel of another file: numba's disk cache would not notice a change there.

Sessions stand in a ring: the newest takes the place of the oldest. Entry s * length + p is the p-th item of
the session in place s. All entries of one item form a list from the newest to the oldest, so that no item
needs room of its own, and what a session gives up is gone from every list at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import GONE, kernel

__all__ = ["BEGUN", "NEWEST_MS", "Sessions", "link_newer", "open_sessions", "session_learn", "session_score"]

BEGUN, NEWEST_MS = 0, 1
"""Places in `Sessions.marks`: sessions begun so far, newest event time in ms (-1 = no event yet)."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Sessions(NamedTuple):
    user: NDArray[np.uint64]  # [sessions]: the user's token
    last_ms: Longs  # [sessions]: time of its last event
    filled: Ints  # [sessions]: entries used
    held: Ints  # [sessions]: of these, such as still have an item
    chain: Ints  # [sessions]: next open session of the same bucket, -1 = last
    buckets: Ints  # [a power of two]: first open session of those whose tokens fall here, -1 = none
    item: Ints  # [sessions * length]: row of the entry's item, -1 = taken out
    older: Ints  # [sessions * length]: the item's entry before this one, -1 = first
    newer: Ints  # [sessions * length]
    newest: Ints  # [rows]: the item's newest entry, -1 = none
    count: Ints  # [rows]: the item's entries
    marks: Longs  # [2]


@kernel
def _bucket(sessions: Sessions, user: int) -> int:
    mixed = np.uint64(user) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the high bits are good
    return np.int64(mixed >> np.uint64(33)) & (sessions.buckets.shape[0] - 1)


@kernel
def _open_session(sessions: Sessions, user: int) -> int:
    """The user's open session, -1 = none."""
    slot = np.int64(sessions.buckets[_bucket(sessions, user)])
    while slot >= 0 and sessions.user[slot] != user:
        slot = np.int64(sessions.chain[slot])
    return slot


@kernel
def _close(sessions: Sessions, slot: int) -> None:
    """Let a session be found by its user no more; nothing happens where it is not."""
    bucket, before = _bucket(sessions, sessions.user[slot]), np.int64(-1)
    here = np.int64(sessions.buckets[bucket])
    while here >= 0 and here != slot:
        before, here = here, np.int64(sessions.chain[here])
    if here < 0:
        return
    if before < 0:
        sessions.buckets[bucket] = sessions.chain[slot]
    else:
        sessions.chain[before] = sessions.chain[slot]


@kernel
def _open(sessions: Sessions, slot: int) -> None:
    bucket = _bucket(sessions, sessions.user[slot])
    sessions.chain[slot] = sessions.buckets[bucket]
    sessions.buckets[bucket] = slot


@kernel
def _take_out(sessions: Sessions, entry: int, length: int) -> None:
    """Empty an entry and take it out of its item's list."""
    row, older, newer = sessions.item[entry], sessions.older[entry], sessions.newer[entry]
    if newer >= 0:
        sessions.older[newer] = older
    else:
        sessions.newest[row] = older
    if older >= 0:
        sessions.newer[older] = newer
    sessions.item[entry] = sessions.older[entry] = sessions.newer[entry] = -1
    sessions.count[row] -= 1
    sessions.held[entry // length] -= 1


@kernel
def _begin(sessions: Sessions, user: int, time_ms: int, length: int, max_sessions: int) -> int:
    """A new session, in the place of the oldest when there are enough."""
    slot = sessions.marks[BEGUN] % max_sessions
    if sessions.marks[BEGUN] >= max_sessions:
        _close(sessions, slot)
        for entry in range(slot * length, slot * length + sessions.filled[slot]):
            if sessions.item[entry] >= 0:
                _take_out(sessions, entry, length)
    sessions.marks[BEGUN] += 1
    sessions.user[slot], sessions.last_ms[slot] = user, time_ms
    sessions.filled[slot] = sessions.held[slot] = 0
    _open(sessions, slot)
    return slot


@kernel
def _append(sessions: Sessions, slot: int, row: int, length: int) -> None:
    entry, older = slot * length + sessions.filled[slot], sessions.newest[row]
    sessions.item[entry], sessions.older[entry], sessions.newer[entry] = row, older, -1
    if older >= 0:
        sessions.newer[older] = entry
    sessions.newest[row] = entry
    sessions.count[row] += 1
    sessions.filled[slot] += 1
    sessions.held[slot] += 1


@kernel
def _entry_of(sessions: Sessions, slot: int, row: int, length: int) -> int:
    for entry in range(slot * length, slot * length + sessions.filled[slot]):
        if sessions.item[entry] == row:
            return entry
    return -1


@kernel
def session_learn(
    changes: Ints, item: Ints, weight: Floats, time_ms: Longs, user: NDArray[np.uint64], sessions: Sessions,
    length: int, gap_ms: float, max_sessions: int,
) -> None:  # fmt: skip
    """Learn events in order; there is room for the sessions that they may begin."""
    changed = 0
    for event in range(item.shape[0]):
        while changed < changes.shape[0] and changes[changed, 0] == event:
            if changes[changed, 1] == GONE:
                while sessions.newest[changes[changed, 2]] >= 0:
                    _take_out(sessions, sessions.newest[changes[changed, 2]], length)
            changed += 1
        row, now, token = item[event], time_ms[event], user[event]
        sessions.marks[NEWEST_MS] = max(sessions.marks[NEWEST_MS], now)
        if token == 0 or weight[event] == 0.0:
            continue
        slot = _open_session(sessions, token)
        if slot >= 0 and weight[event] > 0.0 and now - sessions.last_ms[slot] > gap_ms:
            _close(sessions, slot)
            slot = -1
        entry = _entry_of(sessions, slot, row, length) if slot >= 0 else -1
        if weight[event] < 0.0:
            if entry >= 0:
                _take_out(sessions, entry, length)
            continue
        if slot >= 0 and entry < 0 and sessions.filled[slot] == length:
            _close(sessions, slot)
            slot = -1
        if slot < 0:
            slot = _begin(sessions, token, now, length, max_sessions)
        sessions.last_ms[slot] = max(sessions.last_ms[slot], now)
        if entry < 0:
            _append(sessions, slot, row, length)


@kernel
def open_sessions(sessions: Sessions, max_sessions: int) -> None:
    """Find users' open sessions anew, after the buckets changed: of each user that which began last."""
    sessions.buckets[:] = -1
    begun = sessions.marks[BEGUN]
    for number in range(max(begun - max_sessions, 0), begun):
        slot = number % max_sessions
        before = _open_session(sessions, sessions.user[slot])
        if before >= 0:
            _close(sessions, before)
        _open(sessions, slot)


@kernel
def link_newer(sessions: Sessions, used: Longs) -> None:
    """Set `newer`, and the items' counts, of the entries `used` from what is older."""
    for entry in used:
        sessions.newer[entry] = -1
    for entry in used:
        if sessions.older[entry] >= 0:
            sessions.newer[sessions.older[entry]] = entry
        if sessions.item[entry] >= 0:
            sessions.count[sessions.item[entry]] += 1


@kernel
def _find_matches(
    recent: Ints, own: int, sessions: Sessions, source_power: Floats, length: int, query_length: int,
    query_decay: float, sessions_per_item: int, similarity: Floats, match: Ints, touched: Longs,
) -> int:  # fmt: skip
    """Sum the weights of the recent items that each session shares; returns how many sessions share any.

    match[s] becomes the entry of the newest of these recent items in session s, touched the sessions in the
    order in which they are met.
    """
    n, decay = 0, 1.0
    for position in range(min(query_length, recent.shape[0])):
        row = recent[position]
        if 0 <= row < sessions.newest.shape[0]:
            part = np.float32(decay) * source_power[sessions.count[row]]
            entry, left = np.int64(sessions.newest[row]), sessions_per_item
            while entry >= 0 and left > 0:
                slot = entry // length
                if slot != own:
                    if match[slot] < 0:
                        match[slot] = entry
                        touched[n] = slot
                        n += 1
                    similarity[slot] += part
                    left -= 1
                entry = np.int64(sessions.older[entry])
        decay *= query_decay
    return n


@kernel
def _keep_newest(touched: Longs, n: int, sample: int, begun: int, max_sessions: int, match: Ints) -> None:
    """Mark the sessions that aren't among the `sample` that began last: their match becomes -1."""
    if n <= sample:
        return
    age = np.empty(n, dtype=np.int64)
    for place in range(n):
        age[place] = (begun - 1 - touched[place]) % max_sessions
    limit = np.partition(age, sample - 1)[sample - 1]
    for place in range(n):
        if age[place] > limit:
            match[touched[place]] = -1


@kernel
def _weigh(
    touched: Longs, n: int, sessions: Sessions, half_life_ms: float, similarity: Floats, match: Ints,
    entries: Longs, values: Floats,
) -> int:  # fmt: skip
    """Entries and decayed cosines of the sessions that are left; similarity and match are as before."""
    kept, now = 0, sessions.marks[NEWEST_MS]
    for place in range(n):
        slot = touched[place]
        if match[slot] >= 0:
            age = (now - sessions.last_ms[slot]) / half_life_ms if half_life_ms > 0.0 else 0.0
            values[kept] = np.float32(similarity[slot] * 2.0**-age / np.sqrt(np.float64(sessions.held[slot])))
            entries[kept] = match[slot]
            kept += 1
        similarity[slot], match[slot] = 0.0, -1
    return kept


@kernel
def _keep_nearest(entries: Longs, values: Floats, n: int, neighbours: int) -> int:
    """Move the best to the front, in their order; among equals those that were met first."""
    if n <= neighbours:
        return n
    least = np.partition(values[:n], n - neighbours)[n - neighbours]
    equals, kept = neighbours - (values[:n] > least).sum(), 0
    for place in range(n):
        here = values[place]
        if here > least or (here == least and equals > 0):
            equals -= here == least
            values[kept], entries[kept] = here, entries[place]
            kept += 1
    return kept


@kernel
def session_score(
    recent: Ints, user: NDArray[np.uint64], candidates: Ints, sessions: Sessions,
    source_power: Floats, target_power: Floats, length: int, max_sessions: int,
    query_length: int, query_decay: float, sessions_per_item: int, sample: int, neighbours: int,
    half_life_ms: float, gap_weight: Floats, similarity: Floats, match: Ints, total: Floats, out: Floats,
) -> None:  # fmt: skip
    """Scores of given rows. similarity [sessions], match [sessions] (-1) and total [rows] are scratch, and
    as before when it returns."""
    most = min(max(sessions.user.shape[0], 1), max(query_length * sessions_per_item, 1))
    touched, entries = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    values = np.empty(most, dtype=np.float32)
    for query in range(recent.shape[0]):
        own = _open_session(sessions, user[query]) if user[query] != 0 else np.int64(-1)
        n = _find_matches(
            recent[query], own, sessions, source_power, length, query_length, query_decay, sessions_per_item,
            similarity, match, touched,
        )  # fmt: skip
        _keep_newest(touched, n, sample, sessions.marks[BEGUN], max_sessions, match)
        n = _weigh(touched, n, sessions, half_life_ms, similarity, match, entries, values)
        n = _keep_nearest(entries, values, n, neighbours)
        for place in range(n):
            first = entries[place] // length * length
            for entry in range(first, first + sessions.filled[first // length]):
                if sessions.item[entry] >= 0:
                    total[sessions.item[entry]] += values[place] * gap_weight[abs(entry - entries[place])]
        for column in range(candidates.shape[1]):
            row = candidates[query, column]
            if 0 <= row < total.shape[0] and total[row] != 0.0:
                out[query, column] = total[row] * target_power[sessions.count[row]]
        for place in range(n):
            first = entries[place] // length * length
            for entry in range(first, first + sessions.filled[first // length]):
                if sessions.item[entry] >= 0:
                    total[sessions.item[entry]] = 0.0
