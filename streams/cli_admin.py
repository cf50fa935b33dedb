"""Commands for operators: the embedded broker, topics, dumps, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from streams.cli_common import JSON, Context, show, table

__all__ = ["doctor", "kafka", "learning_log", "state", "topics"]


# ── the embedded broker and the topics ───────────────────────────────────────────────────────────────────


@click.group()
def kafka() -> None:
    """The embedded broker: a real, single-node Apache Kafka for development, without Docker."""


@kafka.command("start")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where it keeps its log.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 9092 if it is free.")
@JSON
def kafka_start(data_dir: Path | None, port: int | None, as_json: bool) -> None:
    """Start it in the background and return once it answers."""
    from streams.broker import start_broker

    info = start_broker(data_dir, port, remember=True, progress=lambda text: click.echo(text, err=True))
    if as_json:
        show(info)
    else:
        click.echo(f"Kafka answers at {info.bootstrap_servers} (pid {info.pid}, data in {info.data_dir})")


@kafka.command("stop")
@JSON
def kafka_stop(as_json: bool) -> None:
    """Stop it; its data stays."""
    from streams.broker import stop_broker

    stopped = stop_broker()
    if as_json:
        show({"stopped": stopped})
    else:
        click.echo("stopped" if stopped else "no embedded broker was running")


@kafka.command("status")
@JSON
def kafka_status(as_json: bool) -> None:
    """Whether it runs, and where."""
    from streams.broker import broker_status

    status = broker_status()
    if as_json:
        show(status)
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in status.items()))


@click.group()
def topics() -> None:
    """Freshet's topics."""


@topics.command("create")
@JSON
@click.pass_obj
def topics_create(context: Context, as_json: bool) -> None:
    """Create those that are missing; those that are there stay as they are."""
    from streams.topic_admin import create_topics

    reports = create_topics(context.settings())
    if as_json:
        show(reports)
        return
    table([msgspec.structs.asdict(report) for report in reports], ["name", "partitions", "status"])
    for report in reports:
        for difference in report.differences:
            click.echo(f"{report.name}: {difference}", err=True)


@topics.command("describe")
@JSON
@click.pass_obj
def topics_describe(context: Context, as_json: bool) -> None:
    """What each topic is for, and how it stands on the broker."""
    from streams.topic_admin import describe_topics

    rows = describe_topics(context.settings())
    if as_json:
        show(rows)
    else:
        table(rows, ["name", "exists", "partitions", "high_watermarks", "key", "holds"])


@click.group("log")
def learning_log() -> None:
    """The learning log, `interactions`."""


@learning_log.command("dump")
@click.option("--corrections", is_flag=True, help="Also what takes interactions back.")
@click.pass_obj
def log_dump(context: Context, corrections: bool) -> None:
    """Every learned interaction as a JSON line, in log order."""
    from streams.dumps import dump_log

    for row in dump_log(context.settings(), corrections=corrections):
        show(row)


@click.group()
def state() -> None:
    """The users' state, `user-state`."""


@state.command("dump")
@click.pass_obj
def state_dump(context: Context) -> None:
    """Every partition's record and every user as a JSON line."""
    from streams.dumps import dump_state

    for row in dump_state(context.settings()):
        show(row)


# ── health ───────────────────────────────────────────────────────────────────────────────────────────────


@click.command()
@JSON
@click.pass_obj
def doctor(context: Context, as_json: bool) -> None:
    """Check broker, topics, ACLs, group, models and what the ranker would run on. Exit 1 if anything is
    wrong."""
    from streams.doctor import diagnose

    findings = diagnose(context.settings())
    if as_json:
        show(findings)
    else:
        table([msgspec.structs.asdict(finding) for finding in findings], ["check", "status", "detail"])
    if any(finding.status == "failed" for finding in findings):
        sys.exit(1)
