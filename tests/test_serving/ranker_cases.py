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
from serving.training.dataset import InteractionLog
from serving.training.settings import TrainerSettings
from serving.training.slow_path import Outcome, run_slow_path

ITEMS = 200
STEP = 37
"""Item i is followed by item (i + 37) mod 200; the two have no common factor, so a walk meets every item."""

SETTINGS = TrainerSettings(
    dim=32,
    blocks=2,
    heads=2,
    history_length=12,
    window_stride=12,
    max_epochs=14,
    patience=4,
    max_seconds=60.0,
)


def item_name(index: int) -> str:
    return f"item-{index % ITEMS}"


def successor(item_id: str) -> str:
    return item_name(int(item_id.removeprefix("item-")) + STEP)


def markov_log(users: int = 400, steps: int = 15, noise: float = 0.05, seed: int = 1) -> InteractionLog:
    """Users walk the chain from random items, all at once; a share `noise` of the steps goes anywhere."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, ITEMS, users)
    log = InteractionLog()
    names = [item_name(index) for index in range(ITEMS)]
    for step in range(steps):
        log.append(
            user=np.arange(users),
            item_ids=names,
            item=at,
            time_ms=np.arange(users) + step * 1000,
            event_type=np.zeros(users),
            weight=np.ones(users),
            offset=step,
        )
        at = np.where(rng.random(users) < noise, rng.integers(0, ITEMS, users), (at + STEP) % ITEMS)
    return log


@functools.cache
def markov_outcome() -> tuple[Registry, Outcome]:
    """One run of the slow path on the chain, published into memory; made once for all tests of a process."""
    registry = Registry("memory://markov-models")
    return registry, run_slow_path(markov_log(), registry, SETTINGS)


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
