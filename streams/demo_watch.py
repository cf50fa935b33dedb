"""What the demo sees from outside: worker reports and the recommendations themselves."""

from __future__ import annotations

import time
from collections import deque

import msgspec

from streams.events import PartitionStats, Recommendation, WorkerStats, summed
from streams.lag import LagSummary, lag_of
from streams.metrics import LatencyHistogram
from streams.reading import PartitionId, PartitionReader
from streams.settings import Settings
from streams.topic_admin import check_layout

__all__ = ["Watch"]

WINDOW_S = 5.0
LAG_EVERY_S = 1.0


class Watch:
    """Follows `worker-stats` and `recommendations` (read_committed) and asks Kafka for the lag.

    Latency is measured here, by a reader: from the append of the causing event to the moment its list is
    readable under read_committed.
    """

    def __init__(self, settings: Settings, workers: list[str]) -> None:
        self._settings = settings
        names = settings.names
        partitions = check_layout(settings)["recommendations"]
        self._stats_topic, self._lists_topic = names["worker-stats"], names["recommendations"]
        starts: dict[PartitionId, int] = {(self._stats_topic, 0): 0}
        starts |= {(self._lists_topic, p): 0 for p in range(partitions)}
        self._reader = PartitionReader(settings, starts)
        self._decode_stats = msgspec.json.Decoder(WorkerStats).decode
        self._decode_list = msgspec.json.Decoder(Recommendation).decode
        self._rates: deque[tuple[float, int, int]] = deque()
        self._lag_at = 0.0
        self._expected = workers
        self.workers: dict[str, WorkerStats] = {}
        self._partitions: dict[str, tuple[int, PartitionStats]] = {}
        self.latency = LatencyHistogram()
        self.lists = 0
        self.last_list: dict[str, Recommendation] = {}
        self.rankers: list[str] = []
        self.lag: LagSummary | None = None
        self.sent = 0
        self.total = 0

    def expect(self, total: int) -> None:
        self.total = total

    def sent_so_far(self, what: str, done: int, total: int) -> None:
        """The replay's progress callback; called from its thread."""
        if what == "events":
            self.sent = done

    def poll(self, timeout_s: float) -> None:
        """Take in what has come since the last call."""
        for message in self._reader.poll(2000, timeout_s):
            value = message.value()
            if value is None:
                continue
            if message.topic() == self._stats_topic:
                self._take_stats(self._decode_stats(value))
            else:
                self._take_list(self._decode_list(value))
        now = time.monotonic()
        if now - self._lag_at >= LAG_EVERY_S and self.total:
            self._lag_at = now
            self.lag = lag_of(self._settings, self._settings.worker_group)

    def _take_stats(self, stats: WorkerStats) -> None:
        self.workers[stats.worker] = stats
        for partition, totals in stats.partitions.items():
            if stats.at >= self._partitions.get(partition, (0, totals))[0]:
                self._partitions[partition] = (stats.at, totals)
        self._rates.append((time.monotonic(), stats.events, stats.recommendations))

    def _take_list(self, answer: Recommendation) -> None:
        self.lists += 1
        self.latency.add(time.time() * 1000 - (answer.generated_at - answer.latency_ms))
        if answer.user_id is not None:
            self.last_list[answer.user_id] = answer
        if answer.ranker is not None and answer.ranker not in self.rankers:
            self.rankers.append(answer.ranker)

    def totals(self) -> PartitionStats:
        """The partitions' totals added up."""
        return summed(stats for _, stats in self._partitions.values())

    def rates(self) -> tuple[float, float]:
        """Events and recommendations per second over the last few seconds, from the workers' reports."""
        now = time.monotonic()
        while self._rates and now - self._rates[0][0] > WINDOW_S:
            self._rates.popleft()
        return sum(r[1] for r in self._rates) / WINDOW_S, sum(r[2] for r in self._rates) / WINDOW_S

    def swaps(self) -> int:
        """Ranker versions that a worker took into service: the most that any one of them did."""
        return max((stats.swaps for stats in self.workers.values()), default=0)

    def refused(self) -> list[str]:
        return sorted({reason for stats in self.workers.values() for reason in stats.refused})

    def states(self) -> dict[str, str]:
        return {worker: stats.state for worker, stats in self.workers.items()}

    def all_running(self) -> bool:
        """Every worker has joined, and together they own all partitions."""
        running = [s for s in self.workers.values() if s.worker in self._expected and s.state == "running"]
        owned = {p for stats in running for p in stats.partitions}
        return len(running) == len(self._expected) and len(owned) == self._settings.topics.partitions

    def handled(self) -> int:
        totals = self.totals()
        return totals.accepted + totals.rejected + totals.duplicate + totals.late

    def drained(self, sent: int) -> bool:
        """Every sent event is accounted for, its list has been read, and Kafka says that no lag is left."""
        totals = self.totals()
        answered = self.lists >= totals.recommendations
        return self.handled() >= sent and answered and self.lag is not None and self.lag.records == 0

    def progress_text(self) -> str:
        return f"{self.handled()} of {self.sent} events handled, {self.lists} lists read, lag {self.lag}"

    def close(self) -> None:
        self._reader.close()
