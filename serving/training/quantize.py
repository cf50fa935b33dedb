"""The same graph in fewer bits: item rows, products and whole graphs, made from the exported float32 file.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, for w = scale * q.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16

from serving.ranker.inputs import RankerInputs

__all__ = ["float16", "int8_dynamic", "int8_rows", "int8_static", "sparse"]

_LEAST_ROWS = 64
"""Tables below this keep float32: three operators more for a few hundred bytes don't pay."""
_GAPS = "history_gaps_s"
_LIVE = ("context", "features")
_PRODUCTS = ["MatMul", "Gemm"]
_COMMON = {
    "op_types_to_quantize": _PRODUCTS,
    "per_channel": True,
    "reduce_range": True,
    "weight_type": quantization.QuantType.QInt8,
    "extra_options": {"MatMulConstBOnly": True},
}
"""Weights of 7 bits: with 8, processors without VNNI saturate in the sum of two products, and would give
other scores than the golden ones."""


def int8_rows(model: bytes) -> bytes:
    r"""Tables that are only gathered from (items, positions by index) as one int8 row and one scale each.

    $$e_i \approx s_i q_i, \qquad s_i = \max_k |e_{ik}| / 127$$

    The rows are gathered first and multiplied after, so a call reads a quarter of the bytes.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    tables = {t.name: t for t in graph.initializer if _is_table(t, graph)}
    for name, table in tables.items():
        rows = numpy_helper.to_array(table)
        scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1.0
        graph.initializer.remove(table)
        whole = np.round(rows / scale).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(whole, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
    nodes = [new for node in graph.node for new in (_gathered(node) if _reads(node, tables) else [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(proto.SerializeToString())


def int8_dynamic(model: bytes) -> bytes:
    """Products with constant weights in int8; what comes in is scaled by its own range in each call.

    A score then depends a little on who else is in the call. What reads context or features stays float32:
    it is small, and its inputs have no fixed range.
    """

    def write(source: onnx.ModelProto, target: str) -> None:
        quantization.quantize_dynamic(
            source, target, nodes_to_exclude=_fed_by(source.graph, _LIVE), **_COMMON
        )

    return _quantised(model, write)


def int8_static(model: bytes, calibration: Iterable[RankerInputs]) -> bytes:
    """Products with constant weights in int8; what comes in is scaled by the range seen in `calibration`.
    What reads context or features stays float32."""

    def write(source: onnx.ModelProto, target: str) -> None:
        quantization.quantize_static(
            source,
            target,
            _Calibration(calibration),
            nodes_to_exclude=_fed_by(source.graph, _LIVE),
            quant_format=quantization.QuantFormat.QOperator,
            activation_type=quantization.QuantType.QUInt8,
            **_COMMON,
        )

    return _quantised(model, write)


def float16(model: bytes) -> bytes:
    """Weights and arithmetic in float16, inputs and outputs in float32 still.

    Seconds become buckets in float32: float16 ends at 65,504, 18 hours.
    """
    proto = onnx.load_model_from_string(model)
    own = {node.name for node in proto.graph.node}
    kept = _fed_by(proto.graph, [_GAPS], until_embedded=True)
    proto = convert_float_to_float16(proto, keep_io_types=True, node_block_list=kept)
    _uncast(proto.graph, own)
    return bytes(proto.SerializeToString())


def sparse(model: bytes) -> bytes:
    """Weights that are mostly zeros as (place, value) pairs, 12 bytes for each that isn't zero; ONNX Runtime
    fills them up at load."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    for tensor in [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]:
        values = numpy_helper.to_array(tensor)
        places = np.flatnonzero(values)
        if values.ndim != 2 or 12 * len(places) >= 4 * values.size:
            continue
        stored = numpy_helper.from_array(values.ravel()[places], tensor.name)
        indices = numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}.places")
        graph.initializer.remove(tensor)
        graph.sparse_initializer.append(helper.make_sparse_tensor(stored, indices, list(values.shape)))
    return bytes(proto.SerializeToString())


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Calls for the calibrator, one after the other."""

    def __init__(self, calls: Iterable[RankerInputs]) -> None:
        self._calls: Iterator[RankerInputs] = iter(calls)

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        call = next(self._calls, None)
        return None if call is None else call.feeds()


def _quantised(model: bytes, write: Callable[[onnx.ModelProto, str], None]) -> bytes:
    """The quantiser warns, whatever it is told, that the graph was not preprocessed: no step of that helps a
    graph of products."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="freshet-quantise-") as folder:
            target = Path(folder) / "model.onnx"
            write(onnx.load_model_from_string(model), str(target))
            return target.read_bytes()
    finally:
        logger.setLevel(level)


def _fed_by(graph: onnx.GraphProto, inputs: Iterable[str], *, until_embedded: bool = False) -> list[str]:
    """Names of the operators that read, directly or not, one of the inputs, on request no further than to
    where they choose rows of a table. Operators stand in order."""
    tables = {t.name for t in graph.initializer if len(t.dims) == 2 and t.dims[1] > 1}
    reached, names = set(inputs), []
    for node in graph.node:
        if reached & set(node.input):
            names.append(node.name)
            chooses = node.op_type == "Shape" or (node.op_type == "Gather" and node.input[0] in tables)
            if not (until_embedded and chooses):
                reached.update(node.output)
    return names


def _uncast(graph: onnx.GraphProto, own: set[str]) -> None:
    """What was cast to float16 and back is read as it was: the converter casts between any two operators,
    also between two that stay float32. `own` names the operators from before."""
    nodes = {node.output[0]: node for node in graph.node}  # some of its casts stand there twice
    given = {value.name for value in graph.output}
    half = {
        name: node.input[0]
        for name, node in nodes.items()
        if _casts(node, onnx.TensorProto.FLOAT16) and node.name not in own
    }
    back = {
        name: half[node.input[0]]
        for name, node in nodes.items()
        if _casts(node, onnx.TensorProto.FLOAT) and node.input[0] in half and name not in given
    }
    kept = [node for name, node in nodes.items() if name not in back]
    for node in kept:
        node.input[:] = [back.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)


def _casts(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


def _is_table(tensor: onnx.TensorProto, graph: onnx.GraphProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
        return False
    if tensor.dims[0] < _LEAST_ROWS or tensor.dims[1] < 8:
        return False
    readers = [node for node in graph.node if tensor.name in node.input]
    return bool(readers) and all(_reads(node, {tensor.name: tensor}) for node in readers)


def _reads(node: onnx.NodeProto, tables: dict[str, onnx.TensorProto]) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0 and node.input[0] in tables


def _gathered(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    (table, places), out = node.input, node.output[0]
    rows, numbers, scale = f"{out}.int8", f"{out}.float", f"{out}.scale"
    return [
        helper.make_node("Gather", [f"{table}.int8", places], [rows], axis=0),
        helper.make_node("Cast", [rows], [numbers], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{table}.scale", places], [scale], axis=0),
        helper.make_node("Mul", [numbers, scale], [out]),
    ]
