"""Averaged weights: known means, the exchange and its undoing, and what a checkpoint needs."""

from __future__ import annotations

import pytest
import torch

from serving.training.averaging import WeightAverage, rate_factor


def _network(value: float) -> torch.nn.Linear:
    network = torch.nn.Linear(2, 1)
    _set(network, value)
    return network


def _set(network: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def test_the_mean_is_the_recursion_by_hand() -> None:
    network = _network(1.0)
    average = WeightAverage(network, decay=0.25)
    by_hand = 1.0
    for step, value in enumerate((3.0, -2.0, 7.0), start=1):
        _set(network, value)
        average.update()
        keep = min(0.25, (1 + step) / (10 + step))
        by_hand = keep * by_hand + (1 - keep) * value
    assert average.state()["bias"].item() == pytest.approx(by_hand, rel=1e-6)
    assert average.state()["weight"].flatten().tolist() == pytest.approx([by_hand, by_hand], rel=1e-6)


def test_without_decay_the_mean_is_the_last_weights() -> None:
    network = _network(1.0)
    average = WeightAverage(network, decay=0.0)
    _set(network, 5.0)
    average.update()
    assert average.state()["bias"].item() == 5.0


def test_the_network_has_the_mean_within_the_block_alone_and_also_after_an_error() -> None:
    network = _network(1.0)
    average = WeightAverage(network, decay=0.5)
    _set(network, 5.0)
    mean = average.state()["bias"].item()
    with average.applied():
        assert network.bias.item() == mean == 1.0
    assert network.bias.item() == 5.0
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        raise RuntimeError("inside")
    assert network.bias.item() == 5.0
    assert average.state()["bias"].item() == mean


def test_a_restored_average_goes_on_as_the_one_that_was_saved() -> None:
    network = _network(1.0)
    average, values = WeightAverage(network, decay=0.9), [2.0, -1.0, 4.0, 0.5]
    for value in values[:2]:
        _set(network, value)
        average.update()
    other = WeightAverage(_network(-9.0), decay=0.9)
    other.restore(average.state(), average.steps)
    for value in values[2:]:
        for each, its_network in ((average, network), (other, other._network)):
            _set(its_network, value)
            each.update()
    assert torch.equal(average.state()["weight"], other.state()["weight"])
    assert average.steps == other.steps == 4


def test_averaged_weights_lie_nearer_to_the_optimum_than_the_last_ones() -> None:
    """Noisy gradient steps on (w - 3)^2 at a constant rate: the path jumps about 3, its mean much less."""
    generator = torch.Generator().manual_seed(1)
    network = _network(0.0)
    average = WeightAverage(network, decay=0.98)
    last, mean = [], []
    for step in range(1200):
        noise = float(torch.randn(1, generator=generator)) * 2.0
        _set(network, network.bias.item() - 0.4 * (network.bias.item() - 3.0 - noise))
        average.update()
        if step >= 400:
            last.append(abs(network.bias.item() - 3.0))
            mean.append(abs(average.state()["bias"].item() - 3.0))
    assert sum(mean) < 0.4 * sum(last)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_of_0_to_1_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="average_decay"):
        WeightAverage(_network(0.0), decay)


def test_the_rate_rises_to_one_and_stays() -> None:
    assert [rate_factor(step, 5) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert rate_factor(0, 0) == 1.0
