"""Gorse beside ours: its server is started on this machine, given the events, and asked for its lists.

Gorse (a Go program of one file, `gorse-in-one`) keeps everything in a folder of its own, which is removed
when its lists are in; it listens on loopback only. docs/evaluation.md says how it is built.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from online_models.item_table import ItemTable

__all__ = ["PROGRAM", "PROGRAM_VARIABLE", "GorseError", "GorsePeer", "config", "find_program"]

PROGRAM = "gorse-in-one"
PROGRAM_VARIABLE = "FRESHET_GORSE"
LIST_LENGTH = 100
BATCH = 1000
START_TIMEOUT_S = 60.0
FIT_TIMEOUT_S = 600.0
SETTLE_S = 5.0
READY_SHARE = 0.98
STOP_TIMEOUT_S = 15.0

_CONFIG = """\
[database]
cache_store = "sqlite://{folder}/cache.db"
data_store = "sqlite://{folder}/data.db"
[master]
host = "127.0.0.1"
port = {port}
http_host = "127.0.0.1"
http_port = {http_port}
n_jobs = 1
meta_timeout = "1s"
[server]
cache_expire = "1s"
auto_insert_user = true
auto_insert_item = true
[recommend]
cache_size = {length}
cache_expire = "72h"
[recommend.data_source]
positive_feedback_types = ["rating>={positive_from}"]
read_feedback_types = ["rating"]
[recommend.collaborative]
type = "mf"
fit_period = "10s"
fit_epoch = 100
optimize_period = "0s"
[recommend.ranker]
type = "none"
recommenders = ["collaborative"]
[blob]
uri = "{folder}/blob"
"""


class GorseError(RuntimeError):
    """Gorse did not start, answer, or finish its fit."""


def find_program() -> str | None:
    """Where Gorse is: named by FRESHET_GORSE, or on PATH."""
    return shutil.which(os.environ.get(PROGRAM_VARIABLE) or PROGRAM)


def config(folder: Path, port: int, http_port: int, positive_from: float) -> str:
    """Gorse's settings: its factorisation alone, without a ranker, with which it did best."""
    return _CONFIG.format(
        folder=folder, port=port, http_port=http_port, positive_from=positive_from, length=LIST_LENGTH
    )


class GorsePeer:
    """Gorse 0.5, fitted once to all that was learned before it is first asked; an item's score is
    1 / (place in the user's list of 100), 0 beyond it."""

    def __init__(self, program: str, positive_from: float) -> None:
        self.items = ItemTable()
        self._program = program
        self._positive_from = positive_from
        self._feedback: list[dict[str, Any]] = []
        self._lists: dict[str, list[str]] | None = None

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, Any] | None = None) -> None:
        if self._lists is None and float((x or {}).get("weight", y)) > 0.0:
            self.items.ensure([item])
            at = datetime.fromtimestamp(int((x or {}).get("timestamp", 0)) / 1000.0, UTC)
            self._feedback.append(
                {
                    "FeedbackType": "rating", "UserId": user, "ItemId": item, "Value": y,
                    "Timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
            )  # fmt: skip

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = None) -> float:
        return float(self.score_rows(user, self.items.rows([item]))[0])

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[Any]:
        if self._lists is None:
            self._lists = self._fitted()
        by_row = np.zeros(len(self.items.ids) + 1)  # the last is that of row -1
        listed = self.items.rows(self._lists.get(user, []))
        for place, row in reversed(list(enumerate(listed.tolist()))):
            by_row[row] = 1.0 / (place + 1.0)
        by_row[-1] = 0.0
        return by_row[rows]

    def _fitted(self) -> dict[str, list[str]]:
        users = list(dict.fromkeys(entry["UserId"] for entry in self._feedback))
        with tempfile.TemporaryDirectory(prefix="gorse-") as name:
            folder = Path(name)
            for store in ("blob", "cache"):
                (folder / store).mkdir()
            port, http_port = free_ports(2)
            file = folder / "config.toml"
            file.write_text(config(folder, port, http_port, self._positive_from), "utf-8")
            with (folder / "log").open("wb") as log:
                command = [self._program, "-c", str(file), "--cache-path", str(folder / "cache")]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
                )
            try:
                return self._asked(_Client(process, http_port, folder / "log"), users)
            finally:
                stop(process)

    def _asked(self, client: _Client, users: Sequence[str]) -> dict[str, list[str]]:
        client.wait_for(client.is_ready, START_TIMEOUT_S, "start")
        for start in range(0, len(self._feedback), BATCH):
            client.call("POST", "/api/feedback", self._feedback[start : start + BATCH])
        sample = users[:: max(len(users) // 50, 1)]

        def is_fitted() -> bool:
            found = sum(
                bool(client.call("GET", _list_path("collaborative-filtering", user))) for user in sample
            )
            return found >= READY_SHARE * len(sample)

        client.wait_for(is_fitted, FIT_TIMEOUT_S, "fit its model")
        time.sleep(SETTLE_S)
        return {
            user: [
                entry if isinstance(entry, str) else entry["Id"]
                for entry in client.call("GET", _list_path("recommend", user)) or []
            ]
            for user in users
        }


class _Client:
    """Gorse's HTTP interface, as far as it is needed."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._log = log

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON. Raises GorseError where there is none."""
        text = None if body is None else json.dumps(body)
        try:
            self._http.request(method, path, text, {"Content-Type": "application/json"})
            answer = self._http.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise GorseError(
                f"Gorse does not answer {method} {path}: {error}; {self._last_words()}"
            ) from error
        if answer.status >= 400:
            raise GorseError(f"Gorse answers {method} {path} with {answer.status}: {content[:200]!r}")
        return json.loads(content) if content else None

    def is_ready(self) -> bool:
        try:
            self.call("GET", "/api/health/ready")
        except GorseError:  # not yet; wait_for ends it when the time is over
            return False
        return True

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until it holds. Raises GorseError when the time is over or Gorse has ended."""
        until = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None or time.monotonic() > until:
                raise GorseError(f"Gorse did not {what} within {timeout_s:g} s; {self._last_words()}")
            time.sleep(0.3)

    def _last_words(self) -> str:
        code = self._process.poll()
        state = "it is running" if code is None else f"it ended with {code}"
        return f"{state}, its log ends: {self._log.read_bytes()[-500:].decode('utf-8', 'replace')}"


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end it where it doesn't."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _list_path(kind: str, user: str) -> str:
    return f"/api/{kind}/{quote(user, safe='')}?n={LIST_LENGTH}"
