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

__all__ = ["TunedBroker", "deployed", "log_times", "tuned_broker"]


class TunedBroker:
    """An embedded broker with `properties` in its `server.properties`, to be stopped and started again."""

    def __init__(self, properties: Mapping[str, str] | None) -> None:
        self._properties = properties
        self.info = self._start(Path(tempfile.mkdtemp(prefix="freshet-kafka-")), None)

    def _start(self, folder: Path, port: int | None) -> BrokerInfo:
        return start_broker(folder, port, remember=False, die_with_parent=True, properties=self._properties)

    @property
    def bootstrap_servers(self) -> str:
        return self.info.bootstrap_servers

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        """Gone for the length of the block, as by a power cut; then back on its port and data."""
        stop_broker(self.info, now=True)
        yield
        port = int(self.bootstrap_servers.rpartition(":")[2])
        self.info = self._start(Path(self.info.data_dir), port)


@contextlib.contextmanager
def tuned_broker(properties: Mapping[str, str] | None = None) -> Iterator[TunedBroker]:
    """A broker that is gone with all its data at the end."""
    try:
        broker = TunedBroker(properties)
    except FreshetError as error:
        _no_broker(str(error))
    try:
        yield broker
    finally:
        stop_broker(broker.info, now=True, remove_data=True)


@contextlib.contextmanager
def deployed(
    broker: TunedBroker, folder: Path, partitions: int = 4, **tables: dict[str, Any]
) -> Iterator[Deployment]:
    """A deployment with topics of its own on `broker`; `tables` as in freshet.toml."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    tables = {
        "topics": {"prefix": prefix, "partitions": partitions},
        "state": {"dir": str(folder / "snapshots")},
        "registry": {"url": str(folder / "models")},
        **tables,
    }
    settings: Settings = settings_for(broker.bootstrap_servers, **tables)
    create_topics(settings)
    env = {
        **os.environ,
        "FRESHET_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "FRESHET_TOPICS__PREFIX": prefix,
        "FRESHET_TOPICS__PARTITIONS": str(partitions),
        "FRESHET_STATE__DIR": settings.state.dir,
        "FRESHET_REGISTRY__URL": settings.registry.url,
        "OMP_NUM_THREADS": "1",
    }
    with deployment(settings, env, folder) as made:
        yield made


def log_times(worker: WorkerProcess, text: str) -> list[float]:
    """When the worker logged lines that hold `text`, in seconds since the epoch."""
    stamped = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)$", worker.log, re.MULTILINE)
    return [datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp() for at, line in stamped if text in line]
