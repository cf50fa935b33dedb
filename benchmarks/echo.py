"""A bare transactional echo: consume, produce the same bytes, commit both in one transaction.

What any exactly-once consumer pays, with the worker's batching and client settings and none of its work.
"""

from __future__ import annotations

import signal
import sys
import threading

from confluent_kafka import Consumer

from streams.clients import consumer_config, make_consumer
from streams.settings import load_settings
from streams.transaction import OutputRecord, Transactions


def main(source: str, target: str) -> None:
    """Echo topic `source` to topic `target` until SIGTERM."""
    settings = load_settings()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    transactions = Transactions(settings, f"echo-{source}")
    consumer: Consumer = make_consumer(consumer_config(settings, group=f"echo-{source}"))
    consumer.subscribe([source])
    while not stop.is_set():
        batch = consumer.consume(1, settings.worker.poll_s)
        if batch:
            batch += consumer.consume(settings.worker.max_batch - 1, 0)
        records = [OutputRecord(target, m.key(), m.value()) for m in batch if m.error() is None]
        if records:
            transactions.commit(records, consumer, consumer.position(consumer.assignment()))
    consumer.close()
    transactions.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
