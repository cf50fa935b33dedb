"""Reading bounded files by path or fsspec URL, and the paths that items name."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import unquote

import fsspec

from serving.content.errors import ContentError

__all__ = ["beneath", "read_file"]


def read_file(url: str, max_bytes: int | None = None) -> bytes:
    """A file's bytes. Raises ContentError when it can't be read or is larger than `max_bytes`."""
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(-1 if max_bytes is None else max_bytes + 1)
    except Exception as error:  # a store's client may raise anything
        raise ContentError(f"{url} can't be read: {error!r}") from error
    if max_bytes is not None and len(data) > max_bytes:
        raise ContentError(f"{url} is larger than the {max_bytes} bytes of max_file_bytes")
    return data


def beneath(root: str, path: str) -> str:
    """`path` under the folder or URL `root`. Raises ContentError for a path that would lead out of it: items
    come from producers, who must not choose what a worker reads.

    >>> beneath("s3://shop/images/", "a/1.png")
    's3://shop/images/a/1.png'
    """
    parts = PurePosixPath(path).parts
    plain = unquote(path)  # a web server, or the client before it, reads %2e%2e as ..
    leads_out = plain.startswith("/") or ".." in PurePosixPath(plain).parts
    if not parts or leads_out or any(sign in plain for sign in ("://", "::", "\\")):
        raise ContentError(
            f"{path!r} is no path beneath {root}: give one without '..', '\\', scheme or leading '/'"
        )
    return "/".join([root.rstrip("/"), *parts])
