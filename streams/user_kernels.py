# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of user state: ids to codes, bounded lists a user, admit, learn, write and read records.

Sequential, in order of arrival, without fastmath. A kernel that could run out of room in a pool stops before
the event and says how many it has done; `streams.user_table` makes room and calls again. All stand in this
file, because numba's disk cache watches only the file of the kernel called.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import isgd_step, kernel
from online_models.learning_batch import PAIR, UNCOUNT, UNPAIR, WITHDRAW
from streams.event_kernels import hash_bytes

__all__ = ["Ids", "Learned", "Users", "admit", "encode", "forget", "gather", "learn", "load", "withdraw"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

EMPTY, DELETED = -1, -2
"""Slots of a hash table that hold no code."""
NEXT, LIVE, END, FREE, DEAD_SLOTS, GARBAGE = range(6)
"""`Ids.counts`: codes ever given, ids held, bytes used, first free code or -1, deleted slots, bytes of
removed ids."""
RECENT, SEEN, DEDUPE = range(3)
"""The lists of a user."""
TOKEN, EVENTS, FIRST_MS, LAST_MS, START = range(5)
"""Columns of `Users.long`; START + k is that of list k."""
PARTITION, TURN, TOUCHED, REWRITE, COUNT, TAIL, ROOM = 0, 1, 2, 3, 4, 7, 10
"""Columns of `Users.small`; COUNT + k, TAIL + k and ROOM + k are those of list k. REWRITE is set when
something was taken out of a list: the next record is a cold one."""
ACCEPTED, DUPLICATE, LATE = range(3)
"""What became of an event."""
FORMAT = 3
"""Format of a record of user-state: see `streams.user_records`."""
FORMAT_WITHOUT_EVENTS = 2
"""The format before it, still read: its recent items don't say of which event they are, nor its value."""
MAX_ID_BYTES = 256


class Ids(NamedTuple):
    """Ids as bytes to dense codes: open addressing with linear probing; codes of removed ids are given
    again."""

    slots: Ints
    """int32[a power of two]"""
    hash: Hashes
    """uint64[codes]"""
    start: Longs
    """int64[codes]: where the id's bytes begin; of a free code, the next free one."""
    length: Ints
    """int32[codes], -1 where the code is free."""
    arena: Bytes
    counts: Longs
    """int64[6]"""


class Users(NamedTuple):
    """User state by columns; row = code of the user's id (and partition) in `ids`.

    The three lists of a user lie in pools, oldest first, as COUNT entries from START; TAIL of them came after
    the user's cold record, ROOM is the size class of the list's segment, -1 while it has none.
    """

    ids: Ids
    long: Longs
    """int64[rows, 8], one line of the cache: TOKEN, EVENTS, FIRST_MS, LAST_MS, and START of each list."""
    small: Ints
    """int32[rows, 16], another: PARTITION, TURN, TOUCHED, REWRITE, and COUNT, TAIL and ROOM of each list."""
    factor: Floats
    factor_bytes: Bytes
    """The same memory as `factor`, uint8[rows, 4 d]."""
    last_list: Ints
    """int32[rows, 10]: item codes of the list last served, -1 padded."""
    recent_item: Ints
    """What the last events with an item and a weight were, and all that it takes to withdraw them; only items
    of a weight above 0 count as the user's recent items."""
    recent_time: Longs
    recent_kind: Bytes
    recent_weight: Floats
    recent_bits: NDArray[np.uint32]
    """The same memory as `recent_weight`."""
    recent_hash: Hashes
    """Of the event's id; 0 = not known."""
    recent_value: Floats
    """NaN where the event stated none."""
    seen_item: Ints
    dedupe_hash: Hashes
    dedupe_time: Longs
    sizes: Longs
    """int64[3, classes]: entries of a segment by class; a list's last class is its cap."""
    free: Longs
    """int64[3, classes]: first free segment of a class, -1 if there is none."""
    ends: Longs
    """int64[3]: entries of each pool ever used."""
    headroom: Longs
    """int64[3]: entries that one user's list may take on its way from nothing to its cap."""
    touched: Ints
    """int32[rows]: the rows touched since the last records were written, `touched_count[0]` of them."""
    touched_count: Longs


class Learned(NamedTuple):
    """What learning reads of the replicated item state, and how item codes and its rows go together."""

    row_of: Ints
    """int32[>= codes]: row in the item table, -1 where the item has none."""
    factors: Floats
    """float32[rows, d]"""
    introduced: NDArray[np.bool_]
    """bool[rows]: nobody has used it."""
    unknown: Floats
    """float32[u, d]: start vectors of the batch's items without a row."""
    popular_place: Ints
    """int32[>= rows]: an item's place by falling plain count, -1 where it has none."""
    discount: Doubles
    """float64[10]: 1 / log2(place + 2)"""
    learning_rate: float
    regularization: float


# --- ids ---


@kernel
def _equal(a: Bytes, at: int, b: Bytes, start: int, length: int) -> bool:
    for k in range(length):  # noqa: SIM110  # numba takes no generators
        if a[at + k] != b[start + k]:
            return False
    return True


@kernel
def find(ids: Ids, data: Bytes, start: int, length: int, hashed: int) -> int:
    """Code of an id, -1 when it is unknown."""
    mask = np.uint64(len(ids.slots) - 1)
    at = hashed & mask
    while True:
        code = ids.slots[at]
        if code == EMPTY:
            return -1
        if (
            code >= 0
            and ids.hash[code] == hashed
            and ids.length[code] == length
            and _equal(ids.arena, ids.start[code], data, start, length)
        ):
            return code
        at = (at + np.uint64(1)) & mask


@kernel
def insert(ids: Ids, data: Bytes, start: int, length: int, hashed: int) -> int:
    """A code for an id that has none. The caller has made room for it."""
    mask = np.uint64(len(ids.slots) - 1)
    at = hashed & mask
    while ids.slots[at] >= 0:
        at = (at + np.uint64(1)) & mask
    if ids.slots[at] == DELETED:
        ids.counts[DEAD_SLOTS] -= 1
    code = ids.counts[FREE]
    if code >= 0:
        ids.counts[FREE] = ids.start[code]
    else:
        code = ids.counts[NEXT]
        ids.counts[NEXT] += 1
    end = ids.counts[END]
    for k in range(length):
        ids.arena[end + k] = data[start + k]
    ids.slots[at] = code
    ids.hash[code] = hashed
    ids.start[code] = end
    ids.length[code] = length
    ids.counts[END] = end + length
    ids.counts[LIVE] += 1
    return code


@kernel
def remove(ids: Ids, code: int) -> None:
    """Give a code back; its bytes stay as garbage until the arena is rewritten."""
    mask = np.uint64(len(ids.slots) - 1)
    at = ids.hash[code] & mask
    while ids.slots[at] != code:
        at = (at + np.uint64(1)) & mask
    ids.slots[at] = DELETED
    ids.counts[DEAD_SLOTS] += 1
    ids.counts[LIVE] -= 1
    ids.counts[GARBAGE] += ids.length[code]
    ids.length[code] = -1
    ids.start[code] = ids.counts[FREE]
    ids.counts[FREE] = code


@kernel
def remove_all(ids: Ids, codes: Ints) -> None:
    for k in range(len(codes)):
        remove(ids, codes[k])


@kernel
def rebuild(ids: Ids, slots: Ints, arena: Bytes) -> None:
    """Fill new slots and a new arena with what `ids` holds; codes stay."""
    mask = np.uint64(len(slots) - 1)
    slots[:] = EMPTY
    end = 0
    for code in range(ids.counts[NEXT]):
        length = ids.length[code]
        if length < 0:
            continue
        at = ids.hash[code] & mask
        while slots[at] != EMPTY:
            at = (at + np.uint64(1)) & mask
        slots[at] = code
        for k in range(length):
            arena[end + k] = ids.arena[ids.start[code] + k]
        ids.start[code] = end
        end += length
    ids.counts[END] = end
    ids.counts[DEAD_SLOTS] = 0
    ids.counts[GARBAGE] = 0


@kernel
def codes_of(ids: Ids, data: Bytes, starts: Longs, lengths: Ints, ensure: bool, out: Ints) -> None:
    """Codes of many ids; unknown ones get one where `ensure` is set, else -1."""
    for k in range(len(starts)):
        hashed = hash_bytes(data, starts[k], lengths[k])
        code = find(ids, data, starts[k], lengths[k], hashed)
        if code < 0 and ensure:
            code = insert(ids, data, starts[k], lengths[k], hashed)
        out[k] = code


# --- users and their lists ---


@kernel
def user_hash(hashed: int, partition: int) -> int:
    """A user's slot: an id that comes in two partitions is two users, for it has two owners."""
    return hashed ^ (np.uint64(partition + 1) * np.uint64(0x9E3779B97F4A7C15))


@kernel
def find_user(users: Users, data: Bytes, start: int, length: int, hashed: int, partition: int) -> int:
    ids = users.ids
    mask = np.uint64(len(ids.slots) - 1)
    at = hashed & mask
    while True:
        code = ids.slots[at]
        if code == EMPTY:
            return -1
        if (
            code >= 0
            and ids.hash[code] == hashed
            and users.small[code, PARTITION] == partition
            and ids.length[code] == length
            and _equal(ids.arena, ids.start[code], data, start, length)
        ):
            return code
        at = (at + np.uint64(1)) & mask


@kernel
def new_user(
    users: Users, data: Bytes, start: int, length: int, hashed: int, partition: int, token: int
) -> int:
    row = insert(users.ids, data, start, length, hashed)
    users.small[row, PARTITION] = partition
    users.long[row, TOKEN] = np.int64(token)
    users.long[row, EVENTS] = 0
    users.long[row, FIRST_MS] = 0
    users.long[row, LAST_MS] = 0
    users.factor[row, :] = 0.0
    users.last_list[row, :] = -1
    users.small[row, COUNT : COUNT + 3] = 0
    users.small[row, TAIL : TAIL + 3] = 0
    users.small[row, ROOM : ROOM + 3] = -1
    users.small[row, TURN] = 0
    users.small[row, TOUCHED] = 0
    users.small[row, REWRITE] = 0
    return row


@kernel
def _copy(users: Users, which: int, source: int, target: int, n: int) -> None:
    """Move `n` entries of a pool to a place before them, or to one that does not overlap."""
    if which == RECENT:
        for k in range(n):
            users.recent_item[target + k] = users.recent_item[source + k]
        for k in range(n):
            users.recent_time[target + k] = users.recent_time[source + k]
        for k in range(n):
            users.recent_kind[target + k] = users.recent_kind[source + k]
        for k in range(n):
            users.recent_weight[target + k] = users.recent_weight[source + k]
        for k in range(n):
            users.recent_hash[target + k] = users.recent_hash[source + k]
        for k in range(n):
            users.recent_value[target + k] = users.recent_value[source + k]
    elif which == SEEN:
        for k in range(n):
            users.seen_item[target + k] = users.seen_item[source + k]
    else:
        for k in range(n):
            users.dedupe_hash[target + k] = users.dedupe_hash[source + k]
        for k in range(n):
            users.dedupe_time[target + k] = users.dedupe_time[source + k]


@kernel
def _release(users: Users, row: int, which: int) -> None:
    """Put a list's segment on the free list of its class; the link stands in the segment itself."""
    size_class = users.small[row, ROOM + which]
    if size_class < 0:
        return
    start, head = users.long[row, START + which], users.free[which, size_class]
    if which == RECENT:
        users.recent_time[start] = head
    elif which == SEEN:
        users.seen_item[start] = head
    else:
        users.dedupe_time[start] = head
    users.free[which, size_class] = start
    users.small[row, ROOM + which] = -1


@kernel
def _grow(users: Users, row: int, which: int) -> None:
    """Give a list a segment of the next class. The caller has made room for the largest."""
    size_class = users.small[row, ROOM + which] + 1
    head = users.free[which, size_class]
    if head >= 0:
        if which == RECENT:
            users.free[which, size_class] = users.recent_time[head]
        elif which == SEEN:
            users.free[which, size_class] = users.seen_item[head]
        else:
            users.free[which, size_class] = users.dedupe_time[head]
    else:
        head = users.ends[which]
        users.ends[which] = head + users.sizes[which, size_class]
    _copy(users, which, users.long[row, START + which], head, users.small[row, COUNT + which])
    _release(users, row, which)
    users.long[row, START + which] = head
    users.small[row, ROOM + which] = size_class


@kernel
def _place(users: Users, row: int, which: int) -> int:
    """Where a new last entry goes; the oldest leaves when the list is at its cap."""
    count, size_class = users.small[row, COUNT + which], users.small[row, ROOM + which]
    last = users.sizes.shape[1] - 1
    if size_class < 0 or count == users.sizes[which, size_class]:
        if size_class == last or (size_class >= 0 and users.sizes[which, size_class + 1] == count):
            start = users.long[row, START + which]
            _copy(users, which, start + 1, start, count - 1)
            count -= 1
        else:
            _grow(users, row, which)
    users.small[row, COUNT + which] = count + 1
    users.small[row, TAIL + which] = min(users.small[row, TAIL + which] + 1, count + 1)
    return users.long[row, START + which] + count


@kernel
def compact(users: Users, which: int, order: Ints) -> None:
    """Move the segments of a pool down over unused ones; `order`: the rows that have one, by its start."""
    to = 0
    for k in range(len(order)):
        row = order[k]
        start = users.long[row, START + which]
        if start > to:
            _copy(users, which, start, to, users.small[row, COUNT + which])
            users.long[row, START + which] = to
        to += users.sizes[which, users.small[row, ROOM + which]]
    users.free[which, :] = -1
    users.ends[which] = to


@kernel
def has_room(users: Users) -> bool:
    """Whether every pool can take whatever one event, or one user put back, may add."""
    return (
        users.ends[RECENT] + users.headroom[RECENT] <= len(users.recent_item)
        and users.ends[SEEN] + users.headroom[SEEN] <= len(users.seen_item)
        and users.ends[DEDUPE] + users.headroom[DEDUPE] <= len(users.dedupe_hash)
    )


@kernel
def _remember_hash(users: Users, row: int, hashed: int, time_ms: int, earlier: int) -> None:
    """Put an event at the end of the dedupe window; `earlier` is where its hash stands already, or -1."""
    if earlier >= 0:
        end = users.long[row, START + DEDUPE] + users.small[row, COUNT + DEDUPE]
        was_in_tail = earlier >= end - users.small[row, TAIL + DEDUPE]
        _copy(users, DEDUPE, earlier + 1, earlier, end - earlier - 1)
        users.small[row, COUNT + DEDUPE] -= 1
        users.small[row, TAIL + DEDUPE] -= was_in_tail
    at = _place(users, row, DEDUPE)
    users.dedupe_hash[at] = hashed
    users.dedupe_time[at] = time_ms


@kernel
def _find_hash(users: Users, row: int, hashed: int) -> int:
    start = users.long[row, START + DEDUPE]
    end = start + users.small[row, COUNT + DEDUPE]
    found = False
    for at in range(start, end):
        found |= users.dedupe_hash[at] == hashed  # hardly ever; many at a time, as in _has_seen
    if not found:
        return -1
    at = end - 1
    while users.dedupe_hash[at] != hashed:
        at -= 1
    return at


@kernel
def touch(users: Users, row: int) -> None:
    if not users.small[row, TOUCHED]:
        users.small[row, TOUCHED] = 1
        users.touched[users.touched_count[0]] = row
        users.touched_count[0] += 1


@kernel
def admit(
    begin: int, data: Bytes, user: Ints, item: Ints, user_hashes: Hashes, item_hashes: Hashes,
    event_hash: Hashes, time_ms: Longs, kafka_time_ms: Longs, partition: Ints, tokens: Hashes,
    users: Users, items: Ids, newest_ms: Longs, counts: Longs, lateness_ms: int, window_ms: float,
    now_ms: int, status: Bytes, rows: Ints, codes: Ints, turns: Ints, is_new: Bytes, judged_at_ms: Longs,
) -> int:  # fmt: skip
    """Judge events from `begin` on: late, duplicate or accepted; returns how far it came.

    An accepted event's user gets a row, its item a code, and its hash a place in the dedupe window. `turns`
    says how many events of its user were accepted before it in the batch. `newest_ms` int64[partitions] and
    `counts` int64[partitions, 3] move with each event; `judged_at_ms` keeps what the first was for each.
    """
    for n in range(begin, len(time_ms)):
        if not has_room(users):
            return n
        p = partition[n]
        rows[n] = codes[n] = turns[n] = -1
        is_new[n] = 0
        judged_at_ms[n] = newest_ms[p]
        if newest_ms[p] - time_ms[n] > lateness_ms:
            status[n] = LATE
            counts[p, LATE] += 1
            continue
        start, length = user[n, 0], user[n, 1]
        hashed = user_hash(user_hashes[n], p)
        row = find_user(users, data, start, length, hashed, p)
        earlier = -1
        if row >= 0:
            earlier = _find_hash(users, row, event_hash[n])
            if earlier >= 0 and abs(time_ms[n] - users.dedupe_time[earlier]) <= window_ms:
                status[n] = DUPLICATE
                counts[p, DUPLICATE] += 1
                continue
        else:
            row = new_user(users, data, start, length, hashed, p, tokens[n])
            is_new[n] = 1
        status[n] = ACCEPTED
        counts[p, ACCEPTED] += 1
        newest_ms[p] = min(max(newest_ms[p], min(time_ms[n], kafka_time_ms[n])), now_ms)
        if users.long[row, EVENTS] == 0 or time_ms[n] < users.long[row, FIRST_MS]:
            users.long[row, FIRST_MS] = time_ms[n]
        users.long[row, EVENTS] += 1
        users.long[row, LAST_MS] = max(users.long[row, LAST_MS], time_ms[n])
        _remember_hash(users, row, event_hash[n], time_ms[n], earlier)
        touch(users, row)
        rows[n] = row
        turns[n] = users.small[row, TURN]
        users.small[row, TURN] += 1
        if item[n, 1] > 0:
            code = find(items, data, item[n, 0], item[n, 1], item_hashes[n])
            if code < 0:
                code = insert(items, data, item[n, 0], item[n, 1], item_hashes[n])
            codes[n] = code
    return len(time_ms)


@kernel
def _has_seen(users: Users, row: int, code: int) -> bool:
    start = users.long[row, START + SEEN]
    found = False
    for at in range(start, start + users.small[row, COUNT + SEEN]):
        found |= users.seen_item[at] == code  # without a way out the loop is done many entries at a time
    return found


@kernel
def _judge(
    users: Users, row: int, code: int, seen: bool, listed: bool, learned: Learned, hits: Longs, sums: Doubles
) -> None:
    """Was the item in the last list, and would plain popularity have had it among its ten unseen?"""
    hits[0] += 1
    for place in range(users.last_list.shape[1]):
        if listed and users.last_list[row, place] == code:
            hits[1] += 1
            sums[0] += learned.discount[place]
            break
    item_row = learned.row_of[code]
    if item_row < 0 or seen or learned.popular_place[item_row] < 0:
        return
    start, count = users.long[row, START + SEEN], users.small[row, COUNT + SEEN]
    ahead = place = learned.popular_place[item_row]  # less those of the more popular that the user has seen
    if ahead - count >= len(learned.discount):
        return
    for at in range(start, start + count):
        other = learned.row_of[users.seen_item[at]]
        ahead -= other >= 0 and 0 <= learned.popular_place[other] < place
    if ahead < len(learned.discount):
        hits[2] += 1
        sums[1] += learned.discount[ahead]


@kernel
def learn(
    begin: int, order: Ints, listed: bool, rows: Ints, codes: Ints, unknown: Ints, event_hash: Hashes,
    weight: Floats, value: Doubles, time_ms: Longs, kind: Bytes, partition: Ints, retract: int, rating: int,
    corrected: int, users: Users, learned: Learned, hits: Longs, sums: Doubles, before: Floats, after: Floats,
    recent: Ints, negatives: Ints,
) -> int:  # fmt: skip
    """Test, then learn: judge events order[begin:] against the list before them, move their users' factors,
    and remember the items; returns how far it came.

    It stops where there may be no room, and before an event that withdraws another: one of kind `retract`, or
    a second `rating` of an item, unless its place in `order` is before `corrected`.

    Fills, by place in `order`: before and after float32[m, d], recent int32[m, W] (newest first: -row - 2
    where the item has a row, else its code; -1 none), negatives int32[m, k] (-row - 2, -1 none). `unknown`
    int32[n] says which of `learned.unknown` starts an item without a row. `listed`: the users' last lists are
    the ones before these events.
    """
    for m in range(begin, len(order)):
        if not has_room(users):
            return m
        n = order[m]
        row, code, w = rows[n], codes[n], weight[n]
        teaches = code >= 0 and w != 0.0
        if m >= corrected and (
            kind[n] == retract
            or (kind[n] == rating and teaches and find_rating(users, row, code, rating) >= 0)
        ):
            return m
        seen = teaches and _has_seen(users, row, code)
        if teaches and w > 0.0:
            _judge(users, row, code, seen, listed, learned, hits[partition[n]], sums[partition[n]])
        factor = users.factor[row]
        before[m, :] = factor
        negatives[m, :] = -1
        if teaches:
            item_row = learned.row_of[code]
            vector = learned.factors[item_row] if item_row >= 0 else learned.unknown[unknown[n]]
            isgd_step(
                item_row, vector, w, event_hash[n], learned.factors, learned.introduced,
                learned.learning_rate, learned.regularization, factor, negatives[m],
            )  # fmt: skip
            for k in range(negatives.shape[1]):
                if negatives[m, k] >= 0:
                    negatives[m, k] = -negatives[m, k] - 2
        after[m, :] = factor
        first = users.long[row, START + RECENT]
        last = first + users.small[row, COUNT + RECENT] - 1
        for k in range(recent.shape[1]):
            while last >= first and users.recent_weight[last] <= 0.0:
                last -= 1
            recent[m, k] = -1
            if last >= first:
                other = users.recent_item[last]
                known = learned.row_of[other]
                recent[m, k] = -known - 2 if known >= 0 else other
                last -= 1
        if teaches:
            if not seen:
                users.seen_item[_place(users, row, SEEN)] = code
            at = _place(users, row, RECENT)
            users.recent_item[at] = code
            users.recent_time[at] = time_ms[n]
            users.recent_kind[at] = kind[n]
            users.recent_weight[at] = w
            users.recent_hash[at] = event_hash[n]
            users.recent_value[at] = value[n]
    return len(order)


# --- withdrawing and forgetting ---


@kernel
def find_rating(users: Users, row: int, code: int, rating: int) -> int:
    """Place of the user's rating of an item among the recent ones, -1 if there is none."""
    start = users.long[row, START + RECENT]
    end = start + users.small[row, COUNT + RECENT]
    found = False
    for at in range(start, end):
        found |= users.recent_item[at] == code  # hardly ever; many at a time, as in _has_seen
    if found:
        for at in range(start, end):
            if users.recent_item[at] == code and users.recent_kind[at] == rating:
                return at
    return -1


@kernel
def find_event(users: Users, row: int, hashed: int) -> int:
    """Place of an event among the user's recent ones, by the hash of its id; -1 if it is not there."""
    start = users.long[row, START + RECENT]
    for at in range(start + users.small[row, COUNT + RECENT] - 1, start - 1, -1):
        if users.recent_hash[at] == hashed and hashed != 0:
            return at
    return -1


@kernel
def _items_before(users: Users, first: int, at: int, without: int, out: Ints) -> None:
    """Codes of the recent items before place `at`, newest first, -1 padded; the one at `without` left out."""
    before = at - 1
    for k in range(len(out)):
        while before >= first and (users.recent_weight[before] <= 0.0 or before == without):
            before -= 1
        out[k] = -1
        if before >= first:
            out[k] = users.recent_item[before]
            before -= 1


@kernel
def withdraw(users: Users, row: int, at: int, kinds: Bytes, places: Longs, recent: Ints) -> int:
    """What it takes to withdraw the user's event at place `at`, as `online_models.corrections.withdrawal`
    has it; returns how many records: of each its kind, the place of its event, and recent int32[., W], item
    codes. There is room for twice the recent items and one."""
    first = users.long[row, START + RECENT]
    end = first + users.small[row, COUNT + RECENT]
    later, between = at + 1, 0
    if users.recent_weight[at] > 0.0:
        while later < end and between < recent.shape[1]:  # those that were learned with it in their window
            between += users.recent_weight[later] > 0.0
            later += 1
    n = 0
    for event in range(later - 1, at, -1):
        kinds[n], places[n] = UNPAIR, event
        _items_before(users, first, event, -1, recent[n])
        n += 1
    kinds[n], places[n] = WITHDRAW, at
    _items_before(users, first, at, -1, recent[n])
    n += 1
    for event in range(at + 1, later):
        kinds[n], places[n] = PAIR, event
        _items_before(users, first, event, at, recent[n])
        n += 1
    return n


@kernel
def find_withdrawn(
    users: Users, rows: Ints, codes: Ints, weight: Floats, kind: Bytes, named: Hashes, retract: int,
    rating: int, out: Longs,
) -> None:  # fmt: skip
    """Place of the recent event that each event, of distinct users, takes back; -1 none. `named`: the hash of
    the event that a retract names."""
    for n in range(len(rows)):
        out[n] = -1
        if kind[n] == retract:
            out[n] = find_event(users, rows[n], named[n])
        elif kind[n] == rating and codes[n] >= 0 and weight[n] != 0.0:
            out[n] = find_rating(users, rows[n], codes[n], rating)


@kernel
def withdraw_all(
    users: Users, rows: Ints, at: Longs, kinds: Bytes, places: Longs, recent: Ints, counts: Longs
) -> int:
    """`withdraw` for distinct users, one behind the other: `counts` says how many records each has; returns
    their sum."""
    n = 0
    for k in range(len(rows)):
        counts[k] = withdraw(users, rows[k], at[k], kinds[n:], places[n:], recent[n:])
        n += counts[k]
    return n


@kernel
def take_out_all(users: Users, rows: Ints, at: Longs, unsee: Bytes) -> None:
    """`take_out` for distinct users."""
    for k in range(len(rows)):
        take_out(users, rows[k], at[k], unsee[k] != 0)


@kernel
def forget(users: Users, row: int, kinds: Bytes, places: Longs, recent: Ints) -> int:
    """What it takes to take all kept events of a user out of the counts, newest first; as `withdraw`."""
    first, count = users.long[row, START + RECENT], users.small[row, COUNT + RECENT]
    for n in range(count):
        kinds[n], places[n] = UNCOUNT, first + count - 1 - n
        _items_before(users, first, places[n], -1, recent[n])
    return count


@kernel
def take_out(users: Users, row: int, at: int, unsee: bool) -> None:
    """Remove the event at place `at` from the recent ones, and its item from those seen where `unsee` is set
    and no other recent event names it."""
    code = users.recent_item[at]
    _remove_at(users, row, RECENT, at)
    users.small[row, REWRITE] = 1
    if not unsee:
        return
    start = users.long[row, START + RECENT]
    for other in range(start, start + users.small[row, COUNT + RECENT]):
        if users.recent_item[other] == code:
            return
    start = users.long[row, START + SEEN]
    for place in range(start, start + users.small[row, COUNT + SEEN]):
        if users.seen_item[place] == code:
            _remove_at(users, row, SEEN, place)
            return


@kernel
def _remove_at(users: Users, row: int, which: int, at: int) -> None:
    end = users.long[row, START + which] + users.small[row, COUNT + which]
    users.small[row, TAIL + which] -= at >= end - users.small[row, TAIL + which]
    _copy(users, which, at + 1, at, end - at - 1)
    users.small[row, COUNT + which] -= 1


@kernel
def gather(
    chosen: Ints, users: Users, row_of: Ints, recent: Ints, kinds: Ints, times_ms: Longs, seen_count: Ints,
    blocked: Ints, ends: Ints, factors: Floats,
) -> None:  # fmt: skip
    """What a list needs of each chosen user: recent rows newest first with their events' types and times,
    rows seen one user behind the other."""
    at = 0
    for k in range(len(chosen)):
        row = chosen[k]
        first = users.long[row, START + RECENT]
        last = first + users.small[row, COUNT + RECENT] - 1
        for place in range(recent.shape[1]):
            while last >= first and users.recent_weight[last] <= 0.0:
                last -= 1
            found = last >= first
            recent[k, place] = row_of[users.recent_item[last]] if found else -1
            kinds[k, place] = np.int32(users.recent_kind[last]) if found else -1
            times_ms[k, place] = users.recent_time[last] if found else -1
            last -= 1
        start = users.long[row, START + SEEN]
        for place in range(start, start + users.small[row, COUNT + SEEN]):
            blocked[at] = row_of[users.seen_item[place]]
            at += 1
        ends[k] = at
        seen_count[k] = users.small[row, COUNT + SEEN]
        factors[k, :] = users.factor[row]


@kernel
def row_of_user(users: Users, data: Bytes, length: int, partition: int) -> int:
    return find_user(users, data, 0, length, user_hash(hash_bytes(data, 0, length), partition), partition)


@kernel
def mark_items(users: Users, rows: Ints, used: Bytes) -> None:
    """Set used[code] for every item that a list of one of the rows names."""
    for k in range(len(rows)):
        row = rows[k]
        for at in range(
            users.long[row, START + RECENT],
            users.long[row, START + RECENT] + users.small[row, COUNT + RECENT],
        ):
            used[users.recent_item[at]] = 1
        for at in range(
            users.long[row, START + SEEN], users.long[row, START + SEEN] + users.small[row, COUNT + SEEN]
        ):
            used[users.seen_item[at]] = 1
        for place in range(users.last_list.shape[1]):
            if users.last_list[row, place] >= 0:
                used[users.last_list[row, place]] = 1


@kernel
def drop_users(users: Users, gone: Ints) -> None:
    """Forget users whole: ids, lists and all."""
    for k in range(len(gone)):
        row = gone[k]
        for which in range(3):
            _release(users, row, which)
            users.small[row, COUNT + which] = 0
        users.small[row, PARTITION] = -1
        users.factor[row, :] = 0.0
        users.last_list[row, :] = -1
        remove(users.ids, row)


# --- records of user-state ---


@kernel
def _put(out: Bytes, at: int, value: int, size: int) -> int:
    """`value` as `size` bytes, least significant first."""
    bits = np.uint64(value)
    for k in range(size):
        out[at + k] = np.uint8((bits >> np.uint64(8 * k)) & np.uint64(255))
    return at + size


@kernel
def _put_big(out: Bytes, at: int, value: int, size: int) -> int:
    """`value` as `size` bytes, most significant first, as msgpack has its numbers."""
    bits = np.uint64(value)
    for k in range(size):
        out[at + k] = np.uint8((bits >> np.uint64(8 * (size - 1 - k))) & np.uint64(255))
    return at + size


@kernel
def _put_number(out: Bytes, at: int, code: int, value: int) -> int:
    out[at] = code
    return _put_big(out, at + 1, value, 8)


@kernel
def _put_length(out: Bytes, at: int, n_bytes: int) -> int:
    """The head of a msgpack byte string."""
    out[at] = 0xC6
    return _put_big(out, at + 1, n_bytes, 4)


@kernel
def _put_column(out: Bytes, at: int, data: Bytes, start: int, n_bytes: int) -> int:
    """A msgpack byte string of `n_bytes` of `data`, which is little-endian as the machine is."""
    at = _put_length(out, at, n_bytes)
    for b in range(n_bytes):
        out[at + b] = data[start + b]
    return at + n_bytes


@kernel
def _index(users: Users, codes: Ints, n: int, code: int, place: Longs, stamp: int) -> int:
    """Index of an item in the record's id table of `n` ids, which may grow by one: the new n, packed as
    n << 32 | index."""
    mark = place[code]
    if mark >> 16 == stamp:
        return (n << 32) | (mark & 0xFFFF)
    codes[n] = code
    place[code] = (stamp << 16) | n
    return ((n + 1) << 32) | n


@kernel
def encode(
    begin: int, chosen: Ints, whole: Bytes, users: Users, items: Ids, kinds: Ids, place: Longs, stamps: Longs,
    codes: Ints, out: Bytes, ends: Longs,
) -> int:  # fmt: skip
    """Records of the chosen users from `begin` on, one behind the other in `out`, each ending at `ends`.

    Returns how far it came: it stops where the next might not fit. `whole[k]` asks for a cold record, which
    holds all; else the lists hold only what came since the cold one. `codes` int32[>= 2 x the caps] and
    `place` int64[>= item codes] are scratch.
    """
    at = 0
    for k in range(begin, len(chosen)):
        row = chosen[k]
        n_recent = users.small[row, COUNT + RECENT] if whole[k] else users.small[row, TAIL + RECENT]
        n_seen = users.small[row, COUNT + SEEN] if whole[k] else users.small[row, TAIL + SEEN]
        n_dedupe = users.small[row, COUNT + DEDUPE] if whole[k] else users.small[row, TAIL + DEDUPE]
        worst_ids = n_recent + n_seen + users.last_list.shape[1]
        worst = (
            512 + 4 * users.factor.shape[1] + worst_ids * (MAX_ID_BYTES + 2) + 28 * n_recent + 16 * n_dedupe
        )
        if at + worst + kinds.counts[END] + 3 * kinds.counts[NEXT] > len(out):
            return k
        stamps[0] += 1
        stamp = stamps[0]
        first_seen = users.long[row, START + SEEN] + users.small[row, COUNT + SEEN] - n_seen
        first = users.long[row, START + RECENT] + users.small[row, COUNT + RECENT] - n_recent
        n = 0
        for j in range(n_seen):
            n = _index(users, codes, n, users.seen_item[first_seen + j], place, stamp) >> 32
        for j in range(n_recent):
            n = _index(users, codes, n, users.recent_item[first + j], place, stamp) >> 32
        shown = 0
        for j in range(users.last_list.shape[1]):
            if users.last_list[row, j] >= 0:
                shown += 1
                n = _index(users, codes, n, users.last_list[row, j], place, stamp) >> 32
        out[at] = 0xDC  # array of 19
        out[at + 1] = 0
        out[at + 2] = 19
        out[at + 3] = FORMAT
        at += 4
        at = _put_number(out, at, 0xCF, users.long[row, TOKEN])
        at = _put_number(out, at, 0xD3, users.long[row, EVENTS])
        at = _put_number(out, at, 0xD3, users.long[row, FIRST_MS])
        at = _put_number(out, at, 0xD3, users.long[row, LAST_MS])
        at = _put_column(out, at, users.factor_bytes[row], 0, users.factor_bytes.shape[1])
        at = _put_kinds(users, kinds, first, n_recent, out, at)
        at = _put_length(out, at, 2 * n)
        total = 0
        for j in range(n):
            at = _put(out, at, items.length[codes[j]], 2)
            total += items.length[codes[j]]
        at = _put_length(out, at, total)
        for j in range(n):
            start = items.start[codes[j]]
            for b in range(items.length[codes[j]]):
                out[at + b] = items.arena[start + b]
            at += items.length[codes[j]]
        at = _put_number(out, at, 0xD3, n_seen)
        at = _put_length(out, at, 2 * n_recent)
        for j in range(n_recent):
            at = _put(out, at, place[users.recent_item[first + j]] & 0xFFFF, 2)
        at = _put_column(out, at, users.recent_time.view(np.uint8), 8 * first, 8 * n_recent)
        at = _put_column(out, at, users.recent_weight.view(np.uint8), 4 * first, 4 * n_recent)
        of_dedupe = users.long[row, START + DEDUPE] + users.small[row, COUNT + DEDUPE] - n_dedupe
        at = _put_column(out, at, users.dedupe_hash.view(np.uint8), 8 * of_dedupe, 8 * n_dedupe)
        at = _put_column(out, at, users.dedupe_time.view(np.uint8), 8 * of_dedupe, 8 * n_dedupe)
        at = _put_length(out, at, 2 * shown)
        for j in range(users.last_list.shape[1]):
            if users.last_list[row, j] >= 0:
                at = _put(out, at, place[users.last_list[row, j]] & 0xFFFF, 2)
        at = _put_column(out, at, users.recent_hash.view(np.uint8), 8 * first, 8 * n_recent)
        at = _put_column(out, at, users.recent_value.view(np.uint8), 4 * first, 4 * n_recent)
        ends[k] = at
        if whole[k]:
            users.small[row, TAIL : TAIL + 3] = 0
            users.small[row, REWRITE] = 0
    return len(chosen)


@kernel
def keys_of(users: Users, chosen: Ints, cold: Bytes, prefix: Bytes, out: Bytes, ends: Longs) -> None:
    """Keys of the chosen users' records, one behind the other; a cold record's begins with `prefix`."""
    at = 0
    for k in range(len(chosen)):
        if cold[k]:
            for b in range(len(prefix)):
                out[at + b] = prefix[b]
            at += len(prefix)
        start, length = users.ids.start[chosen[k]], users.ids.length[chosen[k]]
        for b in range(length):
            out[at + b] = users.ids.arena[start + b]
        at += length
        ends[k] = at


@kernel
def _put_kinds(users: Users, kinds: Ids, first: int, n: int, out: Bytes, at: int) -> int:
    """The names of the event types among `n` recent items, then each item's index among them."""
    index = np.full(256, -1, np.int16)
    order = np.empty(256, np.uint8)
    used = 0
    for j in range(n):
        kind = users.recent_kind[first + j]
        if index[kind] < 0:
            index[kind] = used
            order[used] = kind
            used += 1
    out[at] = 0xDC
    at = _put_big(out, at + 1, used, 2)
    for j in range(used):
        length = kinds.length[order[j]]
        out[at] = 0xDA  # a string with a length of two bytes
        at = _put_big(out, at + 1, length, 2)
        for b in range(length):
            out[at + b] = kinds.arena[kinds.start[order[j]] + b]
        at += length
    at = _put_length(out, at, n)
    for j in range(n):
        out[at + j] = index[users.recent_kind[first + j]]
    return at + n


@kernel
def _take(data: Bytes, at: int, size: int) -> int:
    bits = np.uint64(0)
    for k in range(size):
        bits |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return bits


@kernel
def _take_big(data: Bytes, at: int, size: int) -> int:
    bits = np.uint64(0)
    for k in range(size):
        bits = (bits << np.uint64(8)) | np.uint64(data[at + k])
    return bits


@kernel
def _all_below(data: Bytes, at: int, n: int, width: int, limit: int) -> bool:
    """Whether `n` indices of `width` bytes each lead into a table of `limit` entries."""
    for k in range(n):  # noqa: SIM110  # numba takes no generators
        if np.int64(_take(data, at + width * k, width)) >= limit:
            return False
    return True


@kernel
def _sections(data: Bytes, start: int, end: int, width: int, at: Longs, size: Longs) -> bool:
    """Where the parts of a record begin and how long they are; False when it is not a record that `encode`
    wrote. Numbers have size 8; part 5 is the table of type names, its size the number of names."""
    if end - start < 4 or data[start] != 0xDC or data[start + 1] != 0:
        return False
    parts = data[start + 2] - 1
    if data[start + 3] != FORMAT or parts != 18:
        if data[start + 3] != FORMAT_WITHOUT_EVENTS or parts != 16:
            return False
        size[16], size[17] = 0, 0
    here = start + 4
    for part in range(parts):
        if here >= end:
            return False
        head = data[here]
        if part < 4 or part == 9:
            if head != (0xCF if part == 0 else 0xD3) or here + 9 > end:
                return False
            at[part], size[part] = here + 1, 8
            here += 9
        elif part == 5:
            if head != 0xDC or here + 3 > end:
                return False
            names = np.int64(_take_big(data, here + 1, 2))
            at[part], size[part] = here + 3, names
            here += 3
            for _ in range(names):
                if here + 3 > end or data[here] != 0xDA:
                    return False
                here += 3 + np.int64(_take_big(data, here + 1, 2))
        else:
            if head != 0xC6 or here + 5 > end:
                return False
            length = np.int64(_take_big(data, here + 1, 4))
            at[part], size[part] = here + 5, length
            here += 5 + length
            if here > end:
                return False
    ids = size[7] // 2
    recent = size[6]
    seen = np.int64(_take_big(data, at[9], 8))
    total = 0
    for k in range(ids):
        length = np.int64(_take(data, at[7] + 2 * k, 2))
        if length == 0 or length > MAX_ID_BYTES:
            return False
        total += length
    return (
        here == end
        and size[4] == 4 * width
        and size[7] == 2 * ids
        and total == size[8]
        and 0 <= seen <= ids
        and size[10] == 2 * recent
        and size[11] == 8 * recent
        and size[12] == 4 * recent
        and size[13] == size[14]
        and size[13] % 8 == 0
        and size[15] % 2 == 0
        and (parts == 16 or (size[16] == 8 * recent and size[17] == 4 * recent))
        and _all_below(data, at[6], recent, 1, size[5])
        and _all_below(data, at[10], recent, 2, ids)
        and _all_below(data, at[15], size[15] // 2, 2, ids)
    )


@kernel
def _kinds_fit(kinds: Ids, data: Bytes, at: int, n: int) -> bool:
    """Whether there are codes, and room, for those of a record's `n` type names that are not known yet."""
    new = n_bytes = 0
    for _ in range(n):
        length = np.int64(_take_big(data, at + 1, 2))
        if find(kinds, data, at + 3, length, hash_bytes(data, at + 3, length)) < 0:
            new += 1
            n_bytes += length
        at += 3 + length
    return (
        kinds.counts[NEXT] + new <= min(256, len(kinds.start))
        and kinds.counts[END] + n_bytes <= len(kinds.arena)
        and 4 * (kinds.counts[LIVE] + kinds.counts[DEAD_SLOTS] + new) <= 3 * len(kinds.slots)
    )


@kernel
def load(
    data: Bytes, starts: Longs, ends: Longs, key_starts: Longs, key_ends: Longs, cold: Bytes, partition: int,
    users: Users, items: Ids, kinds: Ids, codes: Ints, begin: int,
) -> int:  # fmt: skip
    """Put users back from their records `begin` and on; a user's cold record stands right before the hot one.

    Returns how far it came: it stops where there may be no room, or before a record that it can't read.
    """
    at, size = np.empty(18, np.int64), np.empty(18, np.int64)
    width = users.factor.shape[1]
    for k in range(begin, len(starts)):
        if not has_room(users) or not _sections(data, starts[k], ends[k], width, at, size):
            return k
        n_ids = size[7] // 2
        if items.counts[NEXT] + n_ids > len(items.start) or n_ids > len(codes):
            return k
        if items.counts[END] + size[8] > len(items.arena):
            return k
        if 4 * (items.counts[LIVE] + items.counts[DEAD_SLOTS] + n_ids) > 3 * len(items.slots):
            return k
        if not _kinds_fit(kinds, data, at[5], size[5]):
            return k
        start, length = key_starts[k], key_ends[k] - key_starts[k]
        hashed = user_hash(hash_bytes(data, start, length), partition)
        row = find_user(users, data, start, length, hashed, partition)
        if row < 0:
            row = new_user(users, data, start, length, hashed, partition, np.uint64(0))
        here = at[8]
        for j in range(n_ids):
            length = np.int64(_take(data, at[7] + 2 * j, 2))
            hashed = hash_bytes(data, here, length)
            code = find(items, data, here, length, hashed)
            codes[j] = code if code >= 0 else insert(items, data, here, length, hashed)
            here += length
        users.long[row, TOKEN] = np.int64(_take_big(data, at[0], 8))
        users.long[row, EVENTS] = np.int64(_take_big(data, at[1], 8))
        users.long[row, FIRST_MS] = np.int64(_take_big(data, at[2], 8))
        users.long[row, LAST_MS] = np.int64(_take_big(data, at[3], 8))
        for j in range(4 * width):
            users.factor_bytes[row, j] = data[at[4] + j]
        _load_lists(users, row, data, at, size, codes, kinds)
        users.last_list[row, :] = -1
        for j in range(min(size[15] // 2, users.last_list.shape[1])):
            users.last_list[row, j] = codes[np.int64(_take(data, at[15] + 2 * j, 2))]
        if cold[k]:
            users.small[row, TAIL : TAIL + 3] = 0
    return len(starts)


@kernel
def _load_lists(users: Users, row: int, data: Bytes, at: Longs, size: Longs, codes: Ints, kinds: Ids) -> None:
    """Append a record's lists to what the user has, the newest entries last; what comes again moves to the
    end."""
    for j in range(np.int64(_take_big(data, at[9], 8))):
        start = users.long[row, START + SEEN]
        for place in range(start, start + users.small[row, COUNT + SEEN]):
            if users.seen_item[place] == codes[j]:  # evicted and seen again since the cold record
                end = start + users.small[row, COUNT + SEEN]
                _copy(users, SEEN, place + 1, place, end - place - 1)
                users.small[row, COUNT + SEEN] -= 1
                users.small[row, TAIL + SEEN] = min(
                    users.small[row, TAIL + SEEN], users.small[row, COUNT + SEEN]
                )
                break
        users.seen_item[_place(users, row, SEEN)] = codes[j]
    kind_code = np.empty(256, np.uint8)
    here = at[5]
    for j in range(size[5]):
        length = np.int64(_take_big(data, here + 1, 2))
        hashed = hash_bytes(data, here + 3, length)
        known = find(kinds, data, here + 3, length, hashed)
        kind_code[j] = known if known >= 0 else insert(kinds, data, here + 3, length, hashed)
        here += 3 + length
    for j in range(size[6]):
        place = _place(users, row, RECENT)
        users.recent_item[place] = codes[np.int64(_take(data, at[10] + 2 * j, 2))]
        users.recent_time[place] = np.int64(_take(data, at[11] + 8 * j, 8))
        users.recent_kind[place] = kind_code[data[at[6] + j]]
        users.recent_bits[place] = np.uint32(_take(data, at[12] + 4 * j, 4))
        users.recent_hash[place] = 0
        users.recent_value[place] = np.nan
        if size[16] > 0:
            users.recent_hash[place] = _take(data, at[16] + 8 * j, 8)
            users.recent_value.view(np.uint32)[place] = np.uint32(_take(data, at[17] + 4 * j, 4))
    for j in range(size[13] // 8):
        hashed = _take(data, at[13] + 8 * j, 8)
        time_ms = np.int64(_take(data, at[14] + 8 * j, 8))
        _remember_hash(users, row, hashed, time_ms, _find_hash(users, row, hashed))
