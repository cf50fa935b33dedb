"""A ranker to measure with: the trainer's default network and head with random weights, exported as the
trainer does.

How long a score takes depends on the shape of the graph, not on what its weights have learned.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.bench import Bench, Deployment
from serving.features import FEATURES_DIGEST
from serving.ranker.inputs import FEATURES
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
from serving.registry.store import Registry
from streams.model_commands import promote

__all__ = ["VERSION", "announce_random", "export_random", "model_path", "publish_random"]

VERSION = "random-weights"
SEED = 4


def publish_random(bench: Bench, vocabulary: Sequence[str]) -> None:
    """Put the network into the bench's registry as `VERSION`, unless it is there."""
    registry = Registry(bench.env["FRESHET_REGISTRY__URL"])
    if VERSION not in registry.list():
        files, history_length, opset = _export(vocabulary, bench.folder)
        registry.publish(_manifest(vocabulary, files, history_length, opset, registry.model_name), files)


def export_random(vocabulary: Sequence[str], folder: Path) -> tuple[Path, int]:
    """The graph as a file in `folder`, and the length of its history."""
    _, history_length, _ = _export(vocabulary, folder)
    return folder / MODEL_FILE, history_length


def model_path(bench: Bench) -> Path:
    """The exported graph in the bench's registry."""
    registry = Registry(bench.env["FRESHET_REGISTRY__URL"])
    return Path(registry.uri(VERSION)) / MODEL_FILE


def announce_random(deployment: Deployment) -> None:
    """Make `VERSION` the live one of this deployment; its workers load it when they start."""
    promote(deployment.settings, VERSION)


def _export(vocabulary: Sequence[str], folder: Path) -> tuple[dict[str, bytes], int, int]:
    import safetensors.numpy
    import torch

    from serving.training.export import OPSET, export_onnx
    from serving.training.fused import ExportedRanker, FusionHead
    from serving.training.networks import build_network
    from serving.training.networks.base import Shape
    from serving.training.settings import TrainerSettings

    settings = TrainerSettings()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    network = build_network(Shape(len(vocabulary)), settings)
    path = folder / MODEL_FILE
    golden = export_onnx(ExportedRanker(network, FusionHead()), path, seed=SEED).golden
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    files = {
        MODEL_FILE: path.read_bytes(),
        VOCABULARY_FILE: msgspec.json.encode(list(vocabulary)),
        WEIGHTS_FILE: safetensors.numpy.save(weights),
        GOLDEN_FILE: safetensors.numpy.save(golden.arrays()),
    }
    return files, settings.history_length, OPSET


def _manifest(
    vocabulary: Sequence[str], files: dict[str, bytes], history_length: int, opset: int, model_name: str
) -> Manifest:
    nothing = ModelScore(hr_at_10=0.0, ndcg_at_10=0.0)
    return Manifest(
        version=VERSION,
        model_name=model_name,
        network="transformer",
        files=file_entries(files),
        signature=Signature(),
        history_length=history_length,
        vocabulary_size=len(vocabulary),
        trained_on=TrainedOn(from_offset=0, to_offset=0, interactions=0),
        gate=GateReport(
            accepted=False,
            reasons=("random weights, for measuring speed alone",),
            events=0,
            catalogue=0,
            challenger=None,
            champion=None,
            popularity=nothing,
            comparisons=(),
            parity=None,
            latency_ms=None,
        ),
        metrics={},
        opset=opset,
        created_at_ms=int(time.time() * 1000),
        code_version="benchmark",
        fused=True,
        features=FEATURES,
        features_digest=FEATURES_DIGEST,
    )
