"""From a record's bytes to a JSON object, whatever the bytes are.

Stricter than RFC 8259 asks and never surprised: size and depth are bounded before anything is parsed.
Duplicate keys, which RFC 7493 (I-JSON) forbids and every parser reads in its own way, are found without a
second parse in the usual case: a text with as many colons outside its strings as the record has keys
repeats none.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import numpy as np

from streams.rejects import InvalidRecordError, Reason

__all__ = ["parse_object"]

_decode = msgspec.json.Decoder().decode
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def parse_object(value: bytes, max_bytes: int, max_depth: int) -> dict[str, Any]:
    """The JSON object in `value`.

    Raises:
        InvalidRecordError: too_large, too_deep, not_utf8, invalid_json, invalid_number (beyond a double,
            or an integer of thousands of digits), wrong_type (JSON, but no object) or duplicate_key; nothing
            else, whatever the bytes.
    """
    if len(value) > max_bytes:
        raise InvalidRecordError(
            Reason.TOO_LARGE, f"{len(value)} bytes; at most {max_bytes} (validation.max_bytes)"
        )
    if value.count(b"{") + value.count(b"[") > max_depth and (depth := _depth(value)) > max_depth:
        raise InvalidRecordError(
            Reason.TOO_DEEP, f"nested {depth} deep; at most {max_depth} (validation.max_depth)"
        )
    try:
        record = _decode(value)
        repeats = type(record) is dict and value.count(b":") != len(record) and _has_duplicates(value, record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(value, error) from None
    if type(record) is not dict:
        raise InvalidRecordError(Reason.WRONG_TYPE, f"an object expected, got {_json_type(record)}")
    if repeats:
        raise InvalidRecordError(Reason.DUPLICATE_KEY, "an object has the same key twice; send each key once")
    return record


def _depth(value: bytes) -> int:
    """Deepest nesting of brackets outside strings; O(bytes), no recursion."""
    brackets = _STRING.sub(b"", value).translate(None, _NOT_BRACKETS)
    if not brackets:
        return 0
    return int(np.cumsum(_STEP[np.frombuffer(brackets, np.uint8)], dtype=np.int64).max())


def _explain(value: bytes, error: Exception) -> InvalidRecordError:
    """The reason behind a parser's error; the parser's own words hold positions, never contents."""
    try:
        value.decode()
    except UnicodeDecodeError as bad:
        return InvalidRecordError(
            Reason.NOT_UTF8, f"byte {bad.start} of {len(value)} is not UTF-8: {bad.reason}"
        )
    if isinstance(error, RecursionError):
        return InvalidRecordError(
            Reason.TOO_DEEP, "nested deeper than the parser goes; lower validation.max_depth"
        )
    if isinstance(error, msgspec.ValidationError):
        return InvalidRecordError(
            Reason.INVALID_NUMBER, "a number is too large to be held: beyond a 64-bit float"
        )
    if _lone_surrogate(value):
        return InvalidRecordError(
            Reason.NOT_UTF8, "a \\u escape is half of a surrogate pair, which UTF-8 can't hold"
        )
    if not value:
        return InvalidRecordError(Reason.INVALID_JSON, "empty value; JSON expected")
    return InvalidRecordError(Reason.INVALID_JSON, f"{error} of {len(value)} bytes")


def _lone_surrogate(value: bytes) -> bool:
    """Whether it is JSON but for half of a surrogate pair: msgspec calls some of those truncated data."""
    if b"\\u" not in value:
        return False
    try:
        text = json.loads(value, parse_int=len, parse_float=len, parse_constant=_no_constant)
        msgspec.json.encode(text)
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _has_duplicates(value: bytes, record: dict[str, Any]) -> bool:
    """Exact: count colons against keys; where escapes hide colons, parse again and look at every pair."""
    if b"\\" not in value:
        return value.count(b":") != _colons(record)
    try:
        json.loads(value, object_pairs_hook=_unique, parse_int=len, parse_float=len)
    except _DuplicateKeyError:
        return True
    return False


def _colons(node: Any) -> int:
    """Colons in the compact JSON text of `node` without duplicates: one per key, and those inside strings."""
    kind = type(node)
    if kind is str:
        return int(node.count(":"))
    if kind is dict:
        return sum(1 + key.count(":") + _colons(child) for key, child in node.items())
    if kind is list:
        return sum(map(_colons, node))
    return 0


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) != len({key for key, _ in pairs}):
        raise _DuplicateKeyError


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
