"""Errors of rankers and of the registry.

::

    RankerError                      a ranker can't be loaded or gave what can't be used
    └── RankerRefusedError           a version failed its checks at load: the old one goes on serving
    RegistryError                    the registry can't give or take a version

Each says in `kind` which check failed, a word of `REFUSAL_KINDS`.
"""

from __future__ import annotations

__all__ = [
    "FAULTS_OF_THE_VERSION",
    "MAX_REASON_CHARS",
    "REFUSAL_KINDS",
    "RankerError",
    "RankerRefusedError",
    "RegistryError",
]

MAX_REASON_CHARS = 2000
"""Of a message: it goes into records that Kafka takes only up to a size, and a graph's names, which ONNX
Runtime repeats, may be as long as the file."""

REFUSAL_KINDS = {
    "store": "the registry could not be read",
    "load": "ONNX Runtime could not load or run the graph here",
    "slow": "slower than `ranker.load_latency_budget_ms` here",
    "manifest": "a manifest that can't be read, is not this version's, or says what can't be",
    "digest": "another size or SHA-256 than the manifest says: cut off or altered",
    "size": "larger than `registry.max_file_bytes`",
    "file": "a file that is missing, is no ONNX graph, vocabulary or probe, or is not let in",
    "signature": "other inputs or outputs than ours",
    "features": "trained on other online features than this code makes",
    "context": "reads other keys of `context` than `ranker.context_keys` names, or hashed in another way",
    "vocabulary": "vocabulary and manifest disagree",
    "not_finite": "scores that are no numbers",
    "probe": "golden inputs do not give the golden scores",
}
"""Why a version is refused at load; the values say it in words."""
FAULTS_OF_THE_VERSION = frozenset(REFUSAL_KINDS) - {"store", "load", "slow", "context"}
"""Those that another worker would find, too; the others may lie with the machine, the moment or this worker's
settings."""


class RankerError(Exception):
    """The ranker can't be loaded, was called with wrong shapes, or gave a score that is no number."""

    def __init__(self, message: str = "", kind: str = "load") -> None:
        super().__init__(message[:MAX_REASON_CHARS])
        self.kind = kind


class RankerRefusedError(RankerError):
    """A version failed one of its checks at load."""


class RegistryError(Exception):
    """A version is missing, already there, or can't be read or written."""

    def __init__(self, message: str = "", kind: str = "store") -> None:
        super().__init__(message[:MAX_REASON_CHARS])
        self.kind = kind
