"""Several processes that train one network: who takes part, what they agree on, how they hear of a death.

Started by `torchrun`, which tells each process its rank and how many there are (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT). Words between them go through Gloo, gradients on GPUs through NCCL. S. Li et al.,
"PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

__all__ = ["ALONE", "Interrupted", "ProcessLostError", "World", "joined", "local_rank", "world_size"]

_WAIT = timedelta(hours=2)
"""How long a process waits for the first one while that exports and gates; a process that died is noticed at
once, by its closed connections."""


class Interrupted(BaseException):
    """A signal came where this process can't tell the others: it ends its part. What a checkpoint holds is
    kept."""


class ProcessLostError(Exception):
    """Another process of this training ended before its time, so this one can't go on."""


@dataclass(frozen=True, slots=True)
class World:
    """All processes of one training; `rank` 0 leads: it evaluates, exports and publishes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The leader's value, on every process."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(told, src=0)
        return float(told)

    def either(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return self.total(float(flag)) > 0

    def total(self, value: float) -> float:
        """The sum over processes."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(told)
        return float(told)

    def share(self, data: bytes) -> bytes:
        """The leader's bytes, on every process."""
        if self.size == 1:
            return data
        length = int(self.agree(float(len(data))))
        held = torch.zeros(length, dtype=torch.uint8)
        if self.leads and length:
            held = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
        if length:
            dist.broadcast(held, src=0)
        return held.numpy().tobytes()

    def wait(self) -> None:
        """Until every process is here."""
        self.total(0.0)


ALONE = World()


def world_size(environ: Mapping[str, str] | None = None) -> int:
    """How many processes this one was started with; 1 without torchrun."""
    return int((os.environ if environ is None else environ).get("WORLD_SIZE", "1"))


def local_rank(environ: Mapping[str, str] | None = None) -> int:
    """This process's number on its machine, which is also its GPU's."""
    return int((os.environ if environ is None else environ).get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun started, for the duration; `ALONE` without it. Interrupted ends it quietly.

    Raises ProcessLostError when another process ends too early, whatever this one was doing then.
    """
    if world_size() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_WAIT)
    world = World(dist.get_rank(), dist.get_world_size())
    try:
        yield world
        world.wait()
    except Interrupted:
        return
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        raise ProcessLostError(
            f"process {world.rank} of {world.size} lost another one ({error}): nothing was"
            " published. Its own output says why it ended; the same command continues from the last epoch."
        ) from error
    dist.destroy_process_group()


def _is_of_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("connection", "gloo", "nccl", "socket", "broken pipe")
    )
