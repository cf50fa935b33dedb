"""Adversaries: what they are by definition, and that training against them does what it is for."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from online_models import losses as plain
from serving.training.adversarial import (
    Generator,
    discriminator_loss,
    generator_loss,
    perturbation,
    policy_loss,
)
from serving.training.device import Place
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from serving.training.objective import Learned, Objective
from serving.training.settings import TrainerSettings
from serving.training.step import Stepper, tokens
from serving.training.windows import Batch, training_batches
from tests.test_serving.planted_cases import ITEMS, SETTINGS, chain_split

CNN = msgspec.structs.replace(SETTINGS, network="cnn", dropout=0.0)


def fitted(settings: TrainerSettings, epochs: int) -> Objective:
    split = chain_split()
    torch.manual_seed(1)
    network = build_network(Shape(ITEMS, split.event_types, 1), settings)
    objective = Objective(network, torch.from_numpy(split.contents), split, settings)
    stepper = Stepper(network, objective, settings, Place())
    for epoch in range(epochs):
        batches = training_batches(split.train, settings, np.random.default_rng(epoch))
        stepper.epoch(batches, epoch, lambda: False)
    return objective


def whole_batch() -> tuple[Tokens, Learned]:
    settings = msgspec.structs.replace(CNN, batch_windows=1000)
    [batch] = list(training_batches(chain_split().train, settings, np.random.default_rng(0)))
    return tokens(batch), learned(batch)


def learned(batch: Batch) -> Learned:
    parts = (batch.targets, batch.target_types, batch.target_values)
    return Learned(*(torch.from_numpy(part) for part in parts))


def test_losses_are_those_of_the_documents() -> None:
    """The same losses in logits: D = sigmoid of them."""
    real, made = torch.tensor([1.5, -0.2]), torch.tensor([0.3, -2.0, 0.7])
    by_d = [1.0 / (1.0 + np.exp(-logits.numpy().astype(float))) for logits in (real, made)]
    assert float(generator_loss(made)) == pytest.approx(plain.generator_loss(by_d[1]), rel=1e-5)
    assert float(discriminator_loss(real, made)) == pytest.approx(plain.discriminator_loss(*by_d), rel=1e-5)


def test_a_perturbation_is_the_steepest_step_of_its_length() -> None:
    vectors = torch.randn(5, 3, requires_grad=True)
    weights = torch.randn(5, 3)
    weights[4] = 0.0  # a row that the loss does not depend on
    step = perturbation((vectors * weights).sum(), vectors, 0.5)
    np.testing.assert_allclose(step[:4].norm(dim=1), 0.5, rtol=1e-5)
    assert not step[4].any()
    along = (step[:4] * weights[:4]).sum(dim=1)
    np.testing.assert_allclose(along, 0.5 * weights[:4].norm(dim=1), rtol=1e-5)


def test_policy_loss_raises_what_pays_more_than_the_mean() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    policy_loss(logits.log_softmax(1), torch.tensor([[3.0, 1.0, 2.0]])).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, [[-1 / 3, 1 / 3, 0.0]], atol=1e-6)


def hurt(objective: Objective) -> float:
    """How much the steepest step of length 1 adds to the loss, as a share of it."""
    network = objective.network.eval()
    given, targets = whole_batch()
    plain_loss = objective(given, targets)
    network.shift = perturbation(plain_loss, network.item_embedding.weight, 1.0)
    with torch.no_grad():
        moved = objective(given, targets)
    network.shift = None
    return float(moved - plain_loss.detach())


def test_training_on_perturbed_vectors_makes_them_hurt_less() -> None:
    apr = msgspec.structs.replace(CNN, adversarial="apr", adversarial_epsilon=1.0)
    plain_one, hardened = fitted(CNN, 6), fitted(apr, 6)
    judge = Objective(
        hardened.network, torch.from_numpy(chain_split().contents), chain_split(), CNN
    )  # the plain loss, of the hardened network
    assert hurt(judge) < 0.85 * hurt(plain_one)


def proposed(generator: Generator, ranker: SequenceNetwork) -> tuple[Tensor, Tensor, Tensor]:
    """Targets int64[n], proposals int64[n, k], and the ranker's scores of all items float32[n, V]."""
    given, wanted = whole_batch()
    contents = torch.from_numpy(chain_split().contents)
    window, column = torch.where(wanted.targets > 0)
    targets = wanted.targets[window, column]
    ranker.eval()
    with torch.no_grad():
        states = ranker.states(given, contents)[window, column]
        torch.manual_seed(0)
        seen = torch.zeros(len(targets), 1, dtype=torch.int64)
        places, _ = generator.propose(given, (window, column), targets, seen, contents)
        scores = ranker.logits(states, contents)[:, 1 : ITEMS + 1]
    assert not (places == targets.unsqueeze(1)).any()
    assert places.min() >= 1
    assert places.max() <= ITEMS
    return targets, places, scores


def mean_rank(generator: Generator, ranker: SequenceNetwork) -> float:
    """Of the generator's proposals among all items, by the ranker's scores: low is hard."""
    _, places, scores = proposed(generator, ranker)
    ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
    return float(ranks.gather(1, places - 1).double().mean())


def proposals_cost(objective: Objective) -> float:
    """The discriminator's loss on what its generator proposes."""
    assert objective.adversary is not None
    targets, places, scores = proposed(objective.adversary, objective.network)
    return float(discriminator_loss(scores.gather(1, targets.unsqueeze(1) - 1), scores.gather(1, places - 1)))


def test_the_generator_learns_to_propose_what_the_ranker_takes_for_real() -> None:
    """Against a ranker that learns nothing from it (weight 0), else the two keep each other in balance."""
    settings = msgspec.structs.replace(CNN, adversarial="irgan", adversarial_weight=0.0)
    objective = fitted(settings, 16)
    assert objective.adversary is not None
    torch.manual_seed(9)
    fresh = Generator(objective.network.shape, settings, torch.device("cpu"))
    before = mean_rank(fresh, objective.network)
    after = mean_rank(objective.adversary, objective.network)
    assert before == pytest.approx((ITEMS - 1) / 2, abs=2.0), "at first it knows nothing"
    assert after < before - 3.0


def test_the_ranker_learns_to_tell_proposals_from_what_was_used() -> None:
    settings = [msgspec.structs.replace(CNN, adversarial="irgan", adversarial_weight=w) for w in (0.0, 1.0)]
    ignoring, listening = (proposals_cost(fitted(each, 6)) for each in settings)
    assert listening < 0.7 * ignoring


def test_a_generator_continues_from_its_state() -> None:
    settings = msgspec.structs.replace(CNN, adversarial="irgan")
    first = fitted(settings, 1).adversary
    assert first is not None
    second = Generator(Shape(ITEMS, chain_split().event_types, 1), settings, torch.device("cpu"))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)
    assert any(name.startswith("moment.") for name in second.state_dict())
