"""One signal to stop, and how long calls to Kafka may still take once it came."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

from streams.kafka_errors import is_passing, named
from streams.retries import RETRIES

__all__ = ["Stop"]

log = logging.getLogger("freshet.kafka")

GRACE_S = 4.0
"""What is under way may take this long after the signal: with the clean-up a worker ends within 10 s, even
when the broker hangs."""
SLICE_S = 1.0
"""Python runs a signal handler only between calls: a call that may take long is made in slices of this."""
FIRST_PAUSE_S = 0.05
"""Before the first repetition; each further pause is twice as long, up to a slice."""
TELL_S = 10.0
"""How often an outage is told."""

T = TypeVar("T")


class Stop:
    """Set once, from a signal handler or another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._at: float | None = None

    def set(self) -> None:
        if self._at is None:
            self._at = time.monotonic()
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)

    def expired(self) -> bool:
        """The grace after the signal is over."""
        return self._at is not None and time.monotonic() - self._at > GRACE_S

    def finish(self, *closing: Callable[[], object]) -> None:
        """Close clients, one after the other. Told to stop, only for as long as the grace lasts: a client
        of a broker that hangs waits for it, and is left behind then (`expired` says so from then on)."""
        if self._at is None:
            for close in closing:
                close()
            return
        thread = threading.Thread(target=lambda: [close() for close in closing], name="closing", daemon=True)
        thread.start()
        thread.join(max(0.0, GRACE_S - (time.monotonic() - self._at)) + SLICE_S)
        if thread.is_alive():
            self._at = -math.inf

    def patiently(self, call: Callable[[float], T], timeout_s: float) -> T:
        """`call(seconds)` again and again while it times out or may be retried, for `timeout_s` in all, or
        until the grace is over.

        For librdkafka's transactional calls, which go on where they were when they are called again.

        Raises:
            KafkaException: the call's last error.
        """
        started = told = time.monotonic()
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call(SLICE_S)
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                now = time.monotonic()
                if not is_passing(cause) or now - started > timeout_s or self.expired():
                    raise
                count = RETRIES.count("transaction")
                if now - told > TELL_S:
                    told = now
                    log.warning(
                        "Kafka: %s, for %.0f s now; tried again (retry %d)",
                        named(cause),
                        now - started,
                        count,
                    )
                if cause.code() != KafkaError._TIMED_OUT:  # that one has already waited
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, SLICE_S)
