"""A reader of committed records that was there all the time, and must have seen what an audit finds later."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from streams.settings import Settings
from tests.chaos.records import Finding, Record, fingerprint

__all__ = ["WATCHED", "Witness"]

WATCHED = ("interactions", "recommendations", "events-dlq")


class Witness(threading.Thread):
    """Follows the workers' outputs from the start of the run on, through restarts of the broker."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="witness", daemon=True)
        self._names = {settings.names[name]: name for name in WATCHED}
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                "group.id": "chaos-witness",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "reconnect.backoff.max.ms": 500,
                "fetch.wait.max.ms": 100,
                "log_level": 0,  # it is meant to lose its broker
            }
        )
        known = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign(
            [TopicPartition(t, p, OFFSET_BEGINNING) for t in self._names for p in known[t].partitions]
        )
        self.seen: dict[tuple[str, int], list[tuple[int, bytes]]] = {
            (name, p): [] for topic, name in self._names.items() for p in known[topic].partitions
        }
        """By topic and partition: offset and fingerprint of every record, as they came."""
        self.trouble: list[str] = []
        self._ends: dict[tuple[str, int], int] = {}
        self._halt = threading.Event()

    def run(self) -> None:
        while not self._halt.is_set():
            for message in self._consumer.consume(500, 0.2):
                error = message.error()
                key = self._names.get(message.topic() or "", ""), message.partition() or 0
                if error is None:
                    mark = fingerprint(message.key(), message.value(), tuple(message.headers() or ()))
                    self.seen[key].append((message.offset() or 0, mark))
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._ends[key] = max(self._ends.get(key, 0), message.offset() or 0)
                elif error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
                    self.trouble.append(f"{key}: {error.str()} ({error.name()})")

    def finish(self, ends: Mapping[tuple[str, int], int], timeout_s: float) -> list[Finding]:
        """Read on to `ends` and stop; what hindered it."""
        deadline = time.monotonic() + timeout_s
        while behind := [key for key, end in ends.items() if self._ends.get(key, 0) < end]:
            if time.monotonic() > deadline:
                self.trouble.append(f"did not reach the end of {behind} within {timeout_s:g} s")
                break
            time.sleep(0.05)
        self._halt.set()
        self.join()
        self._consumer.close()
        return [Finding("wrong", 1, f"concurrent reader: {text}") for text in self.trouble]

    def differences(self, found: Mapping[str, Sequence[Record]]) -> list[Finding]:
        """Where this reader and one that came afterwards have not seen the same records in the same order."""
        afterwards: dict[tuple[str, int], list[tuple[int, bytes]]] = {key: [] for key in self.seen}
        for name, records in found.items():
            for record in records:
                mark = fingerprint(record.key, record.value, record.headers)
                afterwards[name, record.partition].append((record.offset, mark))
        problems = []
        for key, wanted in afterwards.items():
            if self.seen[key] == wanted:
                continue
            missing, extra = set(wanted) - set(self.seen[key]), set(self.seen[key]) - set(wanted)
            offsets = sorted(offset for offset, _ in missing | extra)[:10]
            problems.append(
                Finding(
                    "wrong",
                    max(1, len(missing) + len(extra)),
                    f"concurrent reader: {key[0]}[{key[1]}]: {len(missing)} records not seen, "
                    f"{len(extra)} seen that are not there, {len(self.seen[key])} seen in all; "
                    f"first offsets {offsets}",
                )
            )
        return problems
