"""Small networks whose every weight counts, and sequences for them."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from torch import Tensor

from serving.ranker.inputs import HASHED
from serving.training.networks import build_network, network_names
from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.settings import TrainerSettings

ITEMS, TYPES, CONTENT, LENGTH = 30, 3, 4, 10
UNSEEN = ITEMS + 1
"""The place of any item that the export has not seen; above it are such items with content of their own."""
PLACES = ITEMS + 5
SHAPE = Shape(ITEMS, TYPES, CONTENT, HASHED)
SETTINGS = TrainerSettings(dim=8, heads=2, blocks=2, history_length=LENGTH, window_stride=LENGTH)
NETWORKS = network_names()


def built(name: str, *, seed: int = 5, **changes: object) -> SequenceNetwork:
    """A network with no weight at 0, so that whatever is read shows."""
    torch.manual_seed(seed)
    network = build_network(SHAPE, msgspec.structs.replace(SETTINGS, network=name, **changes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def contents() -> Tensor:
    """float32[PLACES, CONTENT], zeros for the padding and for items without content."""
    rows = np.random.default_rng(2).normal(size=(PLACES, CONTENT)).astype(np.float32)
    rows[[0, UNSEEN]] = 0.0
    return torch.from_numpy(rows)


def history(users: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items, event types and gaps in seconds, [users, length] each; unseen items are among them."""
    rng = np.random.default_rng(1)
    items = rng.integers(1, PLACES, (users, length))
    types = rng.integers(0, TYPES + 1, (users, length))
    gaps = rng.exponential(1e4, (users, length)).astype(np.float32)
    return torch.from_numpy(items), torch.from_numpy(types), torch.from_numpy(gaps)


def tokens(users: int, length: int) -> Tokens:
    """Begin mark and `length` tokens for each of `users`, all with a context."""
    rng = np.random.default_rng(3)
    columns = [
        rng.integers(low, high, (users, length)) for low, high in ((1, PLACES), (0, TYPES + 1), (0, 16))
    ]
    items, types, gaps = (torch.from_numpy(np.pad(column, ((0, 0), (1, 0)))) for column in columns)
    context = rng.normal(size=(users, length + 1, HASHED)).astype(np.float32)
    return Tokens(items, types, gaps, torch.from_numpy(context))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal up to the order of additions. (`torch.testing` would load the compiler, which takes seconds.)"""
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), atol=1e-5, rtol=1e-4)
