"""What the embedded broker is told: its `server.properties`, its logging, its JVM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["HOST", "JVM_OPTIONS", "log4j2_properties", "server_properties"]

HOST = "127.0.0.1"

JVM_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC")
"""The serial collector starts faster on few cores. Both compiler tiers stay on: without the second one the
first answer comes 3 s sooner, and every transaction takes twice as long from then on (decision 0002)."""


def server_properties(data_dir: Path, port: int, controller_port: int, extra: Mapping[str, str]) -> str:
    """`server.properties` of one node that is broker and controller.

    Where it differs from Kafka's defaults: few internal partitions, which start fast, and a dead worker's
    transaction aborted within a second. `extra` goes before all of these; `{default}` in one of its values
    stands for what is replaced.
    """
    values: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data_dir / "log",
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 8,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 8,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        "log.retention.check.interval.ms": 30_000,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    for key, value in extra.items():
        values[key] = value.replace("{default}", str(values.get(key, "")))
    return "".join(f"{key}={value}\n" for key, value in values.items())


_LOG4J = """\
status = error
appenders = file
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {file}
appender.file.filePattern = {file}.%i
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %-5p %c{{1}} - %m%n
rootLogger.level = warn
rootLogger.appenderRefs = file
rootLogger.appenderRef.file.ref = file
"""


def log4j2_properties(file: Path) -> str:
    """Logging of the broker's process: warnings and errors into `file`, three files of 10 MB at most."""
    return _LOG4J.format(file=file)
