"""Control: a worker that produces and commits in the right order, but not in one transaction.

A batch that was under way when it died has left lists and interactions behind, and comes again.
"""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import Consumer, TopicPartition

from streams.transaction import OutputRecord
from tests.chaos.controls.plain import Plain, run_worker


class NoTransactions(Plain):
    """1. produce what others read, 2. produce the state, 3. commit the offsets."""

    def commit(
        self, records: Iterable[OutputRecord], consumer: Consumer, offsets: list[TopicPartition]
    ) -> None:
        records = list(records)
        state = [record for record in records if record.topic == self.names["user-state"]]
        self.send(record for record in records if record.topic != self.names["user-state"])
        if any(record.topic == self.names["recommendations"] for record in records):
            self.crash.passed()
        self.send(state)
        consumer.commit(offsets=offsets, asynchronous=False)
        self.committed += 1


if __name__ == "__main__":
    run_worker(NoTransactions)
