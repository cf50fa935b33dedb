"""The monitor as a Faust app: three agents, one timer, four web views (`freshet monitor`).

Faust does here what it is good at: low rates, agents, timers, a web server. It sees no events, keeps no
tables, and its group's committed offsets mean nothing: what a restart needs is read again from the topics.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
import msgspec
from confluent_kafka import KafkaException
from faust.web.base import BlueprintManager

from streams.clients import admin, wait_for_broker
from streams.errors import BrokerUnavailableError, FreshetError, SettingsError, TopicLayoutError
from streams.events import ModelRecord, WorkerStats
from streams.lag import LagReader
from streams.monitor.exposition import make_registry
from streams.monitor.kafka import CommittedTransport, broker_options
from streams.monitor.state import MonitorState
from streams.monitor.views import add_views
from streams.settings import Settings
from streams.shards import INPUTS

__all__ = ["Positions", "build_app", "run_monitor"]

log = logging.getLogger("freshet.monitor")

SOURCES = ("worker-stats", "events-dlq", "models")
STATS_TAIL = 500
"""Records of `worker-stats` read again at the start, so that all workers' totals stand at once."""
REASON_HEADER = "freshet.errors.reason"


class Positions:
    """Where each partition goes on: behind the last record that the state has taken, else where the state's
    rebuilding begins (the tail of `worker-stats`, the beginning of the others)."""

    def __init__(self, stats_topic: str) -> None:
        self._stats_topic = stats_topic
        self._next: dict[tuple[str, int], int] = {}

    def start(self, topic: str, partition: int, low: int, end: int) -> int:
        """The offset to read from, between the partition's first offset and its end."""
        first = max(low, end - STATS_TAIL) if topic == self._stats_topic else low
        return max(low, self._next.get((topic, partition), first))

    def take(self, topic: str, partition: int, offset: int) -> bool:
        """Whether this record is new; a record that Faust delivers again is not."""
        if offset < self._next.get((topic, partition), 0):
            return False
        self._next[topic, partition] = offset + 1
        return True


def build_app(
    settings: Settings, state: MonitorState, data_dir: str, on_ready: Callable[[], None]
) -> faust.App:
    """The Faust app: not started, and nothing of it knows a wall clock or a broker yet.

    Raises:
        SettingsError: `[kafka]` has a security setting that aiokafka can't honour.
    """
    names = settings.names
    app = faust.App(
        settings.monitor_group,
        **broker_options(settings.kafka),
        datadir=data_dir,
        store="memory://",
        origin=None,
        autodiscover=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=500,
        broker_session_timeout=10.0,
        broker_rebalance_timeout=10.0,
        web_bind=settings.monitor.host,
        web_host=settings.monitor.host,
        web_port=settings.monitor.port,
        web_stats_enabled=False,
        web_graph_enabled=False,
        web_router_enabled=False,
        web_tables_enabled=False,
        web_metrics_enabled=False,
    )
    app.web.blueprints = BlueprintManager([])
    positions = Positions(names["worker-stats"])
    app.transport = CommittedTransport(app, positions.start)
    _add_agents(app, settings, state, positions)
    _add_timer(app, settings, state)
    add_views(app, state, make_registry(state), settings.monitor.host)

    @app.on_rebalance_complete.connect
    async def ready(*_: Any, **__: Any) -> None:
        on_ready()

    return app


def _add_agents(app: faust.App, settings: Settings, state: MonitorState, positions: Positions) -> None:
    names = settings.names
    stats_decoder, model_decoder = msgspec.json.Decoder(WorkerStats), msgspec.json.Decoder(ModelRecord)

    def source(name: str) -> Any:
        return app.topic(names[name], key_type=bytes, value_type=bytes, allow_empty=True)

    def is_new(event: Any) -> bool:
        message = event.message
        return positions.take(message.topic, message.partition, message.offset)

    def bad(event: Any, error: Exception) -> None:
        message = event.message
        state.take_bad_record(message.topic)
        log.warning("%s[%d]@%d: %s", message.topic, message.partition, message.offset, error)

    @app.agent(source("worker-stats"), concurrency=1)
    async def worker_stats(stream: Any) -> None:
        async for event in stream.events():
            if is_new(event) and event.message.value is not None:
                try:
                    state.take_stats(stats_decoder.decode(event.message.value))
                except (msgspec.MsgspecError, ValueError) as error:
                    bad(event, error)

    @app.agent(source("models"), concurrency=1)
    async def models(stream: Any) -> None:
        async for event in stream.events():
            if is_new(event) and event.message.value is not None:
                try:
                    state.take_model(model_decoder.decode(event.message.value))
                except (msgspec.MsgspecError, ValueError) as error:
                    bad(event, error)

    @app.agent(source("events-dlq"), concurrency=1)
    async def dead_letters(stream: Any) -> None:
        async for event in stream.events():
            if is_new(event):
                state.take_dead_letter(*_reason(event.message))


def _reason(message: Any) -> tuple[str, float]:
    """A dead letter's reason from its header, and its Kafka timestamp in s; the value is not looked at."""
    headers = message.headers or ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    found = next((value for key, value in pairs if key == REASON_HEADER), None)
    return (found.decode("utf-8", "replace")[:64] if found else "none"), message.timestamp or 0.0


def _add_timer(app: faust.App, settings: Settings, state: MonitorState) -> None:
    topics = [settings.names[name] for name in INPUTS]
    executor = ThreadPoolExecutor(1, thread_name_prefix="freshet-lag")
    readers: list[LagReader] = []

    def read() -> Any:
        if not readers:
            readers.append(LagReader(settings, timeout_s=max(2.0, settings.monitor.poll_s)))
        return readers[0].read([settings.worker_group], topics), readers[0].groups

    @app.task  # type: ignore[untyped-decorator]
    async def poll_lag(app: faust.App) -> None:
        try:
            while not app.should_stop:
                started_s = time.monotonic()
                was_down = state.broker_up is False
                try:
                    state.take_lag(*await asyncio.get_running_loop().run_in_executor(executor, read))
                    if was_down:
                        log.info("%s answers again", settings.bootstrap_servers)
                except FreshetError as error:
                    state.take_broker_error(str(error))
                    if not was_down:
                        log.warning("%s", error)
                await app.sleep(max(0.05, settings.monitor.poll_s - (time.monotonic() - started_s)))
        finally:
            for reader in readers:
                executor.submit(reader.close)
            executor.shutdown(wait=False)

    @app.timer(settings.monitor.poll_s)  # type: ignore[untyped-decorator]
    async def tick() -> None:
        state.tick()


async def _wait_for_topics(settings: Settings, stop: asyncio.Event) -> None:
    """Return once the sources exist: Faust only warns of a missing topic, and then reads nothing."""
    loop, wanted = asyncio.get_running_loop(), {settings.names[name] for name in SOURCES}
    limit_s = settings.worker.rpc_timeout_s
    await loop.run_in_executor(None, wait_for_broker, settings, limit_s)
    client, deadline_s, missing = admin(settings), time.monotonic() + limit_s, sorted(wanted)
    while not stop.is_set():
        try:
            known = await loop.run_in_executor(None, lambda: set(client.list_topics(timeout=5.0).topics))
        except KafkaException as error:
            raise BrokerUnavailableError(
                f"Kafka at {settings.bootstrap_servers} stopped answering: {error}. Start it again."
            ) from error
        missing = sorted(wanted - known)
        if not missing:
            return
        if time.monotonic() > deadline_s:
            raise TopicLayoutError(
                f"topics {', '.join(missing)} do not exist at {settings.bootstrap_servers} after"
                f" {limit_s:g} s: create them with `freshet topics create`, under the same [topics] prefix."
            )
        await asyncio.sleep(0.2)


async def _serve(settings: Settings, ready: Callable[[str], None] | None) -> None:
    url = f"http://{settings.monitor.host}:{settings.monitor.port}/"
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    announced: list[str] = []

    def on_ready() -> None:
        if not announced:
            announced.append(url)
            log.info("watching %s, live page at %s", settings.bootstrap_servers, url)
            if ready is not None:
                ready(url)

    await _wait_for_topics(settings, stop)
    points = int(settings.monitor.history_s / settings.monitor.poll_s)
    state = MonitorState(points, settings.names["events"])
    with tempfile.TemporaryDirectory(prefix="freshet-monitor-") as data_dir:
        app = build_app(settings, state, data_dir, on_ready)
        if not stop.is_set():
            await _run_until(app, settings, stop)


async def _run_until(app: faust.App, settings: Settings, stop: asyncio.Event) -> None:
    """Start the app, wait for the signal or its own end, stop it.

    Raises:
        SettingsError: the web address is taken.
    """
    try:
        await app.start()
        waits = {asyncio.ensure_future(stop.wait()), asyncio.ensure_future(app.wait_until_stopped())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for waiting in pending:
            waiting.cancel()
    except OSError as error:
        address = f"{settings.monitor.host}:{settings.monitor.port}"
        raise SettingsError(
            f"setting monitor.port: {address} can't be listened on ({error}). Set another"
            " (FRESHET_MONITOR__PORT)."
        ) from error
    finally:
        await app.stop()
    if app.crash_reason is not None and not stop.is_set():
        raise app.crash_reason


def run_monitor(settings: Settings, ready: Callable[[str], None] | None = None) -> None:
    """Run the monitor until SIGTERM or SIGINT; `ready` gets the page's address once Kafka is being read.

    Raises:
        BrokerUnavailableError: Kafka did not answer within `worker.rpc_timeout_s`.
        TopicLayoutError: the topics did not appear within `worker.rpc_timeout_s`.
        SettingsError: the address is taken, or `[kafka]` has what aiokafka can't do.
    """
    for name in ("faust", "mode", "streams.monitor.kafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # four lines a second while the broker is down
    asyncio.run(_serve(settings, ready))
