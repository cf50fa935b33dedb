"""`freshet demo`: the main job on one machine, the way a real deployment runs it.

Broker, workers, trainer and monitor are processes of their own; this one feeds them, watches, and tells how
it went. Whatever way it ends, they end with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from streams.broker import start_broker
from streams.clients import wait_for_broker
from streams.datasets import Dataset, load_dataset
from streams.demo_screen import Screen
from streams.demo_summary import show_summary, summarise
from streams.demo_watch import Watch
from streams.errors import DatasetError, EmbeddedBrokerError, FreshetError
from streams.processes import ProcessGroup
from streams.replay import ReplayReport, replay
from streams.settings import Settings, load_settings
from streams.topic_admin import create_topics

__all__ = ["Demo"]

log = logging.getLogger("freshet.demo")

START_S = 120.0
"""Workers compile their kernels at the first start."""
DRAIN_S = 120.0
"""Patience for the last events to be answered once all are sent."""
TRAININGS = 6
"""Trainings over the whole replay: at least two swaps are to be seen, and a gate may refuse."""


class Stopped(BaseException):
    """A signal asked the demo to end; like KeyboardInterrupt, it passes through `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Demo:
    """One run. `run` returns the exit code."""

    def __init__(
        self, dataset: str, events: int | None, rate: float, workers: int, keep: bool, json_path: Path | None
    ) -> None:
        self._dataset = dataset
        self._limit = events
        self._rate = rate
        self._workers = workers
        self._keep = keep
        self._json_path = json_path
        self._console = Console(stderr=True)

    def run(self) -> int:
        """Run the demo; 0 when every event was answered and all lag is 0, 1 on an error, 128 + n after signal
        n."""
        logging.getLogger("freshet").setLevel(logging.WARNING)
        try:
            with _signals_raise(), ProcessGroup() as processes:
                return self._run(processes)
        except Stopped as stopped:
            self._console.print(f"\n{stopped}: everything is stopped and removed.")
            return 128 + stopped.number
        except FreshetError as error:
            self._console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}", highlight=False)
            return 1

    def _run(self, processes: ProcessGroup) -> int:
        folder = Path(tempfile.mkdtemp(prefix="freshet-demo-"))
        processes.owns_folder(folder)
        data = self._load()
        total = min(self._limit or len(data.events), len(data.events))
        self._compile()
        settings, environment = self._start_broker(processes, folder, total)
        self._start_processes(processes, folder, environment, settings)
        watch = Watch(settings, [f"demo-{n}" for n in range(1, self._workers + 1)])
        try:
            self._await_workers(processes, watch)
            report = self._replay(processes, watch, settings, data, total)
            summary = summarise(settings, data, watch, report)
        finally:
            watch.close()
        self._tell(summary)
        if self._keep:
            self._stay(processes)
        return 0 if summary["lag"] == 0 and summary["accounted"] else 1

    def _compile(self) -> None:
        """Once for all workers: each would else do the same beside the others."""
        self._say("kernels: the first start on a machine compiles them, a minute or so")
        subprocess.run([sys.executable, "-m", "streams.warm_up"], check=True, stdout=subprocess.DEVNULL)

    def _load(self) -> Dataset:
        self._say(f"data set: {self._dataset}")
        try:
            return load_dataset(self._dataset)
        except DatasetError as error:
            if self._dataset != "ml-100k":
                raise
            self._console.print(f"[yellow]{escape(str(error))}[/]\nGoing on with the synthetic data set.")
            return load_dataset("synthetic")

    def _start_broker(
        self, processes: ProcessGroup, folder: Path, total: int
    ) -> tuple[Settings, dict[str, str]]:
        """An embedded broker with ports and a folder of its own, and the settings that all share."""
        try:
            broker = start_broker(folder / "kafka", remember=False, progress=self._say)
        except EmbeddedBrokerError as error:
            raise FreshetError(f"no broker: {error}") from error
        processes.owns_process(broker.pid)
        environment = {
            "FRESHET_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "FRESHET_STATE__DIR": str(folder / "snapshots"),
            "FRESHET_REGISTRY__URL": str(folder / "models"),
            "FRESHET_MONITOR__PORT": str(_free_port()),
            "FRESHET_TRIGGER__COALESCE_LAG": "0",
            "FRESHET_SCHEDULE__EVERY_INTERACTIONS": str(max(1000, total // TRAININGS)),
            "FRESHET_SCHEDULE__EVERY_S": "0",
            "FRESHET_TRAINER__MAX_CPU_SECONDS": str(round(min(25.0, max(3.0, total / self._rate / 12)), 1)),
        }
        settings = _settings(environment)
        wait_for_broker(settings, 30.0)
        create_topics(settings)
        self._say(f"Kafka answers at {broker.bootstrap_servers}, its data and all logs are in {folder}")
        return settings, environment

    def _start_processes(
        self, processes: ProcessGroup, folder: Path, environment: dict[str, str], settings: Settings
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")}
        env = {**inherited, **environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        freshet = [sys.executable, "-m", "streams.cli"]
        for number in range(1, self._workers + 1):
            name = f"demo-{number}"
            log_file = folder / f"{name}.log"
            processes.spawn(name, [*freshet, "worker", "--id", name], env=env, cwd=folder, log=log_file)
        for name in ("trainer", "monitor"):
            processes.spawn(name, [*freshet, name], env=env, cwd=folder, log=folder / f"{name}.log")
        page = f"http://{settings.monitor.host}:{settings.monitor.port}/"
        self._say(f"started {self._workers} worker(s), the trainer and the monitor; live page: {page}")

    def _await_workers(self, processes: ProcessGroup, watch: Watch) -> None:
        with self._console.status("waiting for the workers (the first start compiles their kernels)"):
            deadline = time.monotonic() + START_S
            while not watch.all_running():
                processes.check()
                watch.poll(0.1)
                if time.monotonic() > deadline:
                    raise FreshetError(f"the workers were not ready after {START_S:.0f} s: {watch.states()}")

    def _replay(
        self, processes: ProcessGroup, watch: Watch, settings: Settings, data: Dataset, total: int
    ) -> ReplayReport:
        """Send the events from a thread while this one watches; ends once every event is answered for."""
        stop = threading.Event()
        sender = _Sender(settings, data, self._rate, total, watch, stop)
        watch.expect(total)
        sender.start()
        try:
            with Screen(self._console, watch, settings, total) as screen:
                while sender.is_alive():
                    processes.check()
                    watch.poll(0.1)
                    screen.update()
                report = sender.result()
                deadline = time.monotonic() + DRAIN_S
                while not watch.drained(report.events):
                    processes.check()
                    watch.poll(0.1)
                    screen.update()
                    if time.monotonic() > deadline:
                        raise FreshetError(f"not drained after {DRAIN_S:.0f} s: {watch.progress_text()}")
        finally:
            stop.set()
            sender.join()
        return report

    def _tell(self, summary: dict[str, Any]) -> None:
        show_summary(self._console, summary)
        if self._json_path is not None:
            self._json_path.write_text(json.dumps(summary, ensure_ascii=False, indent=2) + "\n", "utf-8")
            self._say(f"summary written to {self._json_path}")

    def _stay(self, processes: ProcessGroup) -> None:
        self._say("--keep: everything goes on running until Ctrl-C")
        while True:
            processes.check()
            time.sleep(0.5)

    def _say(self, text: str) -> None:
        self._console.print(
            f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(text)}", highlight=False, soft_wrap=True
        )


class _Sender(threading.Thread):
    """The replay, in a thread of its own; `result` raises what it raised."""

    def __init__(
        self, settings: Settings, data: Dataset, rate: float, total: int, watch: Watch, stop: threading.Event
    ) -> None:
        super().__init__(name="replay", daemon=True)
        self._arguments = (settings, data, rate, total)
        self._watch = watch
        self._stop_event = stop
        self._report: ReplayReport | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._report = replay(*self._arguments, self._watch.sent_so_far, stop=self._stop_event)
        except FreshetError as error:
            self._error = error

    def result(self) -> ReplayReport:
        if self._error is not None:
            raise self._error
        if self._report is None:
            raise FreshetError("the replay ended without a report")
        return self._report


def _settings(environment: dict[str, str]) -> Settings:
    """Settings from `environment` alone: whatever freshet.toml lies about is the user's, not the demo's."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as empty:
        return load_settings(empty.name, environ=environment)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Stopped` once; a second one, during the clean-up, is ignored."""
    seen = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise Stopped(number)

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
