"""Every worker's item state, wherever a snapshot caught it, is what one clean replay of the log gives."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from online_models.item_state import ItemState
from streams.settings import Settings
from tests.chaos.records import Finding, Record
from tests.integration.auditor import replayed_digests

__all__ = ["Replicas", "check_replicas", "newest_offset"]


@dataclass
class Replicas:
    """What the snapshots have shown."""

    snapshots: int = 0
    offsets: int = 0
    """Different learning-log offsets at which there is a snapshot."""
    shared: int = 0
    """Offsets at which several workers have one."""
    workers: int = 0
    digest: str = ""
    """Of the clean replay of the whole log."""
    findings: list[Finding] = field(default_factory=list)


def _offset(path: Path) -> int:
    return int(path.name.split("-")[1])


def newest_offset(folder: Path) -> int:
    """The newest snapshot's learning-log offset; -1 without one."""
    return max(map(_offset, folder.rglob("items-*.safetensors")), default=-1)


def check_replicas(settings: Settings, folders: Sequence[Path], log: Sequence[Record]) -> Replicas:
    """Compare the snapshots under each worker's folder with a replay of `log`, and so with each other."""
    result = Replicas(workers=len(folders))
    digests: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for path in sorted(folder.rglob("items-*.safetensors")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest()[:16] not in path.name:
                result.findings.append(
                    Finding("wrong", 1, f"snapshot {path.name}: not the digest in its name")
                )
                continue
            digest = ItemState.from_bytes(settings.models, data).digest()
            digests[_offset(path)][digest].append(folder.name)
            result.snapshots += 1
    result.offsets = len(digests)
    result.shared = sum(
        len({name for names in found.values() for name in names}) > 1 for found in digests.values()
    )
    end = log[-1].offset + 1 if log else 0
    wanted = replayed_digests(settings, [*digests, end], log)
    result.digest = wanted[end]
    for offset, found in sorted(digests.items()):
        for digest, workers in found.items():
            if digest != wanted[offset]:
                names = ", ".join(sorted(set(workers)))
                text = f"item state of {names} at learning-log offset {offset} is not the replay's"
                result.findings.append(Finding("wrong", 1, text))
    return result
