"""What a published version is: one JSON document whose own SHA-256 is the version's digest.

The manifest names every file with its SHA-256 and size, so that digest pins them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from serving.ranker.inputs import INPUTS, OUTPUT

__all__ = [
    "CONTENTS_FILE",
    "GOLDEN_FILE",
    "MODEL_FILE",
    "VOCABULARY_FILE",
    "WEIGHTS_FILE",
    "Comparison",
    "ContentInput",
    "FileEntry",
    "GateReport",
    "Manifest",
    "ModelScore",
    "Signature",
    "SliceScore",
    "TrainedOn",
    "digest_of",
    "file_entries",
]

MODEL_FILE = "model.onnx"
VOCABULARY_FILE = "vocabulary.json"
WEIGHTS_FILE = "weights.safetensors"
GOLDEN_FILE = "golden.safetensors"
CONTENTS_FILE = "contents.safetensors"
"""Optional: content vectors of the vocabulary, `contents` float32[V + 2, E] by place."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a version."""

    sha256: str
    size_bytes: int


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """Names and element types of the graph's inputs and outputs."""

    inputs: dict[str, str] = msgspec.field(
        default_factory=lambda: {name: kind for name, (kind, _) in INPUTS.items()}
    )
    outputs: dict[str, str] = msgspec.field(default_factory=lambda: {OUTPUT: "float32"})


class TrainedOn(msgspec.Struct, frozen=True, kw_only=True):
    """The stretch of the learning log that was read, both offsets inclusive."""

    from_offset: int
    to_offset: int
    interactions: int


class ModelScore(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the gate's events, all items ranked less what the user had, unknown target a miss."""

    hr_at_10: float
    ndcg_at_10: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Challenger's NDCG@10 less another's on the same events; the interval is a 95 % bootstrap over users."""

    against: str
    ndcg_gain: float
    low: float
    high: float


class SliceScore(msgspec.Struct, frozen=True, kw_only=True):
    """NDCG@10 on a part of the gate's events; None for a contestant that was not ranked, or where there is
    none."""

    name: str
    events: int
    challenger: float | None = None
    champion: float | None = None
    popularity: float | None = None
    online: float | None = None


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate measured and decided. `reasons` is empty exactly when `accepted`.

    `judged_on` says what was ranked: "catalogue", all items, or "lists", what retrieval gave for each event,
    where `online`, the lists without a ranker, is known too.
    """

    accepted: bool
    reasons: tuple[str, ...]
    events: int
    catalogue: int
    challenger: ModelScore | None
    champion: ModelScore | None
    popularity: ModelScore
    comparisons: tuple[Comparison, ...]
    parity: float | None
    latency_ms: float | None
    online: ModelScore | None = None
    judged_on: str = "catalogue"
    slices: tuple[SliceScore, ...] = ()
    coverage: dict[str, int] = {}
    """Distinct items over all lists of ten, by contestant."""
    notes: tuple[str, ...] = ()
    """What else should be known, such as why a champion was left out."""

    def figures(self) -> dict[str, float]:
        """All numbers by flat names, for `models` and the metrics: `challenger_ndcg_at_10`,
        `gain_against_champion`, `new_users_challenger_ndcg_at_10`, `challenger_coverage_at_10` and so on;
        what was not measured is left out."""
        found: dict[str, float | None] = {
            "gate_events": self.events, "parity": self.parity, "latency_ms": self.latency_ms,
        }  # fmt: skip
        for who in ("challenger", "champion", "popularity", "online"):
            score: ModelScore | None = getattr(self, who)
            if score is not None:
                found |= {f"{who}_hr_at_10": score.hr_at_10, f"{who}_ndcg_at_10": score.ndcg_at_10}
            found |= {f"{part.name}_{who}_ndcg_at_10": getattr(part, who) for part in self.slices}
        for c in self.comparisons:
            found |= {f"gain_against_{c.against}": c.ndcg_gain, f"gain_against_{c.against}_low": c.low}
            found[f"gain_against_{c.against}_high"] = c.high
        found |= {f"{part.name}_events": part.events for part in self.slices}
        found |= {f"{who}_coverage_at_10": items for who, items in self.coverage.items()}
        return {name: float(value) for name, value in found.items() if value is not None}


class ContentInput(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of `item_vectors` that one encoder fills, in the manifest's order."""

    name: str
    dim: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A published version. Times are ms since epoch; `metrics` are the trainer's and the gate's."""

    version: str
    model_name: str
    network: str
    files: dict[str, FileEntry]
    signature: Signature
    history_length: int
    vocabulary_size: int
    trained_on: TrainedOn
    gate: GateReport
    metrics: dict[str, float]
    opset: int
    created_at_ms: int
    code_version: str
    precision: str = "fp32"
    """What the weights are stored in: `fp32`, `fp16`, `int8` and so on."""
    fused: bool = False
    """True where the graph's score is the list's score; else it is blended with the online models'."""
    event_types: tuple[str, ...] = ()
    """Names of the event types that the history tells apart: the first is 1, 0 is any other."""
    features: tuple[str, ...] = ()
    """Names of the columns of `features`, the live online scores."""
    features_digest: str = ""
    """`serving.features.FEATURES_DIGEST` as it was at training; "" in a version that reads none."""
    content: tuple[ContentInput, ...] = ()
    context_keys: tuple[str, ...] = ()
    """Keys of `context` whose hashed values the network reads (`ranker.context_keys` at training); none: it
    reads none."""
    context_digest: str = ""
    """`ContextHash.digest` of these keys as it was at training, in hex; "" in a version that reads none."""
    compression: dict[str, dict[str, float]] = {}
    """What each way to compress gave, by its name: size_bytes, latency_ms, ndcg_at_10 and so on."""


def digest_of(data: bytes) -> str:
    """SHA-256 in hex.

    >>> digest_of(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def file_entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Digest and size of each file, by name."""
    return {name: FileEntry(sha256=digest_of(data), size_bytes=len(data)) for name, data in files.items()}
