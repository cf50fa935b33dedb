"""The command `freshet`: every command is a few lines over the module that does the work."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click
from confluent_kafka import KafkaException

from online_models.errors import OnlineModelError
from serving.ranker.errors import RankerError, RegistryError
from streams import __version__, cli_admin, cli_models, evaluate_command, trainer_command
from streams.cli_common import JSON, Context, end_within, progress_bar, show, stop_on_signals
from streams.errors import FreshetError

__all__ = ["cli", "main"]


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


for _command in (
    cli_admin.kafka,
    cli_admin.topics,
    cli_admin.learning_log,
    cli_admin.state,
    cli_models.models,
    cli_admin.doctor,
    evaluate_command.evaluate,
    trainer_command.trainer,
):
    cli.add_command(_command)


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--id", "worker_id", help="Stable name: a restart under it takes its partitions over at once.")
@click.pass_obj
def worker(context: Context, worker_id: str | None) -> None:
    """Serve: events in, learned from, recommendations out. SIGTERM ends it with nothing half done."""
    stop_on_signals(_end_here)  # nothing is taken yet; an exception could be lost in what is being imported
    from streams.worker import Worker

    running = Worker(context.settings(), worker_id)

    def stop() -> None:
        running.stop()
        if not running.serving:
            _end_here()  # nothing is taken yet, and models being compiled can't be interrupted otherwise

    stop_on_signals(stop)
    end_within(7.0)
    running.run()
    _end_here()  # all is closed that answered in time; the interpreter's clean-up would wait for what did not


def _end_here() -> None:
    logging.shutdown()
    os._exit(0)


@cli.command()
@click.pass_obj
def monitor(context: Context) -> None:
    """Watch: lag, throughput, latency, hit rate and models, as a live page and as /metrics for Prometheus."""
    from streams.monitor.app import run_monitor

    run_monitor(context.settings())


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


@cli.command()
@click.argument("user")
@click.option("--timeout", "timeout_s", default=30.0, show_default=True, help="Seconds to wait for a worker.")
@JSON
@click.pass_obj
def forget(context: Context, user: str, timeout_s: float, as_json: bool) -> None:
    """Forget USER everywhere: state, counts, last list. A tombstone in `users` says so to the workers."""
    from streams.forget import forget as write

    forgotten = write(context.settings(), user, timeout_s)
    if as_json:
        show(forgotten)
    elif forgotten.done:
        click.echo("forgotten; Kafka's compaction removes what older records of user-state still say")
    else:
        click.echo(
            f"no worker has acted on it within {timeout_s:g} s; one will, once it runs and has learned the"
            " events before it"
        )


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
