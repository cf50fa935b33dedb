"""What a chaos run runs on: a broker of its own that comes and goes, topics, and the workers' settings."""

from __future__ import annotations

import os
import queue
import random
import socket
import threading
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its re-exports are not marked
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from streams.broker import BrokerInfo, start_broker, stop_broker
from streams.clients import admin
from streams.errors import EmbeddedBrokerError
from streams.settings import Settings, load_settings
from streams.topic_admin import create_topics

__all__ = ["BrokerKeeper", "environment", "make_topics", "settings_of"]

HOST = "127.0.0.1"
SESSION_S = 6.0
"""The shortest that a broker takes by default (group.min.session.timeout.ms is 6000)."""
WORKER: dict[str, dict[str, Any]] = {
    "worker": {
        "max_batch": 40,
        "session_timeout_s": SESSION_S,
        "transaction_timeout_s": 6.0,
        "rpc_timeout_s": 15.0,
        "snapshots_kept": 1_000_000,
    },
    "trigger": {"coalesce_lag": 0},
}
"""Small transactions, so that every fault falls into some; one list for each event, so that all count."""
KEEP_ALL = {
    "recommendations": {"cleanup.policy": "delete"},
    "user-state": {"min.compaction.lag.ms": str(86_400_000)},
    "items": {"min.compaction.lag.ms": str(86_400_000)},
}
"""An audit needs every record: nothing is compacted while the run lasts."""


def settings_of(bootstrap: str, folder: Path, partitions: int, snapshot_interactions: int) -> Settings:
    """The settings of everything in the run."""
    tables = {
        **WORKER,
        "worker": {**WORKER["worker"], "snapshot_interactions": snapshot_interactions},
        "topics": {"partitions": partitions},
        "state": {"dir": str(folder / "snapshots")},
        "registry": {"url": str(folder / "models")},
        "kafka": {"bootstrap.servers": bootstrap},
    }
    return load_settings(environ={}, overrides=tables)


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which a worker process has `settings`."""
    inherited = {k: v for k, v in os.environ.items() if not (k.startswith("FRESHET_") and "__" in k)}
    inherited.pop("FRESHET_CONFIG", None)
    own = {
        "KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TOPICS__PARTITIONS": settings.topics.partitions,
        "STATE__DIR": settings.state.dir,
        "REGISTRY__URL": settings.registry.url,
        "TRIGGER__COALESCE_LAG": settings.trigger.coalesce_lag,
        **{f"WORKER__{key.upper()}": getattr(settings.worker, key) for key in WORKER["worker"]},
        "WORKER__SNAPSHOT_INTERACTIONS": settings.worker.snapshot_interactions,
        "WORKER__SNAPSHOT_S": 0,
    }
    named = {f"FRESHET_{key}": str(value) for key, value in own.items()}
    return {**inherited, **named, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def make_topics(settings: Settings) -> None:
    """Create the topics, and see that nothing in them is compacted during the run."""
    create_topics(settings)
    resources = []
    for name, config in KEEP_ALL.items():
        resource = ConfigResource(ResourceType.TOPIC, settings.names[name])
        for key, value in config.items():
            entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            resource.add_incremental_config(entry)
        resources.append(resource)
    client = admin(settings)
    for future in client.incremental_alter_configs(resources).values():
        future.result(30)


def _steady_port() -> int:
    """A free port below those that the system gives to clients: a client that tries to reach the dead
    broker's port might otherwise be given that very port, and hold it."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return port
    raise EmbeddedBrokerError("no free port between 20000 and 30000")


class BrokerKeeper(threading.Thread):
    """Starts the broker, stops or kills it when told to, and starts it again on its port and data.

    One thread does all of it, from the first start to the last stop: the kernel ends a broker with the thread
    that started it, so that none outlives the run, whatever way that ends.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(name="broker", daemon=True)
        self._folder = folder
        self._port = _steady_port()
        self._orders: queue.Queue[tuple[str, float] | None] = queue.Queue()
        self._info: BrokerInfo | None = None
        self.ready = threading.Event()
        self.error: Exception | None = None
        self.killed = self.stopped = 0

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._port}"

    def order(self, kind: str, down_s: float) -> None:
        """`broker_kill` or `broker_stop`, and how long it stays away; done in the background."""
        self._orders.put((kind, down_s))

    def settle(self, timeout_s: float) -> None:
        """Wait until all orders are carried out and the broker runs."""
        done = threading.Thread(target=self._orders.join, daemon=True)
        done.start()
        done.join(timeout_s)
        if self.error is not None:
            raise self.error
        if done.is_alive() or not self.ready.is_set():
            raise EmbeddedBrokerError(f"the broker did not come back within {timeout_s:g} s")

    def run(self) -> None:
        try:
            self._start()
            while (order := self._orders.get()) is not None:
                self._away(*order)
                self._orders.task_done()
        except Exception as error:  # noqa: BLE001  # `settle` raises it in the thread that waits
            self.error = error
        finally:
            if self._info is not None:
                stop_broker(self._info, now=True, remove_data=True)

    def _start(self) -> None:
        self._info = start_broker(self._folder, self._port, remember=False, die_with_parent=True)
        self.ready.set()

    def _away(self, kind: str, down_s: float) -> None:
        self.ready.clear()
        stop_broker(self._info, now=kind == "broker_kill")
        if kind == "broker_kill":
            self.killed += 1
        else:
            self.stopped += 1
        threading.Event().wait(down_s)
        self._start()

    def close(self) -> None:
        """Stop the broker and remove its data."""
        self._orders.put(None)
        self.join(60)
