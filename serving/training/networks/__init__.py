"""Networks, one file each, found by their file's name.

A network's file defines `build(shape, settings) -> SequenceNetwork`. All networks share one signature
(`serving.ranker.inputs`), so that one trainer, one exporter and one runtime serve them all; see
`serving.training.networks.base` for what a network must give (`states`) and may change (`encode`, `logits`,
`pair_scores`).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from serving.training.networks.base import SequenceNetwork, Shape
    from serving.training.settings import TrainerSettings

__all__ = ["build_network", "network_names"]

_NOT_NETWORKS = {"base", "heads", "pooling"}


def network_names() -> list[str]:
    """Names of all networks, sorted.

    >>> network_names()
    ['cnn', 'gru', 'ncf', 'transformer', 'two_tower']
    """
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_NETWORKS
    )


def build_network(shape: Shape, settings: TrainerSettings) -> SequenceNetwork:
    """Build `settings.network` with fresh weights, and its heads; seed torch before. Raises ValueError for an
    unknown name, or heads that the network can't have."""
    if settings.network not in network_names():
        raise ValueError(f"trainer.network={settings.network!r}: there is {', '.join(network_names())}")
    module = importlib.import_module(f"{__name__}.{settings.network}")
    network = cast("SequenceNetwork", module.build(shape, settings))
    if settings.score_heads:
        if not network.inner_product:
            raise ValueError(
                f"trainer.network={settings.network!r} gives no inner products, which trainer.score_heads"
                " need to be folded into one score: choose another network, or one head"
            )
        network.heads = importlib.import_module(f"{__name__}.heads").Heads(settings.dim, settings.score_heads)
    return network
