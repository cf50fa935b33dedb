"""A good version is swapped in under load without an error; a bad one is refused, and the old one goes on."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from serving.ranker.errors import RankerRefusedError
from serving.ranker.settings import RankerSettings
from serving.registry.manifest import GOLDEN_FILE, MODEL_FILE, VOCABULARY_FILE, Signature, file_entries
from serving.registry.store import Published, Registry
from serving.registry.swap import RankerSlot, SwapEvent, load_verified
from tests.test_serving.ranker_cases import edited, markov_version, republish

CPU = RankerSettings(provider="cpu")


def swap_in(slot: RankerSlot, published: Published, digest: str | None = None) -> SwapEvent:
    slot.request(published.manifest.version, digest or published.digest, published.uri)
    assert slot.wait_loaded(30.0)
    event = slot.swap_if_ready()
    assert event is not None
    return event


def golden(change: float) -> bytes:
    arrays = safetensors.numpy.load(markov_version().files[GOLDEN_FILE])
    return safetensors.numpy.save({**arrays, "scores": arrays["scores"] + np.float32(change)})


def test_a_good_version_is_swapped_in_and_reported_once(tmp_path: Path) -> None:
    registry, first = republish(tmp_path, "v1")
    _, second = republish(tmp_path, "v2")
    slot = RankerSlot(registry, CPU)
    assert slot.current is None
    event = swap_in(slot, first)
    assert (event.outcome, event.version, event.previous) == ("swapped", "v1", None)
    assert swap_in(slot, second).previous == "v1"
    assert slot.current is not None
    assert slot.current.version == "v2"
    assert slot.current.digest == second.digest
    assert slot.swap_if_ready() is None
    slot.request("v2", second.digest)
    assert not slot.loading, "what is in force already is not loaded again"
    assert swap_in(slot, first).version == "v1", "a roll-back is a swap like any other"


@pytest.mark.parametrize(("precision", "outcome"), [("fp32", "refused"), ("int8_static", "swapped")])
def test_a_graph_that_rounds_activations_may_be_a_step_off(
    tmp_path: Path, precision: str, outcome: str
) -> None:
    files = {**markov_version().files, GOLDEN_FILE: golden(0.05)}
    manifest = msgspec.structs.replace(
        markov_version().manifest, version="v1", precision=precision, files=file_entries(files)
    )
    registry = Registry(str(tmp_path))
    event = swap_in(RankerSlot(registry, CPU), registry.publish(manifest, files))
    assert (event.outcome, event.kind) == (outcome, "probe" if outcome == "refused" else "")


BAD = {
    "NaN": {
        "model_onnx": lambda: edited(markov_version().files[MODEL_FILE], lambda t: t * np.float32(np.nan))
    },
    "off": {"model_onnx": lambda: edited(markov_version().files[MODEL_FILE], lambda t: t * np.float32(1.1))},
    "golden": {"golden_safetensors": lambda: golden(0.5)},
    "golden_nan": {"golden_safetensors": lambda: golden(float("nan"))},
    "golden_junk": {"golden_safetensors": lambda: b"junk"},
    "vocabulary": {"vocabulary_json": lambda: b'["a","b"]'},
    "vocabulary_junk": {"vocabulary_json": lambda: b"{"},
    "no_graph": {"model_onnx": lambda: b"\x3a\x00"},
}
REASONS = {
    "NaN": "scores are not finite",
    "off": "golden probe: off by",
    "golden": "golden probe: off by 0.5",
    "golden_nan": "or not finite",
    "golden_junk": "can't be read",
    "vocabulary": "2 items in vocabulary.json, the manifest says 200",
    "vocabulary_junk": "vocabulary.json:",
    "no_graph": "can't load the model",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_version_is_refused_and_the_old_one_stays(tmp_path: Path, kind: str) -> None:
    registry, good = republish(tmp_path, "good")
    _, bad = republish(tmp_path, "bad", **{name: make() for name, make in BAD[kind].items()})
    slot = RankerSlot(registry, CPU)
    swap_in(slot, good)
    event = swap_in(slot, bad)
    assert event.outcome == "refused"
    assert event.previous == "good"
    assert REASONS[kind] in event.reason
    assert slot.current is not None
    assert slot.current.version == "good"
    assert np.isfinite(slot.current.score([["item-1"]], [["item-2"]])).all()


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    registry, published = republish(tmp_path)
    path = tmp_path / "ranker" / "v1" / MODEL_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RankerRefusedError, match=rf"{len(whole) // 2} bytes, the manifest says {len(whole)}"):
        load_verified(registry, "v1", published.digest, "cpu")
    path.unlink()
    with pytest.raises(RankerRefusedError, match="can't read"):
        load_verified(registry, "v1", published.digest, "cpu")
    slot = RankerSlot(registry, CPU)
    assert swap_in(slot, published, digest="f" * 64).outcome == "refused"
    assert slot.current is None


def test_another_signature_in_the_manifest_is_refused(tmp_path: Path) -> None:
    stored = markov_version()
    manifest = msgspec.structs.replace(
        stored.manifest,
        version="v9",
        signature=Signature(inputs={"x": "int32"}),
        files=file_entries(stored.files),
    )
    registry = Registry(str(tmp_path))
    published = registry.publish(manifest, stored.files)
    with pytest.raises(RankerRefusedError, match="v9 refused: signature"):
        load_verified(registry, "v9", published.digest, "cpu")


def test_a_slow_version_is_refused(tmp_path: Path) -> None:
    registry, published = republish(tmp_path)
    slot = RankerSlot(registry, RankerSettings(provider="cpu", load_latency_budget_ms=1e-6))
    event = swap_in(slot, published)
    assert event.outcome == "refused"
    assert "16 users x 200 candidates take" in event.reason


def test_a_store_that_fails_is_a_refusal_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, published = republish(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the store's client lost its mind")

    slot = RankerSlot(registry, CPU)
    monkeypatch.setattr(registry, "fetch", broken)
    assert "lost its mind" in swap_in(slot, published).reason
    monkeypatch.undo()
    assert swap_in(slot, published).outcome == "swapped", "a refused version may be asked for again"


def test_swaps_under_load_lose_no_call(tmp_path: Path) -> None:
    """One thread scores as a worker does and swaps between calls, while another announces 30 versions."""
    registry = Registry(str(tmp_path))
    versions = [republish(tmp_path, f"v{number:02d}")[1] for number in range(6)]
    assert len(versions[0].manifest.files[VOCABULARY_FILE].sha256) == 64
    slot = RankerSlot(registry, CPU)
    swap_in(slot, versions[0])
    expected = slot.current.score([["item-1"]], [["item-38", "item-2"]])  # type: ignore[union-attr]
    stop, events, calls = threading.Event(), [], 0

    def announce() -> None:
        for number in range(30):
            chosen = versions[number % len(versions)]
            slot.request(chosen.manifest.version, chosen.digest)
            slot.wait_loaded(30.0)
        stop.set()

    announcer = threading.Thread(target=announce)
    announcer.start()
    while not stop.is_set() or slot.loading:
        np.testing.assert_array_equal(slot.current.score([["item-1"]], [["item-38", "item-2"]]), expected)  # type: ignore[union-attr]
        calls += 1
        event = slot.swap_if_ready()
        if event is not None:
            events.append(event)
    announcer.join()
    while (event := slot.swap_if_ready()) is not None:
        events.append(event)
    assert {event.outcome for event in events} == {"swapped"}
    for before, after in itertools.pairwise(events):
        assert after.previous == before.version
    assert slot.current is not None
    assert slot.current.version == versions[29 % len(versions)].manifest.version
    assert calls > 30
    assert len(events) >= 29


def test_of_many_requests_the_newest_is_in_force_in_the_end(tmp_path: Path) -> None:
    versions = [republish(tmp_path, f"v{number}")[1] for number in range(8)]
    slot = RankerSlot(Registry(str(tmp_path)), CPU)
    for published in versions:
        slot.request(published.manifest.version, published.digest)
    assert slot.wait_loaded(30.0)
    while slot.swap_if_ready() is not None:
        pass
    assert slot.current is not None
    assert slot.current.version == "v7"
