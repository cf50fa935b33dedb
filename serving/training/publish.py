"""What a trained ranker is published as: its files and its manifest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import msgspec
import safetensors.numpy

from serving.features import FEATURES_DIGEST
from serving.ranker.errors import RankerError
from serving.ranker.hashing import ContextHash
from serving.ranker.inputs import FEATURES
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.registry.manifest import (
    CONTENTS_FILE,
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
from serving.training.compress import Source, compress_best
from serving.training.compress_judge import Judge
from serving.training.dataset import LogSplit
from serving.training.export import Export
from serving.training.fit_head import FittedHead
from serving.training.fused import ExportedRanker
from serving.training.gate import Judged
from serving.training.gate_ranks import Lists, ranker_scores
from serving.training.train import TrainedNetwork

__all__ = ["Product", "figures_of", "files_of", "manifest_of", "version_of"]


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
    figures: Mapping[str, float] = field(default_factory=dict)
    """What fitting the head measured."""
    compression: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """Figures of each smaller graph that was tried, by its name."""

    def session(self) -> RankerSession:
        """The graph, loaded."""
        return RankerSession(self.model, "cpu", self.trained.settings.threads)

    def served(self, session: RankerSession) -> Ranker:
        """A graph of this network as workers load it."""
        split = self.split
        return Ranker(
            session,
            split.vocabulary,
            version=self.version,
            history_length=self.trained.settings.history_length,
            event_types=split.event_type_names,
            fused=self.ranker.head is not None,
            contents=split.contents if split.content else None,
            content=split.content,
        )

    def compressed(self, data: Judged, progress: Callable[[str], None] | None = None) -> Product:
        """With the cheapest graph that loses little on the gate's events, as they are served."""
        source = Source(self.ranker, self.export, self.model, self.split, self.trained.settings)
        best = compress_best(source, self._judge(data), progress)
        return replace(
            self,
            model=best.model,
            precision=best.precision,
            export=replace(self.export, golden=best.golden),
            compression=best.figures(),
        )

    def _judge(self, data: Judged) -> Judge | None:
        """By the lists that could have been served; None, which is by the whole catalogue, without any."""
        if data.examples is None or not len(data.examples):
            return None
        contest = Lists(data.newest, data.examples)
        if not len(contest.events):
            return None
        about = (data.event_types, data.contents, data.serving.ranker_weight)
        return Judge(contest, lambda graph: ranker_scores(contest, self.served(graph), *about))


def files_of(product: Product) -> dict[str, bytes]:
    """All files of the version by name, without the manifest."""
    files = {
        MODEL_FILE: product.model,
        VOCABULARY_FILE: msgspec.json.encode(product.split.vocabulary),
        WEIGHTS_FILE: safetensors.numpy.save(product.trained.weights()),
        GOLDEN_FILE: safetensors.numpy.save(product.export.golden.arrays()),
    }
    if product.split.content:
        files[CONTENTS_FILE] = safetensors.numpy.save({"contents": product.split.contents})
    return files


def figures_of(fitted: FittedHead) -> dict[str, float]:
    """NDCG@10 that the head reached on the newest of its examples, and what it had to beat."""
    return {
        "head_examples": float(fitted.examples),
        "head_ndcg_at_10": fitted.ndcg_at_10,
        "head_blend_ndcg_at_10": fitted.blend_ndcg_at_10,
        "head_online_ndcg_at_10": fitted.online_ndcg_at_10,
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
            **trained.metrics,
            **product.figures,
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
        context_keys=split.context_keys,
        context_digest=ContextHash(split.context_keys).digest.hex() if split.context_keys else "",
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
