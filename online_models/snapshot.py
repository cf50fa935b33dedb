"""A model's whole state as one safetensors file that says by what it may be carried on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import llvmlite.binding  # type: ignore[import-untyped]  # ships no types
import numba
import numpy as np
import safetensors.numpy

from online_models.errors import SnapshotMismatchError
from online_models.kernels import KERNEL_VERSION

if TYPE_CHECKING:
    from online_models.base import OnlineRanker

__all__ = ["METADATA_KEY", "bits_target", "metadata_of", "model_bytes", "restore_model"]

METADATA_KEY = "freshet"
MODEL_FORMAT = 1


def bits_target() -> dict[str, Any]:
    """What decides the bits that kernels give, beside a model's parameters: kernel version, compiler, CPU."""
    return {
        "kernel_version": KERNEL_VERSION,
        "cpu_name": _cpu_setting("CPU_NAME") or llvmlite.binding.get_host_cpu_name(),
        "cpu_features": _cpu_setting("CPU_FEATURES") or llvmlite.binding.get_host_cpu_features().flatten(),
        "numba": numba.__version__,
        "numpy": np.__version__,
    }


def model_bytes(model: OnlineRanker) -> bytes:
    """A snapshot of a standalone model; equal states of equal models give equal bytes on one kind of CPU."""
    metadata = json.dumps(_made_by(model), sort_keys=True)
    return bytes(safetensors.numpy.save(model.to_arrays(), metadata={METADATA_KEY: metadata}))


def restore_model(model: OnlineRanker, data: bytes) -> None:
    """Replace a model's state by that of `model_bytes`.

    Raises SnapshotMismatchError, naming what differs, for another class, other parameters, kernels or another
    CPU target, and safetensors' own error for bytes that are no snapshot; the model is then as it was.
    """
    arrays = safetensors.numpy.load(data)  # first: it checks the header that is read next
    found, wanted = metadata_of(data), _made_by(model)
    differ = [name for name in wanted if found.get(name) != wanted[name]]
    if differ:
        said = ", ".join(f"{name} {found.get(name)!r} (here {wanted[name]!r})" for name in differ)
        raise SnapshotMismatchError(
            f"the snapshot was made with other {said}; make the model with the same parameters, on the same"
            " versions and kind of CPU, or learn the stream again"
        )
    model.from_arrays(arrays)


def metadata_of(data: bytes) -> dict[str, Any]:
    """The metadata of a snapshot: 8 bytes of little-endian header length, then the header as JSON."""
    length = int.from_bytes(data[:8], "little")
    header: Mapping[str, dict[str, str]] = json.loads(data[8 : 8 + length])
    found: dict[str, Any] = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    return found


def _made_by(model: OnlineRanker) -> dict[str, Any]:
    parameters = {name: repr(value) for name, value in model._get_params().items()}
    return {"format": MODEL_FORMAT, "model": type(model).__name__, "parameters": parameters, **bits_target()}


def _cpu_setting(name: str) -> str | None:
    """What NUMBA_CPU_NAME and NUMBA_CPU_FEATURES force, if anything; numba sets these names at run time."""
    value: str | None = getattr(numba.config, name)
    return value
