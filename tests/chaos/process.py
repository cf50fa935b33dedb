"""Any program as a worker process: `freshet worker`, or a control that is built to fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.integration.worker_process import WorkerProcess, _end_with_the_tests

__all__ = ["WORKER", "CommandProcess"]

WORKER = ("-m", "streams.cli", "worker")


class CommandProcess(WorkerProcess):
    """`python <command> [--id NAME]`, watched as a worker is."""

    def __init__(
        self, env: Mapping[str, str], worker_id: str | None, log: Path, command: Sequence[str] = WORKER
    ) -> None:
        self.id = worker_id
        self._log = log
        named = [] if worker_id is None else ["--id", worker_id]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command, *named],
                env=dict(env),
                stdout=output,
                stderr=output,
                preexec_fn=_end_with_the_tests,
            )
