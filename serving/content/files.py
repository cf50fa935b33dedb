"""From an item's file to an encoder's input, by the suffix of its name.

- `.npy`: an array, as numpy wrote it; `.f32`: little-endian float32 numbers, in the input's shape.
- `.wav`: PCM of 8, 16, 24 or 32 bits; channels are averaged, values lie in -1 to 1, the length is fixed.
- anything else is an image: fitted to a square about its middle, RGB, (value / 255 - mean) / std, channels
  first (or last, where the input's shape says so).
"""

from __future__ import annotations

import importlib
import io
import wave
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.content.encoder_session import Port
from serving.content.errors import ContentError
from serving.content.settings import EncoderSettings

__all__ = ["model_input"]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}


MAX_PIXELS = 50_000_000
"""Of an image: a small file may unfold to gigabytes."""


def model_input(name: str, data: bytes, port: Port, settings: EncoderSettings) -> npt.NDArray[Any]:
    """The array [1, ...] that `port` takes, of the bytes of the file called `name`. Raises ContentError."""
    if port.type not in _TYPES:
        raise ContentError(f"the encoder's input is {port.type}; known are {', '.join(_TYPES)}")
    suffix = name.lower().rpartition(".")[2]
    try:
        match suffix:
            case "npy":
                found = np.load(io.BytesIO(data), allow_pickle=False)
            case "f32":
                found = np.frombuffer(data, dtype="<f4").reshape([size or -1 for size in port.shape[1:]])
            case "wav":
                found = _sound(data, settings)
            case _:
                found = _image(data, port, settings)
    except ContentError as error:
        raise ContentError(f"{name}: {error}") from error
    except (ValueError, EOFError, OSError, SyntaxError, wave.Error) as error:
        raise ContentError(f"{name}: {len(data)} bytes can't be read as {suffix}: {error}") from error
    return _fitted(name, found, port)


def _fitted(name: str, found: npt.NDArray[Any], port: Port) -> npt.NDArray[Any]:
    """With a batch of one in front, where it is missing, in the input's type."""
    if found.dtype.kind not in "fiub":
        raise ContentError(f"{name}: an array of {found.dtype} holds no numbers")
    while found.ndim < len(port.shape):
        found = found[None]
    fits = found.ndim == len(port.shape) and found.shape[0] == 1
    if not fits or any(want not in (None, have) for want, have in zip(port.shape, found.shape, strict=True)):
        raise ContentError(f"{name}: an array of shape {found.shape}, but the encoder takes {port.shape}")
    return np.ascontiguousarray(found, dtype=_TYPES[port.type])


def _sound(data: bytes, settings: EncoderSettings) -> npt.NDArray[np.float32]:
    """float32[samples] of a WAV file."""
    with wave.open(io.BytesIO(data)) as file:
        channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
        frames = file.readframes(file.getnframes())
    if rate != settings.sample_rate:
        raise ContentError(
            f"{rate} samples a second, but sample_rate is {settings.sample_rate}: resample it first"
        )
    raw = np.frombuffer(frames[: len(frames) // (width * channels) * width * channels], dtype=np.uint8)
    bytes_of = raw.reshape(-1, channels, width)
    if width == 1:  # the one width that WAV stores without a sign
        samples = (bytes_of[:, :, 0].astype(np.float32) - 128.0) / 128.0
    else:
        wide = np.zeros((*bytes_of.shape[:2], 4), dtype=np.uint8)
        wide[:, :, 4 - width :] = bytes_of
        samples = wide.view("<i4")[:, :, 0].astype(np.float32) / np.float32(2**31)
    fixed = np.zeros(round(settings.seconds * rate), dtype=np.float32)
    mono = samples.mean(axis=1)[: len(fixed)]
    fixed[: len(mono)] = mono
    return fixed


def _image(data: bytes, port: Port, settings: EncoderSettings) -> npt.NDArray[Any]:
    try:
        image, ops = importlib.import_module("PIL.Image"), importlib.import_module("PIL.ImageOps")
    except ImportError as error:
        raise ContentError(
            f"images are decoded by Pillow, which can't be loaded ({error}): install the `images` extra of "
            "this package, or give .npy arrays"
        ) from error
    side = settings.size
    try:
        with image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ContentError(
                    f"the image has {opened.width} x {opened.height} pixels, at most {MAX_PIXELS:,} are "
                    "decoded"
                )
            fitted = ops.fit(opened.convert("RGB"), (side, side))
    except image.DecompressionBombError as error:
        raise ContentError(f"the image is too large to decode: {error}") from error
    pixels = np.asarray(fitted, dtype=np.float32) / 255.0
    if port.type == "tensor(uint8)":
        scaled: npt.NDArray[Any] = np.asarray(fitted)
    else:
        scaled = (pixels - np.array(settings.mean, np.float32)) / np.array(settings.std, np.float32)
    channels_last = len(port.shape) == 4 and port.shape[3] == 3 and port.shape[1] != 3
    return scaled if channels_last else scaled.transpose(2, 0, 1)
