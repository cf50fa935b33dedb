"""Objectives that recommenders are trained on, as they are written down: to check a model against.

Everything is float64 and plain: what the kernels step down stands in each model's own file. U is
float64[users, d], V float64[items, d], R float64[users, items]; a pair's vectors u and v are float64[d].

References: Koren, Bell, Volinsky, Matrix Factorization Techniques for Recommender Systems, IEEE Computer
42(8), 2009; He et al., Neural Collaborative Filtering, WWW 2017; Goodfellow et al., Generative Adversarial
Nets, NeurIPS 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "alternating_step",
    "binary_cross_entropy",
    "cosine",
    "discriminator_loss",
    "factorisation_gradient",
    "factorisation_loss",
    "generator_loss",
    "mlp_probability",
    "similarity_loss",
]

Doubles = NDArray[np.float64]
Layer = tuple[ArrayLike, ArrayLike]
"""Weights float64[out, in] and biases float64[out]."""


def factorisation_loss(u: ArrayLike, v: ArrayLike, ratings: ArrayLike, regularization: float) -> float:
    r"""$J = \frac12 \lVert R - U V^\top \rVert^2 + \lambda \lVert U \rVert^2 + \lambda \lVert V \rVert^2$.

    >>> factorisation_loss([[1.0, 2.0]], [[1.0, 0.0]], [[3.0]], 0.1)
    2.6
    """
    left, right, table = _doubles(u), _doubles(v), _doubles(ratings)
    error = table - left @ right.T
    return float(
        0.5 * np.square(error).sum() + regularization * (np.square(left).sum() + np.square(right).sum())
    )


def factorisation_gradient(
    u: ArrayLike, v: ArrayLike, ratings: ArrayLike, regularization: float
) -> tuple[Doubles, Doubles]:
    r"""dJ/dU and dJ/dV: $-(R - U V^\top) V + 2 \lambda U$, and the same with the roles changed.

    >>> [part.tolist() for part in factorisation_gradient([[1.0, 2.0]], [[1.0, 0.0]], [[3.0]], 0.25)]
    [[[-1.5, 1.0]], [[-1.5, -4.0]]]
    """
    left, right = _doubles(u), _doubles(v)
    error = _doubles(ratings) - left @ right.T
    return 2.0 * regularization * left - error @ right, 2.0 * regularization * right - error.T @ left


def alternating_step(v: ArrayLike, ratings: ArrayLike, regularization: float) -> Doubles:
    r"""The U that minimises J for this V: $(V^\top V + 2 \lambda I)\, u = V^\top r$ for each row r of R, by
    the Cholesky factorisation that iALS solves with. With R transposed and U given, the V.

    Raises ValueError for regularization <= 0, which leaves u undetermined.

    >>> alternating_step([[1.0], [2.0]], [[4.0, 3.0]], 2.5).tolist()
    [[1.0]]
    """
    from online_models.als_kernels import _solve

    if not regularization > 0.0:
        raise ValueError(f"regularization is {regularization}, but more than 0 is needed")
    right = _doubles(v)
    normal = right.T @ right + 2.0 * regularization * np.eye(right.shape[1])
    found = _doubles(ratings) @ right
    for row in found:
        _solve(normal.copy(), row, 2.0 * regularization)
    return found


def cosine(u: ArrayLike, v: ArrayLike) -> float:
    r"""$\cos(u, v) = \frac{u \cdot v}{\lVert u \rVert \lVert v \rVert}$, 0 where one of them is 0.

    >>> cosine([3.0, 4.0], [4.0, 3.0]), cosine([0.0], [1.0])
    (0.96, 0.0)
    """
    left, right = _doubles(u), _doubles(v)
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norms if norms else 0.0


def similarity_loss(similarity: ArrayLike, target: ArrayLike) -> float:
    r"""Squared error on similarity, $\frac1n \sum (s(u, i) - y)^2$, s an inner product or a cosine.

    >>> similarity_loss([0.5, 1.0], [1.0, 0.0])
    0.625
    """
    return float(np.square(_doubles(similarity) - _doubles(target)).mean())


def mlp_probability(u: ArrayLike, v: ArrayLike, layers: Sequence[Layer]) -> float:
    r"""$\sigma(W_L\, a_{L-1} + b_L)$ with $a_0 = [u; v]$, $a_l = \max(W_l\, a_{l-1} + b_l, 0)$; the last
    layer has one output.

    >>> hidden, out = ([[1.0, 1.0], [-1.0, 0.0]], [0.0, 0.5]), ([[2.0, 7.0]], [-6.0])
    >>> mlp_probability([1.0], [2.0], [hidden, out])
    0.5
    """
    values = np.concatenate((_doubles(u), _doubles(v)))
    for place, (weights, biases) in enumerate(layers, start=1):
        values = _doubles(weights) @ values + _doubles(biases)
        if place < len(layers):
            values = np.maximum(values, 0.0)
    if values.shape != (1,):
        raise ValueError(f"the last layer gives {values.shape}, but one output is needed")
    return float(0.5 * (1.0 + np.tanh(0.5 * values[0])))  # the sigmoid, without an overflow


def binary_cross_entropy(probability: ArrayLike, label: ArrayLike) -> float:
    r"""$-\frac1n \sum y \log p + (1 - y) \log(1 - p)$ in nats. Raises ValueError outside 0 < p < 1.

    >>> round(binary_cross_entropy([0.8, 0.1], [1.0, 0.0]), 4)
    0.1643
    """
    p, y = _probabilities("probability", probability), _doubles(label)
    return float(-(y * np.log(p) + (1.0 - y) * np.log1p(-p)).mean())


def generator_loss(judged_made: ArrayLike) -> float:
    r"""$-\log D(G(z))$, mean over what was generated: small where the discriminator D takes it for real.

    >>> round(generator_loss([0.5, 0.25]), 4)
    1.0397
    """
    return float(-np.log(_probabilities("judged_made", judged_made)).mean())


def discriminator_loss(judged_real: ArrayLike, judged_made: ArrayLike) -> float:
    r"""$-\log D(x) - \log(1 - D(G(z)))$, means over real and generated ones; $2 \ln 2$ where D can't tell.

    >>> round(discriminator_loss([0.5], [0.5]), 4), round(discriminator_loss([0.9], [0.2]), 4)
    (1.3863, 0.3285)
    """
    real, made = _probabilities("judged_real", judged_real), _probabilities("judged_made", judged_made)
    return float(-np.log(real).mean() - np.log1p(-made).mean())


def _doubles(values: ArrayLike) -> Doubles:
    return np.asarray(values, dtype=np.float64)


def _probabilities(name: str, values: ArrayLike) -> Doubles:
    found = np.atleast_1d(_doubles(values))
    if not bool(((found > 0.0) & (found < 1.0)).all()):
        raise ValueError(f"{name} is {found.tolist()}, but values between 0 and 1, without them, are needed")
    return found
