"""Snapshots of the learned item state: (state, learning-log offset), so that a start replays a tail, not a
history.

A snapshot is one safetensors file, written beside and then renamed. Its name holds the offset and the first
16 hex digits of the SHA-256 of its bytes, so a truncated or altered file is noticed before it is used.
Snapshots lie under the id of the topic they belong to: a re-created log has another id, and none of the old
snapshots can be mistaken for its own.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import uuid

import fsspec
from safetensors import SafetensorError

from online_models.errors import SnapshotMismatchError
from online_models.item_state import ItemState
from streams.errors import DataLossError, SettingsError, StateError
from streams.reading import watermarks
from streams.settings import Settings
from streams.topic_admin import topic_ids

__all__ = ["SnapshotStore"]

log = logging.getLogger("freshet.snapshots")

_NAME = re.compile(r"^items-(\d{20})-([0-9a-f]{16})\.safetensors$")


_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError)
"""What reading a file raises that has its digest and yet is no snapshot, or that the store does not give."""


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"setting [state] dir = {url!r}: {error}. Folders work as they are; install freshet[s3] or"
            " freshet[gcs] for object storage, or the fsspec package of another store."
        ) from error
    return filesystem, str(path)


class SnapshotStore:
    """The last few snapshots of one learning log, in a folder or any store that fsspec knows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.names["interactions"]
        self._fs, path = _open(settings.state.url().rstrip("/"))
        self._dir = f"{path}/{topic_ids(settings, [self._topic])[self._topic]}"

    @property
    def place(self) -> str:
        """The folder, as it stands in messages."""
        return str(self._dir)

    def names(self) -> list[str]:
        """File names of whole snapshots, newest first."""
        if not self._fs.exists(self._dir):
            return []
        found = (path.rsplit("/", 1)[-1] for path in self._fs.ls(self._dir, detail=False))
        return sorted((name for name in found if _NAME.match(name)), reverse=True)

    def save(self, items: ItemState) -> str:
        """Write `items` under its offset unless it is there already, and drop all but the last few."""
        started = time.monotonic()
        data = items.to_bytes()
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"items-{items.offset:020d}-{digest}.safetensors"
        target = f"{self._dir}/{name}"
        if not self._fs.exists(target):
            self._fs.makedirs(self._dir, exist_ok=True)
            beside = f"{self._dir}/.{name}.{uuid.uuid4().hex}"
            try:
                self._fs.pipe_file(beside, data)
                self._fs.mv(beside, target)
            finally:
                if self._fs.exists(beside):
                    self._fs.rm_file(beside)
        for old in self.names()[self._settings.worker.snapshots_kept :]:
            try:
                self._fs.rm_file(f"{self._dir}/{old}")
            except FileNotFoundError:
                continue  # another worker on this store removed it first
        log.info("snapshot %s: %d bytes in %.2f s", name, len(data), time.monotonic() - started)
        return name

    def _listed(self) -> list[str]:
        try:
            return self.names()
        except Exception as error:  # a store's client may raise anything
            raise StateError(
                f"snapshots in {self._dir} can't be listed: {error!r}. Check [state] dir, and the rights and"
                " credentials of this user there."
            ) from error

    def newest_or_empty(self) -> ItemState:
        """The newest snapshot that is whole and fits; else an empty state, if the whole log is still there.

        Raises:
            DataLossError: no snapshot can be used, and the learning log no longer starts at its beginning.
            SnapshotMismatchError: the only snapshots are of other model settings.
            StateError: the store does not answer.
        """
        [(low, end)] = watermarks(self._settings, [(self._topic, 0)]).values()
        mismatch: SnapshotMismatchError | None = None
        for name in self._listed():
            offset = int(name.split("-")[1])
            if not low <= offset <= end:
                log.warning("snapshot %s: the log holds offsets %d to %d; not used", name, low, end)
                continue
            try:
                data = self._fs.cat_file(f"{self._dir}/{name}")
                if hashlib.sha256(data).hexdigest()[:16] != name.split("-")[2].partition(".")[0]:
                    log.error(
                        "snapshot %s: its bytes do not have its digest (truncated or altered); not used", name
                    )
                    continue
                return ItemState.from_bytes(self._settings.models, data)
            except FileNotFoundError:
                continue  # another worker on this store has just replaced it by a newer one
            except SnapshotMismatchError as error:
                log.warning("snapshot %s: %s; not used", name, error)
                mismatch = error
            except _UNREADABLE as error:
                log.error("snapshot %s: %r; not used", name, error)
        if low > 0:
            raise mismatch or DataLossError(
                f"{self._topic}[0]: the log starts at offset {low} and no usable snapshot reaches it. Copy "
                "a snapshot from "
                f"another worker into {self._dir}, or start on a new topic prefix."
            )
        return ItemState(self._settings.models)
