"""Look into an ONNX file without loading it: weights outside the file, and operators outside the standard.

An ONNX file may name other files to read weights from, by a path of its own choosing, and operators of
libraries that nobody here loaded. Neither is let in. The protobuf wire format is walked field by field, so
that workers need no `onnx` package; field numbers are those of onnx.proto (IR version 3 to 13).
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["OnnxFileError", "check_onnx"]

_MAX_DEPTH = 64
_ALLOWED_DOMAINS = {b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft", b"pkg.onnxscript.torch_lib"}
"""com.microsoft: ONNX Runtime's own fused and quantised operators, built in."""

_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "OperatorSet", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 9: "OperatorSet", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
    "OperatorSet": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_OPERATOR_SET_DOMAIN = 1


class OnnxFileError(ValueError):
    """The file is no ONNX model, or one that is not let in."""


def check_onnx(model: bytes) -> None:
    """Raise OnnxFileError for external data, an operator domain outside the standard, or bytes that are no
    ONNX model."""
    if not _check(memoryview(model), "Model", 0):
        raise OnnxFileError(f"{len(model)} bytes hold no ONNX graph")


def _check(data: memoryview, kind: str, depth: int) -> bool:
    """True when a graph was met; data is one message of `kind`."""
    if depth > _MAX_DEPTH:
        raise OnnxFileError(f"graphs nested deeper than {_MAX_DEPTH}")
    graph_met = kind == "Graph"
    for field, value in _fields(data):
        if kind == "Tensor" and (
            field == _TENSOR_EXTERNAL_DATA or (field == _TENSOR_DATA_LOCATION and value == 1)
        ):
            raise OnnxFileError("a tensor's data lies outside the file (external_data), which is never read")
        if (
            kind == "OperatorSet"
            and field == _OPERATOR_SET_DOMAIN
            and bytes(_message(value)) not in _ALLOWED_DOMAINS
        ):
            raise OnnxFileError(f"operators of domain {bytes(_message(value))!r} are not let in")
        child = _MESSAGES[kind].get(field)
        if child is not None:
            graph_met |= _check(_message(value), child, depth + 1)
    return graph_met


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise OnnxFileError("a number stands where a message belongs: the file is damaged")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire_type == 2:
            size, at = _varint(data, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise OnnxFileError(f"wire type {wire_type} at byte {at}: the file is no ONNX model")
        if at + size > len(data):
            raise OnnxFileError(f"a field of {size} bytes at byte {at} of {len(data)}: the file is cut off")
        if wire_type == 2:
            yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return result, at
        shift += 7
    raise OnnxFileError(f"a number runs past byte {at} of {len(data)}: the file is cut off or no ONNX model")
