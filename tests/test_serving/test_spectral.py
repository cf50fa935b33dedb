"""First vectors of items: the graph by hand, the eigenvectors against a dense solver, planted groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serving.training import spectral
from serving.training.dataset import Sequences
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.settings import TrainerSettings
from serving.training.spectral import covisitation_graph, spectral_vectors, start_items


def _sequences(*users: list[int]) -> Sequences:
    items = np.concatenate([np.array(user, dtype=np.int64) for user in users])
    starts = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    n = len(items)
    return Sequences(
        starts, items, np.ones(n, np.int64), np.arange(n, dtype=np.int64), np.ones(n, dtype=np.bool_)
    )


def _dense(sequences: Sequences, vocabulary: int) -> np.ndarray:
    (one, other), weights = covisitation_graph(sequences, vocabulary)
    matrix = np.zeros((vocabulary + 1, vocabulary + 1))
    matrix[one, other] = weights
    return matrix


def test_pairs_are_counted_by_distance_within_a_user_and_both_ways() -> None:
    matrix = _dense(_sequences([1, 2, 3], [2, 1], [9, 3, 0, 1]), vocabulary=3)
    by_hand = np.zeros((4, 4))
    by_hand[1, 2] = 0.95 + 0.95  # 1 2 of the first user, 2 1 of the second
    by_hand[2, 3] = 0.95
    by_hand[1, 3] = 0.95**2 + 0.95**2  # of the first; and of the third, across the place that is no item
    assert matrix == pytest.approx(by_hand + by_hand.T, rel=1e-6)


def test_items_further_apart_than_the_window_are_no_pair() -> None:
    matrix = _dense(_sequences([1, *range(3, 13), 2]), vocabulary=12)
    assert matrix[1, 2] == 0.0
    assert matrix[1, 12] == pytest.approx(0.95**10, rel=1e-5)


def test_many_pairs_leave_the_greater_distances_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "_MAX_PAIRS", 3)
    matrix = _dense(_sequences([1, 2, 3]), vocabulary=3)
    assert matrix[1, 2] > 0 < matrix[2, 3]
    assert matrix[1, 3] == 0.0


def test_all_eigenvectors_give_the_normalised_graph_back() -> None:
    """|N| from the rows' directions: with d = V, Q |L| Q' by a dense solver has the same cosines."""
    rng = np.random.default_rng(3)
    sequences = _sequences(*[rng.permutation(np.arange(1, 10))[:6].tolist() for _ in range(30)])
    matrix = _dense(sequences, 9)
    degree = matrix.sum(axis=1) + 20.0
    values, vectors = np.linalg.eigh(matrix / np.sqrt(np.outer(degree, degree)))
    size = (vectors * np.abs(values)) @ vectors.T
    cosines = (size / np.sqrt(np.outer(size.diagonal(), size.diagonal()) + 1e-30))[1:, 1:]
    found = spectral_vectors(sequences, vocabulary=9, dim=9, seed=1)[1:-1]
    assert found @ found.T / 0.49 == pytest.approx(cosines, abs=2e-3)


def test_items_used_together_lie_together_and_unused_ones_at_the_origin() -> None:
    rng = np.random.default_rng(5)
    users = [
        rng.permutation(np.arange(1, 11) if user % 2 else np.arange(11, 21)).tolist() for user in range(40)
    ]
    found = spectral_vectors(_sequences(*users), vocabulary=22, dim=4, seed=1)
    assert found.shape == (24, 4)
    assert not found[[0, 21, 22, 23]].any()
    unit = found[1:21] / 0.7
    assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(20), rel=1e-5)
    cosines = unit @ unit.T
    assert cosines[:10, :10].mean() > cosines[:10, 10:].mean() + 0.2


def test_a_seed_gives_the_same_vectors_and_no_pairs_give_zeros() -> None:
    sequences = _sequences([1, 2, 3, 4], [4, 2, 1])
    one, other = (spectral_vectors(sequences, 4, 3, seed=7) for _ in range(2))
    assert np.array_equal(one, other)
    assert one.any()
    assert not spectral_vectors(_sequences([1], [2]), 2, 3, seed=7).any()


def _trainable(vocabulary: int, dim: int) -> SequenceNetwork:
    settings = TrainerSettings(dim=dim, heads=1, blocks=1, history_length=4)
    return build_network(Shape(vocabulary), settings)


def test_items_start_from_the_spectral_vectors_and_items_without_any_keep_theirs() -> None:
    sequences, network = _sequences([1, 2, 3, 4], [4, 2, 1]), _trainable(5, 3)
    before = network.item_embedding.weight.detach().clone()
    start_items(network, sequences, 7, np.zeros(5, dtype=np.bool_))
    after = network.item_embedding.weight.detach()
    assert np.array_equal(after[1:5].numpy(), spectral_vectors(sequences, 5, 3, seed=7)[1:5])
    assert torch.equal(after[[0, 5, 6]], before[[0, 5, 6]])


def test_new_items_are_turned_into_the_axes_of_the_trained_ones() -> None:
    """The trained vectors are a rotation of the spectral ones: a new item lands where it puts it."""
    rng = np.random.default_rng(2)
    sequences = _sequences(*[(rng.permutation(60)[:30] + 1).tolist() for _ in range(80)])
    network = _trainable(60, 4)
    vectors = torch.from_numpy(spectral_vectors(sequences, 60, 4, seed=7))
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    is_trained = np.arange(60) < 50
    with torch.no_grad():
        network.item_embedding.weight[1:51] = vectors[1:51] @ rotation
    before = network.item_embedding.weight.detach().clone()
    start_items(network, sequences, 7, is_trained)
    after = network.item_embedding.weight.detach()
    assert torch.equal(after[:51], before[:51])
    new, expected = after[51:61], (vectors @ rotation)[51:61]
    assert torch.nn.functional.cosine_similarity(new, expected).min() > 0.99
    assert new.norm(dim=1).numpy() == pytest.approx(0.7 * np.ones(10), rel=0.2)
