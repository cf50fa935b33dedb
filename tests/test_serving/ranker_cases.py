"""Logs whose next item is known by construction, and a small network trained on one of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.registry.manifest import MODEL_FILE, VOCABULARY_FILE, Manifest, file_entries
from serving.registry.store import Published, Registry, StoredVersion
from serving.training.slow_path import Outcome, run_slow_path
from tests.test_serving.chain import ITEMS, SETTINGS, item_name, markov_log, successor

__all__ = [
    "ITEMS", "SETTINGS", "edited", "item_name", "markov_log", "markov_outcome", "markov_ranker",
    "markov_version", "republish", "successor",
]  # fmt: skip


@functools.cache
def markov_outcome() -> tuple[Registry, Outcome]:
    """One run of the slow path on the chain, published into memory; made once for all tests of a process."""
    registry = Registry("memory://markov-models")
    outcome = run_slow_path(markov_log(), registry, SETTINGS)
    assert outcome is not None
    return registry, outcome


def markov_version() -> StoredVersion:
    registry, outcome = markov_outcome()
    assert outcome.published is not None, outcome.report
    return registry.fetch(outcome.published.manifest.version)


def markov_ranker(model: bytes | None = None) -> Ranker:
    """The trained ranker, or one with other model bytes and the same vocabulary."""
    stored = markov_version()
    return Ranker(
        RankerSession(model or stored.files[MODEL_FILE], "cpu"),
        msgspec.json.decode(stored.files[VOCABULARY_FILE], type=list[str]),
        version="case",
        history_length=stored.manifest.history_length,
    )


def edited(model: bytes, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> bytes:
    """The same graph with other item vectors and biases."""
    proto = onnx.load_model_from_string(model)
    held = {t.name: list(t.dims) for t in proto.graph.initializer}
    tables = [t for t in proto.graph.initializer if list(t.dims)[:1] == [ITEMS + 2]]
    assert len(tables) == 2, f"the export holds no item vectors and biases by those shapes: {held}"
    for table in tables:
        changed = change(onnx.numpy_helper.to_array(table).copy())
        table.CopyFrom(onnx.numpy_helper.from_array(changed, table.name))
    return bytes(proto.SerializeToString())


def republish(folder: Path, version: str = "v1", **files: bytes) -> tuple[Registry, Published]:
    """The trained version under another name in a folder, some files replaced; names with _ for the dot."""
    stored = markov_version()
    contents = {**stored.files, **{name.replace("_", "."): data for name, data in files.items()}}
    manifest: Manifest = msgspec.structs.replace(
        stored.manifest, version=version, files=file_entries(contents)
    )
    registry = Registry(str(folder))
    return registry, registry.publish(manifest, contents)
