"""What a training needs to go on after a kill: one safetensors file an epoch, replaced in one step.

The file's tensors are named `part/name`; its metadata holds the numbers as JSON and the digest of the data
and settings, so that a restart with others begins anew. All randomness of an epoch follows from the seed and
the epoch's number (`epoch_seed`), so no generator's state is kept, and a training that was killed and
continued ends with the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from serving.training.dataset import LogSplit
from serving.training.settings import TrainerSettings

__all__ = [
    "Checkpoint",
    "Numbers",
    "decode",
    "digest_of_run",
    "encode",
    "epoch_seed",
    "remove",
    "remove_stale",
    "write",
]

FORMAT = "1"
NAME_LENGTH = 16
"""Of a run's folder: the beginning of its digest, in hex."""
STALE_S = 7 * 86_400.0
"""How long a run that failed or was killed may be repeated from where it was."""


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training stands: `epoch` of them are done, the best so far was `best_epoch` (0: the start).

    `curve` holds (loss, NDCG@10, seconds) by epoch; `cpu_s` and `wall_s` are used up of the budgets.
    """

    epoch: int
    best_epoch: int
    best_ndcg_at_10: float
    cpu_s: float
    wall_s: float
    finished: bool
    curve: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Numbers, and tensors by part ("network", "best", "optimizer", ...) and name."""

    numbers: Numbers
    parts: Mapping[str, Mapping[str, Tensor]]


def digest_of_run(
    split: LogSplit,
    settings: TrainerSettings,
    warm_start: Mapping[str, np.ndarray] | None,
    size: int,
    more: str = "",
) -> str:
    """SHA-256 of all that the result depends on: training data, settings, first weights, number of processes,
    PyTorch's version, and what the caller adds."""
    found = hashlib.sha256(msgspec.json.encode([FORMAT, settings, size, str(torch.__version__), more]))
    found.update(msgspec.json.encode(split.vocabulary))
    train = split.train
    columns = (train.starts, train.items, train.types, train.times_ms, train.targets, train.values)
    said = (train.context, train.contexts, train.upon_event)
    for column in (*columns, split.contents, split.judged, *said):
        found.update(b"none" if column is None else np.ascontiguousarray(column).data)
    for name, values in sorted((warm_start or {}).items()):
        found.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's draws, 0 <= s < 2^63."""
    state = np.random.SeedSequence([seed % 2**63, epoch]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def encode(checkpoint: Checkpoint, digest: str) -> bytes:
    """One safetensors file."""
    tensors = {
        f"{part}/{name}": value.detach().cpu().contiguous().clone()
        for part, values in checkpoint.parts.items()
        for name, value in values.items()
    }
    numbers = msgspec.json.encode(checkpoint.numbers).decode()
    return safetensors.torch.save(tensors, {"digest": digest, "numbers": numbers})


def decode(data: bytes, digest: str) -> Checkpoint | None:
    """What `encode` wrote; None where there is nothing, it is broken, or of another run."""
    try:
        length = int.from_bytes(data[:8], "little")
        told = msgspec.json.decode(data[8 : 8 + length])["__metadata__"]
        if told["digest"] != digest:
            return None
        numbers = msgspec.json.decode(told["numbers"], type=Numbers)
        tensors = safetensors.torch.load(data)
    except (msgspec.MsgspecError, safetensors.SafetensorError, KeyError, TypeError):
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    return Checkpoint(numbers, parts)


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    with half.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def remove_stale(folder: Path) -> None:
    """Drop the runs' folders in `folder` that nothing was written to for `STALE_S`: nobody repeats them."""
    for run in folder.iterdir() if folder.is_dir() else ():
        is_run = len(run.name) == NAME_LENGTH and set(run.name) <= set("0123456789abcdef") and run.is_dir()
        if is_run and run.stat().st_mtime < time.time() - STALE_S:
            remove(run)


def remove(folder: Path) -> None:
    """Drop a run's folder; what can't be removed is no reason to fail a run that has ended."""
    shutil.rmtree(folder, ignore_errors=True)
