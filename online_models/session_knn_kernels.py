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

__all__ = ["Sessions", "forget_items", "forget_users", "learn", "link_newer", "reopen", "score", "unlearn"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Sessions(NamedTuple):
    user: NDArray[np.uint64]  # [sessions]: the user's token, 0 = nobody's any more
    last_ms: Longs  # [sessions]: time of its last event
    filled: Ints  # [sessions]: entries used
    held: Ints  # [sessions]: of these, such as still have an item
    chain: Ints  # [sessions]: next open session of the same bucket, -1 = last
    buckets: Ints  # [a power of two]: first open session of those whose tokens fall here, -1 = none
    item: Ints  # [sessions * length]: row of the entry's item, -1 = taken out
    older: Ints  # [sessions * length]: the item's entry before this one, -1 = first
    newer: Ints  # [sessions * length]
    uses: Ints  # [sessions * length]: events that it stands for
    used_ms: Longs  # [sessions * length]: time of the newest of them, kept when the item is taken out
    newest: Ints  # [rows]: the item's newest entry, -1 = none
    count: Ints  # [rows]: the item's entries
    begun: Longs  # [1]: sessions begun so far


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
def _end(sessions: Sessions, slot: int, length: int) -> None:
    """Forget a session; its place in the ring stays empty until its turn comes."""
    _close(sessions, slot)
    for entry in range(slot * length, slot * length + sessions.filled[slot]):
        if sessions.item[entry] >= 0:
            _take_out(sessions, entry, length)
    sessions.user[slot] = sessions.last_ms[slot] = sessions.filled[slot] = sessions.held[slot] = 0


@kernel
def _begin(sessions: Sessions, user: int, time_ms: int, length: int, max_sessions: int) -> int:
    """A new session, in the place of the oldest when there are enough."""
    slot = sessions.begun[0] % max_sessions
    if sessions.begun[0] >= max_sessions:
        _end(sessions, slot, length)
    sessions.begun[0] += 1
    sessions.user[slot], sessions.last_ms[slot] = user, time_ms
    sessions.filled[slot] = sessions.held[slot] = 0
    _open(sessions, slot)
    return slot


@kernel
def _append(sessions: Sessions, slot: int, row: int, time_ms: int, length: int) -> None:
    entry, older = slot * length + sessions.filled[slot], sessions.newest[row]
    sessions.uses[entry], sessions.used_ms[entry] = 1, time_ms
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
def learn(
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
            _append(sessions, slot, row, now, length)
        else:
            sessions.uses[entry] += 1
            sessions.used_ms[entry] = max(sessions.used_ms[entry], now)


@kernel
def _find_use(sessions: Sessions, user: int, row: int, time_ms: int, length: int, max_sessions: int) -> int:
    """The entry of a use of that time: the one that says so, else the oldest that stands for several uses up
    to a later one; -1 = none. Looks at every session once."""
    found, begun = np.int64(-1), sessions.begun[0]
    for number in range(begun - 1, max(begun - max_sessions, 0) - 1, -1):
        slot = number % max_sessions
        entry = _entry_of(sessions, slot, row, length) if sessions.user[slot] == user else np.int64(-1)
        if entry >= 0 and sessions.used_ms[entry] == time_ms:
            return entry
        if entry >= 0 and sessions.used_ms[entry] > time_ms and sessions.uses[entry] > 1:
            found = entry
    return found


@kernel
def _move_up(sessions: Sessions, slot: int, hole: int, length: int) -> None:
    """Close the gap that an empty entry leaves."""
    last = slot * length + sessions.filled[slot] - 1
    for to in range(hole, last):
        entry = to + 1
        row, older, newer = sessions.item[entry], sessions.older[entry], sessions.newer[entry]
        sessions.item[to], sessions.older[to], sessions.newer[to] = row, older, newer
        sessions.uses[to], sessions.used_ms[to] = sessions.uses[entry], sessions.used_ms[entry]
        if newer >= 0:
            sessions.older[newer] = to
        elif row >= 0:
            sessions.newest[row] = to
        if older >= 0:
            sessions.newer[older] = to
    sessions.item[last] = sessions.older[last] = sessions.newer[last] = -1
    sessions.filled[slot] -= 1


@kernel
def unlearn(
    item: Ints, weight: Floats, time_ms: Longs, user: NDArray[np.uint64], sessions: Sessions, length: int,
    max_sessions: int,
) -> None:  # fmt: skip
    """Take uses back. A session of which none is left ends, and the user's session before it is open again;
    what an event of negative weight took out does not come back."""
    for event in range(item.shape[0]):
        token, entry = user[event], np.int64(-1)
        if token != 0 and weight[event] > 0.0:
            entry = _find_use(sessions, token, item[event], time_ms[event], length, max_sessions)
        if entry >= 0:
            sessions.uses[entry] -= 1
        if entry < 0 or sessions.uses[entry] > 0:
            continue
        slot = entry // length
        _take_out(sessions, entry, length)
        _move_up(sessions, slot, entry, length)
        if sessions.filled[slot] > 0:
            first = slot * length
            sessions.last_ms[slot] = sessions.used_ms[first : first + sessions.filled[slot]].max()
            continue
        _end(sessions, slot, length)
        begun = sessions.begun[0]
        for number in range(begun - 1, max(begun - max_sessions, 0) - 1, -1):
            before = number % max_sessions
            if sessions.user[before] == token:
                if _open_session(sessions, token) < 0:
                    _open(sessions, before)
                break


@kernel
def forget_users(tokens: NDArray[np.uint64], sessions: Sessions, live: int, length: int) -> None:
    """End all sessions of users; `live` is how many there are."""
    for slot in range(live):
        if sessions.user[slot] != 0 and (tokens == sessions.user[slot]).any():
            _end(sessions, slot, length)


@kernel
def forget_items(rows: Ints, sessions: Sessions, length: int) -> None:
    """Take items out of every session."""
    for row in rows:
        while sessions.newest[row] >= 0:
            _take_out(sessions, sessions.newest[row], length)


@kernel
def reopen(sessions: Sessions, max_sessions: int) -> None:
    """Find users' open sessions anew, after the buckets changed: of each user that which began last."""
    sessions.buckets[:] = -1
    begun = sessions.begun[0]
    for number in range(max(begun - max_sessions, 0), begun):
        slot = number % max_sessions
        if sessions.user[slot] == 0:
            continue
        before = _open_session(sessions, sessions.user[slot])
        if before >= 0:
            _close(sessions, before)
        _open(sessions, slot)


@kernel
def link_newer(sessions: Sessions, used: Longs) -> None:
    """Set `newer`, and the items' counts, of the entries `used` from what is older."""
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
    touched: Longs, n: int, sessions: Sessions, now: int, half_life_ms: float, similarity: Floats,
    match: Ints, entries: Longs, values: Floats,
) -> int:  # fmt: skip
    """Entries and decayed cosines of the sessions that are left; similarity and match are as before."""
    kept = 0
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
def score(
    recent: Ints, user: NDArray[np.uint64], candidates: Ints, sessions: Sessions,
    source_power: Floats, target_power: Floats, length: int, max_sessions: int,
    query_length: int, query_decay: float, sessions_per_item: int, sample: int, neighbours: int,
    half_life_ms: float, now: int, gap_weight: Floats, similarity: Floats, match: Ints, total: Floats,
    out: Floats,
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
        _keep_newest(touched, n, sample, sessions.begun[0], max_sessions, match)
        n = _weigh(touched, n, sessions, now, half_life_ms, similarity, match, entries, values)
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
