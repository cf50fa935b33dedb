"""What the commands share: settings, output, progress, signals."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from streams.settings import DEFAULT_BOOTSTRAP, Settings, load_settings

__all__ = ["JSON", "Context", "end_within", "progress_bar", "show", "stop_on_signals", "table"]

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


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT ask for a clean end."""

    def handle(number: int, frame: FrameType | None) -> None:
        logging.getLogger("freshet").info("%s: stopping", signal.Signals(number).name)
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def end_within(seconds: float) -> None:
    """End the process, exit 0, at the latest so long after SIGTERM or SIGINT, whatever it is doing then.

    A client call can wait for a broker that hangs for longer than it was told, and Python's own handlers only
    run once it returns. The wake-up descriptor is written to at once, and a thread of its own reads it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while reader.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
            continue
        time.sleep(seconds)
        logging.getLogger("freshet").error(
            "Kafka did not answer for %.0f s after the signal: ending without it. What was open is aborted"
            " by the broker; nothing of it was committed.",
            seconds,
        )
        logging.shutdown()
        os._exit(0)

    threading.Thread(target=watch, name="end-within", daemon=True).start()
    _kept_open.append(writer)


_kept_open: list[socket.socket] = []
"""The wake-up descriptor must live as long as the process."""


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
