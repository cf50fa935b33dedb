"""The monitor's Kafka side under Faust: connection settings in aiokafka's terms, and where reading starts.

`[kafka]` is written in librdkafka's names. Faust talks to Kafka through aiokafka, which names fewer things:
what decides whether a connection works is translated here or refused by name; tuning that only librdkafka
knows has no meaning for a reader of a few records a second, and is left out.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.errors import SettingsError

__all__ = ["BROKER_OPTIONS", "CommittedTransport", "StartOffset", "broker_options"]

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_SASL_KEYS = {"sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password"}
_SSL_KEYS = {
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
}
BROKER_OPTIONS = tuple(sorted({"bootstrap.servers", "security.protocol", *_SASL_KEYS, *_SSL_KEYS}))
"""Keys of `[kafka]` that the monitor's Faust side understands."""


def broker_options(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Faust's `broker` and `broker_credentials` for `[kafka]`.

    Raises:
        SettingsError: a key that the connection depends on has no counterpart in aiokafka; it is named.
    """
    for key in kafka:
        if key.startswith(("sasl.", "ssl.", "ssl_")) and key not in _SASL_KEYS | _SSL_KEYS:
            raise SettingsError(
                f"setting [kafka] {key}: the monitor reads Kafka through aiokafka, which has no such setting."
                f" It understands {', '.join(BROKER_OPTIONS)}."
            )
    protocol = str(kafka.get("security.protocol", "plaintext")).lower()
    options: dict[str, Any] = {"broker": _urls(str(kafka["bootstrap.servers"]))}
    if protocol == "plaintext":
        return options
    if protocol not in ("ssl", "sasl_plaintext", "sasl_ssl"):
        raise SettingsError(
            f"setting [kafka] security.protocol = {protocol!r}: must be plaintext, ssl, sasl_plaintext or"
            " sasl_ssl."
        )
    context = _ssl_context(kafka) if protocol.endswith("ssl") else None
    options["broker_credentials"] = (
        _sasl(kafka, context) if protocol.startswith("sasl") else SSLCredentials(context)
    )
    return options


def _urls(servers: str) -> list[str]:
    """`host:port` for each bootstrap server; librdkafka also takes `PROTOCOL://host:port`."""
    hosts = [server.strip().rpartition("://")[2] for server in servers.split(",") if server.strip()]
    return [f"kafka://{host}" for host in hosts]


def _ssl_context(kafka: Mapping[str, Any]) -> ssl.SSLContext:
    def location(key: str) -> str | None:
        return str(kafka[key]) if kafka.get(key) else None

    try:
        context = ssl.create_default_context(cafile=location("ssl.ca.location"))
        certificate = location("ssl.certificate.location")
        if certificate:
            context.load_cert_chain(certificate, location("ssl.key.location"), location("ssl.key.password"))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"setting [kafka] ssl.ca.location, ssl.certificate.location or ssl.key.location: {error}."
            " Name PEM files that this user can read."
        ) from error
    context.check_hostname = (
        str(kafka.get("ssl.endpoint.identification.algorithm", "https")).lower() != "none"
    )
    return context


def _sasl(kafka: Mapping[str, Any], context: ssl.SSLContext | None) -> SASLCredentials:
    mechanism = str(kafka.get("sasl.mechanism", kafka.get("sasl.mechanisms", "GSSAPI"))).upper()
    if mechanism not in _MECHANISMS:
        raise SettingsError(
            f"setting [kafka] sasl.mechanism = {mechanism!r}: the monitor can log in with"
            f" {', '.join(_MECHANISMS)} only (GSSAPI is librdkafka's default when nothing is set)."
        )
    for key in ("sasl.username", "sasl.password"):
        if not kafka.get(key):
            raise SettingsError(f"setting [kafka] {key}: not set, and sasl.mechanism = {mechanism} needs it.")
    return SASLCredentials(
        username=str(kafka["sasl.username"]),
        password=str(kafka["sasl.password"]),
        mechanism=mechanism,
        ssl_context=context,
    )


StartOffset = Callable[[str, int, int, int], int]
"""Where to start reading, given topic, partition, its first offset and its end."""


class _ReadCommittedThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        """Faust reads uncommitted records unless it writes transactions itself: a dead letter whose
        transaction was aborted would be counted, and once more when it is written again. aiokafka takes the
        level when it starts."""
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        return consumer


class _PositionedConsumer(driver.Consumer):
    def _new_consumer_thread(self) -> _ReadCommittedThread:
        return _ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Called by Faust when partitions have been assigned, before anything is fetched."""
        await super().perform_seek()
        start = cast(CommittedTransport, self.transport).start
        tps = [TP(tp.topic, tp.partition) for tp in self.assignment()]
        low, end = await self.earliest_offsets(*tps), await self.highwaters(*tps)
        await self.seek_wait({tp: start(tp.topic, tp.partition, low[tp], end[tp]) for tp in tps})


class CommittedTransport(driver.Transport):
    """Faust's aiokafka transport that reads committed records only, and from `start` on instead of from where
    the group last committed: the state that is rebuilt lives in this process."""

    Consumer = _PositionedConsumer

    def __init__(self, app: faust.App, start: StartOffset) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.start = start
