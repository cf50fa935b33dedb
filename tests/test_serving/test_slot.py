"""Two rankers in a slot, one in force and one beside it; refusals by kind, on versions made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import safetensors.numpy

from serving.features import FEATURES_DIGEST
from serving.ranker.errors import (
    FAULTS_OF_THE_VERSION,
    MAX_REASON_CHARS,
    REFUSAL_KINDS,
    RankerRefusedError,
    RegistryError,
)
from serving.ranker.hashing import ContextHash
from serving.ranker.inputs import CONTEXT
from serving.ranker.settings import RankerSettings
from serving.registry.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    ContentInput,
    Manifest,
    Signature,
    file_entries,
)
from serving.registry.settings import RegistrySettings
from serving.registry.store import MANIFEST_FILE, Published, Registry
from serving.registry.swap import RankerSlot, SwapEvent, load_verified
from tests.test_serving.version_cases import publish_table, successor_table, table_model

ITEMS = [f"item-{n}" for n in range(30)]
CPU = RankerSettings(provider="cpu")
TABLE = successor_table(len(ITEMS), 3)


def publish(folder: Path, *versions: str) -> list[Published]:
    return [
        publish_table(folder, version, ITEMS, successor_table(len(ITEMS), number + 1))[1]
        for number, version in enumerate(versions)
    ]


def ask(slot: RankerSlot, published: Published, *, shadow: bool = False) -> list[SwapEvent]:
    request = slot.request_shadow if shadow else slot.request
    request(published.manifest.version, published.digest)
    return settled(slot)


def settled(slot: RankerSlot) -> list[SwapEvent]:
    assert slot.wait_loaded(30.0)
    events = []
    while (event := slot.swap_if_ready()) is not None:
        events.append(event)
    return events


def test_a_shadow_is_loaded_beside_the_one_in_force_and_takes_its_place_without_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = publish(tmp_path, "v1", "v2")
    slot = RankerSlot(Registry(str(tmp_path)), CPU)
    ask(slot, first)
    [event] = ask(slot, second, shadow=True)
    assert (event.outcome, event.role, event.version, event.previous) == ("swapped", "shadow", "v2", "v1")
    current, shadow = slot.current, slot.shadow
    assert current is not None
    assert shadow is not None
    assert (current.version, shadow.version) == ("v1", "v2")
    assert ask(slot, second, shadow=True) == [], "it is there already"

    def never(*_: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr(slot, "_load", never)
    slot.request("v2", second.digest)
    slot.request_shadow("v1", first.digest)
    live, beside = settled(slot)
    assert (live.role, live.version, live.previous, live.load_s) == ("live", "v2", "v1", 0.0)
    assert (beside.role, beside.version) == ("shadow", "v1")
    assert slot.current is shadow
    assert slot.shadow is current


def test_the_version_before_stays_in_memory_for_its_time_beside_the_new_one(tmp_path: Path) -> None:
    first, second = publish(tmp_path, "v1", "v2")
    slot = RankerSlot(Registry(str(tmp_path)), CPU)
    ask(slot, first)
    before = slot.current
    slot.request("v2", second.digest)
    slot.request_shadow("v1", first.digest)
    assert {(e.role, e.version) for e in settled(slot)} == {("live", "v2"), ("shadow", "v1")}
    assert slot.shadow is before
    slot.drop_shadow()
    assert slot.shadow is None


def test_a_shadow_that_is_no_longer_wanted_comes_too_late(tmp_path: Path) -> None:
    versions = publish(tmp_path, "v1", "v2", "v3")
    slot = RankerSlot(Registry(str(tmp_path)), CPU)
    ask(slot, versions[0])
    slot.request_shadow("v2", versions[1].digest)
    slot.drop_shadow()
    assert settled(slot) == []
    slot.request_shadow("v2", versions[1].digest)
    slot.request_shadow("v3", versions[2].digest)
    assert [event.version for event in settled(slot)] == ["v3"]


def test_an_older_load_that_ends_later_does_not_undo_a_newer_one(tmp_path: Path) -> None:
    versions = publish(tmp_path, "v1", "v2")
    slot = RankerSlot(Registry(str(tmp_path)), CPU)
    ask(slot, versions[0])
    slot.request("v2", versions[1].digest)  # loads in the background
    slot.request("v1", versions[0].digest)  # is held: at once
    settled(slot)
    assert slot.current is not None
    assert slot.current.version == "v1"


def test_a_refused_shadow_changes_nothing(tmp_path: Path) -> None:
    [good] = publish(tmp_path, "v1")
    _, bad = publish_table(tmp_path, "v2", ITEMS, TABLE, golden_scores=np.ones((2, 30), np.float32))
    slot = RankerSlot(Registry(str(tmp_path)), CPU)
    ask(slot, good)
    [event] = ask(slot, bad, shadow=True)
    assert (event.outcome, event.role, event.kind) == ("refused", "shadow", "probe")
    assert slot.shadow is None
    assert slot.current is not None
    assert slot.current.version == "v1"


def damage(folder: Path, name: str, kept: slice) -> None:
    path = folder / "ranker" / "v1" / name
    path.write_bytes(path.read_bytes()[kept])


def kind_of(
    folder: Path, digest: str, registry: Registry | None = None, budget_ms: float = 250.0
) -> tuple[str, str]:
    with pytest.raises(RankerRefusedError) as caught:
        load_verified(registry or Registry(str(folder)), "v1", digest, "cpu", latency_budget_ms=budget_ms)
    return caught.value.kind, str(caught.value)


def test_every_refusal_says_its_kind_and_its_numbers(tmp_path: Path) -> None:
    _, plain = publish_table(tmp_path / "cut", "v1", ITEMS, TABLE)
    size = (tmp_path / "cut" / "ranker" / "v1" / MODEL_FILE).stat().st_size
    damage(tmp_path / "cut", MODEL_FILE, slice(None, -50))
    kind, text = kind_of(tmp_path / "cut", plain.digest)
    assert kind == "digest"
    assert f"{size - 50} bytes, the manifest says {size}" in text
    _, plain = publish_table(tmp_path / "large", "v1", ITEMS, TABLE)
    tight = Registry(str(tmp_path / "large"), RegistrySettings(max_file_bytes=1500))
    assert kind_of(tmp_path / "large", plain.digest, tight)[0] == "size"
    assert kind_of(tmp_path / "large", "0" * 64)[0] == "digest"
    kind, text = kind_of(tmp_path / "large", plain.digest, budget_ms=1e-6)
    assert kind == "slow"
    assert "at most 0.0" in text
    (tmp_path / "large" / "ranker" / "v1" / MODEL_FILE).unlink()
    assert kind_of(tmp_path / "large", plain.digest)[0] == "file"
    damage(tmp_path / "large", MANIFEST_FILE, slice(None, 100))
    assert kind_of(tmp_path / "large", plain.digest)[0] == "manifest"
    (tmp_path / "large" / "ranker" / "v1" / MANIFEST_FILE).unlink()
    assert kind_of(tmp_path / "large", plain.digest)[0] == "store", "the folder may not be mounted here"


@pytest.mark.parametrize("times", [(1, 1000), (1000, 1)])
def test_a_graph_that_gives_more_scores_than_it_was_asked_for_is_refused(
    tmp_path: Path, times: tuple[int, int]
) -> None:
    model = onnx.load_from_string(table_model(TABLE))
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(onnx.helper.make_node("Tile", ["plain", "times"], ["scores"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(times), "times"))
    _, published = publish_table(tmp_path, "v1", ITEMS, TABLE, model_onnx=model.SerializeToString())
    kind, text = kind_of(tmp_path, published.digest)
    assert kind == "signature"
    assert "for candidates (16, 200)" in text


@pytest.mark.parametrize("length", [-1, 0, 5000, 10**12])
def test_a_history_that_no_call_has_room_for_is_refused_before_any_is_made(
    tmp_path: Path, length: int
) -> None:
    registry, _ = publish_table(tmp_path, "v0", ITEMS, TABLE)
    stored = registry.fetch("v0")
    manifest = msgspec.structs.replace(stored.manifest, version="v1", history_length=length)
    kind, text = kind_of(tmp_path, registry.publish(manifest, stored.files).digest)
    assert kind == "manifest"
    assert f"histories of {length} items, 1 to 4096 are served" in text


def test_a_reason_fits_into_a_record_whatever_the_graph_calls_its_parts(tmp_path: Path) -> None:
    value, floats = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"], name="n" * 3_000_000)
    graph = onnx.helper.make_graph([node], "g", [value("x", floats, ["a"])], [value("y", floats, ["a"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    _, published = publish_table(tmp_path, "v1", ITEMS, TABLE, model_onnx=model.SerializeToString())
    [event] = ask(RankerSlot(Registry(str(tmp_path)), CPU), published)
    assert (event.outcome, event.kind) == ("refused", "load")
    assert "nnn" in event.reason
    assert len(event.reason) <= MAX_REASON_CHARS


def other_inputs() -> bytes:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["x"], ["scores"])
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", onnx.TensorProto.FLOAT, ["a", "b"])],
        [value("scores", onnx.TensorProto.FLOAT, ["a", "b"])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


BAD: dict[str, Any] = {
    "signature": {"model_onnx": other_inputs()},
    "vocabulary": {"vocabulary_json": b'["a","b"]'},
    "file": {"golden_safetensors": b"junk"},
    "load": {"model_onnx": b"\x3a\x00"},
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, kind: str) -> None:
    _, published = publish_table(tmp_path, "v1", ITEMS, TABLE, **BAD[kind])
    assert kind_of(tmp_path, published.digest)[0] == kind


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    nothing = np.full_like(TABLE, np.nan)
    _, published = publish_table(tmp_path, "v1", ITEMS, nothing, golden_scores=np.ones((2, 30), np.float32))
    kind, text = kind_of(tmp_path, published.digest)
    assert kind == "not_finite"
    assert "3200 of 3200 scores are not finite" in text


def test_features_of_another_code_are_refused(tmp_path: Path) -> None:
    registry, published = publish_table(tmp_path, "v0", ITEMS, TABLE)
    files = registry.fetch("v0").files
    for version, features in (("v1", "0" * 64), ("v2", FEATURES_DIGEST)):
        manifest = msgspec.structs.replace(
            published.manifest, version=version, features=("popularity",), features_digest=features
        )
        made = registry.publish(manifest, files)
        if version == "v1":
            kind, text = kind_of(tmp_path, made.digest)
            assert kind == "features"
            assert (
                f"trained on features 000000000000 (popularity), here they are {FEATURES_DIGEST[:12]}" in text
            )
        else:
            assert load_verified(registry, version, made.digest, "cpu").version == "v2"


def test_a_version_that_reads_other_contexts_is_refused(tmp_path: Path) -> None:
    registry, published = publish_table(tmp_path, "v0", ITEMS, TABLE)
    files = registry.fetch("v0").files
    read = ("device", "country")
    manifest = msgspec.structs.replace(
        published.manifest, version="v1", context_keys=read, context_digest=ContextHash(read).digest.hex()
    )
    made = registry.publish(manifest, files)
    for keys in ((), ("device",), ("country", "device")):
        with pytest.raises(RankerRefusedError, match=r"context of device, country, here it is of") as caught:
            load_verified(registry, "v1", made.digest, "cpu", context_keys=keys)
        assert caught.value.kind == "context"
    for keys in (("device", "country"), ("device",)):
        version, digest = ("v1", made.digest) if len(keys) == 2 else ("v0", published.digest)
        assert load_verified(registry, version, digest, "cpu", context_keys=keys).version == version
    other = msgspec.structs.replace(manifest, version="v2", context_digest="0123456789abcdef")
    with pytest.raises(RankerRefusedError, match=r"hashed in another way \(0123456789abcdef, here") as caught:
        load_verified(registry, "v2", registry.publish(other, files).digest, "cpu", context_keys=read)
    assert caught.value.kind == "context"


def test_a_graph_of_another_width_is_refused(tmp_path: Path) -> None:
    """As every one that was exported before contexts came in: its names and types are the same."""
    model = onnx.load_from_string(table_model(TABLE))
    [context] = [one for one in model.graph.input if one.name == "context"]
    context.type.tensor_type.shape.dim[1].dim_value = 6
    _, published = publish_table(tmp_path, "v1", ITEMS, TABLE, model_onnx=model.SerializeToString())
    kind, text = kind_of(tmp_path, published.digest)
    assert kind == "signature"
    assert f"`context` has 6 columns, {len(CONTEXT)} are given" in text


def test_faults_of_the_version_are_kinds() -> None:
    assert set(REFUSAL_KINDS) > FAULTS_OF_THE_VERSION
    assert {"store", "slow", "load", "context"}.isdisjoint(FAULTS_OF_THE_VERSION)


# ── what a manifest says, and what files it names ────────────────────────────────────────────────────────


def test_a_version_may_hold_more_files_by_its_manifest(tmp_path: Path) -> None:
    registry, _ = publish_table(tmp_path, "v1", ITEMS, TABLE, towers_onnx=other_inputs(), notes_json=b"{}")
    stored = registry.fetch("v1")
    assert stored.files["notes.json"] == b"{}"
    assert registry.fetch("v1", names=(GOLDEN_FILE,)).files.keys() == {GOLDEN_FILE}
    load_verified(registry, "v1", stored.digest, "cpu")
    with pytest.raises(RegistryError, match="no ONNX graph"):
        publish_table(tmp_path, "v2", ITEMS, TABLE, towers_onnx=b"")
    with pytest.raises(RegistryError, match=r"other\.json"):
        registry.fetch("v1", names=("other.json",))


@pytest.mark.parametrize("name", [MANIFEST_FILE, "../v2", "a/b", "..", "x" * 200])
def test_a_file_s_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    registry, published = publish_table(tmp_path, "v1", ITEMS, TABLE)
    files = {**registry.fetch("v1").files, name: b"{}"}
    manifest = msgspec.structs.replace(published.manifest, version="v2", files=file_entries(files))
    with pytest.raises(RegistryError, match="name"):
        registry.publish(manifest, files)
    assert registry.list() == ["v1"]


def test_a_manifest_of_before_reads_as_plain_and_a_new_one_says_all(tmp_path: Path) -> None:
    _, published = publish_table(tmp_path, "v1", ITEMS, TABLE, fused=False)
    document = msgspec.json.decode(msgspec.json.encode(published.manifest))
    added = ("precision", "fused", "event_types", "features", "features_digest", "content", "compression")
    old = {name: value for name, value in document.items() if name not in added}
    manifest = msgspec.convert(old, Manifest)
    assert (manifest.precision, manifest.fused, manifest.features, manifest.content) == (
        "fp32",
        False,
        (),
        (),
    )
    assert manifest.signature == Signature()
    new = msgspec.structs.replace(
        manifest,
        precision="int8",
        features=("popularity",),
        features_digest=FEATURES_DIGEST,
        content=(ContentInput(name="text", dim=384),),
        compression={"int8": {"size_bytes": 10.0, "ndcg_loss": 0.001}},
    )
    assert msgspec.json.decode(msgspec.json.encode(new), type=Manifest) == new


def test_the_golden_probe_is_read_back_from_the_store(tmp_path: Path) -> None:
    """The probe holds every input of the signature, and the ranker gives its scores again."""
    registry, published = publish_table(tmp_path, "v1", ITEMS, TABLE)
    ranker = load_verified(registry, "v1", published.digest, "cpu")
    golden = safetensors.numpy.load(registry.fetch("v1").files[GOLDEN_FILE])
    assert golden["scores"].shape == (2, 30)
    assert ranker.score([["item-4"]], [["item-7", "item-8"]]).tolist() == [[8.0, 0.0]]
