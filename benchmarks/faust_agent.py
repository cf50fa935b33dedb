"""The same count as a plain Faust agent: events per user in one table, one output an event.

    python -m benchmarks.faust_agent SOURCE TARGET DATA_DIR

As Faust's own guide has it: JSON in, a `Table`, `await topic.send` out, at-least-once, tables in memory with
their changelog in Kafka, web server off. Nothing is validated, deduplicated or learned.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import faust

__all__ = ["build"]


def build(source: str, target: str, data_dir: str, bootstrap: str, partitions: int) -> faust.App:
    """The app; its group and its table's changelog are named after `source`."""
    app = faust.App(
        f"faust-{source}",
        broker=[f"kafka://{address}" for address in bootstrap.split(",")],
        store="memory://",
        datadir=data_dir,
        origin=None,
        autodiscover=False,
        topic_partitions=partitions,
        topic_replication_factor=1,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
    )
    events = app.topic(source, value_serializer="json", key_serializer="raw")
    counted = app.topic(target, value_serializer="json", key_serializer="raw")
    counts: Any = app.Table("counts", default=int, partitions=partitions)

    @app.agent(events)
    async def count(stream: Any) -> None:
        async for key, event in stream.items():
            user = event["user_id"]
            counts[user] += 1
            await counted.send(key=key, value={"user_id": user, "events": counts[user]})

    return app


def main(source: str, target: str, data_dir: str) -> None:
    app = build(
        source,
        target,
        data_dir,
        os.environ["FRESHET_KAFKA__BOOTSTRAP_SERVERS"],
        int(os.environ["FRESHET_TOPICS__PARTITIONS"]),
    )
    faust.Worker(app, loglevel="warning").execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:4])
