"""Fixtures that need a real broker. There is no stand-in for Kafka in these tests.

The address comes from `FRESHET_TEST_BOOTSTRAP` or `FRESHET_KAFKA__BOOTSTRAP_SERVERS`, else from a container
where Docker answers, else from the embedded broker. With `REQUIRE_KAFKA=1` no broker is a failure, else a
skip.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from streams.broker import BrokerInfo, start_broker, stop_broker
from streams.clients import admin, wait_for_broker
from streams.errors import FreshetError
from streams.settings import Settings, load_settings
from streams.topic_admin import create_topics

KAFKA_IMAGE = "apache/kafka:4.3.1"
BROKER_FIXTURES = {"kafka", "settings", "kafka_broker"}


hypothesis.settings.register_profile("freshet", deadline=None)  # another process shares the cores
hypothesis.settings.load_profile("freshet")

GROUPS = {
    "one at a time": ("tests/integration/",),
    "patient": (
        "tests/browser/",
        "tests/integration/test_chaos.py",
        "tests/integration/test_demo.py",
        "tests/integration/test_monitor.py",
    ),
    "networks": ("tests/test_serving/", "tests/contracts/test_networks"),
    "kernels": ("tests/contracts/",),
}
"""What one process of `pytest -n` runs after the other, the longest first: tests that start processes and
look at the clock; those of them that wait longer than they look; those that load PyTorch and share what they
have trained and exported; those that compile kernels of models that no worker uses, which two would do
twice."""


def _group(nodeid: str) -> str:
    """The group with the longest prefix; a file that is in none is a group of its own."""
    fits = [(len(p), name) for name, prefixes in GROUPS.items() for p in prefixes if nodeid.startswith(p)]
    return max(fits)[1] if fits else nodeid.partition("::")[0]


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist's has no types
    """Groups in the order in which they were collected, each to whoever is free. (`--dist loadgroup` of xdist
    3.8 groups nothing with pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_configure() -> None:
    """Collect garbage more seldom: compiling kernels makes millions of objects that stay."""
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(GROUPS)}
    items.sort(key=lambda item: order.get(_group(item.nodeid), len(order)))
    for item in items:
        if BROKER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


def _no_broker(reason: str) -> None:
    if os.environ.get("REQUIRE_KAFKA") == "1":
        pytest.fail(f"REQUIRE_KAFKA=1, and there is no broker: {reason}")
    pytest.skip(f"no Kafka broker: {reason}")


def _docker_answers() -> bool:
    try:
        import docker  # type: ignore[import-untyped]

        client = docker.from_env(timeout=5)
        client.ping()
        client.close()
    except Exception:  # noqa: BLE001  # whatever docker-py raises, it means that Docker does not answer
        return False
    return True


def _start_container() -> tuple[str, Callable[[], None]]:
    from testcontainers.core.container import DockerContainer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(port, port)
    for key, value in {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }.items():
        container.with_env(key, value)
    container.start()
    return f"127.0.0.1:{port}", container.stop


def _start_embedded() -> tuple[str, Callable[[], None]]:
    info = start_broker(remember=False, die_with_parent=True)
    return info.bootstrap_servers, lambda: _stop(info)


def _stop(info: BrokerInfo) -> None:
    stop_broker(info, now=True, remove_data=True)


def _start_any() -> tuple[str, Callable[[], None]]:
    for name in ("FRESHET_TEST_BOOTSTRAP", "FRESHET_KAFKA__BOOTSTRAP_SERVERS"):
        if os.environ.get(name):
            return os.environ[name], lambda: None
    if _docker_answers():
        try:
            return _start_container()
        except Exception as error:  # noqa: BLE001  # testcontainers has no base exception
            warnings.warn(f"Docker answers, but {KAFKA_IMAGE} did not start: {error}", stacklevel=1)
    return _start_embedded()


def settings_for(bootstrap: str, **tables: Any) -> Settings:
    return load_settings(environ={}, overrides={"kafka": {"bootstrap.servers": bootstrap}, **tables})


@pytest.fixture(scope="session")
def kafka() -> Iterator[Settings]:
    """Settings whose `[kafka]` leads to a broker that answers; one broker for the session."""
    try:
        bootstrap, stop = _start_any()
    except FreshetError as error:
        _no_broker(str(error))
    try:
        found = settings_for(bootstrap)
        try:
            wait_for_broker(found, 30.0)
        except FreshetError as error:
            _no_broker(str(error))
        subprocess.run(
            [sys.executable, "-m", "streams.warm_up"], check=True
        )  # no test waits for the compiler
        yield found
    finally:
        stop()


@pytest.fixture
def partitions() -> int:
    """Partitions of `events` in the `settings` fixture; a test module overrides this fixture to change it."""
    return 4


@pytest.fixture
def settings(kafka: Settings, partitions: int, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a deployment of one's own on the shared broker: unique topics, already created, and own
    folders."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    own = settings_for(
        kafka.bootstrap_servers,
        topics={"prefix": prefix, "partitions": partitions},
        state={"dir": str(tmp_path / "snapshots")},
        registry={"url": str(tmp_path / "models")},
    )
    create_topics(own)
    yield own
    client = admin(own)
    mine = [name for name in client.list_topics(timeout=10).topics if name.startswith(prefix)]
    for future in client.delete_topics(mine, operation_timeout=10).values():
        future.result()


@pytest.fixture
def freshet_env(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """Environment in which a `freshet` process works on the `settings` fixture's topics and folders."""
    return {
        **os.environ,
        "FRESHET_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "FRESHET_TOPICS__PREFIX": settings.topics.prefix,
        "FRESHET_TOPICS__PARTITIONS": str(settings.topics.partitions),
        "FRESHET_STATE__DIR": settings.state.dir,
        "FRESHET_REGISTRY__URL": settings.registry.url,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def kafka_broker() -> Iterator[Callable[..., BrokerInfo]]:
    """Start an embedded broker that is the test's own, to stop and start as it likes: `kafka_broker(data_dir,
    port)`."""
    started: list[BrokerInfo] = []

    def start(data_dir: Path | None = None, port: int | None = None) -> BrokerInfo:
        folder = data_dir or Path(tempfile.mkdtemp(prefix="freshet-kafka-"))
        try:
            info = start_broker(folder, port, remember=False, die_with_parent=True)
        except FreshetError as error:
            _no_broker(str(error))
        started.append(info)
        return info

    yield start
    for info in started:
        _stop(info)
