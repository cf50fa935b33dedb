"""The two towers' item vectors in an index: what it finds is the network's own ranking of the catalogue."""

from __future__ import annotations

import functools

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from serving.retrieval.approximate import FactorIndex
from serving.retrieval.exact import top_k
from serving.training.dataset import split_by_time
from serving.training.networks.base import tokens_of
from serving.training.train import train
from tests.test_serving.chain import ITEMS, SETTINGS, markov_log, successor

TWO_TOWER = msgspec.structs.replace(
    SETTINGS, network="two_tower", dim=16, max_epochs=14, patience=14, learning_rate=0.01,
    max_seconds=600.0, max_cpu_seconds=600.0,
)  # fmt: skip
K = 20
Float32 = npt.NDArray[np.float32]


@functools.cache
def towers() -> tuple[Float32, Float32, Float32, tuple[str, ...]]:
    """Of a network trained on the chain: for each item a user who has just had it, float32[n, d + 1]; item
    vectors float32[V, d + 1]; the network's own scores float32[n, V]; item ids."""
    split = split_by_time(markov_log(users=300), TWO_TOWER)
    network, contents = train(split, TWO_TOWER).network, torch.from_numpy(split.contents)
    history = torch.arange(1, len(split.vocabulary) + 1).unsqueeze(1)
    tokens, newest = tokens_of(history, torch.ones_like(history), torch.zeros(history.shape))
    with torch.no_grad():
        states = network.encode(tokens, newest, contents)
        users = torch.nn.functional.pad(network.fold(states), (0, 1), value=1.0)
        vectors = network.retrieval_vectors(contents)
        scores = network.logits(states, contents)[:, 1 : len(split.vocabulary) + 1]
    return users.numpy(), vectors.numpy(), scores.numpy(), split.vocabulary


def test_the_towers_know_what_follows() -> None:
    """Else the rankings below would be of noise."""
    _, _, scores, names = towers()
    assert len(names) == ITEMS
    own = scores.copy()
    np.fill_diagonal(own, -np.inf)
    right = [names[best] == successor(name) for name, best in zip(names, own.argmax(axis=1), strict=True)]
    assert np.mean(right) > 0.8


@pytest.mark.parametrize("way", ["exact", "index"])
def test_an_index_finds_the_networks_own_ranking(way: str) -> None:
    users, vectors, scores, _ = towers()
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    rows, found = top_k(users, vectors, K) if way == "exact" else indexed(vectors).search(users, K)
    np.testing.assert_allclose(found, np.take_along_axis(scores, expected, axis=1), rtol=1e-4, atol=1e-4)
    of_rows = np.take_along_axis(scores, rows.astype(np.int64), axis=1)
    np.testing.assert_allclose(of_rows, found, rtol=1e-4, atol=1e-4)
    ordered = np.sort(rows, axis=1)
    assert (ordered[:, 1:] > ordered[:, :-1]).all(), "an item twice"
    assert np.mean(rows == expected) > 0.99, "more than ties in the last bit"


def test_lists_find_nearly_all_of_it() -> None:
    """As with a large catalogue, where most items are not looked at."""
    users, vectors, scores, _ = towers()
    index = indexed(vectors, untrained_below=50)
    index.rebuild()
    rows, _ = index.search(users, K)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    found = [len(set(mine) & set(own)) for mine, own in zip(rows.tolist(), expected.tolist(), strict=True)]
    assert np.mean(found) > 0.97 * K


def indexed(vectors: Float32, untrained_below: int = 4096) -> FactorIndex:
    index = FactorIndex(vectors.shape[1], seed=3, recall=0.99, untrained_below=untrained_below)
    index.update(np.arange(len(vectors), dtype=np.int32), vectors)
    return index
