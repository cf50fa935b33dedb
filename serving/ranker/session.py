"""ONNX Runtime, and the only module that imports it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.ranker.errors import RankerError
from serving.ranker.inputs import INPUTS, OUTPUT, RankerInputs
from serving.ranker.settings import Provider

__all__ = ["RankerSession", "available_providers"]

Float32 = npt.NDArray[np.float32]

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_WANTED: dict[str, list[str]] = {
    "cpu": [_CPU],
    "cuda": [_CUDA, _CPU],
    "tensorrt": [_TENSORRT, _CUDA, _CPU],
}
_PROVIDER_OPTIONS = {_CUDA: {"use_tf32": "0"}}
"""TF32 has 10 bits of mantissa: scores would differ from PyTorch's by more than the golden probe allows."""
_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
_WARNING = 2
_FATAL_ONLY = 4
"""Log level: ONNX Runtime writes several lines to stderr for each provider that falls back; we report that
ourselves."""


class RankerSession:
    """One loaded graph of the one signature (`serving.ranker.inputs`).

    `provider` is what is wished for; `providers_in_force` is what the session took, read from it after the
    load. `auto` wishes for CUDA where the machine has an NVIDIA device. Threads don't spin while they wait,
    because several workers share the cores. `score` may be called from several threads at once.
    """

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        provider: Provider = "auto",
        threads: int = 1,
        *,
        io_binding: bool | None = None,
    ) -> None:
        """Load a model from its bytes or its path.

        `io_binding` binds inputs and outputs to the device; default: when CUDA is in force. Raises
        RankerError when the graph can't be loaded or has other inputs or outputs.
        """
        self.provider_asked: Provider = provider
        wanted = _WANTED[_resolve(provider)]
        self._session = _load(model if isinstance(model, bytes) else str(Path(model)), wanted, threads)
        self.providers_in_force: list[str] = list(self._session.get_providers())
        self.fell_back = self.providers_in_force[:1] != wanted[:1]
        self._bind = (_CUDA in self.providers_in_force) if io_binding is None else io_binding
        self._device = "cuda" if _CUDA in self.providers_in_force else "cpu"
        self._check_signature()

    def score(self, inputs: RankerInputs) -> Float32:
        """float32[B, C]. Raises RankerError when the run fails."""
        feeds = inputs.feeds()
        try:
            output = self._run_bound(feeds) if self._bind else self._session.run([OUTPUT], feeds)[0]
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise RankerError(f"ONNX Runtime failed on {shapes}: {error}") from error
        scores: Float32 = output
        return scores

    def _run_bound(self, feeds: dict[str, npt.NDArray[np.generic]]) -> Float32:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(OUTPUT, self._device)
        self._session.run_with_iobinding(binding)
        scores: Float32 = binding.copy_outputs_to_cpu()[0]
        return scores

    def _check_signature(self) -> None:
        inputs = {i.name: (i.type, len(i.shape)) for i in self._session.get_inputs()}
        outputs = {o.name: (o.type, len(o.shape)) for o in self._session.get_outputs()}
        expected = {name: (_TYPES[kind], rank) for name, (kind, rank) in INPUTS.items()}
        if inputs != expected or outputs != {OUTPUT: (_TYPES["float32"], 2)}:
            raise RankerError(
                f"signature: the file has inputs {inputs} and outputs {outputs}; expected {expected} and "
                f"{{'{OUTPUT}': ('tensor(float)', 2)}}. Export it with `serving.training.export`."
            )


def available_providers() -> list[str]:
    """Execution providers in this build of ONNX Runtime; which of them work shows when a model is loaded."""
    return list(ort.get_available_providers())


def _resolve(provider: Provider) -> str:
    if provider != "auto":
        return provider
    return "cuda" if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() else "cpu"


def _load(source: bytes | str, wanted: list[str], threads: int) -> Any:
    available = set(ort.get_available_providers())
    providers = [(name, _PROVIDER_OPTIONS.get(name, {})) for name in wanted if name in available]
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        return ort.InferenceSession(source, _options(threads), providers=providers or [(_CPU, {})])
    except Exception as error:
        raise RankerError(f"ONNX Runtime {ort.__version__} can't load the model: {error}") from error
    finally:
        ort.set_default_logger_severity(_WARNING)


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
