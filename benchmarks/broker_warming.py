"""What comes before the first row: a broker that has served for a while.

A young Java process compiles what it runs for minutes, on the cores that everything else is measured on, and
is slow meanwhile: on two cores the broker took 164 µs of processor time a list in its first ten seconds, 34
to 72 a minute later. Operators have brokers that are warm.
"""

from __future__ import annotations

import time

from benchmarks.answering import LISTS, drain_ready, wait_ready
from benchmarks.bench import Bench
from benchmarks.learning import drain_echo
from benchmarks.workloads import Stream

__all__ = ["warm_broker"]


def warm_broker(bench: Bench, seconds: float) -> None:
    """Have both sides of a row, worker and echo, work for about so long, untimed."""
    stream = Stream(60_000, 5_000, 2_000)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        with bench.deployment(LISTS) as deployment:
            child = deployment.worker()
            wait_ready(deployment, 1, None)
            drain_ready(bench, deployment, stream)
            deployment.stop(child)
            drain_echo(bench, deployment, stream.count)
