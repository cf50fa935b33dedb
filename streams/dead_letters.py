"""Dead letters: a rejected record as it came, with headers that say why and where from.

Key, value and the original headers stay byte for byte. Freshet's own headers come last: where a record was
rejected, replayed and rejected again, the last header of a name is the present one.
"""

from __future__ import annotations

from collections.abc import Sequence

from streams import __version__
from streams.records import Header, Record
from streams.rejects import Reason
from streams.topics import TOPICS

__all__ = ["HEADER_PREFIX", "dead_letter", "error_headers"]

HEADER_PREFIX = "freshet.errors."
MESSAGE_BYTES = 1024
MAX_BYTES = int(TOPICS["events-dlq"].config["max.message.bytes"])
OVERHEAD_BYTES = 512
"""Batch header (61 bytes), record header and the length fields of key, value and our headers."""
HEADER_OVERHEAD_BYTES = 10
"""Length fields of one header, at their largest."""


def dead_letter(
    record: Record, reason: Reason, message: str, max_bytes: int = MAX_BYTES
) -> tuple[bytes | None, bytes | None, list[Header]]:
    """Key, value and headers of the dead letter of `record`.

    `events-dlq` takes records twice as large as `events` does, so everything fits. Where someone has
    raised the limit of `events` alone, original headers are left out from the last on, and then the value
    is cut, until it fits `max_bytes`. `freshet.errors.headers_dropped` (how many) and
    `freshet.errors.value_bytes` (the full length) say so.
    """
    key, value = record.key(), record.value()
    own = error_headers(record, reason, message)
    try:
        original = list(record.headers() or ())
    except (SystemError, UnicodeDecodeError):
        # One has a name that is not UTF-8. confluent-kafka 2.16 raises once and then holds a list of null
        # pointers, which crashes the interpreter at the next look: replace it.
        record.set_headers([])
        original = []
        own.append(_header("headers_dropped", "all"))
    room = max_bytes - OVERHEAD_BYTES - len(key or b"") - _size(own)
    kept = _that_fit(original, room - len(value or b""))
    if len(kept) < len(original):
        own.append(_header("headers_dropped", len(original) - len(kept)))
    if value is not None and len(value) > room:
        own.append(_header("value_bytes", len(value)))
        value = value[: max(room, 0)]
    return key, value, kept + own


def error_headers(record: Record, reason: Reason, message: str) -> list[Header]:
    """The seven headers, all UTF-8 strings; `timestamp` is the Kafka record's, in ms since the epoch."""
    return [
        _header("reason", reason.value),
        _header("message", message.encode()[:MESSAGE_BYTES].decode(errors="ignore")),
        _header("topic", record.topic()),
        _header("partition", record.partition()),
        _header("offset", record.offset()),
        _header("timestamp", record.timestamp()[1]),
        _header("version", __version__),
    ]


def _header(name: str, content: object) -> Header:
    return HEADER_PREFIX + name, str(content).encode()


def _size(headers: Sequence[Header]) -> int:
    return sum(len(name.encode()) + len(content or b"") + HEADER_OVERHEAD_BYTES for name, content in headers)


def _that_fit(headers: list[Header], room: int) -> list[Header]:
    kept: list[Header] = []
    for header in headers:
        room -= _size([header])
        if room < 0:
            break
        kept.append(header)
    return kept
