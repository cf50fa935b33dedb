"""What a trained ranker is published as: its files and its manifest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import safetensors.numpy

from serving.features import FEATURES_DIGEST
from serving.ranker.errors import RankerError
from serving.ranker.inputs import FEATURES
from serving.registry.manifest import (
    GOLDEN_FILE,
    MODEL_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    ContentInput,
    GateReport,
    Manifest,
    Signature,
    TrainedOn,
    digest_of,
    file_entries,
)
from serving.training.dataset import LogSplit
from serving.training.export import Export
from serving.training.fused import ExportedRanker
from serving.training.train import TrainedNetwork

__all__ = ["Product", "files_of", "manifest_of", "version_of"]


@dataclass(frozen=True, slots=True)
class Product:
    """A trained network, what is exported of it, and the graph that is to serve."""

    trained: TrainedNetwork
    split: LogSplit
    ranker: ExportedRanker
    model: bytes
    export: Export
    version: str
    created_at_ms: int
    precision: str = "fp32"
    compression: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """Figures of each smaller graph that was tried, by its name."""


def files_of(product: Product) -> dict[str, bytes]:
    """All files of the version by name, without the manifest."""
    return {
        MODEL_FILE: product.model,
        VOCABULARY_FILE: msgspec.json.encode(product.split.vocabulary),
        WEIGHTS_FILE: safetensors.numpy.save(product.trained.weights()),
        GOLDEN_FILE: safetensors.numpy.save(product.export.golden.arrays()),
    }


def manifest_of(
    product: Product, model_name: str, report: GateReport, files: Mapping[str, bytes]
) -> Manifest:
    """The version's manifest. Raises RankerError for a report without the challenger's scores."""
    if report.challenger is None:
        raise RankerError(f"{product.version}: an accepted report without the challenger's scores")
    trained, split = product.trained, product.split
    is_fused = product.ranker.head is not None
    return Manifest(
        version=product.version,
        model_name=model_name,
        network=trained.settings.network,
        files=file_entries(files),
        signature=Signature(),
        history_length=trained.settings.history_length,
        vocabulary_size=len(trained.vocabulary),
        trained_on=TrainedOn(
            from_offset=split.from_offset, to_offset=split.to_offset, interactions=split.interactions
        ),
        gate=report,
        metrics={
            "hr_at_10": report.challenger.hr_at_10,
            "ndcg_at_10": report.challenger.ndcg_at_10,
            "validation_ndcg_at_10": trained.ndcg_at_10,
            "epochs": float(len(trained.curve)),
            "train_seconds": trained.seconds,
        },
        opset=product.export.opset,
        created_at_ms=product.created_at_ms,
        code_version=_code_version(),
        precision=product.precision,
        compression=dict(product.compression),
        fused=is_fused,
        event_types=split.event_type_names,
        features=tuple(FEATURES) if is_fused else (),
        features_digest=FEATURES_DIGEST if is_fused else "",
        content=tuple(ContentInput(name=name, dim=dim) for name, dim in split.content),
    )


def version_of(created_at_ms: int, model: bytes) -> str:
    """Sorts by time, and tells two of one millisecond apart: 20261122T114413.123Z-1f2e3d4c."""
    at = datetime.fromtimestamp(created_at_ms / 1000, tz=UTC)
    return f"{at:%Y%m%dT%H%M%S}.{created_at_ms % 1000:03d}Z-{digest_of(model)[:8]}"


def _code_version() -> str:
    try:
        return importlib.metadata.version("freshet")
    except importlib.metadata.PackageNotFoundError:
        return "source"
