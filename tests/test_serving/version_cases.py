"""Versions made by hand: small graphs with known scores, in the one signature, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import safetensors.numpy

from serving.ranker.inputs import INPUTS, OUTPUT
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.registry.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    GateReport,
    Manifest,
    ModelScore,
    Signature,
    TrainedOn,
    file_entries,
)
from serving.registry.store import Published, Registry

__all__ = ["publish_table", "successor_table", "table_model", "table_ranker"]

Float32 = npt.NDArray[np.float32]
HISTORY = 8
_TYPES = {"int64": onnx.TensorProto.INT64, "float32": onnx.TensorProto.FLOAT}


def successor_table(items: int, step: int, strength: float = 8.0) -> Float32:
    """float32[V + 2, V + 2]: row of the newest item, column of the candidate; `strength` for the item `step`
    places after it, 0 for the others."""
    table = np.zeros((items + 2, items + 2), dtype=np.float32)
    places = np.arange(items)
    table[1 + places, 1 + (places + step) % items] = strength
    return table


def table_model(table: Float32) -> bytes:
    """The graph scores[b, c] = table[newest item of b, candidate c]; places above V + 1 count as V + 1."""
    top, last = len(table) - 1, -1
    constants: dict[str, npt.NDArray[Any]] = {
        "table": table.astype(np.float32),
        "top": np.array(top, dtype=np.int64),
        "last": np.array(last, dtype=np.int64),
    }
    node = onnx.helper.make_node
    nodes = [
        node("Gather", ["history", "last"], ["newest"], axis=1),
        node("Min", ["newest", "top"], ["row"]),
        node("Gather", ["table", "row"], ["rows"], axis=0),
        node("Min", ["candidates", "top"], ["columns"]),
        node("GatherElements", ["rows", "columns"], [OUTPUT], axis=1),
    ]
    names = "abcdefg"
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, _TYPES[kind], [f"{name}_{names[axis]}" for axis in range(dimensions)]
        )
        for name, (kind, dimensions) in INPUTS.items()
    ]
    output = onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["B", "C"])
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "table", inputs, [output], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def table_ranker(
    vocabulary: Sequence[str], table: Float32, version: str = "case", *, fused: bool = True
) -> Ranker:
    """A ranker in memory."""
    session = RankerSession(table_model(table), "cpu")
    return Ranker(session, vocabulary, version=version, history_length=HISTORY, digest=version, fused=fused)


def publish_table(
    folder: Path | str,
    version: str,
    vocabulary: Sequence[str],
    table: Float32,
    *,
    fused: bool = True,
    golden_scores: Float32 | None = None,
    **files: bytes,
) -> tuple[Registry, Published]:
    """A version in the registry at `folder`; `files` take the place of its own, with _ for the dot."""
    ranker = table_ranker(vocabulary, np.nan_to_num(table), version, fused=fused)
    places = np.arange(1, len(vocabulary) + 1)
    inputs = ranker.plain_inputs(places[: 2 * HISTORY].reshape(2, -1), np.stack([places, places[::-1]]))
    golden = {name: np.ascontiguousarray(getattr(inputs, name)) for name in INPUTS}
    scores = ranker.session.score(inputs) if golden_scores is None else golden_scores
    contents = {
        MODEL_FILE: table_model(table),
        VOCABULARY_FILE: msgspec.json.encode(list(vocabulary)),
        WEIGHTS_FILE: safetensors.numpy.save({"table": table}),
        GOLDEN_FILE: safetensors.numpy.save({**golden, "scores": np.ascontiguousarray(scores)}),
        **{name.replace("_", "."): data for name, data in files.items()},
    }
    registry = Registry(str(folder))
    return registry, registry.publish(_manifest(version, contents, len(vocabulary), fused=fused), contents)


def _manifest(version: str, contents: dict[str, bytes], items: int, *, fused: bool) -> Manifest:
    score = ModelScore(hr_at_10=0.2, ndcg_at_10=0.1)
    gate = GateReport(
        accepted=True,
        reasons=(),
        events=100,
        catalogue=items,
        challenger=score,
        champion=None,
        popularity=score,
        comparisons=(),
        parity=1e-6,
        latency_ms=1.0,
    )
    return Manifest(
        version=version,
        model_name="ranker",
        network="table",
        files=file_entries(contents),
        signature=Signature(),
        history_length=HISTORY,
        vocabulary_size=items,
        trained_on=TrainedOn(from_offset=0, to_offset=9, interactions=1000),
        gate=gate,
        metrics={"hr_at_10": 0.2, "ndcg_at_10": 0.1},
        opset=18,
        created_at_ms=1_700_000_000_000,
        code_version="0",
        fused=fused,
    )
