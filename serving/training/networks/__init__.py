"""Networks, one file each, found by their file's name.

A network's file defines `build(vocabulary_size, settings) -> SequenceNetwork`. All networks share one
signature, so that one trainer, one exporter and one runtime serve them all:

- `encode(history int64[B, L]) -> float32[B, d]`: the user's vector; 0 on the left is padding.
- `forward(history int64[B, L], candidates int64[B, C]) -> float32[B, C]`: scores, higher is better.
- `states(inputs int64[B, T]) -> float32[B, T, d]`: training only; `inputs` starts with 0, the begin mark, 0
on the right is
  padding, and the vector at t predicts what follows input t.
- `logits(states float32[n, d]) -> float32[n, V + 1]`, `sampled_logits(states, items int64[n, k]) ->
float32[n, k]`.
- `item_embedding`: float32[V + 1, d], row 0 the begin mark; `item_bias`: float32[V + 1].
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from serving.training.networks.base import SequenceNetwork
    from serving.training.settings import TrainerSettings

__all__ = ["build_network", "network_names"]

_NOT_NETWORKS = {"base"}


def network_names() -> list[str]:
    """Names of all networks, sorted.

    >>> network_names()
    ['transformer']
    """
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_NETWORKS
    )


def build_network(vocabulary_size: int, settings: TrainerSettings) -> SequenceNetwork:
    """Build `settings.network` with fresh weights; seed torch before. Raises ValueError for an unknown
    name."""
    if settings.network not in network_names():
        raise ValueError(f"trainer.network={settings.network!r}: there is {', '.join(network_names())}")
    module = importlib.import_module(f"{__name__}.{settings.network}")
    return cast("SequenceNetwork", module.build(vocabulary_size, settings))
