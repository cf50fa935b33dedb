"""Settings of the items' content vectors. Imports neither onnxruntime nor tokenizers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["ContentSettings", "EncoderSettings"]

Dimension = Annotated[int, Meta(ge=1, le=4096)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]+$", max_length=64)]
Channels = tuple[float, float, float]


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An ONNX encoder that runs on a file of each item: one input, and a vector as its first output.

    `model`: path or fsspec URL of the ONNX file.
    `field`: the label of an item that holds its file's path, relative to `root`.
    `root`: folder or fsspec URL under which the files lie; nothing outside it is read.
    `size`: pixels of an image's side after fitting. `mean` and `std`: of each channel, of values in 0 to 1.
    `sample_rate`: of WAV files, in Hz. `seconds`: sound beyond is cut, less is filled up with silence.
    `max_file_bytes`: a larger file is refused.
    """

    model: str
    field: Annotated[str, Meta(min_length=1)]
    root: Annotated[str, Meta(min_length=1)]
    size: Annotated[int, Meta(ge=1, le=4096)] = 224
    mean: Channels = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Meta(gt=0)], Annotated[float, Meta(gt=0)], Annotated[float, Meta(gt=0)]] = (
        0.229,
        0.224,
        0.225,
    )
    sample_rate: Annotated[int, Meta(ge=1, le=384_000)] = 16_000
    seconds: Annotated[float, Meta(gt=0, le=600)] = 10.0
    max_file_bytes: Annotated[int, Meta(ge=1, le=1 << 30)] = 16 << 20


class ContentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of items beyond their ids. Trainer and workers must have these alike."""

    text: bool = False
    """Encode items' texts; needs the `text` extra."""
    text_model: str = ""
    """Path or fsspec URL of a folder with model.onnx and tokenizer.json; "": all-MiniLM-L6-v2, fetched."""
    text_fields: Annotated[tuple[Name, ...], Meta(min_length=1)] = ("title", "categories", "description")
    """What makes up the text, in this order; a name that is no field of an item is one of its labels."""
    text_tokens: Annotated[int, Meta(ge=4, le=512)] = 128
    """Longer texts are cut."""
    embeddings: dict[Name, Dimension] = {}
    """Names and dimensions of the vectors in items' `embeddings` that are used."""
    encoders: dict[Name, EncoderSettings] = {}
    """Encoders of items' files, by the modality's name."""
    max_items: Annotated[int, Meta(ge=1, le=100_000_000)] = 200_000
    """With more, the item whose entry came longest ago goes without vectors."""
    introduce_items: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    """Newest items of the catalogue that content may propose before anybody has used them, at most, and never
    more than an eighth of `models.max_items`. Looked for among twice as many of the newest entries, or 5,000.
    0: none."""
    introduce_per_batch: Annotated[int, Meta(ge=1, le=10_000)] = 256
    """So many of them are written to the learning log in one transaction."""
    cpu_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of a core that encoding may take while a worker serves."""
    cache_bytes: Annotated[int, Meta(ge=0)] = 1 << 30
    """Largest cache of vectors on disk, for each encoder; beyond, it starts anew. 0: no cache."""
