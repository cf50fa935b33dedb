"""Files to encoders' inputs, on encoders that give their input back."""

from __future__ import annotations

import io
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.content.encoder import FileEncoder
from serving.content.errors import ContentError
from serving.content.settings import EncoderSettings
from serving.content.sources import beneath, read_file
from tests.test_serving.content_cases import flat_encoder, saved


def settings(**changed: object) -> EncoderSettings:
    return EncoderSettings(model="m.onnx", field="file", root="files", **changed)  # type: ignore[arg-type]


def unit(values: object) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64).reshape(-1)
    return vector / np.linalg.norm(vector)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def wav(frames: bytes, width: int, channels: int = 1, rate: int = 8) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return buffer.getvalue()


def test_arrays_as_numpy_wrote_them_and_raw(tmp_path: Path) -> None:
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [2, 3]), settings())
    array = np.arange(1.0, 7.0).reshape(2, 3)
    assert encoder.dim == 6
    for name, data in (
        ("a.npy", npy(array)),
        ("a.npy", npy(array[None].astype(np.int16))),
        ("A.NPY", npy(np.asfortranarray(array))),
        ("a.f32", array.astype("<f4").tobytes()),
    ):
        np.testing.assert_allclose(encoder.encode(name, data), unit(array), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.npy", npy(np.zeros((3, 2))), r"a\.npy: an array of shape \(1, 3, 2\).*\(None, 2, 3\)"),
        ("a.npy", npy(np.zeros((4, 2, 3))), r"shape \(4, 2, 3\)"),
        ("a.npy", npy(np.zeros((2, 3)))[:-1], r"a\.npy: \d+ bytes can't be read as npy"),
        ("a.npy", b"", "can't be read as npy"),
        ("a.npy", npy(np.array([["a"] * 3] * 2)), "holds no numbers"),
        ("a.npy", npy(np.full((2, 3), np.nan)), "not finite"),
        ("a.f32", bytes(20), "can't be read as f32"),
        ("a.wav", b"RIFF", "can't be read as wav"),
    ],
)
def test_an_array_that_does_not_fit_is_told(tmp_path: Path, name: str, data: bytes, error: str) -> None:
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [2, 3]), settings())
    with pytest.raises(ContentError, match=error):
        encoder.encode(name, data)


def test_a_pickle_in_an_array_is_never_opened(tmp_path: Path) -> None:
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [1]), settings())
    with pytest.raises(ContentError, match="can't be read as npy"):
        encoder.encode("a.npy", npy(np.array([{"a": 1}], dtype=object)))


@pytest.mark.parametrize(
    ("width", "frames", "expected"),
    [
        (1, bytes([128, 255, 0, 64]), [0.0, 127 / 128, -1.0, -0.5]),
        (2, struct.pack("<4h", 0, 32767, -32768, 16384), [0.0, 32767 / 32768, -1.0, 0.5]),
        (3, b"\x00\x00\x00\xff\xff\x7f\x00\x00\x80\x00\x00\x40", [0.0, 1 - 2**-23, -1.0, 0.5]),
        (4, struct.pack("<4i", 0, 2**30, -(2**31), -(2**29)), [0.0, 0.5, -1.0, -0.25]),
    ],
)
def test_sound_of_every_width_lies_between_minus_one_and_one(
    tmp_path: Path, width: int, frames: bytes, expected: list[float]
) -> None:
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [8]), settings(sample_rate=8, seconds=1.0))
    found = encoder.encode("a.wav", wav(frames, width))
    np.testing.assert_allclose(found, unit([*expected, 0, 0, 0, 0]), atol=1e-6)


def test_channels_are_averaged_and_sound_is_cut(tmp_path: Path) -> None:
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [2]), settings(sample_rate=8, seconds=0.25))
    data = wav(struct.pack("<6h", 100, 300, -400, 0, 500, 500), 2, channels=2)
    np.testing.assert_allclose(encoder.encode("a.wav", data), unit([200, -200]), atol=1e-6)
    with pytest.raises(ContentError, match=r"a\.wav: 16 samples a second, but sample_rate is 8"):
        encoder.encode("a.wav", wav(bytes(8), 2, rate=16))


def test_images_are_fitted_and_normalised(tmp_path: Path) -> None:
    """Left half black, right half white, twice as wide as high: the middle square is cut out."""
    image = pytest.importorskip("PIL.Image")
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 8:] = 255
    buffer = io.BytesIO()
    image.fromarray(wide).save(buffer, "PNG")
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
    first = FileEncoder(
        flat_encoder(tmp_path / "first.onnx", [3, 8, 8]), settings(size=8, mean=mean, std=std)
    )
    found = first.encode("a.png", buffer.getvalue()).reshape(3, 8, 8)
    dark, bright = np.array([-1.0, -1.0, 0.0]), np.array([1.0, 3.0, 1.0])
    expected = np.repeat(np.stack([dark, bright], axis=1), 4, axis=1)[:, None].repeat(8, axis=1)
    np.testing.assert_allclose(found, unit(expected).reshape(3, 8, 8), atol=1e-5)
    last = FileEncoder(flat_encoder(tmp_path / "last.onnx", [8, 8, 3]), settings(size=8, mean=mean, std=std))
    turned = last.encode("a.png", buffer.getvalue()).reshape(8, 8, 3).transpose(2, 0, 1)
    np.testing.assert_allclose(turned, found, atol=1e-6)
    with pytest.raises(ContentError, match=r"a\.png: \d+ bytes can't be read as png"):
        last.encode("a.png", buffer.getvalue()[:60])


def test_a_small_file_that_unfolds_to_gigabytes_is_not_decoded(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.new("1", (10_000, 6_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 20_000
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [3, 8, 8]), settings(size=8))
    with pytest.raises(ContentError, match="10000 x 6000 pixels, at most 50,000,000 are decoded"):
        encoder.encode("a.png", buffer.getvalue())


def test_without_pillow_images_are_told_and_arrays_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FileEncoder(flat_encoder(tmp_path / "m.onnx", [2]), settings())
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ContentError, match=r"a\.jpg: .*install the `images` extra"):
        encoder.encode("a.jpg", b"whatever")
    np.testing.assert_allclose(encoder.encode("a.npy", npy(np.array([3.0, 4.0]))), [0.6, 0.8], atol=1e-6)


def test_encoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    real = onnx.TensorProto.FLOAT
    same = onnx.helper.make_node("Identity", ["x"], ["out"])
    varying = saved(tmp_path / "varying.onnx", [same], {"x": (real, ["batch", "n"])}, ["batch", "n"])
    with pytest.raises(ContentError, match="fixed sizes"):
        FileEncoder(varying, settings())
    both = onnx.helper.make_node("Add", ["x", "y"], ["out"])
    two = saved(tmp_path / "two.onnx", [both], {"x": (real, [1, 2]), "y": (real, [1, 2])}, [1, 2])
    with pytest.raises(ContentError, match=r"inputs \['x', 'y'\]"):
        FileEncoder(two, settings())
    odd = FileEncoder(flat_encoder(tmp_path / "odd.onnx", [2], onnx.TensorProto.BOOL), settings())
    with pytest.raises(ContentError, match=r"tensor\(bool\)"):
        odd.encode("a.npy", npy(np.ones(2)))


def test_the_digest_tells_models_and_preparation_apart(tmp_path: Path) -> None:
    model = flat_encoder(tmp_path / "m.onnx", [2])
    digests = {
        FileEncoder(model, settings()).digest,
        FileEncoder(model, settings(size=32)).digest,
        FileEncoder(model, settings(seconds=2.0)).digest,
        FileEncoder(flat_encoder(tmp_path / "n.onnx", [2, 1]), settings()).digest,
    }
    assert len(digests) == 4
    assert FileEncoder(model.read_bytes(), settings()).digest in digests


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../a",
        "a/../../b",
        "s3://b/a",
        "a::b",
        "..",
        "",
        "a\\..\\..\\b",
        ".",
        "%2e%2E/a",
        "%2Fa",
    ],
)
def test_no_item_leads_out_of_the_root(path: str) -> None:
    with pytest.raises(ContentError, match="is no path beneath files"):
        beneath("files", path)


@given(st.text(alphabet="ab./\\:~", max_size=12))
def test_what_is_let_in_stays_beneath_the_root(path: str) -> None:
    try:
        found = beneath("files", path)
    except ContentError:
        return
    assert Path("/r", found).resolve().is_relative_to("/r/files")


def test_a_file_that_is_too_large_or_missing_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(bytes(100))
    assert read_file(str(file), 100) == bytes(100)
    with pytest.raises(ContentError, match=r"larger than the 99 bytes of max_file_bytes"):
        read_file(str(file), 99)
    with pytest.raises(ContentError, match=r"b\.npy can't be read"):
        read_file(str(tmp_path / "b.npy"), 99)
