"""The command `freshet`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click
from confluent_kafka import KafkaException

from online_models.errors import OnlineModelError
from streams import __version__
from streams.errors import FreshetError
from streams.settings import Settings, load_settings

__all__ = ["cli", "main"]

JSON = click.option("--json", "as_json", is_flag=True, help="Print the result alone, as JSON.")


class _Context:
    def __init__(self, config: Path | None) -> None:
        self._config = config

    def settings(self, **overrides: Any) -> Settings:
        from streams.broker import running_broker

        broker = running_broker()
        default = {} if broker is None else {"default_bootstrap": broker.bootstrap_servers}
        return load_settings(self._config, overrides=overrides, **default)


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
    """Freshet reads user events from Kafka, learns from every one of them at once, and writes ranked, explained
    recommendations back to Kafka."""
    logging.basicConfig(
        level=log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    context.obj = _Context(config)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT ask for a clean end."""

    def handle(number: int, frame: FrameType | None) -> None:
        logging.getLogger("freshet").info("%s: stopping", signal.Signals(number).name)
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


@cli.command()
@click.option("--id", "worker_id", help="Stable name: a restart under it takes its partitions over at once.")
@click.pass_obj
def worker(context: _Context, worker_id: str | None) -> None:
    """Serve: events in, learned from, recommendations out. SIGTERM ends it with nothing half done."""
    from streams.worker import Worker

    running = Worker(context.settings(), worker_id)
    stop_on_signals(running.stop)
    running.run()


def main() -> None:
    """Entry point: errors that an operator can mend are one line on stderr and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (FreshetError, OnlineModelError) as error:
        click.echo(f"freshet: {error}", err=True)
        sys.exit(1)
    except KafkaException as error:
        cause = error.args[0]
        click.echo(
            f"freshet: Kafka: {cause.str()} ({cause.name()}). `freshet doctor` checks broker, topics and ACLs.",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
