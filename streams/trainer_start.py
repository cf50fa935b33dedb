"""Where in the learning log a trainer begins."""

from __future__ import annotations

from datetime import UTC, datetime

from confluent_kafka import KafkaException, TopicPartition

from streams.clients import make_consumer, tail_consumer_config
from streams.errors import SettingsError
from streams.kafka_errors import fatal_error
from streams.settings import Settings

__all__ = ["first_offset", "time_ms_of"]


def first_offset(settings: Settings) -> int:
    """The offset of `schedule.from_offset` or `schedule.from_time`; the end where all records are older.

    Raises:
        SettingsError: both are set, or the time can't be read.
        FreshetError: the broker did not say.
    """
    schedule = settings.schedule
    if not schedule.from_time:
        return schedule.from_offset
    if schedule.from_offset:
        raise SettingsError(
            f"schedule.from_offset={schedule.from_offset} and schedule.from_time={schedule.from_time!r}: set"
            " one."
        )
    topic, at_ms = settings.names["interactions"], time_ms_of(schedule.from_time)
    consumer = make_consumer(tail_consumer_config(settings))
    try:
        timeout_s = settings.worker.rpc_timeout_s
        [found] = consumer.offsets_for_times([TopicPartition(topic, 0, at_ms)], timeout_s)
        if found.error is not None:
            raise fatal_error(found.error, f"offset of {topic}[0] at {at_ms} ms")
        if found.offset >= 0:
            return int(found.offset)
        end: int = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout_s)[1]
        return end
    except KafkaException as error:
        raise fatal_error(error.args[0], f"offset of {topic}[0] at {at_ms} ms") from error
    finally:
        consumer.close()


def time_ms_of(text: str) -> int:
    """Epoch ms of ms written as digits, or of RFC 3339; UTC where no zone is named.

    >>> time_ms_of("1700000000000") == time_ms_of("2023-11-14T22:13:20Z") == 1_700_000_000_000
    True

    Raises:
        SettingsError: neither.
    """
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(
            f"schedule.from_time={text!r}: {error}. Give ms since the epoch, or RFC 3339 as in"
            " 2026-01-31T12:00:00Z."
        ) from error
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
