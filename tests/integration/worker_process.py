"""Real worker processes on a real broker, and what tests need around them: input, and waiting without
sleeping."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from streams.clients import make_producer, producer_config
from streams.events import WorkerStats
from streams.reading import watermarks
from streams.settings import Settings, load_settings
from streams.user_records import PARTITION_KEY, PartitionRecord

__all__ = ["PATIENCE_S", "Deployment", "Input", "Tail", "WorkerProcess", "event", "stream_of"]

PATIENCE_S = 120.0
"""How long a test waits for what has to come. It promises nothing: a machine that is busy with other things
takes a minute to start a process."""

START_MS = 1_700_000_000_000
"""Event time of the first generated event: long ago, so that no test depends on the clock."""
FAST = {
    "FRESHET_WORKER__SESSION_TIMEOUT_S": "6",
    "FRESHET_WORKER__TRANSACTION_TIMEOUT_S": "6",
    "FRESHET_WORKER__RPC_TIMEOUT_S": "15",
    "FRESHET_WORKER__SNAPSHOT_S": "0",
}
"""The shortest that a broker takes by default (group.min.session.timeout.ms is 6000)."""


class Input(NamedTuple):
    """A record to produce; without a partition the key's hash places it."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None


def event(event_id: str, user: str, item: str, time_ms: int, kind: str = "click", **more: Any) -> Input:
    fields = {
        "event_id": event_id,
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "timestamp": time_ms,
    }
    return Input(user.encode(), json.dumps({**fields, **more}).encode())


def stream_of(n: int, seed: int = 0, users: int = 40, items: int = 150, name: str = "e") -> list[Input]:
    """`n` good events in order of time: popular items, every kind that teaches, one impression in ten."""
    rng = random.Random(seed)
    kinds = ["click"] * 5 + ["rating"] * 2 + ["purchase", "dislike", "impression"]
    return [
        event(
            f"{name}{k}",
            f"user-{rng.randrange(users)}",
            f"item-{min(int(rng.paretovariate(0.6)), items)}",
            START_MS + 1000 * k,
            rng.choice(kinds),
            value=rng.randrange(1, 6),
        )
        for k in range(n)
    ]


def _end_with_the_tests() -> None:
    """On Linux the kernel kills the worker when the tests are killed: a forgotten one would stay in the
    group."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class WorkerProcess:
    """`freshet worker` as an operator starts it; its stderr goes to a file."""

    def __init__(self, env: Mapping[str, str], worker_id: str | None, log: Path) -> None:
        self.id = worker_id
        self._log = log
        named = [] if worker_id is None else ["--id", worker_id]
        command = [sys.executable, "-m", "streams.cli", "worker", *named]
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, env=dict(env), stderr=stderr, preexec_fn=_end_with_the_tests
            )

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def exited(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self._process.wait(timeout_s)

    def wait_for_handler(self) -> None:
        """Wait until it has a handler for SIGTERM: before that, the interpreter is still starting, and any
        process would just die. Where there is no /proc, this doesn't wait."""
        status = Path(f"/proc/{self.pid}/status")
        deadline = time.monotonic() + PATIENCE_S
        while status.exists() and self.exited() is None:
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
            assert caught is not None
            if int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                return
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a power cut: no handler runs."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def stop(self, timeout_s: float = PATIENCE_S) -> float:
        """SIGTERM; returns the seconds until it was gone, and holds it to exit code 0."""
        started = time.monotonic()
        self._process.terminate()
        code = self._process.wait(timeout_s)
        assert code == 0, f"exit code {code}\n{self.log}"
        return time.monotonic() - started

    def clean_up(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(PATIENCE_S)


class Tail:
    """Follows whole topics, committed records only, keeping everything it has read."""

    def __init__(self, settings: Settings, *names: str) -> None:
        self.records: list[Message] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                "group.id": "test-tail",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
            }
        )
        topics = [settings.names[name] for name in names]
        known = self._consumer.list_topics(timeout=PATIENCE_S).topics
        self._consumer.assign(
            [TopicPartition(t, p, OFFSET_BEGINNING) for t in topics for p in known[t].partitions]
        )

    def more(self, timeout_s: float = 0.2) -> list[Message]:
        """What has come since; blocks on the broker for `timeout_s` at most."""
        found = self._consumer.consume(1, timeout_s)
        found += self._consumer.consume(2000, 0)
        for message in found:
            assert message.error() is None, message.error()
        self.records += found
        return found

    def close(self) -> None:
        self._consumer.close()


class Deployment:
    """The topics of the `settings` fixture, with workers on them."""

    def __init__(self, settings: Settings, env: Mapping[str, str], folder: Path) -> None:
        self.settings = settings
        self.env = {**env, **FAST}
        self._folder = folder
        self._producer = make_producer(producer_config(settings))
        self._tails: list[Tail] = []
        self.workers: list[WorkerProcess] = []

    def worker(self, worker_id: str | None = None, **env: str) -> WorkerProcess:
        """Start a worker; `env` such as WORKER__MAX_BATCH="20" overrides its settings."""
        name = f"{worker_id or 'dynamic'}-{len(self.workers)}.log"
        extra = {f"FRESHET_{key}": value for key, value in env.items()}
        process = WorkerProcess({**self.env, **extra}, worker_id, self._folder / name)
        self.workers.append(process)
        return process

    def worker_settings(self, **env: str) -> Settings:
        """Settings as a worker of this deployment sees them."""
        extra = {f"FRESHET_{key}": value for key, value in env.items()}
        return load_settings(environ={**self.env, **extra})

    def produce(self, topic: str, records: Iterable[Input]) -> None:
        for record in records:
            where = {} if record.partition is None else {"partition": record.partition}
            self._producer.produce(
                self.settings.names[topic],
                record.value,
                record.key,
                headers=list(record.headers) or None,
                **where,
            )
            self._producer.poll(0)
        assert self._producer.flush(PATIENCE_S) == 0

    def tail(self, *names: str) -> Tail:
        tail = Tail(self.settings, *names)
        self._tails.append(tail)
        return tail

    def check_alive(self, expected: Sequence[WorkerProcess]) -> None:
        for worker in expected:
            code = worker.exited()
            assert code is None, f"worker {worker.id} ended with {code}\n{worker.log}"

    def wait_for(self, tail: Tail, count: int, timeout_s: float = PATIENCE_S) -> list[Message]:
        """Wait until `tail` holds `count` records; fails at once when a running worker dies meanwhile."""
        running = [w for w in self.workers if w.exited() is None]
        deadline = time.monotonic() + timeout_s
        while len(tail.records) < count:
            self.check_alive(running)
            assert time.monotonic() < deadline, f"{len(tail.records)} of {count} records\n{self.logs()}"
            tail.more()
        return tail.records

    def wait_handled(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every record of `events` and `requests` is handled: the partitions' own records say
        so."""
        running = [w for w in self.workers if w.exited() is None]
        wanted = self.ends()
        tail = self.tail("user-state")
        stands: dict[tuple[str, int], int] = {}
        deadline = time.monotonic() + timeout_s
        while any(stands.get(key, 0) < end for key, end in wanted.items()):
            self.check_alive(running)
            assert time.monotonic() < deadline, f"{stands} of {wanted}\n{self.logs()}"
            for message in tail.more():
                if message.key() == PARTITION_KEY:
                    record = msgspec.json.decode(message.value(), type=PartitionRecord)
                    stands |= {
                        (name, message.partition()): offset for name, offset in record.next_offsets.items()
                    }

    def wait_followed(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every running worker has learned all that the learning log holds now, as it reports
        itself: lists made before that know less."""
        running = sum(w.exited() is None for w in self.workers)
        log = (self.settings.names["interactions"], 0)
        end = watermarks(self.settings, [log], isolation="read_committed")[log][1]
        self._wait_reports(lambda newest: sum(r.online_offset >= end for r in newest) >= running, timeout_s)

    def wait_shared(self, workers: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until so many workers run and own all partitions between them, as they report themselves."""

        def shared(newest: Collection[WorkerStats]) -> bool:
            owned = [len(report.partitions) if report.state == "running" else 0 for report in newest]
            return sum(map(bool, owned)) == workers and sum(owned) == self.settings.topics.partitions

        self._wait_reports(shared, timeout_s)

    def _wait_reports(self, enough: Callable[[Collection[WorkerStats]], bool], timeout_s: float) -> None:
        """Wait until the newest report of each worker is `enough`."""
        running = [w for w in self.workers if w.exited() is None]
        tail = self.tail("worker-stats")
        newest: dict[str, WorkerStats] = {}
        deadline = time.monotonic() + timeout_s
        while not enough(newest.values()):
            self.check_alive(running)
            assert time.monotonic() < deadline, f"{newest}\n{self.logs()}"
            for message in tail.more():
                report = msgspec.json.decode(message.value() or b"", type=WorkerStats)
                newest[report.worker] = report

    def ends(self) -> dict[tuple[str, int], int]:
        """End offsets of `events` and `requests` by (name, partition)."""
        count = self.settings.topics.partitions
        keys = [(name, p) for name in ("events", "requests") for p in range(count)]
        found = watermarks(self.settings, [(self.settings.names[name], p) for name, p in keys])
        return {(name, p): found[self.settings.names[name], p][1] for name, p in keys}

    def logs(self) -> str:
        return "\n".join(f"--- {w.id}, {w.pid}, exit {w.exited()}\n{w.log}" for w in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.clean_up()
        for tail in self._tails:
            tail.close()


@contextlib.contextmanager
def deployment(settings: Settings, env: Mapping[str, str], folder: Path) -> Iterator[Deployment]:
    """A deployment that leaves no process behind."""
    made = Deployment(settings, {**env, "PYTHONUNBUFFERED": "1", "HOME": os.environ["HOME"]}, folder)
    try:
        yield made
    finally:
        made.close()
