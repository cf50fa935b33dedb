"""The `models` topic as it stands: which versions were announced, which is live."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
from confluent_kafka import Producer

from serving.registry.store import MAX_VERSION_CHARS, Registry
from streams.clients import make_producer, producer_config
from streams.errors import BrokerUnavailableError
from streams.events import ModelRecord
from streams.reading import PartitionReader, watermarks, where
from streams.records import Record
from streams.settings import Settings

__all__ = [
    "announce",
    "decoded_model",
    "introduced",
    "key_of",
    "live_announcement",
    "live_record",
    "model_records",
    "open_registry",
]

log = logging.getLogger("freshet.models")

_decode = msgspec.json.Decoder(ModelRecord).decode
MAX_RECORD_BYTES = 256 * 1024
"""A worker's verdict repeats most of a record, and must fit into one of its own."""


def open_registry(settings: Settings) -> Registry:
    """The registry that the settings name."""
    return Registry(settings.registry_url, settings.registry)


def decoded_model(value: bytes) -> ModelRecord:
    """A record of `models`. Raises msgspec.ValidationError, or another DecodeError, where it is none, or is
    larger than any that a trainer or a worker writes."""
    if len(value) > MAX_RECORD_BYTES:
        raise msgspec.ValidationError(f"{len(value)} bytes, at most {MAX_RECORD_BYTES} are read")
    record = _decode(value)
    if len(record.version) > MAX_VERSION_CHARS:
        raise msgspec.ValidationError(
            f"a version of {len(record.version)} characters, at most {MAX_VERSION_CHARS} are read"
        )
    return record


def model_records(settings: Settings) -> list[ModelRecord]:
    """Every record that `models` still holds, oldest first; a record that can't be read is passed over."""
    topic = settings.names["models"]
    [(_, end)] = watermarks(settings, [(topic, 0)]).values()
    records: list[ModelRecord] = []

    def take(message: Record) -> None:
        value = message.value()
        if value is not None:
            try:
                records.append(decoded_model(value))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                log.warning("%s: not a models record (%s); passed over", where(message), error)

    reader = PartitionReader(settings, {(topic, 0): 0})
    try:
        reader.read_to({(topic, 0): end}, take)
    finally:
        reader.close()
    return records


def live_record(records: Iterable[ModelRecord], model: str) -> ModelRecord | None:
    """The newest `live` record of `model`."""
    live = [record for record in records if record.model == model and record.status == "live"]
    return live[-1] if live else None


def key_of(record: ModelRecord) -> bytes:
    """The model's name when live, else `name#version`."""
    key = record.model if record.status == "live" else f"{record.model}#{record.version}"
    return key.encode()


def live_announcement(
    record: ModelRecord, live: ModelRecord | None, settings: Settings, *, probation: bool = True
) -> ModelRecord:
    """`record` as a live one that takes the place of `live`, which is scored beside it for a while, unless
    `probation` or the setting `ranker.probation_events` says no."""
    watched = probation and settings.ranker.probation_events > 0 and live is not None
    watched = watched and live is not None and live.version != record.version
    return msgspec.structs.replace(
        record,
        status="live",
        replaces=None,
        against=live.version if live is not None and watched else None,
        against_digest=live.digest if live is not None and watched else None,
    )


def introduced(record: ModelRecord, settings: Settings) -> ModelRecord:
    """A new version's record as the settings want it: live, beside the one before it for a while, or scored
    beside the live one first (`ranker.shadow_first`). A refusal stays what it is."""
    if record.status != "live":
        return record
    live = live_record(model_records(settings), record.model)
    if settings.ranker.shadow_first and live is not None:
        return msgspec.structs.replace(record, status="shadow")
    return live_announcement(record, live, settings)


def announce(settings: Settings, record: ModelRecord) -> None:
    """Put `record` on `models`, under `key_of` it.

    Raises:
        BrokerUnavailableError: the broker did not take it.
    """
    producer: Producer = make_producer(producer_config(settings))
    failed: list[str] = []
    producer.produce(
        settings.names["models"],
        msgspec.json.encode(record),
        key_of(record),
        on_delivery=lambda error, _: failed.append(error.str()) if error is not None else None,
    )
    if producer.flush(settings.worker.rpc_timeout_s) or failed:
        raise BrokerUnavailableError(
            f"{settings.bootstrap_servers}: {record.status} {record.version} could not be announced on "
            f"{settings.names['models']} ({failed or 'timed out'}). Is the broker up, do the ACLs allow "
            "Write?"
        )
    log.info("%s %s is %s", record.model, record.version, record.status)
