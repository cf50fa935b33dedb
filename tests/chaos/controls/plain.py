"""What the controls share: a worker without transactions, in all else the product's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

import streams.worker
from streams.cli import main
from streams.clients import make_producer, producer_config
from streams.settings import Settings
from streams.transaction import OutputRecord, OutputRecords, Transactions
from tests.chaos.controls.crash import CrashPoint

__all__ = ["Plain", "run_worker"]

FLUSH_S = 15.0


class Plain(Transactions):
    """Records go out through an idempotent producer of its own: what is delivered is there for good."""

    def __init__(self, settings: Settings, *rest: Any, **named: Any) -> None:
        super().__init__(settings, *rest, **named)
        self.names = settings.names
        self.crash = CrashPoint()
        self._held: list[OutputRecord] = []
        self._own: Producer = make_producer(producer_config(settings))

    def begin(self, records: Iterable[OutputRecord | OutputRecords]) -> None:
        """Nothing is begun: `finish` does it all, in the control's order."""
        self._held = [one for record in records for one in _single(record)]

    def finish(self, consumer: Consumer, offsets: list[TopicPartition]) -> None:
        self.commit(self._held, consumer, offsets)

    def send(self, records: Iterable[OutputRecord]) -> None:
        """Produce `records` and wait until the broker has them."""
        for record in records:
            partition = -1 if record.partition is None else record.partition  # -1: by the key
            headers = None if record.headers is None else list(record.headers)
            self._own.produce(record.topic, record.value, record.key, partition, headers=headers)
        assert self._own.flush(FLUSH_S) == 0


def _single(record: OutputRecord | OutputRecords) -> list[OutputRecord]:
    if isinstance(record, OutputRecord):
        return [record]
    return [
        OutputRecord(record.topic, key, value, record.partition, record.headers)
        for key, value in zip(record.keys, record.values, strict=True)
    ]


def run_worker(kind: type[Plain]) -> None:
    """`freshet worker`, committing with `kind`."""
    os.environ["FRESHET_WORKER__DELIVERY"] = "at_least_once"  # the base class then begins no transaction
    streams.worker.Transactions = kind  # type: ignore[attr-defined]
    sys.argv = ["freshet", "worker", *sys.argv[1:]]
    main()
