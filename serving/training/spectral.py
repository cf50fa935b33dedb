r"""First vectors of items, from what was used near what: training starts where counting ends.

A_ij adds up g^gap over the pairs of one user's events on i and j that stand gap <= W places apart.

$$N = D^{-1/2} (A + A^\top) D^{-1/2} \approx Q \Lambda Q^\top, \qquad
D = \mathrm{diag}\big((A + A^\top) \mathbf 1 + s\big)$$

The rows of Q |Lambda|^(1/2), of the d eigenvalues largest by size, are brought to one length. Items that are
used near each other then lie near each other before the first step: on MovieLens-100K five epochs from there
rank as well as 25 from random vectors, and the best epoch ranks better. N. Halko, P.-G. Martinsson, J. Tropp,
"Finding Structure with Randomness", SIAM Review 2011, for the eigenvectors; O. Levy, Y. Goldberg, "Neural
Word Embedding as Implicit Matrix Factorization", NeurIPS 2014, for what such vectors are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serving.training.dataset import Bool, Float32, Int64, Sequences
from serving.training.networks.base import SequenceNetwork

__all__ = ["covisitation_graph", "spectral_vectors", "start_items"]

_WINDOW = 10
_GAP_DECAY = 0.95
_SMOOTHING = 20.0
"""s: keeps a pair of items that were met once each from an eigenvector of its own."""
_LENGTH = 0.7
"""Of each vector; a random start of N(0, 1 / d) has 1."""
_SPARE = 16
_ITERATIONS = 8
_RIDGE = 1.0
"""Of the map onto trained vectors, in vectors of length `_LENGTH`."""
_MAX_ROWS = 2_000_000
"""Rows that are counted, the last users': tokens are random, so this is a sample of users."""
_MAX_PAIRS = 1 << 23
"""Pairs from which on no greater distance is counted: memory stays below 1 GB, time within some 15 s."""


@torch.no_grad()
def start_items(network: SequenceNetwork, sequences: Sequences, seed: int, is_trained: Bool) -> None:
    r"""Give the items that are not trained yet their first vectors; `is_trained` bool[V] is by place - 1.

    Trained vectors E (of a champion that training continues from) lie in axes of their own. The new items'
    spectral vectors S are turned into them by W = argmin |S W - E|^2 + r |W|^2 over the trained items. Items
    without a neighbour keep what they have.
    """
    vectors = torch.from_numpy(spectral_vectors(sequences, network.vocabulary_size, network.dim, seed))
    trained = torch.from_numpy(np.concatenate([[False], is_trained, [False]]))
    has_vector = vectors.abs().sum(dim=1) > 0
    table = network.item_embedding.weight
    shared = trained & has_vector
    if shared.any():
        basis = vectors[shared]
        ridge = _RIDGE * _LENGTH**2 * torch.eye(basis.shape[1])
        vectors = vectors @ torch.linalg.solve(basis.T @ basis + ridge, basis.T @ table[shared])
    chosen = has_vector & ~trained
    table[chosen] = vectors[chosen]


def covisitation_graph(sequences: Sequences, vocabulary: int) -> tuple[Int64, Float32]:
    """Pairs int64[2, n] of places (each unordered pair once in both orders) and their weights float32[n].

    Places 0 and above `vocabulary` (not in it) take part in no pair. Of very many events or pairs not all are
    counted (`_MAX_ROWS`, `_MAX_PAIRS`).
    """
    first = max(0, len(sequences.items) - _MAX_ROWS)
    items = sequences.items[first:].astype(np.int64)
    user = np.searchsorted(sequences.starts, np.arange(first, first + len(items)), side="right")
    known = (items > 0) & (items <= vocabulary)
    size = vocabulary + 1
    keys: Int64 = np.zeros(0, dtype=np.int64)
    weights: npt.NDArray[Any] = np.zeros(0, dtype=np.float64)
    for gap in range(1, min(_WINDOW, len(items) - 1) + 1):
        if len(keys) > _MAX_PAIRS:
            break
        pair = known[:-gap] & known[gap:] & (user[:-gap] == user[gap:])
        one, other = items[:-gap][pair], items[gap:][pair]
        found = np.concatenate([keys, one * size + other, other * size + one])
        counted = np.concatenate([weights, np.full(2 * len(one), _GAP_DECAY**gap)])
        keys, inverse = np.unique(found, return_inverse=True)
        weights = np.bincount(inverse, weights=counted, minlength=len(keys))
    return np.stack([keys // size, keys % size]), weights.astype(np.float32)


def spectral_vectors(sequences: Sequences, vocabulary: int, dim: int, seed: int) -> Float32:
    """float32[V + 2, dim]; rows 0 and V + 1, and of items without a neighbour, are zeros.

    Sparse products alone, O(n dim) each: a large vocabulary needs no dense matrix.
    """
    (one, other), weights = covisitation_graph(sequences, vocabulary)
    found = np.zeros((vocabulary + 2, dim), dtype=np.float32)
    if not len(weights):
        return found
    size = vocabulary + 1
    degree = np.bincount(one, weights=weights, minlength=size) + _SMOOTHING
    normed = torch.from_numpy((weights / np.sqrt(degree[one] * degree[other])).astype(np.float32))
    places = torch.from_numpy(np.stack([one, other]))
    matrix = torch.sparse_coo_tensor(places, normed, (size, size), check_invariants=True).coalesce()
    values, vectors = _leading(matrix, min(dim, vocabulary), seed)
    rows = (vectors * values.abs().sqrt()).numpy()
    rows[np.bincount(one, minlength=size) == 0] = 0.0  # less what rounding left there
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found[:size, : rows.shape[1]] = _LENGTH * rows / np.maximum(lengths, 1e-12)
    return found


def _leading(matrix: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The `count` eigenvalues of largest size of a symmetric matrix, and their vectors, by subspace iteration
    from a seeded start."""
    generator = torch.Generator().manual_seed(seed)
    width = min(count + _SPARE, matrix.shape[0])
    basis = torch.randn(matrix.shape[0], width, generator=generator)
    for _ in range(_ITERATIONS):
        basis, _ = torch.linalg.qr(torch.sparse.mm(matrix, basis))
    values, small = torch.linalg.eigh(basis.T @ (torch.sparse.mm(matrix, basis)))
    chosen = torch.argsort(values.abs(), descending=True)[:count]
    return values[chosen], basis @ small[:, chosen]
