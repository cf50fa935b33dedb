"""Where a network is trained, and with how many bits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from serving.training.distributed import ALONE, World, local_rank
from serving.training.settings import Precision, TrainerSettings

__all__ = ["DeviceError", "Place", "choose_device", "choose_precision"]


class DeviceError(Exception):
    """The settings ask for a device or a precision that this machine has not."""


def choose_device(wanted: str, has_cuda: Callable[[], bool] = torch.cuda.is_available) -> torch.device:
    """The device of `trainer.device`; "auto" is the GPU with this process's number where there is one."""
    found = has_cuda()
    if wanted == "cuda" and not found:
        raise DeviceError(
            'trainer.device="cuda": PyTorch sees no GPU here. Install a build of it with CUDA and the driver,'
            ' or set "auto" or "cpu".'
        )
    return torch.device("cuda", local_rank()) if found and wanted != "cpu" else torch.device("cpu")


def choose_precision(
    wanted: Precision, device: torch.device, has_bf16: Callable[[], bool] = torch.cuda.is_bf16_supported
) -> Precision:
    """With "auto": bf16 on a GPU that has it, fp16 on one that has not, fp32 on a CPU; a CPU does nothing
    else, since there lower precision only loses."""
    if device.type == "cpu":
        if wanted in ("bf16", "fp16"):
            raise DeviceError(f'trainer.precision="{wanted}" needs a GPU: set "auto" or "fp32".')
        return "fp32"
    if wanted != "auto":
        return wanted
    return "bf16" if has_bf16() else "fp16"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one training runs, beside which other processes, and where it keeps what a restart needs."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "fp32"
    world: World = ALONE
    folder: Path | None = None
    """Of checkpoints; None keeps none."""

    @classmethod
    def of(cls, settings: TrainerSettings, world: World = ALONE, folder: Path | None = None) -> Place:
        """As the settings say. Raises DeviceError."""
        device = choose_device(settings.device)
        return cls(device, choose_precision(settings.precision, device), world, folder)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products inside run in this place's precision; weights stay float32.

        P. Micikevicius et al., "Mixed Precision Training", ICLR 2018.
        """
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16's small gradients from becoming 0; does nothing in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
