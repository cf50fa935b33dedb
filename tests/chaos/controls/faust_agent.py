"""Control: a plain Faust agent that counts each user's events in a table and answers every event with a
list.

Faust commits offsets by a timer, apart from what the agent has sent: after a crash it handles again what it
had handled since.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import faust
import msgspec

from streams.events import Event, Recommendation
from streams.settings import Settings, load_settings
from tests.chaos.controls.crash import CrashPoint

__all__ = ["build_app"]


def build_app(settings: Settings, data_dir: str) -> faust.App:
    """The agent, in the workers' group."""
    app = faust.App(
        settings.worker_group,
        broker=f"kafka://{settings.bootstrap_servers}",
        datadir=data_dir,
        store="memory://",
        origin=None,
        autodiscover=False,
        topic_partitions=settings.topics.partitions,
        topic_disable_leader=True,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=6.0,
        broker_heartbeat_interval=2.0,
        broker_rebalance_timeout=10.0,
        processing_guarantee="at_least_once",
        web_enabled=False,
    )
    names = settings.names
    events = app.topic(names["events"], key_type=bytes, value_type=bytes)
    lists = app.topic(names["recommendations"], key_type=bytes, value_type=bytes)
    counts = app.Table("counts", default=int, partitions=settings.topics.partitions)
    crash = CrashPoint()
    headers = {"worker": b"faust", "epoch": str(int(time.time() * 1000)).encode()}

    @app.agent(events, concurrency=1)
    async def count(stream: Any) -> None:
        async for event in stream.events():
            found = msgspec.json.decode(event.value, type=Event)
            counts[found.user_id] += 1
            made = Recommendation(
                user_id=found.user_id,
                request_id=None,
                event_id=found.event_id,
                items=[],
                ranker=None,
                online_offset=counts[found.user_id],
                generated_at=int(time.time() * 1000),
                latency_ms=0.0,
            )
            sent = await lists.send(
                key=found.user_id.encode(), value=msgspec.json.encode(made), headers=headers
            )
            await sent
            crash.passed()

    return app


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        worker = faust.Worker(build_app(load_settings(environ=os.environ), folder), loglevel="INFO")
        worker.execute_from_commandline()
