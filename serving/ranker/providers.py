"""Where a session runs, and how: what is wished for, in ONNX Runtime's words, and what is in force."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.ranker.settings import GraphOptimization, Padding, Provider, RankerSettings

__all__ = ["CPU", "CUDA", "InForce", "Kernel", "Wish"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_WANTED: dict[str, list[str]] = {
    "cpu": [CPU],
    "cuda": [CUDA, CPU],
    "tensorrt": [TENSORRT, CUDA, CPU],
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a session is asked for; see `serving.ranker.settings.RankerSettings` for each."""

    provider: Provider = "auto"
    threads: int = 1
    graph_optimization: GraphOptimization = "all"
    padding: Padding = "auto"
    cuda_graph: bool = False

    @classmethod
    def of(cls, settings: RankerSettings) -> Wish:
        """What the settings say."""
        return cls(
            settings.provider,
            settings.threads,
            settings.graph_optimization,
            settings.padding,
            settings.cuda_graph,
        )

    def providers(self) -> list[str]:
        """Wished for, best first. `auto` wishes for CUDA where the machine has an NVIDIA device."""
        return _WANTED[_resolve(self.provider)]

    def options(self, name: str) -> dict[str, str]:
        """Provider options. TF32 has 10 bits of mantissa: scores would differ from PyTorch's by more than the
        golden probe allows."""
        if name == CUDA:
            return {"use_tf32": "0", "enable_cuda_graph": "1" if self.cuda_graph else "0"}
        if name == TENSORRT:
            return {"trt_cuda_graph_enable": "1" if self.cuda_graph else "0"}
        return {}

    def pads(self, providers_in_force: list[str]) -> bool:
        """Whether calls are padded to buckets: by `auto` on a GPU only, for on the CPU it gained nothing."""
        if self.padding == "auto":
            return self.cuda_graph or providers_in_force[:1] != [CPU]
        return self.padding == "on"


@dataclass(frozen=True, slots=True)
class InForce:
    """What a session runs with, read back from it after the load."""

    providers: tuple[str, ...]
    threads: int
    graph_optimization: GraphOptimization
    padding: bool
    cuda_graph: bool

    def __str__(self) -> str:
        extras = [name for name, on in (("padded", self.padding), ("CUDA graphs", self.cuda_graph)) if on]
        parts = [
            ", ".join(self.providers),
            f"{self.threads} thread(s)",
            f"optimisation {self.graph_optimization}",
        ]
        return "; ".join(parts + extras)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator's run, from a profile: its time, and the shapes of what it gave."""

    name: str
    operator: str
    provider: str
    us: int
    shapes: tuple[tuple[int, ...], ...]


def _resolve(provider: Provider) -> Literal["cpu", "cuda", "tensorrt"]:
    if provider != "auto":
        return provider
    return "cuda" if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() else "cpu"
