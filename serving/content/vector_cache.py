"""Vectors that were encoded before, in one append-only file that all processes of a machine share.

A record is a key of 32 bytes, D float32 and a CRC-32 of both. Whoever encodes holds the file's lock, and
looks first at what the others have added: a text is encoded once on a machine, however many workers it has.
Records are of one size: one that fails its CRC is passed over, and a piece of one at the end is cut off by
the next writer.
"""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["VectorCache"]

log = logging.getLogger("freshet.content")

Float32 = npt.NDArray[np.float32]

KEY_BYTES, CRC_BYTES = 32, 4
READ_RECORDS = 1024


class VectorCache:
    """float32[dim] by key. A disk that fails costs encodings, never a vector: it is told once.

    Args:
        file: made on the first write; None keeps nothing.
        dim: of the vectors; a file serves one encoder.
        max_bytes: a file that would grow beyond starts anew.
    """

    def __init__(self, file: Path | None, dim: int, max_bytes: int = 1 << 30) -> None:
        self._file = file if max_bytes > 0 else None
        self._record = KEY_BYTES + 4 * dim + CRC_BYTES
        self._dim, self._max_bytes = dim, max_bytes
        self._places: dict[bytes, int] = {}
        self._read = 0  # records that were looked at

    def find(self, keys: Sequence[bytes]) -> list[Float32 | None]:
        """The vectors of keys, None where there is none."""
        found: list[Float32 | None] = [None] * len(keys)
        with self._opened() as handle:
            if handle is not None:
                found = self._looked_up(handle, keys)
        return found

    def find_or_make(self, keys: Sequence[bytes], make: Callable[[list[int]], Float32]) -> list[Float32]:
        """The vectors of keys. Those that no process has made yet are made, `make` being given their places
        among the keys, and kept."""
        with self._opened(for_writing=True) as handle:
            found: list[Float32 | None] = [None] * len(keys)
            if handle is not None:
                found = self._looked_up(handle, keys)
            missing = [n for n, vector in enumerate(found) if vector is None]
            if missing:
                made = np.ascontiguousarray(make(missing), dtype="<f4")
                if handle is not None:
                    self._append(handle, [keys[n] for n in missing], made)
                for n, vector in zip(missing, made, strict=True):
                    found[n] = vector
        return [vector for vector in found if vector is not None]

    @contextmanager
    def _opened(self, for_writing: bool = False) -> Iterator[int | None]:
        """The file's descriptor, locked for writing; None where there is no file or the disk fails."""
        handle = None
        try:
            if self._file is not None and (for_writing or self._file.exists()):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
                if for_writing:
                    fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            self._give_up(error)
            if handle is not None:  # opened, but it can't be locked
                os.close(handle)
                handle = None
        try:
            yield handle
        finally:
            if handle is not None:
                os.close(handle)  # and with it goes the lock

    def _looked_up(self, handle: int, keys: Sequence[bytes]) -> list[Float32 | None]:
        self._refresh(handle)
        found = [self._vector(handle, key) for key in keys]
        if self._read == 0:  # the index was of a file that is no more
            self._refresh(handle)
            found = [self._vector(handle, key) for key in keys]
        return found

    def _refresh(self, handle: int) -> None:
        """Take in what has been appended since; a file that was cut is read from its beginning."""
        try:
            if os.fstat(handle).st_size < self._read * self._record:
                self._places.clear()
                self._read = 0
            while data := os.pread(handle, READ_RECORDS * self._record, self._read * self._record):
                records = [data[start : start + self._record] for start in range(0, len(data), self._record)]
                for record in records:
                    if len(record) < self._record:
                        return
                    if self._is_whole(record):
                        self._places[record[:KEY_BYTES]] = self._read
                    self._read += 1
        except OSError as error:
            self._give_up(error)

    def _vector(self, handle: int, key: bytes) -> Float32 | None:
        place = self._places.get(key)
        if place is None:
            return None
        try:
            record = os.pread(handle, self._record, place * self._record)
        except OSError as error:
            self._give_up(error)
            return None
        if not self._is_whole(record) or record[:KEY_BYTES] != key:  # the file was begun anew meanwhile
            self._places.clear()
            self._read = 0
            return None
        return np.frombuffer(record, dtype="<f4", count=self._dim, offset=KEY_BYTES).astype(np.float32)

    def _append(self, handle: int, keys: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> None:
        bodies = [key + vector.tobytes() for key, vector in zip(keys, vectors, strict=True)]
        data = b"".join(body + zlib.crc32(body).to_bytes(CRC_BYTES, "little") for body in bodies)
        try:
            if self._read * self._record + len(data) > self._max_bytes:
                log.warning("the cache %s is full at %d bytes and starts anew", self._file, self._max_bytes)
                self._places.clear()
                self._read = 0
            os.ftruncate(handle, self._read * self._record)
            if len(data) <= self._max_bytes:
                os.pwrite(handle, data, self._read * self._record)
        except OSError as error:
            self._give_up(error)
            return
        self._refresh(handle)

    def _is_whole(self, record: bytes) -> bool:
        body, crc = record[:-CRC_BYTES], record[-CRC_BYTES:]
        return len(record) == self._record and zlib.crc32(body).to_bytes(CRC_BYTES, "little") == crc

    def _give_up(self, error: OSError) -> None:
        log.warning("the cache %s fails (%s): vectors are encoded again after each start", self._file, error)
        self._file = None
