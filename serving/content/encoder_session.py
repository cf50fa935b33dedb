"""ONNX Runtime for encoders of content; beside the ranker's session the only module that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.content.errors import ContentError

__all__ = ["EncoderSession", "Port"]

Float32 = npt.NDArray[np.float32]
_FATAL_ONLY = 4


class Port(NamedTuple):
    """An input or output of a graph; a dimension that varies is None."""

    name: str
    type: str
    shape: tuple[int | None, ...]


class EncoderSession:
    """A loaded graph on the CPU, which shares it with a worker: one thread by default, and no spinning."""

    def __init__(self, model: Path | bytes, threads: int = 1) -> None:
        """Load a model from its path or its bytes. Raises ContentError when it can't be loaded."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.enable_mem_pattern = False  # plans are made for a shape, and shapes vary
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            what = f"of {len(model)} bytes" if isinstance(model, bytes) else str(model)
            raise ContentError(
                f"encoder {what}: ONNX Runtime {ort.__version__} can't load it: {error}"
            ) from error
        self.inputs = [_port(one) for one in self._session.get_inputs()]
        self.outputs = [_port(one) for one in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """The first output as float32. Raises ContentError when the run fails."""
        try:
            output = self._session.run([self.outputs[0].name], dict(feeds))[0]
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise ContentError(f"ONNX Runtime failed on {shapes}: {error}") from error
        return np.asarray(output, dtype=np.float32)


def _port(found: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in found.shape)
    return Port(found.name, found.type, shape)
