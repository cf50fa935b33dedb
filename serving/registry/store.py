"""Immutable versions in a folder or an object store, through fsspec.

Layout: `<url>/<model name>/<version>/<file>`. A version is there when its `manifest.json` is, and that is
written last. Each file comes whole or not at all: in a folder it is written under another name and renamed;
an object store, which has no renaming, shows an object when all of it is there.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import msgspec

from serving.ranker.errors import RegistryError
from serving.registry.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    Manifest,
    digest_of,
)
from serving.registry.onnx_checks import OnnxFileError, check_onnx
from serving.registry.settings import RegistrySettings

__all__ = ["MAX_VERSION_CHARS", "Published", "Registry", "StoredVersion"]

MANIFEST_FILE = "manifest.json"
_FILES = (MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE, GOLDEN_FILE)
"""What every version holds; its manifest may name more."""
_FILE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*(\.[0-9A-Za-z_-]+)*")
_MAX_FILES = 32
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*(\.[0-9A-Za-z_-]+)*")
"""No slash and no two dots in a row: a version comes from a Kafka record, and must not lead out of the
folder."""
MAX_VERSION_CHARS = 128
_MAX_MANIFEST_BYTES = 1 << 20
_MISSING = (FileNotFoundError, NotADirectoryError)
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Protocols whose writes show a whole object or none. Renaming would copy it there, and ask for the right to
delete."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version as announced: the digest is the SHA-256 of its manifest's bytes."""

    manifest: Manifest
    digest: str
    uri: str


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version as read back, each file's digest and size checked."""

    manifest: Manifest
    digest: str
    files: dict[str, bytes]


class Registry:
    """Publishes and reads versions of one model name.

    >>> registry = Registry("memory://doctest-models")
    >>> registry.list()
    []
    """

    def __init__(self, url: str, settings: RegistrySettings | None = None) -> None:
        """`url` is a folder or any fsspec URL; of `settings`, the model's name and the size limit count."""
        settings = settings or RegistrySettings()
        self.url = url
        self.model_name = settings.model_name
        self.max_file_bytes = settings.max_file_bytes
        self._fs: Any
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = f"{str(root).rstrip('/')}/{self.model_name}"
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._shows_whole_objects = not _OBJECT_STORES.isdisjoint(protocols)

    def uri(self, version: str) -> str:
        """Where a version's files lie, as a URL of this registry."""
        return f"{self.url.rstrip('/')}/{self.model_name}/{version}"

    def publish(self, manifest: Manifest, files: Mapping[str, bytes]) -> Published:
        """Write the files, then the manifest; before that last step no reader sees the version.

        Raises RegistryError when the version exists, a file is not the one that the manifest names, is too
        large, or is an ONNX file that is not let in.
        """
        folder = self._folder(manifest.version)
        with self._speaking_of(f"read {self.uri(manifest.version)}"):
            exists = self._fs.exists(f"{folder}/{MANIFEST_FILE}")
        if exists:
            raise RegistryError(f"{self.uri(manifest.version)} is published already: versions never change")
        if set(files) != set(manifest.files) or not set(_FILES) <= set(files) or len(files) > _MAX_FILES:
            raise RegistryError(
                f"a version holds {', '.join(_FILES)} and what else its manifest names, up to {_MAX_FILES} "
                f"files; the manifest names {', '.join(sorted(manifest.files))}, given are "
                f"{', '.join(sorted(files))}"
            )
        for name, data in files.items():
            self._check_name(manifest.version, name)
            self._verify(manifest, name, data)
        document = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        with self._speaking_of(f"write {self.uri(manifest.version)}"):
            self._fs.makedirs(folder, exist_ok=True)
            for name, data in files.items():
                self._write(folder, name, data)
            self._write(folder, MANIFEST_FILE, document)
        return Published(manifest, digest_of(document), self.uri(manifest.version))

    def list(self) -> list[str]:
        """All published versions, oldest first (their names begin with the time)."""
        found: list[str] = []
        with self._speaking_of(f"list {self.url}"), contextlib.suppress(*_MISSING):
            self._fs.invalidate_cache()
            found = self._fs.glob(f"{self._root}/*/{MANIFEST_FILE}")
        return sorted(str(path).rsplit("/", 2)[1] for path in found)

    def manifest(self, version: str) -> tuple[Manifest, str]:
        """A version's manifest and digest. Raises RegistryError when it is not there or can't be read."""
        document = self._read(version, MANIFEST_FILE, _MAX_MANIFEST_BYTES)
        try:
            manifest = msgspec.json.decode(document, type=Manifest)
        except msgspec.DecodeError as error:
            raise RegistryError(f"{self.uri(version)}/{MANIFEST_FILE}: {error}", "manifest") from error
        if manifest.version != version:
            raise RegistryError(
                f"{self.uri(version)}/{MANIFEST_FILE} says it is version {manifest.version!r}", "manifest"
            )
        return manifest, digest_of(document)

    def fetch(
        self,
        version: str,
        expected_digest: str | None = None,
        names: Iterable[str] | None = None,
        where_there: Iterable[str] = (),
    ) -> StoredVersion:
        """Read a version's files, or those of some names and those of `where_there` that it has, and check
        them. Raises RegistryError where one is missing, changed, cut off or too large."""
        manifest, digest = self.manifest(version)
        if expected_digest is not None and digest != expected_digest:
            raise RegistryError(
                f"{self.uri(version)}: digest {digest}, announced was {expected_digest}", "digest"
            )
        files: dict[str, bytes] = {}
        more = [name for name in where_there if name in manifest.files]
        for name in manifest.files if names is None else [*names, *more]:
            files[name] = self._read(version, name, self.max_file_bytes, missing="file")
            self._verify(manifest, name, files[name])
        return StoredVersion(manifest, digest, files)

    def _folder(self, version: str) -> str:
        if len(version) > MAX_VERSION_CHARS or not _VERSION.fullmatch(version):
            raise RegistryError(
                f"{version[:MAX_VERSION_CHARS]!r} is no version: letters, digits, single dots, - and _ only",
                "manifest",
            )
        return f"{self._root}/{version}"

    def _check_name(self, version: str, name: str) -> None:
        """A file's name comes from a manifest, and must not lead out of the folder."""
        if name == MANIFEST_FILE or len(name) > MAX_VERSION_CHARS or not _FILE_NAME.fullmatch(name):
            raise RegistryError(
                f"{self.uri(version)}: {name[:MAX_VERSION_CHARS]!r} is no file's name", "manifest"
            )

    def _verify(self, manifest: Manifest, name: str, data: bytes) -> None:
        where = f"{self.uri(manifest.version)}/{name}"
        entry = manifest.files.get(name)
        if entry is None:
            raise RegistryError(f"{where}: the manifest names no such file", "manifest")
        if len(data) > self.max_file_bytes:
            raise RegistryError(
                f"{where}: {len(data)} bytes, at most {self.max_file_bytes} (registry.max_file_bytes)", "size"
            )
        if len(data) != entry.size_bytes:
            raise RegistryError(f"{where}: {len(data)} bytes, the manifest says {entry.size_bytes}", "digest")
        if digest_of(data) != entry.sha256:
            raise RegistryError(
                f"{where}: digest {digest_of(data)}, the manifest says {entry.sha256}", "digest"
            )
        if name.endswith(".onnx"):
            try:
                check_onnx(data)
            except OnnxFileError as error:
                raise RegistryError(f"{where}: {error}", "file") from error

    def _read(self, version: str, name: str, limit_bytes: int, missing: str = "store") -> bytes:
        """The whole file, its size looked at first, so that a huge one is never read. `missing`: the error's
        kind where it is not there; without its manifest, it may be the folder that is not there."""
        folder = self._folder(version)
        if name != MANIFEST_FILE:
            self._check_name(version, name)
        path = f"{folder}/{name}"
        with self._speaking_of(f"read {self.uri(version)}/{name}", missing):
            self._fs.invalidate_cache()
            size = int(self._fs.size(path))
            if size > limit_bytes:
                raise RegistryError(
                    f"{self.uri(version)}/{name}: {size} bytes, at most {limit_bytes} are read", "size"
                )
            return bytes(self._fs.cat_file(path))

    @contextlib.contextmanager
    def _speaking_of(self, doing: str, missing: str = "store") -> Iterator[None]:
        """What the store's client raises becomes a RegistryError that says what it was asked to do."""
        try:
            yield
        except RegistryError:
            raise
        except (
            Exception
        ) as error:  # a client's errors need be no OSError: botocore's of a lost connection is none
            kind = missing if isinstance(error, FileNotFoundError) else "store"
            raise RegistryError(f"can't {doing}: {error}", kind) from error

    def _write(self, folder: str, name: str, data: bytes) -> None:
        """A reader meets the whole file or none."""
        if self._shows_whole_objects:
            self._fs.pipe_file(f"{folder}/{name}", data)
            return
        beside = f"{folder}/.{name}.{uuid.uuid4().hex}"
        self._fs.pipe_file(beside, data)
        self._fs.mv(beside, f"{folder}/{name}")
