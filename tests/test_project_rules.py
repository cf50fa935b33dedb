"""Rules of the house that no linter knows: what may stand in no file, and what each file must look like."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("streams", "serving", "online_models")
MAX_MODULE_LINES = 400
LONG_FOR_A_REASON = {
    # numba's disk cache watches only the called kernel's own file: kernels that call each other share one
    "online_models/kernels.py": 600,
    "online_models/als_kernels.py": 750,
    "online_models/covisitation_kernels.py": 450,
    "streams/user_kernels.py": 1200,
    "streams/event_kernels.py": 800,
    "serving/kernels.py": 800,
}
SKIPPED_FOLDERS = {".git", ".venv", "build", "dist", "node_modules", "__pycache__"}

# The names are put together here, so that this file does not break its own rule.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("repo", "maven", "apache"),
        ("repo1", "maven"),
        ("registry", "npmjs"),
        ("download", "pytorch"),
        ("huggingface", "co"),
        ("conda", "anaconda"),
    )
)
FORBIDDEN = {
    "a package registry's address": re.compile("|".join(map(re.escape, REGISTRY_HOSTS))),
    "a path on somebody's machine": re.compile(r"(?<![\w.~$}/-])/(?:home|Users|root|work|tmp/dev)/\w"),
    "unfinished work": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b"),
}


def text_files(root: Path) -> list[Path]:
    """What git tracks or would track; in an unpacked source archive, every file."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [root / name for name in listing.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in root.rglob("*") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def breaches(paths: list[Path], root: Path) -> list[str]:
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            for what, pattern in FORBIDDEN.items():
                if match := pattern.search(line):
                    found.append(f"{path.relative_to(root)}:{number}: {what}: {match[0]!r}")
    return found


def modules() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) >= 20, f"only {len(found)} modules found under {ROOT}"
    return found


def silent_handlers(source: str) -> list[int]:
    """Lines of handlers that drop every exception without a word."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and all(isinstance(line, ast.Pass | ast.Continue) or ast.unparse(line) == "..." for line in node.body)
    ]


def test_no_file_holds_what_none_may() -> None:
    paths = text_files(ROOT)
    assert len(paths) >= 50, f"only {len(paths)} files found under {ROOT}"
    found = breaches(paths, ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "index-url = https://" + "pypi" + ".org/simple",
        "DATA = '/home" + "/somebody/ml-100k'",
        "# TO" + "DO: later",
    ],
)
def test_a_breach_is_found(tmp_path: Path, line: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(f"x = 1\n{line}\n", "utf-8")
    assert len(breaches([file], tmp_path)) == 1


def test_modules_stay_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text("utf-8").splitlines()) for path in modules()}
    long = {
        str(path): lines
        for path, lines in lengths.items()
        if lines > LONG_FOR_A_REASON.get(str(path), MAX_MODULE_LINES)
    }
    assert not long, f"modules over {MAX_MODULE_LINES} lines: {long}"


def test_no_exception_is_dropped_in_silence() -> None:
    assert silent_handlers("try:\n    f()\nexcept Exception:\n    pass\n") == [3]
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        for line in silent_handlers(path.read_text("utf-8"))
    ]
    assert not found, f"silent handlers: {', '.join(found)}"


def test_arrays_are_never_unpickled() -> None:
    found = [
        str(path.relative_to(ROOT)) for path in modules() if "allow_pickle=True" in path.read_text("utf-8")
    ]
    assert not found


def test_every_folder_of_tests_is_a_package() -> None:
    """Without tests/__init__.py a folder of tests would shadow the package it is named after."""
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert len(folders) >= 4
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]


def test_every_source_folder_is_a_typed_package() -> None:
    folders = {path.parent for path in modules()}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()]


def lock_entries() -> dict[str, list[Requirement]]:
    entries: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            entries.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return entries


def test_the_lock_pins_versions_and_names_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    assert "://" not in text
    assert not [line for line in text.splitlines() if line.startswith("-")]
    entries = lock_entries()
    assert len(entries) > 50
    assert "freshet" not in entries, "that is a stranger's project of the same name: lock with `make lock`"
    for requirement in (one for many in entries.values() for one in many):
        assert requirement.url is None
        assert [spec.operator for spec in requirement.specifier] == ["=="], str(requirement)


def test_the_lock_meets_pyproject() -> None:
    """Every direct dependency is locked, at a version that its bounds allow. Else: `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *extras["train"],
        *extras["embedded"],
        *project["dependency-groups"]["dev"],
    ]
    entries = lock_entries()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == "freshet":
            continue
        assert name in entries, f"{name} is not in requirements.lock: make lock"
        for locked in entries[name]:
            version = next(iter(locked.specifier)).version
            assert requirement.specifier.contains(version, prereleases=True), (
                f"{requirement}: locked {version}: make lock"
            )
