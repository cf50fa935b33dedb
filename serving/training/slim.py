"""An ONNX file without what only readers need."""

from __future__ import annotations

import onnx

__all__ = ["slim"]


def slim(model: bytes, *, keep_names: bool = True) -> bytes:
    """Without what only readers need: documentation, metadata and inferred shapes; on request, without names
    of operators and with short names of values, too. A tenth of a small graph's file is such text."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    del graph.value_info[:], proto.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    if not keep_names:
        _shorten(graph)
    return bytes(proto.SerializeToString())


def _shorten(graph: onnx.GraphProto) -> None:
    """Values get numbers for names, but for the graph's own inputs and outputs. What has graphs inside stays
    as it is, since those refer to names outside."""
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    for node in graph.node:
        node.name = ""
        for part in (node.input, node.output):
            part[:] = [names.setdefault(name, f"{len(names):x}") for name in part]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for stored in graph.sparse_initializer:
        stored.values.name = names.get(stored.values.name, stored.values.name)
