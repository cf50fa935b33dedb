"""What ships is what is tested: the wheel, installed where no source folder is in reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from streams import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("streams", "online_models", "serving")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run without the caller's Python path; a failure shows what the command said."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FRESHET_"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def hatch(folder: Path, target: str, out: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=folder)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hatch(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and links to everything this one has except Freshet itself."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    python = folder / "venv" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-index",
        "--no-deps",
        wheel,
        cwd=folder,
    )
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            ours = "freshet" in entry.name.lower() or entry.name in PACKAGES or entry.suffix == ".pth"
            if not ours and not (dependencies / entry.name).exists():
                (dependencies / entry.name).symlink_to(entry)
    site_packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    (Path(site_packages) / "dependencies.pth").write_text(f"{dependencies}\n", "utf-8")
    return folder


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert len(sources) >= 20
    assert not sources - names, "sources that the wheel lacks"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"freshet-{__version__}.dist-info"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "streams/monitor/page.html" in names
    assert f"freshet-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_takes_the_broker_project_along(wheel: Path) -> None:
    pom = (ROOT / "deploy" / "kafka" / "pom.xml").read_bytes()
    assert zipfile.ZipFile(wheel).read("streams/kafka-pom.xml") == pom


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = hatch(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    rebuilt = hatch(folder, "wheel", tmp_path / "again")
    assert rebuilt.name == wheel.name
    assert set(zipfile.ZipFile(rebuilt).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_installed_packages_are_found_and_are_ours_alone(installed: Path) -> None:
    """Another distribution with a top-level `streams` would overwrite ours without a word from pip."""
    code = """if True:
        import importlib, importlib.metadata as metadata, importlib.resources as resources, json
        owners = metadata.packages_distributions()
        names = ("streams", "online_models", "serving")
        print(json.dumps({
            "owners": {name: owners[name] for name in names},
            "files": {name: importlib.import_module(name).__file__ for name in names},
            "version": metadata.version("freshet"),
            "pom": resources.files("streams").joinpath("kafka-pom.xml").is_file(),
        }))"""
    said = json.loads(run(installed / "venv" / "bin" / "python", "-c", code, cwd=installed))
    assert said["owners"] == {name: ["freshet"] for name in PACKAGES}
    assert all(Path(file).is_relative_to(installed / "venv") for file in said["files"].values()), said[
        "files"
    ]
    assert said["version"] == __version__
    assert said["pom"]


def test_every_installed_module_can_be_imported(installed: Path) -> None:
    code = f"""if True:
        import importlib, pkgutil
        count = 0
        for package in {PACKAGES!r}:
            for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
                importlib.import_module(found.name)
                count += 1
        print(count)"""
    assert int(run(installed / "venv" / "bin" / "python", "-c", code, cwd=installed)) >= 20


def test_the_installed_command_answers(installed: Path) -> None:
    command = installed / "venv" / "bin" / "freshet"
    text = run(command, "--help", cwd=installed)
    for name in ("demo", "kafka", "topics", "worker", "trainer", "monitor", "replay", "recommend", "doctor"):
        assert name in text


def test_dependencies_have_one_onnxruntime_on_each_platform() -> None:
    """Both distributions own the package `onnxruntime`: together they overwrite each other."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    both = [one for one in map(Requirement, project["dependencies"]) if one.name.startswith("onnxruntime")]
    for system, machine in [
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
        ("win32", "AMD64"),
    ]:
        chosen = [
            one.name
            for one in both
            if one.marker and one.marker.evaluate({"sys_platform": system, "platform_machine": machine})
        ]
        assert len(chosen) == 1, f"{system} {machine}: {chosen}"
