"""Child processes that never outlive their parent, whatever way it ends.

The parent tells a small reaper process, over a pipe, of every child and folder that it makes. When the pipe
closes, because the parent ended well, was interrupted, or was killed with SIGKILL, the reaper ends what is
still running and removes the folders. Processes are known by pid and start time, so a stranger with a reused
pid is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from streams.broker import process_start
from streams.errors import FreshetError

__all__ = ["Child", "ProcessGroup"]

TERM_S = 12.0
"""Patience after SIGTERM before SIGKILL; a worker promises to end within 10 s."""


class Child:
    """One child process with its log file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def check(self) -> None:
        """Raise FreshetError, with the end of the log, when the process has ended by itself."""
        code = self.process.poll()
        if code is not None:
            raise FreshetError(
                f"{self.name} ended with exit code {code}; its log ({self.log}) ends:\n{self.log_tail()}"
            )

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that does not help in time; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(TERM_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


class ProcessGroup:
    """Children and folders of one parent; leaving the context ends and removes all of them."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._folders: list[Path] = []
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "streams.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, **what: object) -> None:
        if self._reaper.stdin is None:
            raise FreshetError("the reaper has no pipe")
        self._reaper.stdin.write(json.dumps(what).encode() + b"\n")
        self._reaper.stdin.flush()

    def owns_folder(self, folder: Path) -> None:
        """Remove `folder` at the end."""
        self._folders.append(folder)
        self._tell(folder=str(folder))

    def owns_process(self, pid: int) -> None:
        """End process `pid`, which somebody else started for this parent."""
        self._tell(pid=pid, started=process_start(pid))

    def spawn(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
    ) -> Child:
        """Start `command` in a session of its own (Ctrl-C reaches only the parent), output to `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.owns_process(process.pid)
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise FreshetError when a child has ended by itself."""
        for child in self.children:
            child.check()

    def stop_children(self) -> dict[str, int]:
        """Ask all to end at once, wait for each; exit codes by name."""
        for child in self.children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        codes = {child.name: child.stop() for child in self.children}
        self.children.clear()
        return codes

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_children()
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        self._reaper.wait(2 * TERM_S)


def _reap() -> None:
    """The reaper: remember what the parent says, and clean up when it is gone."""
    processes: list[tuple[int, str]] = []
    folders: list[str] = []
    for line in sys.stdin:
        told = json.loads(line)
        if "folder" in told:
            folders.append(told["folder"])
        else:
            processes.append((told["pid"], told["started"]))
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + TERM_S
        alive = [(pid, started) for pid, started in processes if process_start(pid) == started]
        for pid, _ in reversed(alive):
            os.kill(pid, number)
        while any(process_start(pid) == started for pid, started in alive) and time.monotonic() < deadline:
            time.sleep(0.05)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _reap()
