"""Every network that discovery finds keeps the one contract: shapes, causality, padding, export."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from serving.ranker.session import RankerSession
from serving.training.export import export_onnx
from serving.training.networks import build_network, network_names
from serving.training.networks.base import SequenceNetwork
from serving.training.settings import TrainerSettings

ITEMS = 50
SETTINGS = TrainerSettings(dim=16, heads=2, blocks=2, history_length=10, window_stride=10)
NETWORKS = network_names()


def built(name: str) -> SequenceNetwork:
    torch.manual_seed(5)
    network = build_network(ITEMS, msgspec.structs.replace(SETTINGS, network=name))
    return network.eval()


def random_items(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(1, ITEMS + 1, shape))


def test_networks_are_found() -> None:
    assert "transformer" in NETWORKS


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"there is .*transformer"):
        build_network(ITEMS, msgspec.structs.replace(SETTINGS, network="nothing"))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_scores_are_dot_products_with_the_item_table(name: str) -> None:
    network = built(name)
    history, candidates = random_items(4, 10), random_items(4, 6)
    user = network.encode(history)
    assert user.shape == (4, SETTINGS.dim)
    expected = (network.item_embedding(candidates) * user[:, None, :]).sum(-1) + network.item_bias[candidates]
    torch.testing.assert_close(network(history, candidates), expected)
    torch.testing.assert_close(network.logits(user).gather(1, candidates), expected)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_state_never_depends_on_what_came_after(name: str) -> None:
    network = built(name)
    inputs = torch.nn.functional.pad(random_items(3, 10), (1, 0))
    states = network.states(inputs)
    for column in range(11):
        changed = inputs.clone()
        changed[:, column + 1 :] = 0
        torch.testing.assert_close(network.states(changed)[:, : column + 1], states[:, : column + 1])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_users_vector_is_the_state_after_the_newest_item(name: str) -> None:
    """What is served is what was trained, however many zeros stand on the left."""
    network = built(name)
    for length in range(11):
        items = random_items(3, length)
        trained = network.states(torch.nn.functional.pad(items, (1, 0)))[:, -1]
        for width in range(max(1, length), 11):
            padded = torch.nn.functional.pad(items, (width - length, 0))
            torch.testing.assert_close(network.encode(padded), trained, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(network.encode(torch.zeros(2, 10, dtype=torch.int64))).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_seed_gives_one_network(name: str) -> None:
    first, second = built(name).state_dict(), built(name).state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_export_gives_the_same_scores_at_every_shape(name: str, tmp_path: Path) -> None:
    network = built(name)
    export = export_onnx(network, tmp_path / "model.onnx")
    assert export.parity <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "weights lie outside the file"
    session = RankerSession(tmp_path / "model.onnx", "cpu")
    for users, length, candidates in ((1, 1, 1), (1, 10, 30), (7, 4, 2), (33, 10, 50)):
        history, items = random_items(users, length), random_items(users, candidates)
        history[0] = 0
        with torch.no_grad():
            expected = network(history, items).numpy()
        np.testing.assert_allclose(session.score(history.numpy(), items.numpy()), expected, atol=1e-4)
