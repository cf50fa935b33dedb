"""How often this process tried again what Kafka had not done: trouble that mends itself, but is not hidden.

`streams.stats` reports the counts with each record of `worker-stats`; the monitor shows them as
`freshet_worker_retries_total`.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal, get_args

__all__ = ["KINDS", "RETRIES", "Kind", "Retries"]

Kind = Literal["connect", "consume", "metadata", "read", "session", "transaction"]
"""`connect`: the broker did not answer. `consume`, `read`: a passing error while reading the inputs, or a log
without a group. `metadata`: watermarks or offsets asked for again. `transaction`: a transactional call that
was repeated. `session`: a lost transaction, after which everything was restored from the log."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class Retries:
    """Counts by kind, from any thread.

    >>> retries = Retries()
    >>> retries.count("read"), retries.count("read"), retries.count("connect")
    (1, 2, 1)
    >>> retries.counts()
    {'connect': 1, 'read': 2}
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Kind] = Counter()

    def count(self, kind: Kind) -> int:
        """One more of `kind`; returns how many there have been."""
        with self._lock:
            self._counts[kind] += 1
            return self._counts[kind]

    def counts(self) -> dict[str, int]:
        """Those that happened, by kind."""
        with self._lock:
            return dict(sorted(self._counts.items()))


RETRIES = Retries()
"""This process's."""
