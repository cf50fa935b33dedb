"""Cases small enough for paper, by the networks that are trained; and the examples of docs/training.md."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from online_models import losses as plain
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape
from serving.training.networks.ncf import NeuMF
from serving.training.settings import TrainerSettings

TABLE = np.array([[5.0, 3.0, 4.0], [4.0, 5.0, 2.0], [3.0, 4.0, 5.0]])
DOCS = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def network_with(name: str, vectors: np.ndarray) -> SequenceNetwork:
    """A network whose items 1, 2, ... have these vectors float[V, d], and no biases."""
    items, dim = vectors.shape
    network = build_network(Shape(items), TrainerSettings(network=name, dim=dim, heads=1)).eval()
    with torch.no_grad():
        network.item_embedding.weight[1 : items + 1] = torch.from_numpy(vectors.astype(np.float32))
    return network


def scores_of(network: SequenceNetwork, states: np.ndarray) -> np.ndarray:
    """float32[n, V] of states float[n, d]."""
    contents = torch.zeros(network.vocabulary_size + 2, 1)
    with torch.no_grad():
        return network.logits(torch.from_numpy(states.astype(np.float32)), contents).numpy()[:, 1:-1]


def test_a_score_is_an_inner_product_and_a_cosine_of_unit_vectors() -> None:
    """Balanced factors of the full table: the inner products give it back and rank A, C, B for user 1."""
    left, singular, right = np.linalg.svd(TABLE)
    pad = np.zeros((3, 1))  # a network's vectors have four components at least
    u = np.hstack([left * np.sqrt(singular), pad])
    v = np.hstack([right.T * np.sqrt(singular), pad])
    products = scores_of(network_with("gru", v), u)
    np.testing.assert_allclose(products, TABLE, atol=1e-5)
    assert ["ABC"[place] for place in np.argsort(-products[0])] == ["A", "C", "B"]
    unit_u, unit_v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    cosines = scores_of(network_with("gru", unit_v), unit_u)
    assert cosines[0].round(3).tolist() == pytest.approx([0.954, 0.566, 0.769], abs=1e-6)
    expected = [[plain.cosine(user, item) for item in v] for user in u]
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


def perceptron(first: np.ndarray, out: np.ndarray) -> NeuMF:
    """NeuMF without its inner product: first layer over [u; v] float[4, 4], identity, then `out` float[2];
    item 1 is v = (0.3, 0.4)."""
    network = network_with("ncf", np.array([[9.0, 9.0, 0.3, 0.4]]))
    assert isinstance(network, NeuMF)
    with torch.no_grad():
        network.item_layer.weight.copy_(torch.from_numpy(first[:, 2:]))
        network.second.weight.copy_(torch.eye(2, 4))
        network.second.bias.zero_()
        network.out.weight.copy_(torch.from_numpy(out).unsqueeze(0))
    return network


def test_a_perceptron_over_both_vectors_by_hand() -> None:
    """u = (0.1, 0.2), v = (0.3, 0.4): hidden (0.1 + 0.3 + 0.7, -0.1 - 0.4 cut at 0) = (1.1, 0), logit
    2 * 1.1 - 1.2 = 1; cross-entropy ln(1 + 1/e) of a hit, and 1 more of a miss."""
    first = np.array([[1, 0, 1, 0], [-1, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    bias, out = np.array([0.7, 0, 0, 0], dtype=np.float32), np.array([2.0, 9.0], dtype=np.float32)
    network = perceptron(first, out)
    with torch.no_grad():
        network.item_bias[1] = -1.2
    user = first[:, :2] @ np.array([0.1, 0.2]) + bias  # the user's half of the first layer
    logit = scores_of(network, np.hstack([np.zeros(2), user])[None, :])[0, 0]
    assert logit == pytest.approx(1.0, abs=1e-6)
    layers: list[plain.Layer] = [
        (first[:2], bias[:2]),
        (np.eye(2), np.zeros(2)),
        (out[None, :], [-1.2]),
    ]
    probability = plain.mlp_probability([0.1, 0.2], [0.3, 0.4], layers)
    assert 1.0 / (1.0 + math.exp(-logit)) == pytest.approx(probability, abs=1e-6)
    softplus = torch.nn.functional.softplus
    hit, miss = (float(softplus(torch.tensor(sign * logit))) for sign in (-1.0, 1.0))
    assert hit == pytest.approx(plain.binary_cross_entropy(probability, 1.0), abs=1e-6)
    assert miss == pytest.approx(plain.binary_cross_entropy(probability, 0.0), abs=1e-6)
    assert miss - hit == pytest.approx(1.0, abs=1e-6)


def examples(section: str) -> list[tuple[str, str]]:
    """Code and expected output of each example in a section of docs/training.md."""
    text = DOCS.read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", text, re.DOTALL)


def test_there_are_examples() -> None:
    assert len(examples("Networks")) == 2


@pytest.mark.parametrize("number", range(2))
def test_an_example_prints_what_the_page_says(number: int) -> None:
    code, expected = examples("Networks")[number]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"docs/training.md, example {number}", "exec"), {})
    assert printed.getvalue() == expected
