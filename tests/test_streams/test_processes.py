"""Children end with their parent, whatever way it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from streams.errors import FreshetError
from streams.processes import ProcessGroup

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
]


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_leaving_ends_children_and_removes_folders(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    with ProcessGroup() as group:
        group.owns_folder(folder)
        child = group.spawn("sleeper", SLEEP, env=os.environ, cwd=folder, log=folder / "log")
        assert psutil.pid_exists(child.process.pid)
    assert gone(child.process.pid, 1.0)
    assert not folder.exists()


def test_a_child_that_ends_by_itself_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no disk left')"]
    with ProcessGroup() as group:
        child = group.spawn("worker", command, env=os.environ, cwd=tmp_path, log=tmp_path / "log")
        child.process.wait(120)
        with pytest.raises(FreshetError, match=r"worker ended with exit code 1.*\n.*no disk left"):
            group.check()


PARENT = """
import os, sys, time
from pathlib import Path
from streams.processes import ProcessGroup
folder = Path(sys.argv[1])
with ProcessGroup() as group:
    group.owns_folder(folder)
    child = group.spawn("child", {command!r}, env=os.environ, cwd=folder, log=folder / "log")
    print(child.process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("command", [SLEEP, STUBBORN], ids=["willing", "deaf to SIGTERM"])
def test_sigkill_of_the_parent_ends_children_and_removes_folders(tmp_path: Path, command: list[str]) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(command=command), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(120)
    parent.stdout.close()
    assert gone(pid, 120.0)
    deadline = time.monotonic() + 120
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
