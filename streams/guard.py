"""Calls of a client that may never return, made where they can be left behind.

librdkafka's `send_offsets_to_transaction` does not check the time it is given while it looks for the group's
coordinator (its issue 5456, open in 2.14), and where that broker goes away and is back within a second,
nothing wakes it again (5511): the call stands for good. Seen in half of the clients that were committing when
a broker was killed and started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from streams.errors import TransactionLostError
from streams.stopping import Stop

__all__ = ["Guard"]

LOOK_S = 1.0
"""Counted by waits and not by a clock: a process that was asleep has waited once, however long it slept."""


class _Call:
    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._raised: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001  # `result` raises it where the call was asked for
            self._raised = error
        self.done.set()

    def result(self) -> None:
        if self._raised is not None:
            raise self._raised


class Guard:
    """One thread for one call at a time. A daemon: neither the process's end nor anybody else waits for a
    call that has been left behind in it."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="guard", daemon=True)
        self._thread.start()
        self.hung = False
        """A call was left behind: what it was made with must be left alone from now on."""

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()

    def call(self, function: Callable[[], object], limit_s: float, what: str) -> None:
        """Make the call and wait for it; raises what it raises.

        Raises:
            TransactionLostError: it had not returned after `limit_s` seconds, or the grace after a signal to
                stop was over, or an earlier call was left behind.
        """
        if self.hung:
            raise TransactionLostError(f"{what} was not called: an earlier call has not returned")
        call = _Call(function)
        self._calls.put(call)
        looks = 0
        while not call.done.wait(LOOK_S):
            looks += 1
            if looks * LOOK_S >= limit_s or self._stop.expired():
                self.hung = True
                raise TransactionLostError(
                    f"{what} did not return within {looks * LOOK_S:.0f} s, whatever time it was given: its"
                    " client is left behind, and state is restored from the log"
                )
        call.result()

    def close(self) -> None:
        """Let the thread end, after the call that it may be in."""
        self._calls.put(None)
