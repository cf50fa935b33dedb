"""What every row stands on: one broker, deployments of their own on it, worker processes, and drains.

A deployment has its own topic prefix, so that nothing is shared but the broker; dropping it deletes its
topics. Workers are real `freshet worker` processes. How far one has come is asked of the broker (the group's
committed offsets), which costs neither side anything to speak of, and what it counted is asked of its own
`worker-stats`: a rate of events that were not all accepted is refused, not reported.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec  # type: ignore[attr-defined]  # its re-exports

from streams.broker import start_broker
from streams.clients import (
    admin,
    make_consumer,
    make_producer,
    producer_config,
    tail_consumer_config,
    wait_for_broker,
)
from streams.errors import FreshetError
from streams.events import PartitionStats, WorkerStats, summed
from streams.processes import Child, ProcessGroup
from streams.reading import PartitionReader, watermarks
from streams.settings import Settings, load_settings
from streams.topic_admin import create_topics

__all__ = ["Bench", "Deployment", "Rate", "open_bench"]

Record = tuple[bytes, bytes]

POLL_S = 0.02
RPC_S = 30.0
PATIENCE_S = 300.0
"""How long a side may commit nothing (start and first compilation included) before the run is given up."""

_NOT_YET = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}
"""What a young broker says before its group coordinator has begun."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Records committed per second between two looks at the broker, and the looks themselves."""

    per_s: float
    records: int
    seconds: float


class Deployment:
    """Topics, settings and worker processes under one prefix."""

    def __init__(self, bench: Bench, prefix: str, partitions: int, extra: Mapping[str, str]) -> None:
        self.bench = bench
        self.prefix = prefix
        self.folder = bench.folder / prefix.rstrip(".")
        self.folder.mkdir()
        self.env = {
            **bench.env,
            "FRESHET_TOPICS__PREFIX": prefix,
            "FRESHET_TOPICS__PARTITIONS": str(partitions),
            "FRESHET_STATE__DIR": str(self.folder / "snapshots"),
            **extra,
        }
        self.settings = load_settings(environ=self.env)
        self.partitions = partitions
        create_topics(self.settings)
        self._admin = admin(self.settings)
        self._own: list[Child] = []
        self._groups: dict[str, Consumer] = {}

    def topic(self, name: str) -> str:
        return self.settings.names[name]

    def create(self, name: str) -> str:
        """A further topic with as many partitions, under the prefix; its full name."""
        full = self.prefix + name
        self._admin.create_topics([NewTopic(full, self.partitions, 1)])[full].result()
        watermarks(self.settings, [(full, p) for p in range(self.partitions)])  # waits for the leaders
        return full

    def remove(self, *topics: str) -> None:
        """Delete topics by their full names."""
        for future in self._admin.delete_topics(list(topics), operation_timeout=20).values():
            future.result()

    def fill(self, topic: str, records: Iterable[Record]) -> int:
        """Produce all of `records` to `topic` (full name) and wait until the broker has them; how many."""
        producer = make_producer(
            {**producer_config(self.settings), "queue.buffering.max.messages": 500_000, "linger.ms": 20}
        )
        count = 0
        for key, value in records:
            while True:
                try:
                    producer.produce(topic, value, key)
                    break
                except BufferError:
                    producer.poll(0.05)
            count += 1
            if not count & 1023:
                producer.poll(0)
        if left := producer.flush(120):
            raise FreshetError(f"{topic}: {left} of {count} records were not taken within 120 s")
        return count

    def spawn(self, name: str, command: Sequence[str], **extra: str) -> Child:
        """`python -m <command>` with this deployment's environment and `extra` variables."""
        child = self.bench.processes.spawn(
            f"{self.prefix}{name}",
            [sys.executable, "-m", *command],
            env={**self.env, **extra},
            cwd=Path.cwd(),
            log=self.folder / f"{name}.log",
        )
        self._own.append(child)
        return child

    def worker(self, worker_id: str = "bench", **extra: str) -> Child:
        return self.spawn(worker_id, ["streams.cli", "worker", "--id", worker_id], **extra)

    def stop(self, child: Child) -> None:
        child.stop()
        self._own.remove(child)
        self.bench.processes.children.remove(child)

    def check(self) -> None:
        for child in self._own:
            child.check()

    def committed(self, group: str, topic: str) -> int:
        """Records of `topic` (which nobody wrote in transactions) that `group` has committed."""
        if group not in self._groups:
            config = tail_consumer_config(
                self.settings, isolation="read_uncommitted"
            )  # open ones don't block it
            self._groups[group] = make_consumer({**config, "group.id": group})
        wanted = [TopicPartition(topic, p) for p in range(self.partitions)]
        try:
            found = self._groups[group].committed(wanted, RPC_S)
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET:
                raise
            return 0
        return sum(tp.offset for tp in found if tp.offset > 0)

    def handled(self) -> int:
        """Records of `events` that the workers have committed."""
        return self.committed(self.settings.worker_group, self.topic("events"))

    def written(self, topic: str) -> int:
        """Sum of the end offsets of `topic` (full name)."""
        wanted = {TopicPartition(topic, p): OffsetSpec.latest() for p in range(self.partitions)}  # type: ignore[no-untyped-call]
        return sum(future.result().offset for future in self._admin.list_offsets(wanted).values())

    def reports(self) -> list[WorkerStats]:
        """Every record of `worker-stats` so far, oldest first."""
        topic = self.topic("worker-stats")
        [(low, end)] = watermarks(self.settings, [(topic, 0)]).values()
        found: list[WorkerStats] = []
        reader = PartitionReader(self.settings, {(topic, 0): low})
        reader.read_to(
            {(topic, 0): end},
            lambda m: found.append(msgspec.json.decode(m.value() or b"", type=WorkerStats)),
        )
        reader.close()
        return found

    def wait_reports(self, enough: Callable[[list[WorkerStats]], bool], what: str) -> list[WorkerStats]:
        """Look at `worker-stats` until `enough` of it is there.

        Raises:
            FreshetError: a process ended, or nothing of the kind came within `PATIENCE_S`.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not enough(reports := self.reports()):
            self.check()
            if time.monotonic() > deadline:
                raise FreshetError(f"{self.prefix}: no report of {what} within {PATIENCE_S:g} s")
            time.sleep(0.1)
        return reports

    def wait_owned(self, workers: int = 1) -> None:
        """Wait until `workers` run and own all partitions between them."""

        def shared(reports: list[WorkerStats]) -> bool:
            newest = {r.worker: set(r.partitions) if r.state == "running" else set() for r in reports}
            busy = [owned for owned in newest.values() if owned]
            return len(busy) == workers and sum(map(len, busy)) == self.partitions

        self.wait_reports(shared, f"{workers} workers owning {self.partitions} partitions")

    def totals(self, handled: int) -> PartitionStats:
        """The partitions' totals once the workers have reported `handled` records of `events`.

        Raises:
            FreshetError: they are other than all accepted.
        """

        def of(reports: list[WorkerStats]) -> PartitionStats:
            newest: dict[str, PartitionStats] = {}
            for report in reports:
                newest |= report.partitions
            return summed(newest.values())

        def seen(total: PartitionStats) -> int:
            return total.accepted + total.rejected + total.duplicate + total.late

        total = of(self.wait_reports(lambda found: seen(of(found)) >= handled, f"{handled} events"))
        if total.accepted != handled:
            raise FreshetError(f"{self.prefix}: {total.accepted} of {handled} events accepted: {total}")
        return total

    def drop(self) -> None:
        """End the processes, delete the topics."""
        for child in list(self._own):
            self.stop(child)
        for consumer in self._groups.values():
            consumer.close()
        names = [n for n in self._admin.list_topics(timeout=10).topics if n.startswith(self.prefix)]
        self.remove(*names)


class Bench:
    """One run of the benchmarks: the broker, where files go, how large and how often."""

    def __init__(
        self, processes: ProcessGroup, folder: Path, bootstrap: str, *, quick: bool, rounds: int
    ) -> None:
        self.processes = processes
        self.folder = folder
        self.bootstrap = bootstrap
        self.quick = quick
        self.rounds = rounds
        self._numbers = itertools.count()
        config = folder / "freshet.toml"
        config.write_text("", "utf-8")
        inherited = {
            n: v for n, v in os.environ.items() if not n.startswith("FRESHET_") or n == "FRESHET_HOME"
        }
        self.env = {
            **inherited,
            "FRESHET_CONFIG": str(config),
            "FRESHET_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "FRESHET_REGISTRY__URL": str(folder / "models"),
            "FRESHET_TRIGGER__COALESCE_LAG": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def size(self, full: int, quick: int) -> int:
        """`full`, or `quick` with --quick."""
        return quick if self.quick else full

    @contextmanager
    def deployment(
        self, extra: Mapping[str, str] | None = None, *, partitions: int = 8
    ) -> Iterator[Deployment]:
        """A deployment that is dropped at the end; `extra` as {"WORKER__MAX_BATCH": "5000"}."""
        prefix = f"b{os.getpid()}-{next(self._numbers)}."
        settings = {f"FRESHET_{key}": value for key, value in (extra or {}).items()}
        made = Deployment(self, prefix, partitions, settings)
        try:
            yield made
        finally:
            made.drop()

    def base_settings(self) -> Settings:
        return load_settings(environ=self.env)

    def watch(
        self, deployment: Deployment, position: Callable[[], int], total: int
    ) -> list[tuple[float, int]]:
        """Look at `position` until it is at `total`: each new one with its time, one look before them all.

        Raises:
            FreshetError: a process ended, or there was no progress for `PATIENCE_S`.
        """
        looks = [(time.perf_counter(), position())]
        moved_at = looks[0][0]
        while looks[-1][1] < total:
            time.sleep(POLL_S)
            now, at = time.perf_counter(), position()
            if at > looks[-1][1]:
                looks.append((now, at))
                moved_at = now
            elif now - moved_at > PATIENCE_S:
                raise FreshetError(
                    f"{deployment.prefix}: {at} of {total} and no further for {PATIENCE_S:g} s"
                )
            elif at == 0:
                looks[-1] = (now, 0)
            deployment.check()
        return looks

    def drain(
        self,
        deployment: Deployment,
        position: Callable[[], int],
        total: int,
        *,
        from_share: float = 0.1,
        to_share: float = 1.0,
    ) -> Rate:
        """Watch `position` go to `total`; the rate from its first look at or past `from_share` of it to its
        first at or past `to_share`. Starting the process is thereby no part of it.

        Raises:
            FreshetError: as `watch`, or all was done before the first look.
        """
        looks = self.watch(deployment, position, total)
        first = next(n for n, (_, at) in enumerate(looks) if at >= from_share * total)
        last = next(n for n, (_, at) in enumerate(looks) if at >= to_share * total)
        if first >= last:  # all within one look: count from the look before
            first = last - 1
        if first < 0:
            raise FreshetError(f"{deployment.prefix}: all {total} were done before the first look")
        (begun, low), (ended, high) = looks[first], looks[last]
        return Rate((high - low) / (ended - begun), high - low, ended - begun)


@contextmanager
def open_bench(*, quick: bool = False, rounds: int = 5) -> Iterator[Bench]:
    """A bench on the broker in FRESHET_KAFKA__BOOTSTRAP_SERVERS, else on an embedded one of its own."""
    folder = Path(tempfile.mkdtemp(prefix="freshet-bench-"))
    given = os.environ.get("FRESHET_KAFKA__BOOTSTRAP_SERVERS")
    with ProcessGroup() as processes:
        processes.owns_folder(folder)
        bootstrap = given
        if bootstrap is None:
            info = start_broker(folder / "kafka", remember=False)
            processes.owns_process(info.pid)
            bootstrap = info.bootstrap_servers
        bench = Bench(processes, folder, bootstrap, quick=quick, rounds=rounds)
        wait_for_broker(bench.base_settings(), 30.0)
        yield bench
