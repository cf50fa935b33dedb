"""The command `freshet`: every command is a few lines over the module that does the work."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec
from confluent_kafka import KafkaException

from online_models.errors import OnlineModelError
from serving.ranker.errors import RankerError, RegistryError
from streams import __version__
from streams.errors import FreshetError
from streams.settings import DEFAULT_BOOTSTRAP, Settings, load_settings

__all__ = ["cli", "main"]

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result alone, as JSON.")


class Context:
    """What every command gets: the settings, read when they are needed."""

    def __init__(self, config: Path | None) -> None:
        self._config = config

    def settings(self, **overrides: Any) -> Settings:
        """Settings; without an address in them, that of the embedded broker if one runs."""
        from streams.broker import running_broker

        broker = running_broker()
        default = DEFAULT_BOOTSTRAP if broker is None else broker.bootstrap_servers
        return load_settings(self._config, overrides=overrides, default_bootstrap=default)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="freshet")
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file. Default: $FRESHET_CONFIG, else freshet.toml if it is there.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What goes to stderr.",
)
@click.pass_context
def cli(context: click.Context, config: Path | None, log_level: str) -> None:
    """Freshet reads user events from Kafka, learns from every one of them at once, and writes ranked,
    explained recommendations back to Kafka."""
    logging.basicConfig(
        level=log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    context.obj = Context(config)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT ask for a clean end."""

    def handle(number: int, frame: FrameType | None) -> None:
        logging.getLogger("freshet").info("%s: stopping", signal.Signals(number).name)
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def show(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(msgspec.to_builtins(value), ensure_ascii=False))


def table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Rows as text, one line each."""
    widths = {c: max([len(c), *(len(str(row[c])) for row in rows)]) for c in columns}
    click.echo("  ".join(c.ljust(widths[c]) for c in columns).rstrip())
    for row in rows:
        click.echo("  ".join(str(row[c]).ljust(widths[c]) for c in columns).rstrip())


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on stderr; the function that is given takes how much is done and a word about it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, text: progress.update(task, completed=done, description=text or title)


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--id", "worker_id", help="Stable name: a restart under it takes its partitions over at once.")
@click.pass_obj
def worker(context: Context, worker_id: str | None) -> None:
    """Serve: events in, learned from, recommendations out. SIGTERM ends it with nothing half done."""
    from streams.worker import Worker

    running = Worker(context.settings(), worker_id)
    stop_on_signals(running.stop)
    running.run()


@cli.command()
@click.option("--once", is_flag=True, help="Train once on all that the learning log holds, then end.")
@JSON
@click.pass_obj
def trainer(context: Context, once: bool, as_json: bool) -> None:
    """Train the deep ranker as the log grows, gate it, and announce what passes."""
    try:
        from streams.trainer import Trainer
    except ModuleNotFoundError as error:
        raise FreshetError(
            f"the trainer needs {error.name}: install the `train` extra of this package."
        ) from error
    settings = context.settings()
    if not once:
        running = Trainer(settings)
        stop_on_signals(running.stop)
        running.run()
        return
    with progress_bar("training", 100) as update:
        record, _ = Trainer(
            settings, lambda stage: update(round(100 * stage.fraction), f"{stage.name}: {stage.text}")
        ).run_once()
    if as_json:
        show(record)
    else:
        click.echo(f"{record.model} {record.version} is {record.status}. {record.reason or ''}".rstrip())
        for name, value in sorted(record.metrics.items()):
            click.echo(f"  {name} {value:.4f}")


@cli.command()
@click.pass_obj
def monitor(context: Context) -> None:
    """Watch: lag, throughput, latency, hit rate and models, as a live page and as /metrics for Prometheus."""
    from streams.monitor.app import run_monitor

    run_monitor(context.settings())


# ── the embedded broker and the topics ───────────────────────────────────────────────────────────────────


@cli.group()
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


@cli.group()
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


# ── data in, answers out ─────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--dataset", default="ml-100k", show_default=True, help="ml-100k, synthetic or a file's path.")
@click.option("--events", type=click.IntRange(min=1), help="Only the first so many.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Events per second. Default: as fast as it goes.",
)
@click.option(
    "--speedup",
    type=click.FloatRange(min=0, min_open=True),
    help="Instead: the data's own gaps, so many times faster.",
)
@JSON
@click.pass_obj
def replay(
    context: Context,
    dataset: str,
    events: int | None,
    rate: float | None,
    speedup: float | None,
    as_json: bool,
) -> None:
    """Send a data set into `items` and `events`, in order of time."""
    import threading

    from streams.datasets import load_dataset
    from streams.replay import replay as send

    settings = context.settings()
    data = load_dataset(dataset)
    stop = threading.Event()
    stop_on_signals(stop.set)
    with progress_bar("events", min(events or len(data.events), len(data.events))) as update:
        report = send(
            settings,
            data,
            rate,
            events,
            lambda what, done, _: update(done, what) if what == "events" else None,
            speedup=speedup,
            stop=stop,
        )
    if as_json:
        show(report)
    else:
        click.echo(
            f"{report.events} events and {report.items} items sent ({report.events_per_s:.0f} events/s)"
        )


@cli.command()
@click.argument("user")
@click.option("--count", type=click.IntRange(1, 1000), help="How many items. Default: trigger.count.")
@click.option("--category", "categories", multiple=True, help="Only items of this category; may be repeated.")
@click.option("--timeout", "timeout_s", default=10.0, show_default=True, help="Seconds to wait for a worker.")
@JSON
@click.pass_obj
def recommend(
    context: Context,
    user: str,
    count: int | None,
    categories: tuple[str, ...],
    timeout_s: float,
    as_json: bool,
) -> None:
    """Ask the running workers for USER's list, through `requests`, and print it with its reasons."""
    from streams.ask import ask

    answer = ask(context.settings(), user, count, list(categories) or None, timeout_s)
    if as_json:
        show(answer)
        return
    for rank, item in enumerate(answer.items, 1):
        click.echo(f"{rank:3d}  {item.item_id}  {item.score:.3f}  {item.reason.text}")


@cli.group("log")
def learning_log() -> None:
    """The learning log, `interactions`."""


@learning_log.command("dump")
@click.pass_obj
def log_dump(context: Context) -> None:
    """Every learned interaction as a JSON line, in log order."""
    from streams.dumps import dump_log

    for row in dump_log(context.settings()):
        show(row)


@cli.group()
def state() -> None:
    """The users' state, `user-state`."""


@state.command("dump")
@click.pass_obj
def state_dump(context: Context) -> None:
    """Every partition's record and every user as a JSON line."""
    from streams.dumps import dump_state

    for row in dump_state(context.settings()):
        show(row)


# ── models, health ───────────────────────────────────────────────────────────────────────────────────────


@cli.group()
def models() -> None:
    """Ranker versions."""


@models.command("list")
@JSON
@click.pass_obj
def models_list(context: Context, as_json: bool) -> None:
    """Versions in the registry and refusals on `models`; which one is live."""
    from streams.model_commands import list_models

    rows = list_models(context.settings())
    if as_json:
        show(rows)
    else:
        table(rows, ["version", "status", "ndcg_at_10", "trained_on", "reason"])


@models.command("promote")
@click.argument("version")
@JSON
@click.pass_obj
def models_promote(context: Context, version: str, as_json: bool) -> None:
    """Make VERSION of the registry the live one; every worker verifies it, then swaps."""
    from streams.model_commands import promote

    record = promote(context.settings(), version)
    if as_json:
        show(record)
    else:
        click.echo(f"{record.model} {record.version} is live")


@models.command("rollback")
@JSON
@click.pass_obj
def models_rollback(context: Context, as_json: bool) -> None:
    """Make the version before the live one live again."""
    from streams.model_commands import rollback

    record = rollback(context.settings())
    if as_json:
        show(record)
    else:
        click.echo(f"{record.model} {record.version} is live")


@cli.command()
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


@cli.command()
@click.option("--dataset", default="ml-100k", show_default=True, help="ml-100k, synthetic or a file's path.")
@click.option("--events", type=click.IntRange(min=1), help="Only the first so many.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=400.0,
    show_default=True,
    help="Events per second.",
)
@click.option("--workers", type=click.IntRange(1, 8), default=2, show_default=True)
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the summary here too."
)
def demo(
    dataset: str, events: int | None, rate: float, workers: int, keep: bool, json_path: Path | None
) -> None:
    """The whole of it: a broker, workers, trainer and monitor on this machine, fed with real ratings."""
    from streams.demo import Demo

    sys.exit(Demo(dataset, events, rate, workers, keep, json_path).run())


def main() -> None:
    """Entry point: what an operator can mend is one line on stderr and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (FreshetError, OnlineModelError, RankerError, RegistryError) as error:
        click.echo(f"freshet: {error}", err=True)
        sys.exit(1)
    except KafkaException as error:
        cause = error.args[0]
        click.echo(
            f"freshet: Kafka: {cause.str()} ({cause.name()}). `freshet doctor` checks broker, topics and "
            "ACLs.",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
