"""A bare transactional echo: consume, produce the same bytes, commit both in one transaction.

What any exactly-once consumer pays, with the worker's client settings, batching and partitioner and none of
its work; written straight to the client, so that nothing of ours slows it. With a file of values it produces
those in turn, each under its source's key: as many bytes as the lists that it stands beside.

    python -m benchmarks.echo SOURCE TARGET [VALUES.json]
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Message, Producer

from streams.clients import consumer_config, make_consumer, make_producer, producer_config
from streams.settings import load_settings

__all__ = ["group_of"]

TIMEOUT_S = 30.0


def group_of(source: str) -> str:
    """The echo's consumer group."""
    return f"echo-{source}"


def main(source: str, target: str, values_file: str | None = None) -> None:
    """Echo topic `source` to topic `target` until SIGTERM; then say in how many transactions."""
    settings = load_settings()
    values = None
    if values_file is not None:
        values = itertools.cycle([text.encode() for text in json.loads(Path(values_file).read_text("utf-8"))])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    producer = make_producer(producer_config(settings, transactional_id=group_of(source)))
    producer.init_transactions(TIMEOUT_S)
    consumer = make_consumer(consumer_config(settings, group=group_of(source)))
    consumer.subscribe([source])
    limit, poll_s = settings.worker.max_batch, settings.worker.poll_s
    records = transactions = 0
    while not stop.is_set():
        batch = consumer.consume(1, poll_s)
        if batch and limit > 1:
            batch += consumer.consume(limit - 1, 0)
        batch = [message for message in batch if _is_record(message)]
        if batch:
            producer.begin_transaction()
            _produce(producer, target, batch, values)
            _commit(producer, consumer)
            records += len(batch)
            transactions += 1
    consumer.close()
    print(json.dumps({"records": records, "transactions": transactions}), flush=True)


def _is_record(message: Message) -> bool:
    """False for a passing error, such as a topic that the broker has only just made."""
    error = message.error()
    if error is not None and error.fatal():
        raise KafkaException(error)
    return error is None


def _produce(producer: Producer, target: str, batch: list[Message], values: Iterator[bytes] | None) -> None:
    produce = producer.produce
    for message in batch:
        value = message.value() if values is None else next(values)
        while True:
            try:
                produce(target, value, message.key())
                break
            except BufferError:
                producer.poll(0.01)


def _commit(producer: Producer, consumer: Consumer) -> None:
    offsets = consumer.position(consumer.assignment())
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), TIMEOUT_S)
    producer.commit_transaction(TIMEOUT_S)


if __name__ == "__main__":
    main(*sys.argv[1:4])
