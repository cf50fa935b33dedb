# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload"
# mypy: disable-error-code="operator, call-arg, var-annotated"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels over the bytes of a batch of `events`: parse, check and hash the usual record.

What `read_events` takes, `EventValidator.decode_event` would take with the same values; it is free to leave
any record alone, and leaves every one that is unusual or bad: the validator then finds the words. All stand
in this one file because numba's disk cache watches only the file of the kernel that is called.

Records lie one after the other with a NUL behind each, which ends every token: no scan leaves its record.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "FIELDS",
    "MOST_TYPES",
    "PADDING_BYTES",
    "SLOTS",
    "EventTypes",
    "Rows",
    "hash_bytes",
    "read_events",
]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Words = NDArray[np.uint64]
Doubles = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])

FIELDS = (
    "user_id", "event_id", "item_id", "session_id", "request_id", "domain", "query", "target_user_id",
    "retracts", "event_type", "timestamp", "value", "context",
)  # fmt: skip
"""A field's place is its code below; the first nine are texts, the columns of `Rows.texts`."""
_USER, _EVENT, _ITEM, _QUERY, _TEXTS = 0, 1, 2, 6, 9
_TYPE, _TIMESTAMP, _VALUE = 9, 10, 11
MOST_TYPES = 256
PADDING_BYTES = 32
"""Zeros behind the last record: words are read whole, and fixed places are looked at before the digits."""
_MOST_NAMES = 32
"""Unknown names, or keys of `context`, that are compared with each other to find one that comes twice."""
ID_BYTES, QUERY_BYTES, MAP_TEXT_BYTES, NUMBER_LIMIT = 256, 1024, 1024, 10**12
"""As in `streams.field_checks`, written out: numba's cache would not see that they changed over there."""

_KIND, _TIME_MS, _UNKNOWN, _NUMBER = range(18, 22)
_NAMES, _KINDS, _KIND_COUNT, _NEEDS, _WEIGHTS, _DEPTH = range(22, 28)
_SIZES, _PARTITIONS, _APPENDED, _GOOD, _IDS, _OTHERS, _HASHES, _NUMBERS = range(28, 36)
_KIND_COLUMN, _TIME_COLUMN, _UNKNOWN_COLUMN, _MISPLACED = range(36, 40)
_UNKNOWN_NAMES = 40
_KEYS = _UNKNOWN_NAMES + 2 * _MOST_NAMES
_WORK = _KEYS + 2 * _MOST_NAMES
SLOTS = _WORK + 24
"""Places in the kernels' 8-byte slots, behind start and length of nine texts. First what was found: code of
the type, event time, count of unknown fields, `value`. Then what was given: `EventTypes`, the deepest
nesting, the columns that are read, and those that are written. Last room to work: names met, BLAKE2b's
state and block."""

_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)
_QUOTES = np.uint64(0x2222222222222222)
_BACKSLASHES = np.uint64(0x5C5C5C5C5C5C5C5C)
_BLANKS = np.uint64(0x2020202020202020)
_DELETES = np.uint64(0x7F7F7F7F7F7F7F7F)
_TRUE, _FALSE, _NULL = (np.uint64(int.from_bytes(word, "little")) for word in (b"true", b"false", b"null"))
_POWERS = np.array([10**k for k in range(19)], np.int64)
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_DAYS_TO_1970 = 719_468
"""From 1 March of the year 0."""
_LATEST_MS = 1 << 60
_EXACT = 1 << 53
_DIGITS = 18
"""Most digits of a number: as many fit into 64 bits."""

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_MURMUR, _MASK, _SIGNLESS = np.uint64(0x5BD1E995), np.uint64(0xFFFFFFFF), np.uint64(0x7FFFFFFF)
_1, _8, _13, _15, _16, _24, _27 = (np.uint64(bits) for bits in (1, 8, 13, 15, 16, 24, 27))
_29, _31, _32, _33, _37, _40, _48, _63 = (np.uint64(bits) for bits in (29, 31, 32, 33, 37, 40, 48, 63))
_IV = np.array(
    [
        0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
        0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
    ],
    np.uint64,
)  # fmt: skip
_PERMUTATIONS = (
    "0123456789abcdef ea489fd61c02b753 b8c052fdae367194 7931dcbe265a40f8 905724afe1bc683d"
    " 2c6a0b834d75fe19 c51fed4a0763928b db7ec13950f4862a 6fe9b308c2d714a5 a2847615fb9e3cd0"
)  # fmt: skip
_SIGMA = np.array([[int(digit, 16) for digit in row] for row in _PERMUTATIONS.split()], np.int64)
_SIGMA = 8 * np.concatenate([_SIGMA, _SIGMA[:2]])


def entry(function: F) -> F:
    """A kernel that Python calls: without the interpreter lock, cached on disk."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


def kernel(function: F) -> F:
    """A kernel that only kernels call, compiled into theirs.

    It gets addresses, no arrays: counting references to arrays took five times as long as parsing.
    """
    return cast(F, numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)(function))


def _loader(kind: Any) -> Any:
    """A function that reads a `kind` at any address, little-endian as every machine that numba knows."""

    def typed(typing_context: Any, address: Any) -> Any:
        def load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            return builder.load(place, align=1)

        return kind(types.int64), load

    return intrinsic(typed)


_word, _load, _load_int, _byte = map(_loader, (types.uint64, types.int64, types.int32, types.uint8))


@intrinsic
def _store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a number at `address`, as many bytes as its type has."""
    kind = types.int64 if isinstance(value, types.IntegerLiteral) else value

    def store(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], context.get_value_type(kind).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, kind), store


@intrinsic
def _first(typing_context: Any, word: Any) -> Any:
    """Number of the lowest bit that is set; `word` is not 0."""

    def count(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), count


@kernel
def _round(h: int, word: int) -> int:
    word *= _PRIME_2
    h ^= ((word << _31) | (word >> _33)) * _PRIME_1
    return ((h << _27) | (h >> _37)) * _PRIME_1 + _PRIME_4


@kernel
def _hash(start: int, length: int) -> int:
    h = _PRIME_5 + np.uint64(length)
    if length >= 8:
        last = start + length - 8
        for at in range(start, last, 8):
            h = _round(h, _word(at))
        h = _round(h, _word(last))
    else:
        word = np.uint64(0)
        for at in range(start + length - 1, start - 1, -1):
            word = (word << _8) | np.uint64(_byte(at))
        h = _round(h, word)
    h = (h ^ (h >> _33)) * _PRIME_2
    h = (h ^ (h >> _29)) * _PRIME_3
    return h ^ (h >> _32)


@entry
def hash_bytes(data: Bytes, start: int, length: int) -> int:
    """64 bits of `data[start : start + length]` for hash tables, the same on every machine.

    The rounds for short inputs and the final mixing of XXH64, with another ending: the last 1 to 8 bytes
    are one word, which overlaps the one before it. Without a secret: a table has to bound its probes itself.

    A kernel of another file that calls this keeps its old machine code when this file changes.

    Reference: Y. Collet, xxHash fast digest algorithm, specification 0.1.1 (2018).
    """
    return _hash(np.int64(data.ctypes.data) + start, length)


def _name_words(names: tuple[str, ...]) -> Words:
    """uint64[names, 2]: the first 16 bytes of each name."""
    padded = b"".join(name.encode().ljust(16, b"\0") for name in names)
    return np.frombuffer(padded, "<u8").astype(np.uint64).reshape(-1, 2)


_WORDS = _name_words(FIELDS)
_NAME_LENGTHS = np.array([len(name) for name in FIELDS], np.int64)
_SLOT_FACTOR, _SLOT_SHIFT = np.uint64(0x35BF992DC9E9C617), np.uint64(59)
_SLOTS = np.full(32, -1, np.int64)
"""A field's code by the top 5 bits of its name's first word times a factor that keeps all names apart."""
for _code, _word_0 in enumerate(_WORDS[:, 0].tolist()):
    _SLOTS[(_word_0 * int(_SLOT_FACTOR) % 2**64) >> int(_SLOT_SHIFT)] = _code


class EventTypes(NamedTuple):
    """The settings' event types, as `read_events` looks them up."""

    names: Bytes  # one after the other, PADDING_BYTES behind the last
    spans: Longs  # int64[types, 2]: start and length in `names`
    needs: Longs  # int64[types]: code of the text without which the type says nothing
    weight: Doubles  # float64[types]


class Rows(NamedTuple):
    """What the kernel fills, a row per record; only the rows that are `good` hold anything."""

    good: NDArray[np.bool_]  # [n]
    ids: Ints  # int32[3, n, 2]: start and length of user_id, event_id, item_id; length 0 = absent
    others: Ints  # int32[n, 6, 2]: the same of the other texts, in the order of FIELDS
    hashes: Words  # uint64[3, n]: hash_bytes of user_id, BLAKE2b of event_id, hash_bytes of item_id
    event_type: Bytes  # uint8[n]
    time_ms: Longs  # int64[n]
    numbers: Doubles  # float64[2, n]: weight, value (NaN = none)
    unknown: Ints  # int32[n]: unknown fields
    misplaced: NDArray[np.bool_]  # [n]


@kernel
def _low_bytes(word: int, count: int) -> int:
    """`word` with all but its lowest `count` bytes (0 to 8) cleared."""
    if count >= 8:
        return word
    return word & ((np.uint64(1) << np.uint64(8 * count)) - np.uint64(1))


@kernel
def _same(at: int, other: int, length: int) -> bool:
    """Whether `length` bytes are equal; words are read whole."""
    for done in range(0, length, 8):
        if _low_bytes(_word(at + done) ^ _word(other + done), length - done) != 0:
            return False
    return True


@kernel
def _skip(at: int) -> int:
    """The next byte that is no white space."""
    while _byte(at) == 32 or _byte(at) == 10 or _byte(at) == 13 or _byte(at) == 9:
        at += 1
    return at


@kernel
def _rune(at: int) -> int:
    """Bytes of the UTF-8 sequence of a character from U+00A0 on, 0 if there is none (RFC 3629, section 4)."""
    lead, second = _byte(at), _byte(at + 1)
    low, high = 0x80, 0xBF
    if lead < 0xC2 or lead > 0xF4:
        return 0
    if lead == 0xC2 or lead == 0xE0:
        low = 0xA0
    elif lead == 0xF0:
        low = 0x90
    elif lead == 0xED:
        high = 0x9F
    elif lead == 0xF4:
        high = 0x8F
    if second < low or second > high:
        return 0
    size = 2 if lead < 0xE0 else (3 if lead < 0xF0 else 4)
    for following in range(at + 2, at + size):
        if _byte(following) & 0xC0 != 0x80:
            return 0
    return size


@kernel
def _string(at: int) -> int:
    """The quote that ends the string whose first byte is `at`; -1 where it has an escape, a control
    character (U+0000 to U+001F, U+007F to U+009F) or is not UTF-8.

    Eight bytes at a time: of the marks in a word the lowest is always right.
    """
    while True:
        word = _word(at)
        quote, backslash, delete = word ^ _QUOTES, word ^ _BACKSLASHES, word ^ _DELETES
        marks = ((quote - _ONES) & ~quote) | ((backslash - _ONES) & ~backslash)
        marks |= ((delete - _ONES) & ~delete) | ((word - _BLANKS) & ~word) | word
        marks &= _HIGHS
        if marks == 0:
            at += 8
            continue
        at += _first(marks) >> 3
        if _byte(at) == 34:
            return at
        size = _rune(at) if _byte(at) >= 0x80 else 0
        if size == 0:
            return -1
        at += size


@kernel
def _digits(at: int, number: int) -> tuple[int, int]:
    """`number` with the digits from `at` on behind it, and where they end; beyond _DIGITS it wraps."""
    while 48 <= _byte(at) <= 57:
        number = number * 10 + _byte(at) - 48
        at += 1
    return number, at


@kernel
def _number(at: int) -> tuple[int, int, int]:
    """Where the number at `at` ends, its digits as one integer, and how many stand behind the point (-1: no
    point). The end is -1 where it is no JSON, has an exponent or more than _DIGITS digits."""
    start = at + 1 if _byte(at) == 45 else at
    number, end = _digits(start, 0)
    digits, decimals = end - start, -1
    if digits == 0 or (digits > 1 and _byte(start) == 48):
        return -1, 0, 0
    if _byte(end) == 46:
        point = end
        number, end = _digits(point + 1, number)
        decimals = end - point - 1
        digits += decimals
        if decimals == 0:
            return -1, 0, 0
    if digits > _DIGITS or _byte(end) == 101 or _byte(end) == 69:
        return -1, 0, 0
    return end, number, decimals


@kernel
def _double(number: int, decimals: int) -> float:
    """The double nearest to number / 10**decimals, ties to even; 0 <= decimals <= 18, the quotient < 2**53.

    Up to 2**53 one division of exact doubles rounds once (Clinger). Above, 55 bits of the quotient are worked
    out, the last one set if anything is left: then the conversion to 53 bits rounds as the quotient would.

    Reference: W. D. Clinger, How to read floating point numbers accurately (1990).
    """
    divisor = _POWERS[decimals]
    if number <= _EXACT:
        return float(number) / float(divisor)
    quotient, rest, shift = number // divisor, number % divisor, 0
    while quotient < (1 << 54):
        rest <<= 1
        quotient <<= 1
        shift += 1
        if rest >= divisor:
            rest -= divisor
            quotient |= 1
    if rest != 0:
        quotient |= 1
    return math.ldexp(float(quotient), -shift)


@kernel
def _value(at: int) -> tuple[int, float]:
    """Where the number ends (-1: left to the validator) and its double, -0.0 as 0.0."""
    end, number, decimals = _number(at)
    decimals = max(decimals, 0)
    if end < 0 or number // _POWERS[decimals] >= NUMBER_LIMIT:
        return -1, 0.0
    value = _double(number, decimals)
    return end, -value if _byte(at) == 45 and number != 0 else value


@kernel
def _scalar(at: int, in_context: bool) -> int:
    """Where the string, number, true, false or null at `at` ends; -1 for anything else. In `context` texts
    and numbers have their bounds, and null is refused."""
    if _byte(at) == 34:
        end = _string(at + 1)
        if end < 0 or (in_context and end - at - 1 > MAP_TEXT_BYTES):
            return -1
        return end + 1
    if _byte(at) == 45 or 48 <= _byte(at) <= 57:
        end, number, decimals = _number(at)
        if end < 0 or (in_context and number // _POWERS[max(decimals, 0)] >= NUMBER_LIMIT):
            return -1
        return end
    word = _word(at)
    if _low_bytes(word, 4) == _TRUE or (_low_bytes(word, 4) == _NULL and not in_context):
        return at + 4
    return at + 5 if _low_bytes(word, 5) == _FALSE else -1


@kernel
def _is_new(start: int, length: int, names: int, count: int) -> bool:
    """Note the name as the `count`-th at `names`; False where there are too many, or it was there before."""
    if count >= _MOST_NAMES:
        return False
    for name in range(names, names + 16 * count, 16):
        if _load(name + 8) == length and _same(start, _load(name), length):
            return False
    _store(names + 16 * count, start)
    _store(names + 16 * count + 8, length)
    return True


@kernel
def _context(at: int, names: int) -> int:
    """Where the flat object at `at` ends, within the bounds of `field_checks.checked_map`; else -1."""
    if _byte(at) != 123:
        return -1
    at = _skip(at + 1)
    if _byte(at) == 125:
        return at + 1
    count = 0
    while _byte(at) == 34:
        start, end = at + 1, _string(at + 1)
        if end < 0 or not 0 < end - start <= ID_BYTES or not _is_new(start, end - start, names, count):
            return -1
        count += 1
        at = _skip(end + 1)
        if _byte(at) != 58:
            return -1
        at = _scalar(_skip(at + 1), True)
        if at < 0:
            return -1
        at = _skip(at)
        if _byte(at) == 125:
            return at + 1
        if _byte(at) != 44:
            return -1
        at = _skip(at + 1)
    return -1


@kernel
def _fixed(at: int, count: int) -> int:
    """The number of exactly `count` digits at `at`, or a very negative one."""
    number = 0
    for place in range(at, at + count):
        if not 48 <= _byte(place) <= 57:
            return -(1 << 40)
        number = number * 10 + _byte(place) - 48
    return number


@kernel
def _instant(at: int) -> tuple[int, int]:
    """Where the string YYYY-MM-DDTHH:MM:SS[.f]Z, 1 to 6 digits f, whose first byte is `at` ends, and its ms
    since 1970, what is below a ms cut off; the end is -1 for any other notation or before 1970.

    Reference: E. G. Richards, Mapping Time (1998): days are counted from 1 March, leap days come last.
    """
    year, month, day = _fixed(at, 4), _fixed(at + 5, 2), _fixed(at + 8, 2)
    hour, minute, second = _fixed(at + 11, 2), _fixed(at + 14, 2), _fixed(at + 17, 2)
    if _byte(at + 4) != 45 or _byte(at + 7) != 45 or _byte(at + 10) != 84:
        return -1, 0
    if _byte(at + 13) != 58 or _byte(at + 16) != 58 or year < 1970 or not 1 <= month <= 12:
        return -1, 0
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= day <= _MONTH_DAYS[month] + leap:
        return -1, 0
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or not 0 <= second <= 59:
        return -1, 0
    ms, end = 0, at + 19
    if _byte(end) == 46:
        fraction, end = _digits(at + 20, 0)
        places = end - at - 20
        if not 1 <= places <= 6:
            return -1, 0
        ms = fraction * 1000 // _POWERS[places]
    if _byte(end) != 90 or _byte(end + 1) != 34:
        return -1, 0
    since_march = year - (1 if month <= 2 else 0)
    days = since_march * 365 + since_march // 4 - since_march // 100 + since_march // 400
    days += (153 * ((month + 9) % 12) + 2) // 5 + day - 1 - _DAYS_TO_1970
    return end + 2, (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms


@kernel
def _timestamp(at: int) -> tuple[int, int]:
    if _byte(at) == 34:
        return _instant(at + 1)
    end, number, decimals = _number(at)
    if _byte(at) == 45 or decimals >= 0:
        return -1, 0
    return end, number


@kernel
def _text(at: int, code: int, found: int) -> int:
    if _byte(at) != 34:
        return -1
    end = _string(at + 1)
    length = end - at - 1
    if end < 0 or length == 0 or length > (QUERY_BYTES if code == _QUERY else ID_BYTES):
        return -1
    _store(found + 16 * code, at + 1)
    _store(found + 16 * code + 8, length)
    return end + 1


@kernel
def _event_type(at: int, found: int) -> int:
    if _byte(at) != 34:
        return -1
    end = _string(at + 1)
    kind, names = _load(found + 8 * _KINDS), _load(found + 8 * _NAMES)
    for code in range(_load(found + 8 * _KIND_COUNT)):
        if _load(kind + 8) == end - at - 1 and _same(at + 1, names + _load(kind), end - at - 1):
            _store(found + 8 * _KIND, code)
            return end + 1
        kind += 16
    return -1


@kernel
def _field(at: int, code: int, found: int) -> int:
    """Where the known field's value at `at` ends, once it stands in `found`; -1 where it is unusual."""
    if _byte(at) == 110:
        return at + 4 if _low_bytes(_word(at), 4) == _NULL else -1
    if code < _TEXTS:
        return _text(at, code, found)
    if code == _TYPE:
        return _event_type(at, found)
    if code == _TIMESTAMP:
        end, time_ms = _timestamp(at)
        _store(found + 8 * _TIME_MS, time_ms)
        return end
    if code == _VALUE:
        end, value = _value(at)
        _store(found + 8 * _NUMBER, value)
        return end
    return _context(at, found + 8 * _KEYS) if _load(found + 8 * _DEPTH) > 1 else -1


@kernel
def _field_code(at: int, length: int) -> int:
    """The field whose name the `length` bytes at `at` are, or -1."""
    word = _low_bytes(_word(at), length)
    code = _SLOTS[(word * _SLOT_FACTOR) >> _SLOT_SHIFT]
    if code < 0 or _NAME_LENGTHS[code] != length or _WORDS[code, 0] != word:
        return -1
    if length > 8 and _low_bytes(_word(at + 8), length - 8) != _WORDS[code, 1]:
        return -1
    return code


@kernel
def _object(at: int, found: int) -> int:
    """Parse the record at `at` into `found`; where it ends, white space included, or -1."""
    at = _skip(at)
    if _byte(at) != 123:
        return -1
    at, seen, unknown = _skip(at + 1), 0, 0
    while _byte(at) == 34:
        start, end = at + 1, _string(at + 1)
        if end < 0:
            return -1
        at = _skip(end + 1)
        if _byte(at) != 58:
            return -1
        at, code = _skip(at + 1), _field_code(start, end - start)
        if code < 0:
            if not _is_new(start, end - start, found + 8 * _UNKNOWN_NAMES, unknown):
                return -1
            unknown += 1
            at = _scalar(at, False)
        else:
            if (seen >> code) & 1:
                return -1
            seen |= 1 << code
            at = _field(at, code, found)
        if at < 0:
            return -1
        at = _skip(at)
        if _byte(at) == 125:
            _store(found + 8 * _UNKNOWN, unknown)
            return _skip(at + 1)
        if _byte(at) != 44:
            return -1
        at = _skip(at + 1)
    return -1


@kernel
def _murmur2(start: int, length: int) -> int:
    """As `streams.clients.murmur2`."""
    h = np.uint64(0x9747B28C) ^ np.uint64(length)
    whole = length & ~3
    for at in range(start, start + whole, 4):
        k = (_low_bytes(_word(at), 4) * _MURMUR) & _MASK
        h = ((h * _MURMUR) ^ ((k ^ (k >> _24)) * _MURMUR)) & _MASK
    if whole < length:
        h = ((h ^ _low_bytes(_word(start + whole), length - whole)) * _MURMUR) & _MASK
    h = ((h ^ (h >> _13)) * _MURMUR) & _MASK
    return h ^ (h >> _15)


@kernel
def _mix(a: int, b: int, c: int, d: int, x: int, y: int) -> tuple[int, int, int, int]:
    """BLAKE2b's G, RFC 7693 section 3.1."""
    a += b + x
    d ^= a
    d = (d >> _32) | (d << _32)
    c += d
    b ^= c
    b = (b >> _24) | (b << _40)
    a += b + y
    d ^= a
    d = (d >> _16) | (d << _48)
    c += d
    b ^= c
    return a, (b >> _63) | (b << _1), c, d


@kernel
def _compress(h: int, m: int, count: int, last: bool) -> None:
    """BLAKE2b's F: mix the block of 16 words at `m` into the state at `h`; `count` bytes so far."""
    v0, v1, v2, v3 = _word(h), _word(h + 8), _word(h + 16), _word(h + 24)
    v4, v5, v6, v7 = _word(h + 32), _word(h + 40), _word(h + 48), _word(h + 56)
    v8, v9, v10, v11 = _IV[0], _IV[1], _IV[2], _IV[3]
    v12, v13, v14, v15 = _IV[4] ^ np.uint64(count), _IV[5], _IV[6], _IV[7]
    if last:
        v14 = ~v14
    for i in range(12):
        s = _SIGMA[i]
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, _word(m + s[0]), _word(m + s[1]))
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, _word(m + s[2]), _word(m + s[3]))
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, _word(m + s[4]), _word(m + s[5]))
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, _word(m + s[6]), _word(m + s[7]))
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, _word(m + s[8]), _word(m + s[9]))
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, _word(m + s[10]), _word(m + s[11]))
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, _word(m + s[12]), _word(m + s[13]))
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, _word(m + s[14]), _word(m + s[15]))
    _store(h + 0, np.int64(_word(h + 0) ^ v0 ^ v8))
    _store(h + 8, np.int64(_word(h + 8) ^ v1 ^ v9))
    _store(h + 16, np.int64(_word(h + 16) ^ v2 ^ v10))
    _store(h + 24, np.int64(_word(h + 24) ^ v3 ^ v11))
    _store(h + 32, np.int64(_word(h + 32) ^ v4 ^ v12))
    _store(h + 40, np.int64(_word(h + 40) ^ v5 ^ v13))
    _store(h + 48, np.int64(_word(h + 48) ^ v6 ^ v14))
    _store(h + 56, np.int64(_word(h + 56) ^ v7 ^ v15))


@kernel
def _blake2b(start: int, length: int, work: int) -> int:
    """As `streams.validation.event_hash`: BLAKE2b with 8 bytes of digest, with 24 words at `work` to use.

    Reference: M.-J. Saarinen, J.-P. Aumasson, The BLAKE2 cryptographic hash, RFC 7693 (2015).
    """
    block = work + 64
    for part in range(8):
        _store(work + 8 * part, np.int64(_IV[part]))
    _store(work, np.int64(_IV[0] ^ np.uint64(0x01010008)))
    done = 0
    while True:
        taken = min(length - done, 128)
        for byte in range(0, 128, 8):
            word = np.uint64(0) if byte >= taken else _low_bytes(_word(start + done + byte), taken - byte)
            _store(block + byte, np.int64(word))
        done += taken
        _compress(work, block, done, done == length)
        if done == length:
            return _word(work)


@kernel
def _keep(row: int, found: int, base: int, n: int) -> None:
    """Copy what was found into its row of `Rows`; starts count from `base`."""
    ids, others, hashes = _load(found + 8 * _IDS), _load(found + 8 * _OTHERS), _load(found + 8 * _HASHES)
    for code in range(_TEXTS):
        start, length = _load(found + 16 * code), _load(found + 16 * code + 8)
        if code <= _ITEM:
            place = ids + 8 * (code * n + row)
            _store(hashes + 8 * (code * n + row), _hash(start, length) if code != _EVENT else np.uint64(0))
        else:
            place = others + 8 * (6 * row + code - _ITEM - 1)
        if length > 0:
            _store(place, np.int32(start - base))
            _store(place + 4, np.int32(length))
    start, length = _load(found + 16 * _EVENT), _load(found + 16 * _EVENT + 8)
    _store(hashes + 8 * (_EVENT * n + row), _blake2b(start, length, found + 8 * _WORK))
    kind, numbers = _load(found + 8 * _KIND), _load(found + 8 * _NUMBERS)
    _store(numbers + 8 * row, _load(_load(found + 8 * _WEIGHTS) + 8 * kind))
    _store(numbers + 8 * (n + row), _load(found + 8 * _NUMBER))
    _store(_load(found + 8 * _KIND_COLUMN) + row, np.uint8(kind))
    _store(_load(found + 8 * _TIME_COLUMN) + 8 * row, _load(found + 8 * _TIME_MS))
    _store(_load(found + 8 * _UNKNOWN_COLUMN) + 4 * row, np.int32(_load(found + 8 * _UNKNOWN)))


@kernel
def _is_usual(at: int, end: int, latest_ms: int, found: int) -> bool:
    """Parse the record from `at` to `end` into `found`; whether it is a complete event but for its key."""
    for code in range(_TEXTS):
        _store(found + 16 * code + 8, 0)
    _store(found + 8 * _KIND, -1)
    _store(found + 8 * _TIME_MS, -1)
    _store(found + 8 * _NUMBER, np.nan)
    if _object(at, found) != end:
        return False
    kind, time_ms = _load(found + 8 * _KIND), _load(found + 8 * _TIME_MS)
    if kind < 0 or time_ms < 0 or time_ms > latest_ms:
        return False
    need = _load(_load(found + 8 * _NEEDS) + 8 * kind)
    return _load(found + 16 * need + 8) > 0 and _load(found + 16 * _EVENT + 8) > 0


@kernel
def _has_key(key: int, size: int, found: int) -> bool:
    """Whether the `size` bytes at `key` are the user's id."""
    user = found + 16 * _USER
    return 0 < size == _load(user + 8) and _same(key, _load(user), size)


@kernel
def _read(n: int, base: int, keys: int, found: int, future_ms: int, partitions: int, strict: bool) -> int:
    """`read_events` by addresses."""
    sizes, places = _load(found + 8 * _SIZES), _load(found + 8 * _PARTITIONS)
    at, key, left = base, keys, 0
    for row in range(n):
        end, size = at + _load(sizes + 8 * row), _load(sizes + 8 * (n + row))
        appended_ms = _load(_load(found + 8 * _APPENDED) + 8 * row)
        good = 0 <= appended_ms <= _LATEST_MS and _is_usual(at, end, appended_ms + future_ms, found)
        good = good and _has_key(key, size, found)
        if good:
            home = np.int64(_murmur2(key, size) & _SIGNLESS) % partitions
            misplaced = home != _load_int(places + 4 * row)
            good = not (misplaced and strict)
            _store(_load(found + 8 * _MISPLACED) + row, np.uint8(misplaced))
        if good:
            _keep(row, found, base, n)
        left += not good
        _store(_load(found + 8 * _GOOD) + row, np.uint8(good))
        at, key = end + 1, key + size + 1
    return left


@entry
def read_events(
    data: Bytes,
    lengths: Longs,
    partition: Ints,
    kafka_time_ms: Longs,
    rows: Rows,
    kinds: EventTypes,
    slots: Longs,
    max_depth: int,
    future_ms: int,
    partitions: int,
    strict: bool,
) -> int:
    """Fill the rows of the usual records among `n`; returns how many are left to the validator.

    Args:
        data: all values, then all keys, each with a NUL behind it, then PADDING_BYTES zeros.
        lengths: int64[2, n], bytes of each value and key.
        rows: of n rows, all lengths in it 0.
        slots: int64[SLOTS], room to work.
        max_depth: `validation.max_depth`; below 2 any `context` is too deep.
        future_ms: how far an event's time may lie after `kafka_time_ms`.
        strict: leave misplaced records to the validator, which rejects them.
    """
    n, base = len(partition), np.int64(data.ctypes.data)
    slots[_NAMES], slots[_KINDS] = np.int64(kinds.names.ctypes.data), np.int64(kinds.spans.ctypes.data)
    slots[_KIND_COUNT], slots[_DEPTH] = len(kinds.spans), max_depth
    slots[_NEEDS], slots[_WEIGHTS] = np.int64(kinds.needs.ctypes.data), np.int64(kinds.weight.ctypes.data)
    slots[_SIZES], slots[_PARTITIONS] = np.int64(lengths.ctypes.data), np.int64(partition.ctypes.data)
    slots[_APPENDED], slots[_GOOD] = np.int64(kafka_time_ms.ctypes.data), np.int64(rows.good.ctypes.data)
    slots[_IDS], slots[_OTHERS] = np.int64(rows.ids.ctypes.data), np.int64(rows.others.ctypes.data)
    slots[_HASHES], slots[_NUMBERS] = np.int64(rows.hashes.ctypes.data), np.int64(rows.numbers.ctypes.data)
    slots[_KIND_COLUMN] = np.int64(rows.event_type.ctypes.data)
    slots[_TIME_COLUMN] = np.int64(rows.time_ms.ctypes.data)
    slots[_UNKNOWN_COLUMN] = np.int64(rows.unknown.ctypes.data)
    slots[_MISPLACED] = np.int64(rows.misplaced.ctypes.data)
    keys = base + lengths[0].sum() + n
    return _read(n, base, keys, np.int64(slots.ctypes.data), future_ms, partitions, strict)
