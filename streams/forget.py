"""Forget a user: the tombstone that any service would write to `users`, and whether a worker has acted on
it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from streams.clients import consumer_config, make_consumer, make_producer, producer_config
from streams.errors import BrokerUnavailableError, FreshetError
from streams.field_checks import check_id
from streams.kafka_errors import fatal_error, is_passing
from streams.rejects import InvalidRecordError
from streams.settings import Settings
from streams.topic_admin import check_layout

__all__ = ["Forgotten", "forget"]

LOOK_S = 0.1
"""Between two looks at where the workers stand."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Where the tombstone stands in `users`, and whether the owner of its partition has acted on it."""

    user_id: str
    partition: int
    offset: int
    done: bool


def forget(settings: Settings, user_id: str, timeout_s: float) -> Forgotten:
    """Write the user's tombstone and wait up to `timeout_s` for a worker to commit what follows from it.

    Raises:
        FreshetError: no id that a user can have.
        BrokerUnavailableError: the tombstone was not taken.
    """
    try:
        check_id("USER", user_id)
    except InvalidRecordError as bad:
        raise FreshetError(bad.message) from bad
    check_layout(settings)
    topic = settings.names["users"]
    told: list[tuple[KafkaError | None, Message]] = []
    producer = make_producer(producer_config(settings))
    producer.produce(topic, None, user_id, on_delivery=lambda error, message: told.append((error, message)))
    if producer.flush(timeout_s) or not told:
        raise BrokerUnavailableError(
            f"{settings.bootstrap_servers}: the tombstone was not taken in {timeout_s} s. Is the broker up?"
        )
    [(error, message)] = told
    if error is not None:
        raise fatal_error(error, f"writing to {topic}")
    place, offset = TopicPartition(topic, message.partition() or 0), message.offset() or 0
    return Forgotten(user_id, place.partition, offset, _acted_on(settings, place, offset, timeout_s))


def _acted_on(settings: Settings, place: TopicPartition, offset: int, timeout_s: float) -> bool:
    """Whether the workers' group gets past `offset` in time: what it committed went with the position."""
    asker = make_consumer(consumer_config(settings, group=settings.worker_group))
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            try:
                [found] = asker.committed([place], settings.worker.rpc_timeout_s)
                if found.error is None and found.offset > offset:
                    return True
            except KafkaException as error:
                if not is_passing(error.args[0]):
                    raise
            time.sleep(LOOK_S)
    finally:
        asker.close()
    return False
