"""A small log with lists that could have been served, whose ranks can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper

from serving.ranker.inputs import CONTEXT, FEATURES, INPUTS, OUTPUT
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.training.dataset import EvaluationSlice
from serving.training.examples import Examples

__all__ = ["examples_of", "feature_ranker", "slice_of"]

_TYPES = {"int64": onnx.TensorProto.INT64, "float32": onnx.TensorProto.FLOAT}


def slice_of(histories: Sequence[Sequence[int]], items: int) -> EvaluationSlice:
    """One user for each history, whose last item is the event to judge; the user's row in the log counts
    on."""
    flat = np.array([item for history in histories for item in history], dtype=np.int64)
    ends = np.cumsum([len(history) for history in histories])
    return EvaluationSlice(
        item_ids=[f"i{n}" for n in range(items)],
        items=flat,
        types=np.ones(len(flat), dtype=np.int64),
        times_ms=1000 * np.arange(len(flat), dtype=np.int64),
        rows=np.arange(len(flat), dtype=np.int64),
        starts=np.concatenate([[0], ends[:-1]]).astype(np.int64),
        positions=(ends - 1).astype(np.int64),
    )


def examples_of(
    newest: EvaluationSlice,
    lists: Sequence[Sequence[int]],
    online: Sequence[Sequence[float]],
    feature: Sequence[Sequence[float]] | None = None,
) -> Examples:
    """A list of item numbers for each event of the slice, with the blend's score of each and, as the first
    feature, another; a target that is not in the list stands behind it."""
    n, room = len(lists), max(len(candidates) for candidates in lists) + 1
    given = np.full((n, room), -1, dtype=np.int32)
    scores = np.full((n, room), -np.inf, dtype=np.float32)
    features = np.zeros((n, room, len(FEATURES)), dtype=np.float32)
    targets = np.zeros(n, dtype=np.int32)
    for row, candidates in enumerate(lists):
        item = int(newest.targets[row])
        whole = [*candidates] if item in candidates else [*candidates, item]
        given[row, : len(whole)] = whole
        targets[row] = whole.index(item)
        scores[row, : len(candidates)] = online[row]
        if feature is not None:
            features[row, : len(feature[row]), 0] = feature[row]
    return Examples(
        item_ids=newest.item_ids,
        candidates=given,
        length=np.array([len(candidates) for candidates in lists], dtype=np.int32),
        targets=targets,
        target_items=newest.targets.astype(np.int32),
        features=features,
        online=scores,
        context=np.zeros((n, len(CONTEXT)), dtype=np.float32),
        users=np.arange(n).astype(np.uint64),
        times_ms=newest.times_ms[newest.positions],
        offsets=np.zeros(n, dtype=np.int64),
        rows=newest.rows[newest.positions],
    )


def feature_ranker(vocabulary: Sequence[str], version: str = "fused") -> Ranker:
    """A fused ranker whose score of a candidate is its first feature."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, _TYPES[kind], [f"{name}_{axis}" for axis in range(axes)])
        for name, (kind, axes) in INPUTS.items()
    ]
    output = onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["B", "C"])
    first = onnx.numpy_helper.from_array(np.array(0, dtype=np.int64), "first")
    node = onnx.helper.make_node("Gather", ["features", "first"], [OUTPUT], axis=2)
    graph = onnx.helper.make_graph([node], "feature", inputs, [output], [first])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = RankerSession(model.SerializeToString(), "cpu")
    return Ranker(session, vocabulary, version=version, history_length=8, fused=True)


def log_shares(scores: Sequence[float]) -> npt.NDArray[np.float64]:
    """log softmax, by the definition."""
    values = np.exp(np.array(scores, dtype=np.float64))
    shares: npt.NDArray[np.float64] = np.log(values / values.sum())
    return shares
