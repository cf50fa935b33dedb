"""Settings of the model registry."""

from __future__ import annotations

from typing import Annotated

import msgspec


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where versions lie (any fsspec URL or a folder; empty: the state folder), under which model name, and
    how large a file may be."""

    url: str = ""
    model_name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "ranker"
    max_file_bytes: Annotated[int, msgspec.Meta(ge=1)] = 512 * 1024 * 1024
