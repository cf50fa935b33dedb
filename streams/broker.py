"""The embedded broker: Apache Kafka 4 (KRaft, one node) as a process of its own, for first steps and tests.

It is a convenience, never a special case: whoever has the address talks to it as to any other Kafka. It
listens on loopback only, keeps everything in one folder, and outlives the caller unless it is told not to.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.broker_config import HOST, JVM_OPTIONS, log4j2_properties, server_properties
from streams.broker_java import Java, Progress, find_java, kafka_jars
from streams.errors import EmbeddedBrokerError
from streams.settings import default_state_dir

__all__ = ["BrokerInfo", "broker_status", "process_start", "running_broker", "start_broker", "stop_broker"]

DEFAULT_PORT = 9092
READY_S = 120.0
STOP_S = 20.0
"""Kafka's clean shutdown takes a second or two; after this long it is killed."""

START_ATTEMPTS = 3
"""A free port may be taken between finding and binding it: then others are tried."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Brokers that this process started, so that their exit is collected."""


class BrokerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A running embedded broker; `started` tells its process from a later one with the same pid."""

    bootstrap_servers: str
    data_dir: str
    pid: int
    log_file: str
    started: str


def _state_file() -> Path:
    return default_state_dir() / "kafka" / "broker.json"


def process_start(pid: int) -> str | None:
    """When process `pid` started, in the system's own words; None when it is gone (or a zombie)."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        return None
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] == "Z" else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return shown.stdout.strip() or None


def _alive(info: BrokerInfo) -> bool:
    return process_start(info.pid) == info.started


def running_broker() -> BrokerInfo | None:
    """The broker that `start_broker(remember=True)` noted down, if its process still runs."""
    try:
        info = msgspec.json.decode(_state_file().read_bytes(), type=BrokerInfo)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return info if _alive(info) else None


def broker_status() -> dict[str, Any]:
    """What `freshet kafka status` prints: `running`, and where."""
    info = running_broker()
    if info is None:
        return {"running": False, "bootstrap_servers": None, "data_dir": None, "pid": None, "answers": False}
    return {
        "running": True,
        "bootstrap_servers": info.bootstrap_servers,
        "data_dir": info.data_dir,
        "pid": info.pid,
        "answers": _answers(info.bootstrap_servers, 2.0),
        "log_file": info.log_file,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _tail(file: Path, lines: int = 12) -> str:
    try:
        return " | ".join(file.read_text("utf-8", "replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def _java_command(java: Java, libs: Path, conf: Path, options: tuple[str, ...]) -> list[str]:
    return [
        str(java.executable),
        *options,
        f"-Dlog4j2.configurationFile={conf / 'log4j2.properties'}",
        "-cp",
        f"{libs}/*",
    ]


def _prepare(
    java: Java, libs: Path, data_dir: Path, port: int, controller_port: int, extra: Mapping[str, str]
) -> Path:
    """Write the configuration and, in an empty folder, format the storage under a fresh cluster id."""
    conf = data_dir / "conf"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / "log4j2.properties").write_text(log4j2_properties(data_dir / "server.log"))
    properties = conf / "server.properties"
    properties.write_text(server_properties(data_dir, port, controller_port, extra))
    if (data_dir / "log" / "meta.properties").exists():
        return properties
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    command = _java_command(java, libs, conf, ("-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"))
    command += ["kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(properties)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=READY_S)
    if done.returncode:
        raise EmbeddedBrokerError(
            f"formatting {data_dir} failed with exit code {done.returncode}:"
            f" {' '.join((done.stdout + done.stderr).split())}. Empty that folder, or name another with"
            " --data-dir."
        )
    return properties


def _die_with_parent() -> Callable[[], None]:
    """For the child, before exec: have the kernel kill it when the thread that started it is gone (Linux)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def _launch(
    java: Java, libs: Path, data_dir: Path, properties: Path, with_parent: bool
) -> subprocess.Popen[bytes]:
    command = [*_java_command(java, libs, properties.parent, JVM_OPTIONS), "kafka.Kafka", str(properties)]
    with (data_dir / "stdout.log").open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=data_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent() if with_parent and sys.platform == "linux" else None,
        )
    _children[process.pid] = process
    return process


def _answers(bootstrap: str, timeout_s: float) -> bool:
    """Whether the broker gives its metadata within `timeout_s`."""
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            if client.list_topics(timeout=min(1.0, timeout_s)).brokers:
                return True
        except KafkaException:
            time.sleep(0.05)
    return False


def _await_ready(process: subprocess.Popen[bytes], bootstrap: str) -> bool:
    deadline_s = time.monotonic() + READY_S
    host, port = bootstrap.split(":")
    while time.monotonic() < deadline_s and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((host, int(port))) == 0 and _answers(bootstrap, 5.0):
                return process.poll() is None
        time.sleep(0.05)
    return False


def _attempt(
    java: Java, libs: Path, data_dir: Path, port: int, with_parent: bool, extra: Mapping[str, str]
) -> BrokerInfo | str:
    """One start on `port`: the broker, or what it logged when it failed."""
    properties = _prepare(java, libs, data_dir, port, _free_port(), extra)
    process = _launch(java, libs, data_dir, properties, with_parent)
    bootstrap = f"{HOST}:{port}"
    try:
        if _await_ready(process, bootstrap):
            return BrokerInfo(
                bootstrap_servers=bootstrap,
                data_dir=str(data_dir),
                pid=process.pid,
                log_file=str(data_dir / "server.log"),
                started=process_start(process.pid) or "",
            )
    except BaseException:
        _end(process)
        raise
    _end(process)
    return f"{_tail(data_dir / 'stdout.log')} | {_tail(data_dir / 'server.log')}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    _children.pop(process.pid, None)


def start_broker(
    data_dir: Path | None = None,
    port: int | None = None,
    remember: bool = True,
    progress: Progress | None = None,
    die_with_parent: bool = False,
    properties: Mapping[str, str] | None = None,
) -> BrokerInfo:
    """Start the embedded broker and return once it answers.

    Args:
        data_dir: where it keeps everything; formatted when empty, taken up again otherwise. Default:
            `kafka/data` in the state folder when remembered, else a new temporary folder, which `stop_broker`
            does not remove.
        port: default 9092 if it is free and the broker is remembered, else a free one.
        remember: be the machine's one broker that `freshet kafka stop` knows; if that runs already, it is
            returned.
        progress: told in words what takes long.
        die_with_parent: on Linux, let the kernel kill the broker when the thread that called this ends.
        properties: lines of `server.properties` in place of ours; `{default}` in a value stands for ours.

    Raises:
        EmbeddedBrokerError: Java, Maven or the jars are missing, or the broker did not come up; says what it
            logged.
    """
    if remember and (known := running_broker()) is not None:
        return known
    if port is not None and not _is_free(port):
        raise EmbeddedBrokerError(
            f"{HOST}:{port} is in use. Stop what listens there, or name another with --port."
        )
    java = find_java()
    libs = kafka_jars(java, progress)
    if data_dir is None:
        home = default_state_dir() / "kafka" / "data"
        data_dir = home if remember else Path(tempfile.mkdtemp(prefix="freshet-kafka-"))
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    if progress:
        progress(f"starting Apache Kafka with Java {java.version} ({java.origin}) in {data_dir}")
    said = ""
    for _ in range(START_ATTEMPTS):
        chosen = port or (DEFAULT_PORT if remember and _is_free(DEFAULT_PORT) else _free_port())
        result = _attempt(java, libs, data_dir, chosen, die_with_parent, properties or {})
        if isinstance(result, BrokerInfo):
            if remember:
                _remember(result)
            return result
        said = result
        if port or "BindException" not in said:
            break
    raise EmbeddedBrokerError(
        f"the embedded broker in {data_dir} did not come up on {HOST}:{chosen}; its log ends:"
        f" {said[-2000:]}. Free the port or name another with --port; if the folder is damaged, name another"
        " with --data-dir."
    )


def _remember(info: BrokerInfo) -> None:
    file = _state_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_bytes(msgspec.json.encode(info))
    part.replace(file)


def _forget(info: BrokerInfo) -> None:
    noted = running_broker()
    if noted is None or noted == info:
        _state_file().unlink(missing_ok=True)


def _wait_gone(info: BrokerInfo, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while _alive(info):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def stop_broker(info: BrokerInfo | None = None, *, now: bool = False, remove_data: bool = False) -> bool:
    """Stop a broker (default: the remembered one) and tell whether there was one to stop.

    It is asked (SIGTERM) and after 20 s killed; `now` kills at once, for data that is thrown away. The
    process is known by pid and start time, so a stranger who got the pid later is never touched.
    """
    target = info or running_broker()
    if target is None:
        return False
    stopped = _alive(target)
    if stopped:
        os.kill(target.pid, signal.SIGKILL if now else signal.SIGTERM)
        if not _wait_gone(target, STOP_S):
            os.kill(target.pid, signal.SIGKILL)
            _wait_gone(target, STOP_S)
    child = _children.pop(target.pid, None)
    if child is not None:
        child.wait(STOP_S)
    _forget(target)
    if remove_data:
        shutil.rmtree(target.data_dir, ignore_errors=True)
    return stopped
