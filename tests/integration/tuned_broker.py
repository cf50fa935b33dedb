"""A broker of a test's own, with settings of its own, and a deployment on it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from streams.broker import BrokerInfo, start_broker, stop_broker
from streams.errors import FreshetError
from streams.settings import Settings
from streams.topic_admin import create_topics
from tests.conftest import _no_broker, settings_for
from tests.integration.worker_process import Deployment, WorkerProcess, deployment

__all__ = ["deployed", "log_times", "restart", "tuned_broker"]


@contextlib.contextmanager
def tuned_broker(
    properties: Mapping[str, str] | None = None, port: int | None = None
) -> Iterator[BrokerInfo]:
    """An embedded broker with `properties` in its `server.properties`; gone with all its data at the end."""
    folder = Path(tempfile.mkdtemp(prefix="freshet-kafka-"))
    try:
        info = start_broker(folder, port, remember=False, die_with_parent=True, properties=properties)
    except FreshetError as error:
        _no_broker(str(error))
    try:
        yield info
    finally:
        stop_broker(info, now=True, remove_data=True)


@contextlib.contextmanager
def restart(
    info: BrokerInfo, properties: Mapping[str, str] | None = None, *, now: bool = True
) -> Iterator[None]:
    """Stop a broker for the length of the block (`now`: as a power cut), then start it as it was, on its port
    and data."""
    stop_broker(info, now=now)
    yield
    port = int(info.bootstrap_servers.rpartition(":")[2])
    again = start_broker(
        Path(info.data_dir), port, remember=False, die_with_parent=True, properties=properties
    )
    _SUCCESSORS.append(again)


_SUCCESSORS: list[BrokerInfo] = []


def stop_successors() -> None:
    while _SUCCESSORS:
        stop_broker(_SUCCESSORS.pop(), now=True)


@contextlib.contextmanager
def deployed(
    info: BrokerInfo, folder: Path, partitions: int = 4, **tables: dict[str, Any]
) -> Iterator[Deployment]:
    """A deployment with topics of its own on `info`; `tables` as in freshet.toml."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    tables = {
        "topics": {"prefix": prefix, "partitions": partitions},
        "state": {"dir": str(folder / "snapshots")},
        "registry": {"url": str(folder / "models")},
        **tables,
    }
    settings: Settings = settings_for(info.bootstrap_servers, **tables)
    create_topics(settings)
    env = {
        **os.environ,
        "FRESHET_KAFKA__BOOTSTRAP_SERVERS": info.bootstrap_servers,
        "FRESHET_TOPICS__PREFIX": prefix,
        "FRESHET_TOPICS__PARTITIONS": str(partitions),
        "FRESHET_STATE__DIR": settings.state.dir,
        "FRESHET_REGISTRY__URL": settings.registry.url,
        "OMP_NUM_THREADS": "1",
    }
    try:
        with deployment(settings, env, folder) as made:
            yield made
    finally:
        stop_successors()


def log_times(worker: WorkerProcess, text: str) -> list[float]:
    """When the worker logged lines that hold `text`, in seconds since the epoch."""
    stamped = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)$", worker.log, re.MULTILINE)
    return [datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp() for at, line in stamped if text in line]
