"""ONNX Runtime, and the only module that imports it for the ranker."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.ranker.bucketing import Buckets
from serving.ranker.errors import RankerError
from serving.ranker.inputs import INPUTS, OUTPUT, WIDTHS, RankerInputs
from serving.ranker.providers import CPU, CUDA, InForce, Kernel, Wish
from serving.ranker.settings import GraphOptimization, Provider

__all__ = ["RankerSession", "available_providers"]

Float32 = npt.NDArray[np.float32]
Feeds = dict[str, npt.NDArray[Any]]

_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
_ITEMS = "item_vectors"
_WARNING = 2
_FATAL_ONLY = 4
"""Log level: ONNX Runtime writes several lines to stderr for each provider that falls back; we report that
ourselves."""
_MAX_RECORDED = 32
"""Shapes that are kept as recorded graphs, each with its buffers on the device; the one longest unused goes
first."""
_LEVELS: dict[GraphOptimization, Any] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class RankerSession:
    """One loaded graph of the one signature (`serving.ranker.inputs`).

    What is wished for is `wish`, what the session took is `in_force`, read from it after the load. Threads
    don't spin while they wait, because several workers share the cores. `score` may be called from several
    threads at once.

    The item vectors stay on the device between calls once `bind_items` was given them; everything else is
    bound to each call.
    """

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        provider: Provider = "auto",
        threads: int = 1,
        *,
        wish: Wish | None = None,
        io_binding: bool | None = None,
        profile: Path | None = None,
    ) -> None:
        """Load a model from its bytes or its path. `wish` holds provider and threads, too, where it is given.

        `io_binding` binds inputs and outputs to the device; default: when CUDA is in force, or CUDA graphs
        are wished for. `profile` is where `kernels` writes its file. Raises RankerError when the graph can't
        be loaded or has other inputs or outputs.
        """
        self.wish = wish or Wish(provider, threads)
        self._profiled = profile is not None
        source = model if isinstance(model, bytes) else str(Path(model))
        self._session = _load(source, self.wish, profile)
        self.providers_in_force: list[str] = list(self._session.get_providers())
        self.fell_back = self.providers_in_force[:1] != self.wish.providers()[:1]
        on_gpu = CUDA in self.providers_in_force
        self._device = "cuda" if on_gpu else "cpu"
        self._bind = (on_gpu or self.wish.cuda_graph) if io_binding is None else io_binding
        self._buckets = Buckets() if self.wish.pads(self.providers_in_force) else None
        self._items: _Items | None = None
        self._recorded: _Recorded | None = None
        if self.wish.cuda_graph and self._bind:
            self._recorded = _Recorded(self._session, self._device)
        self._check_signature()

    @property
    def in_force(self) -> InForce:
        """What the session itself says."""
        options = self._session.get_session_options()
        level = next(n for n, value in _LEVELS.items() if value == options.graph_optimization_level)
        return InForce(
            tuple(self.providers_in_force),
            options.intra_op_num_threads,
            level,
            self._buckets is not None,
            self._recorded is not None and self._device == "cuda",
        )

    def bind_items(self, vectors: Float32, version: int = 0) -> None:
        """Keep item vectors float32[N, E], C-contiguous, on the device for calls that pass the same memory.

        On the CPU nothing is copied, so rows may change in place. A GPU gets a copy: again for another array,
        and for the same with another `version`, which the caller counts up when rows have changed. A call
        under way may see rows from before and after. Without `io_binding` each call is given the memory as it
        is. Raises ValueError for another element type or layout.
        """
        if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
            raise ValueError(
                f"item vectors are {vectors.dtype}{vectors.shape}: C-contiguous float32[N, E] is asked"
            )
        items = self._items
        if not self._bind or (items is not None and items.holds(vectors) and items.version == version):
            return
        if items is not None and self._device != "cpu" and items.value.shape() == list(vectors.shape):
            items.refresh(vectors, version)
        else:
            self._items = _Items(vectors, version, self._device)

    def score(self, inputs: RankerInputs) -> Float32:
        """float32[B, C]. Raises RankerError when the run fails or gives another shape."""
        users, candidates = inputs.candidates.shape
        padded = inputs if self._buckets is None else self._buckets.pad(inputs)
        feeds = padded.feeds()
        try:
            output = self._run(feeds)
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise RankerError(f"ONNX Runtime failed on {shapes}: {error}") from error
        if output.shape != padded.candidates.shape:  # kernels that read it look no further
            raise RankerError(
                f"scores of shape {output.shape} for candidates {padded.candidates.shape}", "signature"
            )
        return output if padded is inputs else output[:users, :candidates]

    def kernels(self) -> list[Kernel]:
        """All operators that ran since the load, which ends the profile. Raises RankerError without one."""
        if not self._profiled:
            raise RankerError("the session was loaded without `profile`")
        self._profiled, end = False, "_kernel_time"
        events = json.loads(Path(self._session.end_profiling()).read_text("utf-8"))
        return [_kernel(e, end) for e in events if e.get("cat") == "Node" and e["name"].endswith(end)]

    def _run(self, feeds: Feeds) -> Float32:
        if not self._bind:
            scores: Float32 = self._session.run([OUTPUT], feeds)[0]
            return scores
        items = self._items
        if items is None or not items.holds(feeds[_ITEMS]):
            items = None
        if self._recorded is not None and items is not None:
            return self._recorded.run(feeds, items)
        return _run_bound(self._session, self._device, feeds, items)

    def _check_signature(self) -> None:
        inputs = {i.name: (i.type, len(i.shape)) for i in self._session.get_inputs()}
        outputs = {o.name: (o.type, len(o.shape)) for o in self._session.get_outputs()}
        expected = {name: (_TYPES[kind], rank) for name, (kind, rank) in INPUTS.items()}
        if inputs != expected or outputs != {OUTPUT: (_TYPES["float32"], 2)}:
            raise RankerError(
                f"signature: the file has inputs {inputs} and outputs {outputs}; expected {expected} and "
                f"{{'{OUTPUT}': ('tensor(float)', 2)}}. Export it with `serving.training.export`.",
                "signature",
            )
        for name, shape in ((i.name, i.shape) for i in self._session.get_inputs()):
            if name in WIDTHS and isinstance(shape[-1], int) and shape[-1] != WIDTHS[name]:
                raise RankerError(
                    f"signature: the file's `{name}` has {shape[-1]} columns, {WIDTHS[name]} are given. It "
                    "was exported by another version of the code: train again.",
                    "signature",
                )


class _Items:
    """Item vectors as one value of the device; on the CPU over the caller's own memory."""

    def __init__(self, vectors: Float32, version: int, device: str) -> None:
        self.value = ort.OrtValue.ortvalue_from_numpy(vectors, device, 0)
        self._seen(vectors, version)

    def refresh(self, vectors: Float32, version: int) -> None:
        """Copy vectors of the same shape to where the old ones are, so that recorded graphs see them."""
        self.value.update_inplace(vectors)
        self._seen(vectors, version)

    def _seen(self, vectors: Float32, version: int) -> None:
        self.version = version
        self._where = _memory(vectors)
        self._kept = vectors  # memory that is held can't be another array's

    def holds(self, vectors: npt.NDArray[Any]) -> bool:
        """Whether these are the same memory, of the same shape."""
        return _memory(vectors) == self._where


class _Recorded:
    """Calls by shape, each with fixed buffers on the device, as a recorded CUDA graph needs them.

    The first run of a shape records, later ones copy their inputs into the buffers and replay. On the CPU the
    same buffers are used without a recording.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._lock = threading.Lock()
        self._items: _Items | None = None
        self._shapes: OrderedDict[tuple[int, ...], tuple[int, Any, dict[str, Any], Any]] = OrderedDict()
        self._next = 1

    def __len__(self) -> int:
        return len(self._shapes)

    def run(self, feeds: Feeds, items: _Items) -> Float32:
        """float32[B, C] ; other item vectors than the last call's begin anew."""
        key = (*feeds["history"].shape, *feeds["candidates"].shape)
        with self._lock:
            if items is not self._items:
                self._keep(0)
                self._items = items
            if key not in self._shapes:
                self._keep(_MAX_RECORDED - 1)
                self._shapes[key] = self._made(feeds, items)
            self._shapes.move_to_end(key)
            number, binding, buffers, output = self._shapes[key]
            for name, buffer in buffers.items():
                buffer.update_inplace(feeds[name])
            self._session.run_with_iobinding(binding, _graph_id(number))
            scores: Float32 = output.numpy().copy()
        return scores

    def _keep(self, count: int) -> None:
        while len(self._shapes) > count:
            self._session.release_captured_graph(self._shapes.popitem(last=False)[1][0])

    def _made(self, feeds: Feeds, items: _Items) -> tuple[int, Any, dict[str, Any], Any]:
        make = ort.OrtValue.ortvalue_from_shape_and_type
        buffers = {
            name: make(feeds[name].shape, feeds[name].dtype.type, self._device, 0)
            for name in INPUTS
            if name != _ITEMS
        }
        output = make(feeds["candidates"].shape, np.float32, self._device, 0)
        binding = self._session.io_binding()
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_input(_ITEMS, items.value)
        binding.bind_ortvalue_output(OUTPUT, output)
        self._next += 1
        return self._next - 1, binding, buffers, output


def available_providers() -> list[str]:
    """Execution providers in this build of ONNX Runtime; which of them work shows when a model is loaded."""
    return list(ort.get_available_providers())


def _kernel(event: dict[str, Any], end: str) -> Kernel:
    asked = event["args"]
    shapes = tuple(tuple(sizes) for value in asked["output_type_shape"] for sizes in value.values())
    return Kernel(event["name"].removesuffix(end), asked["op_name"], asked["provider"], event["dur"], shapes)


def _memory(array: npt.NDArray[Any]) -> tuple[int, tuple[int, ...]]:
    return array.__array_interface__["data"][0], array.shape


def _graph_id(number: int) -> Any:
    """Run options that record and replay under this number; -1 does neither."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _run_bound(session: Any, device: str, feeds: Feeds, items: _Items | None) -> Float32:
    binding = session.io_binding()
    for name, array in feeds.items():
        if name == _ITEMS and items is not None:
            binding.bind_ortvalue_input(name, items.value)
        else:
            binding.bind_cpu_input(name, array)
    binding.bind_output(OUTPUT, device)
    session.run_with_iobinding(binding, _graph_id(-1))
    scores: Float32 = binding.copy_outputs_to_cpu()[0]
    return scores


def _load(source: bytes | str, wish: Wish, profile: Path | None) -> Any:
    available = set(ort.get_available_providers())
    providers = [(name, wish.options(name)) for name in wish.providers() if name in available]
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        session = ort.InferenceSession(source, _options(wish, profile), providers=providers or [(CPU, {})])
    except Exception as error:
        raise RankerError(f"ONNX Runtime {ort.__version__} can't load the model: {error}") from error
    finally:
        ort.set_default_logger_severity(_WARNING)
    session.disable_fallback()  # else a failed call would move the session to the CPU unseen
    return session


def _options(wish: Wish, profile: Path | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = wish.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS[wish.graph_optimization]
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options
