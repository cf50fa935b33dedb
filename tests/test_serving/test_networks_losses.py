"""Every loss against a plain computation of it, and against a chain that it has to learn."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from serving.training.losses import (
    GeneralisedCrossEntropy,
    InBatchSoftmax,
    LossFunction,
    SampledSoftmax,
    full_softmax,
    make_loss,
)
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.train import train
from tests.test_serving.planted_cases import SETTINGS, chain_split

CONTENTS = torch.zeros(302, 1)


def network_of(items: int, name: str = "cnn") -> SequenceNetwork:
    torch.manual_seed(3)
    return build_network(Shape(items), msgspec.structs.replace(SETTINGS, network=name)).eval()


def case(n: int, items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, targets, and what was seen: 0 in every row, the target in some."""
    torch.manual_seed(4)
    states, targets = torch.randn(n, SETTINGS.dim), torch.randint(1, items + 1, (n,))
    seen = torch.randint(0, items + 1, (n, 4))
    seen[:, 0] = 0
    seen[::3, 1] = targets[::3]
    return states, targets, seen


def mean_of(loss: LossFunction, network: SequenceNetwork, n: int, items: int, runs: int) -> float:
    states, targets, seen = case(n, items)
    with torch.no_grad():
        return float(
            np.mean([float(loss(network, states, targets, seen, CONTENTS[: items + 2])) for _ in range(runs)])
        )


def test_what_was_seen_is_no_rival_unless_it_is_the_target() -> None:
    network = network_of(5)
    states = torch.randn(1, SETTINGS.dim)
    seen, target = torch.tensor([[0, 2, 4]]), torch.tensor([4])
    with torch.no_grad():
        logits = network.logits(states, CONTENTS[:7])[0]
        expected = torch.logsumexp(logits[[1, 3, 4, 5]], 0) - logits[4]
        found = full_softmax(network, states, target, seen, CONTENTS[:7])
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_sampled_softmax_estimates_the_full_one() -> None:
    network = network_of(300)
    q = torch.rand(301) + 0.05
    q[0] = 0.0
    states, targets, _ = case(64, 300)
    nothing = torch.zeros(64, 1, dtype=torch.int64)
    loss = SampledSoftmax(q / q.sum(), 4000)
    with torch.no_grad():
        full = float(full_softmax(network, states, targets, nothing, CONTENTS))
        sampled = [float(loss(network, states, targets, nothing, CONTENTS)) for _ in range(10)]
    assert np.mean(sampled) == pytest.approx(full, abs=0.02)


def test_in_batch_softmax_by_loops() -> None:
    items, n = 12, 20
    network = network_of(items)
    states, targets, seen = case(n, items)
    q = np.random.default_rng(1).uniform(0.5, 2.0, items + 1).astype(np.float32)
    q[0] = 0.0
    q /= q.sum()
    with torch.no_grad():
        scores = network.logits(states, CONTENTS[: items + 2]).numpy().astype(float)
        found = float(
            InBatchSoftmax(torch.from_numpy(q))(network, states, targets, seen, CONTENTS[: items + 2])
        )
    losses = []
    for row in range(n):
        own = int(targets[row])
        total = np.exp(scores[row, own])
        for rival in targets.tolist():  # each draw of the batch, as often as it is there
            if rival != own and rival not in seen[row].tolist():
                total += np.exp(scores[row, rival]) / (n * q[rival])
        losses.append(np.log(total) - scores[row, own])
    assert found == pytest.approx(np.mean(losses), abs=1e-4)


@pytest.mark.parametrize("calibration", [0.0, 0.75])
def test_generalised_cross_entropy_is_its_expectation(calibration: float) -> None:
    items, n, negatives = 40, 12, 16
    network = network_of(items)
    states, targets, seen = case(n, items)
    with torch.no_grad():
        scores = network.logits(states, CONTENTS[: items + 2]).numpy().astype(float)
    alpha = negatives / (items - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    expected = []
    for row in range(n):
        own, had = int(targets[row]), {int(targets[row]), *seen[row].tolist()}
        rivals = sum(np.logaddexp(0, scores[row, j]) for j in range(1, items + 1) if j not in had)
        positive = beta * np.logaddexp(0, -scores[row, own])
        expected.append((positive + negatives * rivals / items) / (1 + negatives))
    loss = GeneralisedCrossEntropy(items, negatives, calibration)
    assert mean_of(loss, network, n, items, 400) == pytest.approx(np.mean(expected), rel=0.02)


def test_calibration_goes_from_the_plain_loss_to_the_share_of_items_drawn() -> None:
    assert GeneralisedCrossEntropy(101, 10, 0.0).beta == pytest.approx(1.0)
    assert GeneralisedCrossEntropy(101, 10, 1.0).beta == pytest.approx(0.1)
    assert GeneralisedCrossEntropy(5, 10, 1.0).beta == 1.0


def test_auto_is_the_networks_own_and_sampled_above_the_limit() -> None:
    split = chain_split()
    assert make_loss(split, SETTINGS) is full_softmax
    assert isinstance(make_loss(split, SETTINGS, "in_batch"), InBatchSoftmax)
    few = msgspec.structs.replace(SETTINGS, full_softmax_limit=10)
    assert isinstance(make_loss(split, few), SampledSoftmax)
    asked = msgspec.structs.replace(few, loss="full_softmax")
    assert make_loss(split, asked, "in_batch") is full_softmax


@pytest.mark.parametrize("loss", ["full_softmax", "sampled_softmax", "gbce", "bce", "in_batch"])
def test_every_loss_learns_the_chain(loss: str) -> None:
    settings = msgspec.structs.replace(
        SETTINGS, network="cnn", loss=loss, negatives=20, negatives_per_target=8
    )
    assert train(chain_split(), settings).ndcg_at_10 > 0.7  # chance is 0.15


def test_a_perceptron_over_all_items_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.training.networks import ncf

    network, states = network_of(40, "ncf"), torch.randn(7, SETTINGS.dim + SETTINGS.dim // 2)
    with torch.no_grad():
        whole = network.logits(states, CONTENTS[:42])
        monkeypatch.setattr(ncf, "_MAX_HIDDEN", 2 * 42 * SETTINGS.dim)
        torch.manual_seed(0)
        np.testing.assert_allclose(network.logits(states, CONTENTS[:42]), whole, atol=1e-6)
