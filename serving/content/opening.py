"""From settings to the table of content vectors, with the encoders that they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.content.background import Content, Modality
from serving.content.encoder import FileEncoder, TextEncoder
from serving.content.errors import ContentError
from serving.content.minilm import minilm_folder
from serving.content.settings import ContentSettings, EncoderSettings
from serving.content.sources import beneath, read_file
from serving.content.vector_cache import VectorCache
from serving.content.vectors import ContentVectors

__all__ = ["open_content", "text_encoder", "text_of"]

Float32 = npt.NDArray[np.float32]
TEXT = "text"
MAX_TEXT_CHARS = 20_000
"""Beyond what 512 tokens take; the tokenizer would read all of a longer text before cutting it."""


def open_content(settings: ContentSettings, folder: Path, cpu_share: float | None = None) -> ContentVectors:
    """The table that the settings ask for, empty; with nothing asked for, one of width 0 that costs nothing.

    `folder` keeps encoders and their vectors from start to start; `cpu_share` goes before that of the
    settings, which is a worker's. Raises ContentError when an encoder that
    the settings name can't be had or loaded.
    """
    modalities = [_text(settings, folder)] if settings.text else []
    for name, encoder in sorted(settings.encoders.items()):
        modalities.append(_file(name, encoder, settings, folder))
    names = [modality.name for modality in modalities] + list(settings.embeddings)
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ContentError(
            f"setting content: {', '.join(doubled)} is named twice among text, content.embeddings and "
            "content.encoders: give each its own name"
        )
    return ContentVectors(
        modalities,
        settings.embeddings,
        max_items=settings.max_items,
        cpu_share=settings.cpu_share if cpu_share is None else cpu_share,
    )


def text_encoder(settings: ContentSettings, folder: Path, threads: int = 1) -> TextEncoder:
    """The encoder of texts that the settings name; MiniLM, kept in `folder`, where they name none."""
    if not settings.text_model:
        made = minilm_folder(folder)
        return TextEncoder(made / "model.onnx", made / "tokenizer.json", settings.text_tokens, threads)
    where = settings.text_model.rstrip("/")
    return TextEncoder(
        _file_or_bytes(f"{where}/model.onnx"),
        read_file(f"{where}/tokenizer.json"),
        settings.text_tokens,
        threads,
    )


def text_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The named fields of an item as one text, a list as `a, b`; None where it has none of them.

    >>> text_of({"title": "Tea", "categories": ["drink", "hot"]}, ["title", "categories"])
    'Tea. drink, hot'
    """
    labels = fields.get("labels") or {}
    found = [fields[name] if name in fields else labels.get(name) for name in names]
    parts = [", ".join(map(str, one)) if isinstance(one, list | tuple) else str(one or "") for one in found]
    parts = [part.strip().rstrip(".") for part in parts]
    return ". ".join(part for part in parts if part)[:MAX_TEXT_CHARS] or None


def _text(settings: ContentSettings, folder: Path) -> Modality:
    encoder = text_encoder(settings, folder)
    return Modality(
        name=TEXT,
        dim=encoder.dim,
        digest=encoder.digest,
        source_of=lambda fields: text_of(fields, settings.text_fields),
        load=lambda text: Content("", text.encode()),
        encode=lambda contents: encoder.encode([content.data.decode() for content in contents]),
        cache=_cache(folder, TEXT, encoder.digest, encoder.dim, settings),
    )


def _file(name: str, wanted: EncoderSettings, settings: ContentSettings, folder: Path) -> Modality:
    encoder = FileEncoder(_file_or_bytes(wanted.model), wanted)

    def load(path: str) -> Content:
        return Content(path, read_file(beneath(wanted.root, path), wanted.max_file_bytes))

    return Modality(
        name=name,
        dim=encoder.dim,
        digest=encoder.digest,
        source_of=_label(wanted.field),
        load=load,
        encode=lambda contents: np.stack([encoder.encode(*content) for content in contents]),
        cache=_cache(folder, name, encoder.digest, encoder.dim, settings),
        source_may_change=True,
    )


def _label(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    def source_of(fields: Mapping[str, Any]) -> str | None:
        value = (fields.get("labels") or {}).get(name)
        return str(value) if value not in (None, "") else None

    return source_of


def _cache(folder: Path, name: str, digest: str, dim: int, settings: ContentSettings) -> VectorCache:
    return VectorCache(folder / "vectors" / f"{name}-{digest[:16]}", dim, settings.cache_bytes)


def _file_or_bytes(url: str) -> Path | bytes:
    """A local file by its path, which may have its weights beside it; any other store's as bytes."""
    return read_file(url) if "://" in url else Path(url)
