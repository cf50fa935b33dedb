# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels that write lists as JSON: copies of pieces escaped beforehand, and scores as decimals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Lists", "Pieces", "Spans", "missing_rows", "room_needed", "write_lists"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])

DECIMALS = 6
_SCALE = 1_000_000
_LARGEST = 1e12
"""Scores from here on are not written by the kernel: with their decimals they would leave 64 bits."""
SCORE_BYTES = 21
"""A sign, 13 digits, a point, six decimals."""


def kernel(function: F) -> F:
    """numba.njit without the interpreter lock, cached on disk."""
    return cast(F, numba.njit(nogil=True, cache=True)(function))


class Spans(NamedTuple):
    """Byte strings in one arena: string s is arena[start[s] : start[s] + length[s]]; length -1: none."""

    arena: Bytes
    start: Longs
    length: Ints


class Pieces(NamedTuple):
    """All that is written beside ids, titles and scores: one span each, at the places named here."""

    spans: Spans
    item: int
    """What stands before an item's id, then between id and score."""
    score: int
    reason: int
    """From the score to the reason's ids: `reason` + KINDS * sources + kind."""
    text: int
    """From the ids to the text's titles, `text` + 2 * kind + whether there are any; what follows them comes
    `after` that."""
    after: int
    quotes: int
    """Opening, between, closing."""
    kinds: int
    """How many kinds there are."""
    longest: int
    """Bytes of an item without ids and titles, at most."""


class Lists(NamedTuple):
    """A `RankedBatch` as the kernels see it."""

    rows: Ints
    scores: Floats
    sources: Bytes
    kinds: Bytes
    because: Ints
    length: Ints


@kernel
def missing_rows(lists: Lists, length: Ints, seen: Bytes, missing: Ints) -> int:
    """Rows whose id is not in the arena (length -1), each once; seen uint8[rows], all 0, is left so."""
    n = 0
    for user in range(lists.rows.shape[0]):
        for place in range(lists.length[user]):
            for reason in range(-1, lists.because.shape[2]):
                row = lists.rows[user, place] if reason < 0 else lists.because[user, place, reason]
                if row >= 0 and length[row] < 0 and not seen[row]:
                    seen[row] = 1
                    missing[n] = row
                    n += 1
    for at in range(n):
        seen[missing[at]] = 0
    return n


@kernel
def room_needed(lists: Lists, ids: Spans, titles: Spans, pieces: Pieces) -> int:
    """Bytes that the items of all lists take at most."""
    total = 0
    for user in range(lists.rows.shape[0]):
        for place in range(lists.length[user]):
            total += pieces.longest + np.int64(ids.length[lists.rows[user, place]])
            for reason in range(lists.because.shape[2]):
                row = lists.because[user, place, reason]
                if row >= 0:
                    total += ids.length[row] + titles.length[row]
    return total


@kernel
def _copy(spans: Spans, which: int, out: Bytes, at: int) -> int:
    start, length = spans.start[which], np.int64(spans.length[which])
    for k in range(length):
        out[np.uint64(at + k)] = spans.arena[np.uint64(start + k)]
    return at + length


@kernel
def _write_decimal(value: float, out: Bytes, at: int) -> int:
    """value with six decimals; |value| < _LARGEST."""
    scaled = np.uint64(abs(np.float64(value)) * _SCALE + 0.5)
    if value < 0 and scaled > 0:
        out[at] = 45  # -
        at += 1
    whole, part = scaled // np.uint64(_SCALE), np.uint32(scaled % np.uint64(_SCALE))
    digits, rest = 1, whole
    while rest >= 10:
        digits, rest = digits + 1, rest // np.uint64(10)
    for place in range(digits - 1, -1, -1):
        out[at + place] = 48 + whole % np.uint64(10)
        whole = whole // np.uint64(10)
    at += digits
    out[at] = 46  # .
    for place in range(DECIMALS, 0, -1):
        out[at + place] = 48 + part % np.uint32(10)
        part = part // np.uint32(10)
    return at + 1 + DECIMALS


@kernel
def _write_item(
    lists: Lists, user: int, place: int, ids: Spans, titles: Spans, pieces: Pieces, out: Bytes, at: int
) -> int:
    kind, because = np.int64(lists.kinds[user, place]), lists.because[user, place]
    at = _copy(pieces.spans, pieces.item, out, at)
    at = _copy(ids, lists.rows[user, place], out, at)
    at = _copy(pieces.spans, pieces.score, out, at)
    at = _write_decimal(lists.scores[user, place], out, at)
    bits = np.int64(lists.sources[user, place])
    at = _copy(pieces.spans, pieces.reason + pieces.kinds * bits + kind, out, at)
    named = 0
    for reason in range(because.shape[0]):
        if because[reason] >= 0:
            if named > 0:
                out[at] = 44  # ,
                at += 1
            named += 1
            out[at] = 34  # "
            at = _copy(ids, because[reason], out, at + 1)
            out[at] = 34
            at += 1
    text = 2 * kind + (1 if named > 0 else 0)
    at = _copy(pieces.spans, pieces.text + text, out, at)
    if named > 0:
        told = 0
        for reason in range(because.shape[0]):
            if because[reason] >= 0:
                at = _copy(pieces.spans, pieces.quotes + min(told, 1), out, at)
                at = _copy(titles, because[reason], out, at)
                told += 1
        at = _copy(pieces.spans, pieces.quotes + 2, out, at)
    return _copy(pieces.spans, pieces.after + text, out, at)


@kernel
def write_lists(
    lists: Lists, heads: Spans, tail: Spans, ids: Spans, titles: Spans, pieces: Pieces, out: Bytes, end: Longs
) -> None:
    """Write every list behind its head, one after the other, into out, which has room; end int64[n]: where
    each ends, -1 where it holds a score that this kernel can't write."""
    at = 0
    for user in range(lists.rows.shape[0]):
        start = at
        at = _copy(heads, user, out, at)
        at = _copy(tail, 0, out, at)
        writable = True
        for place in range(lists.length[user]):
            writable = writable and abs(lists.scores[user, place]) < _LARGEST  # not for NaN either
            if not writable:
                break
            if place > 0:
                out[at] = 44
                at += 1
            at = _write_item(lists, user, place, ids, titles, pieces, out, at)
        at = _copy(tail, 1, out, at) if writable else start
        end[user] = at if writable else -1
