"""Published versions never change, are seen whole or not at all, and let nothing foreign in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ranker.errors import RegistryError
from serving.registry.manifest import GOLDEN_FILE, MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE, digest_of
from serving.registry.onnx_checks import OnnxFileError, check_onnx
from serving.registry.settings import RegistrySettings
from serving.registry.store import Registry
from tests.test_serving.ranker_cases import markov_version, republish


def test_a_version_comes_back_as_it_was(tmp_path: Path) -> None:
    registry, published = republish(tmp_path, "v1")
    stored = Registry(str(tmp_path)).fetch("v1", published.digest)
    assert stored.manifest == published.manifest
    assert stored.files == markov_version().files
    assert set(stored.files) == {MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE, GOLDEN_FILE}
    assert published.digest == digest_of((tmp_path / "ranker" / "v1" / "manifest.json").read_bytes())
    assert registry.uri("v1") == published.uri
    assert not list(tmp_path.glob("ranker/v1/.*")), "a file written beside was left behind"


def test_versions_are_listed_in_order_and_only_whole_ones(tmp_path: Path) -> None:
    registry, _ = republish(tmp_path, "20260102-b")
    republish(tmp_path, "20260101-a")
    (tmp_path / "ranker" / "20260103-c").mkdir()
    (tmp_path / "ranker" / "20260103-c" / MODEL_FILE).write_bytes(b"half done")
    assert registry.list() == ["20260101-a", "20260102-b"]
    with pytest.raises(RegistryError, match=r"20260103-c/manifest\.json"):
        registry.fetch("20260103-c")


def test_a_published_version_is_never_written_again(tmp_path: Path) -> None:
    republish(tmp_path, "v1")
    with pytest.raises(RegistryError, match="versions never change"):
        republish(tmp_path, "v1")


@pytest.mark.parametrize(
    "version", ["", "../v1", "a/b", "..", ".", "v..1", "v1/", "/etc", "v\x00", "v" * 200, "v\n"]
)
def test_a_version_leads_nowhere_else(tmp_path: Path, version: str) -> None:
    with pytest.raises(RegistryError, match="is no version"):
        Registry(str(tmp_path)).fetch(version)


def test_another_digest_is_refused(tmp_path: Path) -> None:
    registry, published = republish(tmp_path)
    with pytest.raises(RegistryError, match=rf"digest {published.digest}, announced was {'0' * 64}"):
        registry.fetch("v1", "0" * 64)


def test_a_file_too_large_is_never_read(tmp_path: Path) -> None:
    republish(tmp_path)
    with pytest.raises(RegistryError, match="at most 1000 are read"):
        Registry(str(tmp_path), RegistrySettings(max_file_bytes=1000)).fetch("v1")


@given(st.sampled_from([MODEL_FILE, VOCABULARY_FILE, WEIGHTS_FILE, GOLDEN_FILE]), st.data())
def test_any_changed_or_missing_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("registry")
    registry, published = republish(folder)
    path = folder / "ranker" / "v1" / name
    contents = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(contents) - 1))
    if data.draw(st.booleans()):
        contents[at] ^= data.draw(st.integers(1, 255))
    else:
        del contents[at:]
    path.write_bytes(bytes(contents))
    with pytest.raises(RegistryError, match=name):
        registry.fetch("v1", published.digest)


def test_files_other_than_the_manifest_names_are_not_published(tmp_path: Path) -> None:
    stored = markov_version()
    registry = Registry(str(tmp_path))
    with pytest.raises(RegistryError, match="a version holds"):
        registry.publish(stored.manifest, {MODEL_FILE: stored.files[MODEL_FILE]})
    with pytest.raises(RegistryError, match=r"vocabulary\.json: 2 bytes, the manifest says"):
        registry.publish(stored.manifest, {**stored.files, VOCABULARY_FILE: b"[]"})
    assert registry.list() == []


def test_weights_outside_the_file_are_not_let_in(tmp_path: Path) -> None:
    proto = onnx.load_model_from_string(markov_version().files[MODEL_FILE])
    onnx.external_data_helper.convert_model_to_external_data(proto, location="../../secret", size_threshold=0)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    with pytest.raises(OnnxFileError, match="outside the file"):
        check_onnx(proto.SerializeToString())
    with pytest.raises(RegistryError, match="outside the file"):
        republish(tmp_path, model_onnx=proto.SerializeToString())


def test_external_weights_are_found_inside_subgraphs_too() -> None:
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["y"], value=tensor)], "inner", [], []
    )
    node = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], []))
    with pytest.raises(OnnxFileError, match="outside the file"):
        check_onnx(model.SerializeToString())


def test_foreign_operators_are_not_let_in() -> None:
    node = onnx.helper.make_node("Anything", ["x"], ["y"], domain="com.example")
    graph = onnx.helper.make_graph([node], "g", [], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("com.example", 1)])
    with pytest.raises(OnnxFileError, match=r"com\.example"):
        check_onnx(model.SerializeToString())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_named_so(data: bytes) -> None:
    try:
        check_onnx(data)
    except OnnxFileError:
        return
    assert b"\x3a" in data, "accepted without a graph field"


@given(st.data())
def test_a_cut_off_model_is_named_so(data: st.DataObject) -> None:
    model = markov_version().files[MODEL_FILE]
    end = data.draw(st.integers(0, len(model) - 1))
    try:
        check_onnx(model[:end])
    except OnnxFileError:
        return
    onnx.load_model_from_string(
        model[:end]
    )  # cut between two fields: still a message, and the digest finds it


def test_nesting_is_bounded() -> None:
    data = b""
    for _ in range(200):
        attribute = b"\x32" + _length(data) + data
        node = b"\x2a" + _length(attribute) + attribute
        data = b"\x0a" + _length(node) + node
    with pytest.raises(OnnxFileError, match="deeper"):
        check_onnx(b"\x3a" + _length(data) + data)


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


def test_an_object_store_works_like_a_folder() -> None:
    stored = markov_version()
    registry = Registry("memory://object-store")
    manifest = msgspec.structs.replace(stored.manifest, version="v1")
    published = registry.publish(manifest, stored.files)
    assert registry.list() == ["v1"]
    assert registry.fetch("v1", published.digest).files == stored.files


def test_the_manifest_says_what_was_trained(tmp_path: Path) -> None:
    manifest = republish(tmp_path)[1].manifest
    assert manifest.trained_on.interactions == 6000
    assert (manifest.trained_on.from_offset, manifest.trained_on.to_offset) == (0, 14)
    assert manifest.gate.accepted
    assert manifest.metrics["ndcg_at_10"] == pytest.approx(manifest.gate.challenger.ndcg_at_10)  # type: ignore[union-attr]
    assert np.isfinite(list(manifest.metrics.values())).all()
