"""Encoders: from texts or files to vectors, by ONNX Runtime."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.content.encoder_session import EncoderSession
from serving.content.errors import ContentError
from serving.content.files import model_input
from serving.content.settings import EncoderSettings

__all__ = ["FileEncoder", "TextEncoder", "unit_rows"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

TEXTS_AT_ONCE = 16
"""A batch of 16 texts of 128 tokens takes about 50 MB, and a loaded core a second."""


def unit_rows(vectors: Float32) -> Float32:
    """Rows float32[n, D] divided by their lengths; rows of zeros stay."""
    norm = np.sqrt(np.sum(np.square(vectors, dtype=np.float64), axis=1, keepdims=True))
    return (vectors / np.where(norm > 0.0, norm, 1.0)).astype(np.float32)


class TextEncoder:
    """Texts to vectors of length 1.

    The graph reads input_ids and attention_mask int64[B, T], and token_type_ids where it has such an input.
    It gives one vector per text, [B, D], or one per token, [B, T, D], of which the mean over the text's
    tokens is taken.

    >>> encoder = TextEncoder(folder / "model.onnx", folder / "tokenizer.json")  # doctest: +SKIP
    >>> encoder.encode(["Toy Story (1995)"]).shape  # doctest: +SKIP
    (1, 384)
    """

    def __init__(
        self, model: Path | bytes, tokenizer: Path | bytes, max_tokens: int = 128, threads: int = 1
    ) -> None:
        """`model` and `tokenizer` by path or as bytes. Raises ContentError when one can't be loaded."""
        session = EncoderSession(model, threads)
        self._session, self._tokenizer = session, _tokenizer(tokenizer, max_tokens)
        self._inputs = {port.name for port in session.inputs}
        known = {"input_ids", "attention_mask", "token_type_ids"}
        shape = session.outputs[0].shape
        if not {"input_ids", "attention_mask"} <= self._inputs <= known or len(shape) not in (2, 3):
            raise ContentError(
                f"the text model has inputs {sorted(self._inputs)} and a first output of shape {shape}; "
                "needed are input_ids and attention_mask, and [batch, D] or [batch, tokens, D]"
            )
        self.digest = _digest(model, tokenizer, str(max_tokens).encode())
        """Of model, tokenizer and longest text: vectors of one digest can be compared."""
        self.dim = shape[-1] or int(self.encode(["a"]).shape[1])

    def encode(self, texts: Sequence[str]) -> Float32:
        """float32[n, D]; texts of like length share a batch, so that little is padded."""
        ids = [self._tokenizer.encode(text).ids for text in texts]  # as a batch it would take every core
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        found: list[Float32 | None] = [None] * len(ids)
        for start in range(0, len(order), TEXTS_AT_ONCE):
            part = order[start : start + TEXTS_AT_ONCE]
            for n, vector in zip(part, self._batch([ids[n] for n in part]), strict=True):
                found[n] = vector
        vectors = [vector for vector in found if vector is not None]
        return np.stack(vectors) if vectors else np.zeros((0, self.dim), dtype=np.float32)

    def _batch(self, ids: list[list[int]]) -> Float32:
        tokens = np.zeros((len(ids), max(1, *map(len, ids))), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, found in enumerate(ids):
            tokens[row, : len(found)], mask[row, : len(found)] = found, 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        vectors = self._session.run({name: feeds[name] for name in self._inputs})
        if vectors.ndim == 3:
            real = mask[:, :, None].astype(np.float32)
            vectors = (vectors * real).sum(axis=1) / np.maximum(real.sum(axis=1), 1.0)
        return _finite(unit_rows(vectors))


class FileEncoder:
    """Files to vectors of length 1, one at a time: an image, a sound or an array (see `files.py`)."""

    def __init__(self, model: Path | bytes, settings: EncoderSettings, threads: int = 1) -> None:
        """`model` by path or as bytes. Raises ContentError when it can't be loaded."""
        self._session, self._settings = EncoderSession(model, threads), settings
        if len(self._session.inputs) != 1:
            names = [port.name for port in self._session.inputs]
            raise ContentError(f"the encoder {settings.model} has inputs {names}, but one is needed")
        self._input = self._session.inputs[0]
        shape = self._session.outputs[0].shape
        known = [size or 0 for size in shape[1:]]
        if not known or not all(known):
            raise ContentError(
                f"the encoder {settings.model} has a first output of shape {shape}: export it with fixed "
                "sizes after the batch's, so that the vector's dimension is known"
            )
        self.dim = math.prod(known)
        steps = f"{settings.size} {settings.mean} {settings.std} {settings.sample_rate} {settings.seconds}"
        self.digest = _digest(model, steps.encode())

    def encode(self, name: str, data: bytes) -> Float32:
        """float32[D] of a file's bytes; its kind is told by its name's suffix. Raises ContentError."""
        feed = model_input(name, data, self._input, self._settings)
        vector = self._session.run({self._input.name: feed}).reshape(1, -1)
        if vector.shape[1] != self.dim:
            raise ContentError(f"{name}: the encoder gave {vector.shape[1]} values, not {self.dim}")
        found: Float32 = _finite(unit_rows(vector))[0]
        return found


def _finite(vectors: Float32) -> Float32:
    if not np.isfinite(vectors).all():
        raise ContentError("the encoder gave values that are not finite")
    return vectors


def _tokenizer(source: Path | bytes, max_tokens: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ContentError(
            f"texts are cut into tokens by the package tokenizers, which can't be loaded ({error}): "
            "install the `text` extra of this package"
        ) from error
    try:
        text = source.decode("utf-8") if isinstance(source, bytes) else source.read_text("utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        raise ContentError(f"the tokenizer can't be loaded: {error!r}") from error
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def _digest(*parts: Path | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.read_bytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
