"""Kafka clients as Freshet sets them up: librdkafka's configuration, its logging, and Java's partitioner.

Every builder starts from `[kafka]`, which goes to librdkafka untouched: the user's keys win over the defaults
here. Only where another value would break a promise (exactly once, co-partitioning) is it refused, by name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from struct import iter_unpack
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from streams.errors import BrokerUnavailableError, SettingsError
from streams.retries import RETRIES
from streams.settings import Settings
from streams.topics import EVENT_MAX_BYTES

__all__ = [
    "PARTITIONERS",
    "admin",
    "consumer_config",
    "make_consumer",
    "make_producer",
    "murmur2",
    "partition_for",
    "producer_config",
    "tail_consumer_config",
    "wait_for_broker",
]

log = logging.getLogger("freshet.kafka")

Config = dict[str, Any]
T = TypeVar("T")

PARTITIONERS = ("murmur2_random", "murmur2")
"""The values of librdkafka's `partitioner` that put a key where Java's default does."""

_ALIASES = {
    "metadata.broker.list": "bootstrap.servers",
    "request.required.acks": "acks",
    "compression.codec": "compression.type",
    "queue.buffering.max.ms": "linger.ms",
    "message.send.max.retries": "retries",
    "delivery.timeout.ms": "message.timeout.ms",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "fetch.message.max.bytes": "max.partition.fetch.bytes",
}
"""librdkafka takes both names of these; one is kept, so that a user's key replaces a default."""

_PRODUCER_ONLY = (
    "acks", "batch.", "compression.", "delivery.", "dr_", "enable.gapless", "enable.idempotence", "linger.",
    "message.send.", "message.timeout.ms", "partitioner", "queue.buffering.", "queuing.strategy",
    "request.timeout.ms", "retries", "sticky.partitioning.", "transaction.", "transactional.id",
)  # fmt: skip
_CONSUMER_ONLY = (
    "auto.commit.", "auto.offset.reset", "check.crcs", "consume.callback.", "coordinator.", "enable.auto.",
    "enable.partition.eof", "fetch.", "group.", "heartbeat.", "isolation.level", "max.partition.fetch.bytes",
    "max.poll.", "offset.store.", "partition.assignment.", "queued.", "session.timeout.ms",
)  # fmt: skip
"""Prefixes of the keys that one kind of client reads; the other kind warns of each, so it is spared them."""


def _user_keys(settings: Settings, without: tuple[str, ...]) -> Config:
    named = {_ALIASES.get(key, key): value for key, value in settings.kafka.items()}
    return {key: value for key, value in named.items() if not key.startswith(without)}


def _text(value: object) -> str:
    return {"-1": "all"}.get(str(value), str(value).lower())


def _require(user: Mapping[str, Any], required: Mapping[str, tuple[Any, str]]) -> Config:
    """The required values, after checking that the user set no other.

    Raises:
        SettingsError: names the key, both values and the reason.
    """
    for key, (value, why) in required.items():
        if key in user and _text(user[key]) != _text(value):
            raise SettingsError(
                f"setting [kafka] {key} = {user[key]!r}: Freshet needs {value!r} here, because {why}. Remove"
                " the key from [kafka] and from the environment"
                f" (FRESHET_KAFKA__{key.upper().replace('.', '_')})."
            )
    return {key: value for key, (value, _) in required.items()}


_OWN_NAMES = {
    "group.id": "every process names its own group",
    "group.instance.id": "`freshet worker --id NAME` sets it, and two processes with one id fence each other",
    "transactional.id": "each worker derives its own, and two processes with one id fence each other",
}


def _refuse_own_names(settings: Settings) -> None:
    for key, why in _OWN_NAMES.items():
        if key in settings.kafka:
            raise SettingsError(f"setting [kafka] {key}: not settable here, because {why}. Remove it.")


def _group_membership(settings: Settings, user: Mapping[str, Any], instance_id: str | None) -> Config:
    """Group keys for the classic protocol with range, or KIP-848 with the broker's range assignor.

    Range alone gives one member the same partition numbers of `events`, `requests` and `users`. Under
    KIP-848 a worker is a dynamic member: a static one that was killed is refused (UNRELEASED_INSTANCE_ID)
    until its session has expired on the broker, and would only crash until then. A heartbeat a second, for
    with its next one a survivor learns that it has partitions to take over.
    """
    together = "events, users and requests of one user must go to one worker (co-partitioning)"
    if _text(user.get("group.protocol", "classic")) == "consumer":
        return _require(user, {"group.remote.assignor": ("range", together)})
    config: Config = {} if instance_id is None else {"group.instance.id": instance_id}
    session_ms = int(user.get("session.timeout.ms", settings.worker.session_timeout_s * 1000))
    return {
        **config,
        "group.protocol": "classic",
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": min(1000, max(100, session_ms // 3)),
        "max.poll.interval.ms": max(300_000, session_ms),  # a restore runs within a poll: millions of users
        **_require(user, {"partition.assignment.strategy": ("range", together)}),
    }


def _fetching() -> Config:
    """Bounded buffers, at most 32 MiB per consumer, and short waits.

    The broker answers a fetch as soon as a transaction commits, so the wait does not add to the latency (100
    ms and 10 ms measure the same); it bounds how soon a newly given partition is fetched, and 10 ms cost the
    broker three times the idle CPU.
    """
    return {
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": 5,
        "queued.min.messages": 20_000,
        "queued.max.messages.kbytes": 32_768,
        "socket.nagle.disable": True,
    }


def _reading(user: Mapping[str, Any], isolation: str) -> Config:
    offsets = "offsets are committed with what was made from them, never by a timer"
    return _require(
        user,
        {
            "enable.auto.commit": (False, offsets),
            "enable.auto.offset.store": (False, offsets),
            "enable.partition.eof": (False, "positions are compared with watermarks instead"),
            "isolation.level": (isolation, "aborted records must never be read as facts"),
        },
    )


def consumer_config(
    settings: Settings,
    *,
    group: str | None,
    instance_id: str | None = None,
    isolation: str = "read_committed",
) -> Config:
    """Configuration of a consumer in `group`; without a group it is a `tail_consumer_config`.

    Raises:
        SettingsError: a key in `[kafka]` would break exactly-once or co-partitioning.
    """
    if group is None:
        return tail_consumer_config(settings, isolation=isolation)
    _refuse_own_names(settings)
    user = _user_keys(settings, _PRODUCER_ONLY)
    return {
        **_fetching(),
        "auto.offset.reset": "earliest",
        "group.id": group,
        **_group_membership(settings, user, instance_id),
        **user,
        **_reading({} if isolation == "read_uncommitted" else user, isolation),
    }


def tail_consumer_config(
    settings: Settings, *, isolation: str = "read_committed", auto_offset_reset: str = "earliest"
) -> Config:
    """Configuration of a consumer that is given its partitions with `assign` and belongs to no group.

    librdkafka wants a group id all the same; nothing is ever committed under it. With
    `auto_offset_reset="error"` an offset that retention has removed comes out of `consume` as
    `_AUTO_OFFSET_RESET`, not as a jump.
    """
    _refuse_own_names(settings)
    user = {
        k: v
        for k, v in _user_keys(settings, _PRODUCER_ONLY).items()
        if not k.startswith(("group.", "session."))
    }
    for key in ("partition.assignment.strategy", "heartbeat.interval.ms", "auto.offset.reset"):
        user.pop(key, None)
    return {
        **_fetching(),
        "group.id": "freshet-tail",
        **user,
        "auto.offset.reset": auto_offset_reset,
        **_reading({} if isolation == "read_uncommitted" else user, isolation),
    }


def producer_config(settings: Settings, *, transactional_id: str | None = None) -> Config:
    """Configuration of an idempotent producer, transactional when an id is given.

    Raises:
        SettingsError: a key in `[kafka]` would break exactly-once or co-partitioning.
    """
    _refuse_own_names(settings)
    user = _user_keys(settings, _CONSUMER_ONLY)
    placing = "users are placed by Java's hash (murmur2), as every other Kafka client does"
    if "partitioner" in user and user["partitioner"] not in PARTITIONERS:
        _require(user, {"partitioner": (PARTITIONERS[0], placing)})
    config: Config = {
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": 2 * EVENT_MAX_BYTES,
        "partitioner": PARTITIONERS[0],
        "socket.nagle.disable": True,
    }
    if transactional_id is not None:
        # Back-to-back transactions wait on CONCURRENT_TRANSACTIONS once each: 5 ms, not librdkafka's 100.
        config |= {
            "linger.ms": 0,
            "retry.backoff.ms": 5,
            "transaction.timeout.ms": int(settings.worker.transaction_timeout_s * 1000),
            "transactional.id": transactional_id,
        }
    else:
        user.pop("transaction.timeout.ms", None)
    once = "a retry must neither lose nor repeat a record"
    return {**config, **user, **_require(user, {"enable.idempotence": (True, once), "acks": ("all", once)})}


def _build(kind: Callable[..., T], config: Config) -> T:
    try:
        return kind(config, logger=log)
    except KafkaException as error:
        reason = error.args[0].str() if error.args and hasattr(error.args[0], "str") else str(error)
        raise SettingsError(
            f"[kafka] in freshet.toml or FRESHET_KAFKA__*: {reason}. The keys are librdkafka's own."
        ) from error


def make_consumer(config: Config) -> Consumer:
    """A consumer that logs to Python's `freshet.kafka`.

    Raises:
        SettingsError: librdkafka does not know a key, or refuses its value; the message is librdkafka's.
    """
    return _build(Consumer, config)


def make_producer(config: Config) -> Producer:
    """A producer that logs to Python's `freshet.kafka` when it is polled; errors as in `make_consumer`."""
    return _build(Producer, config)


def admin(settings: Settings) -> AdminClient:
    """An admin client for the broker in `[kafka]`; errors as in `make_consumer`."""
    return _build(AdminClient, _user_keys(settings, _CONSUMER_ONLY + _PRODUCER_ONLY))


def wait_for_broker(settings: Settings, timeout_s: float = 30.0) -> None:
    """Return once the broker answers a metadata request.

    Raises:
        BrokerUnavailableError: it did not within `timeout_s` seconds.
    """
    refused: list[str] = []
    client = _build(
        AdminClient,
        {**_user_keys(settings, _CONSUMER_ONLY + _PRODUCER_ONLY), "error_cb": lambda e: _login(e, refused)},
    )
    deadline_s = time.monotonic() + timeout_s
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            client.list_topics(timeout=max(0.1, min(left_s, 5.0)))
            return
        except KafkaException as error:
            RETRIES.count("connect")
            client.poll(0)
            if refused:
                raise BrokerUnavailableError(
                    f"{settings.bootstrap_servers} refuses the login: {refused[-1]} Check security.protocol,"
                    " sasl.* and ssl.* in [kafka] (FRESHET_KAFKA__SASL_PASSWORD for the password)."
                ) from error
            if time.monotonic() >= deadline_s:
                raise BrokerUnavailableError(
                    f"no Kafka broker answered at {settings.bootstrap_servers} within {timeout_s:g} s"
                    f" ({error.args[0].str()}). Start one (`freshet kafka start`), or correct [kafka]"
                    " bootstrap.servers (FRESHET_KAFKA__BOOTSTRAP_SERVERS)."
                ) from error
        time.sleep(0.05)


def _login(error: KafkaError, refused: list[str]) -> None:
    """Keep what the broker says of this user's credentials: the calls themselves only time out."""
    if error.code() in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL):
        refused.append(f"{error.str()} ({error.name()}).")


_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit MurmurHash2 of a key, unsigned (Java prints the same bits signed).

    Reference: A. Appleby, MurmurHash2 (2008), with the seed 0x9747b28c that Kafka's Java client uses.

    >>> murmur2(b"foobar") - 2**32
    -790332482
    """
    size = len(key)
    whole = size & ~3
    h = 0x9747B28C ^ size
    for (k,) in iter_unpack("<I", key[:whole]):
        k = k * _M & _MASK
        h = (h * _M ^ (k ^ k >> 24) * _M) & _MASK
    if whole < size:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


@lru_cache(maxsize=65_536)
def partition_for(key: bytes, partitions: int) -> int:
    """Where Java's default partitioner puts a record with `key`: the hash less its sign, modulo `partitions`.

    >>> partition_for(b"foobar", 8)
    6
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions
