"""Several networks' opinion, and the student that learns it."""

from __future__ import annotations

import functools

import msgspec
import numpy as np
import pytest
import torch

from serving.training.distillation import Ensemble, divergence, soft_loss
from serving.training.ensemble import distil, train_networks
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.train import TrainedNetwork, train
from tests.test_serving.planted_cases import ITEMS, SETTINGS, chain_split, next_scores

STUDENT = msgspec.structs.replace(
    SETTINGS, network="two_tower", ensemble=("transformer", "cnn"), max_epochs=10
)


@functools.cache
def student() -> TrainedNetwork:
    return train_networks(chain_split(), STUDENT)


def small(name: str, seed: int) -> SequenceNetwork:
    torch.manual_seed(seed)
    return build_network(Shape(ITEMS, 1, 1), msgspec.structs.replace(SETTINGS, network=name)).eval()


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))  # type: ignore[no-any-return]


def test_the_student_is_about_as_good_as_its_teachers() -> None:
    metrics = student().metrics
    assert set(metrics) == {
        "student_ndcg_at_10",
        "ensemble_ndcg_at_10",
        "teacher_0_transformer_ndcg_at_10",
        "teacher_1_cnn_ndcg_at_10",
    }
    assert metrics["student_ndcg_at_10"] == student().ndcg_at_10
    assert metrics["ensemble_ndcg_at_10"] > 0.8
    assert metrics["student_ndcg_at_10"] > metrics["ensemble_ndcg_at_10"] - 0.1
    assert metrics["student_ndcg_at_10"] > 0.5  # chance is 0.15
    assert student().settings.network == "two_tower"


def test_an_opinion_is_the_mean_of_logarithms() -> None:
    members = [small("cnn", 1), small("two_tower", 2)]
    ensemble = Ensemble(members).eval()
    split = chain_split()
    states, _, contents = next_scores(ensemble, split)  # type: ignore[arg-type]
    with torch.no_grad():
        found = ensemble.logits(states, contents).numpy()
        parts = [next_scores(member, split)[0] for member in members]
        own = [m.logits(s, contents).numpy()[:, :-1] for m, s in zip(members, parts, strict=True)]
    np.testing.assert_allclose(
        found[:, :-1], np.mean([log_softmax(scores) for scores in own], axis=0), atol=1e-5
    )
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())


def test_divergence_by_numpy() -> None:
    rng = np.random.default_rng(1)
    teacher, pupil = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    p, q = log_softmax(teacher), log_softmax(pupil / 3.0)
    expected = 9.0 * (np.exp(p) * (p - q)).sum(axis=1).mean()
    found = divergence(torch.from_numpy(teacher), torch.from_numpy(pupil), 3.0)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("draws", [0, 12])
def test_a_student_that_agrees_pays_nothing(draws: int) -> None:
    """Over all items but those seen, and over some drawn; one that differs pays."""
    network, other = small("cnn", 1), small("cnn", 2)
    split = chain_split()
    contents = torch.from_numpy(split.contents)
    targets = torch.arange(1, ITEMS + 1).roll(1)
    seen = torch.stack([torch.zeros_like(targets), torch.arange(1, ITEMS + 1)], dim=1)

    def paid(pupil: SequenceNetwork) -> float:
        own, _, _ = next_scores(pupil, split)
        teacher = Ensemble([network])
        taught, _, _ = next_scores(teacher, split)  # type: ignore[arg-type]
        with torch.no_grad():
            return float(soft_loss(pupil, own, teacher, taught, targets, seen, contents, 2.0, draws))

    assert paid(network) == pytest.approx(0.0, abs=1e-5)
    assert paid(other) > 0.01


def test_without_an_ensemble_training_is_what_it_was() -> None:
    settings = msgspec.structs.replace(SETTINGS, network="cnn", max_epochs=1)
    split = chain_split()
    alone, through = train(split, settings), train_networks(split, settings)
    assert through.metrics == {}
    for name, weights in alone.weights().items():
        np.testing.assert_array_equal(weights, through.weights()[name])


def test_teachers_of_other_items_are_refused() -> None:
    split = chain_split()
    other = TrainedNetwork(small("cnn", 1), tuple(reversed(split.vocabulary)), SETTINGS)
    with pytest.raises(ValueError, match="teacher old knows other items"):
        distil({"old": other}, split, SETTINGS)
    with pytest.raises(ValueError, match="an ensemble of no networks"):
        distil({}, split, SETTINGS)
