"""Four cases small enough for paper; what one model alone has to show stands in that model's own tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from online_models import BiasedMF, ItemKNN, OnlineRanker, UserKNN, losses

FOUR = [("u1", "i1", 5.0), ("u1", "i2", 3.0), ("u2", "i1", 4.0), ("u2", "i3", 2.0)]
BROWSED = {"user 1": "ABC", "user 2": "BCD", "user 3": "CDE"}
PRICES = {"A": 1000.0, "B": 500.0, "C": 200.0, "D": 300.0, "E": 800.0}
TABLE = np.array([[5.0, 3.0, 4.0], [4.0, 5.0, 2.0], [3.0, 4.0, 5.0]])


def test_without_biases_a_score_is_an_inner_product() -> None:
    """Case 1 (`test_biased_mf` and `test_fm` have the rest of it): u.v, and an answer for a third user."""
    model = BiasedMF(dimension=2, learning_rate=0.05, regularization=0.001, bias=False, adaptive=False)
    for user, item, rating in 10 * FOUR:
        model.learn_one(user, item, rating)
    own, rows = model._users["u1"][1:3], model._table.rows[:2, 1:3]
    found = [model.predict_one("u1", item) for item in ("i1", "i2")]
    assert found == pytest.approx((rows @ own).tolist(), abs=1e-5)
    assert math.isfinite(model.predict_one("u3", "i3"))


def shop(model: OnlineRanker) -> OnlineRanker:
    for user, items in BROWSED.items():
        model.learn_many([user] * 3, list(items))
    return model


def nearest_price_first(model: OnlineRanker, user: str) -> list[str]:
    """All that the user has not seen by falling score; among equals, what costs about what he saw."""
    seen = BROWSED[user]
    usual = sum(PRICES[item] for item in seen) / len(seen)
    unseen = [item for item in PRICES if item not in seen]
    return sorted(unseen, key=lambda item: (-model.predict_one(user, item), abs(PRICES[item] - usual), item))


@pytest.mark.parametrize(
    "model",
    [
        ItemKNN(measure="count", query_decay=1.0, shrinkage=0.0),
        ItemKNN(measure="cosine", query_decay=1.0, shrinkage=0.0),
        UserKNN(query_decay=1.0, neighbours=2),
    ],
    ids=["counts", "items", "users"],
)
def test_three_browsers_and_the_price_where_scores_tie(model: OnlineRanker) -> None:
    """Case 2: user 2 saw 500, 200 and 300, 333 on the mean; E at 800 is nearer to that than A at 1,000."""
    shop(model)
    assert model.predict_one("user 2", "A") == model.predict_one("user 2", "E")
    found = {user: nearest_price_first(model, user) for user in BROWSED}
    assert found == {"user 1": ["D", "E"], "user 2": ["E", "A"], "user 3": ["B", "A"]}
    assert model.recommend(["user 2"], 2, BROWSED)[0][0][0] == "A", "without the price, the id decides"


def test_a_full_table_has_the_cosines_of_its_balanced_factors() -> None:
    """Case 3: U S^(1/2) and V S^(1/2) of the SVD give the table back, and rank A, C, B for user 1."""
    left, singular, right = np.linalg.svd(TABLE)
    u, v = left * np.sqrt(singular), right.T * np.sqrt(singular)
    assert u @ v.T == pytest.approx(TABLE)
    cosines = {item: losses.cosine(u[0], v[place]) for place, item in enumerate("ABC")}
    assert [round(cosines[item], 3) for item in "ACB"] == [0.954, 0.769, 0.566]
    turned = np.diag([1.0, 3.0, 0.2])  # another factorisation of the same table: other cosines
    other = [losses.cosine(u[0] @ turned, v[place] @ np.linalg.inv(turned)) for place in range(3)]
    assert np.abs(np.array(other) - list(cosines.values())).max() > 0.05


def test_the_factorisation_s_gradient_and_normal_equations() -> None:
    """Case 4: by central differences, and against numpy's solution; J's penalty makes it 2 lambda."""
    rng, strength = np.random.default_rng(4), 0.3
    u, v = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    d_u, d_v = losses.factorisation_gradient(u, v, TABLE, strength)
    for place in np.ndindex(3, 2):
        nudge = np.zeros((3, 2))
        nudge[place] = 1e-5
        for found, plus, minus in (
            (d_u, (u + nudge, v), (u - nudge, v)),
            (d_v, (u, v + nudge), (u, v - nudge)),
        ):
            slope = losses.factorisation_loss(*plus, TABLE, strength) - losses.factorisation_loss(
                *minus, TABLE, strength
            )
            assert found[place] == pytest.approx(slope / 2e-5, abs=1e-6)
    solved = losses.alternating_step(v, TABLE, strength)
    expected = np.linalg.solve(v.T @ v + 2.0 * strength * np.eye(2), v.T @ TABLE.T).T
    assert solved == pytest.approx(expected, abs=1e-12)
    assert losses.factorisation_gradient(solved, v, TABLE, strength)[0] == pytest.approx(0.0, abs=1e-12)


def test_steps_down_the_gradient_and_alternating_steps_end_at_one_minimum() -> None:
    """Where the singular values are shrunken by 2 lambda."""
    strength, rate = 0.3, 0.05
    u, v = np.eye(3), np.eye(3)
    u_sgd, v_sgd = np.eye(3), np.eye(3)
    for _ in range(400):
        u = losses.alternating_step(v, TABLE, strength)
        v = losses.alternating_step(u, TABLE.T, strength)
    for _ in range(3000):
        d_u, d_v = losses.factorisation_gradient(u_sgd, v_sgd, TABLE, strength)
        u_sgd, v_sgd = u_sgd - rate * d_u, v_sgd - rate * d_v
    left, singular, right = np.linalg.svd(TABLE)
    shrunken = left @ np.diag(np.maximum(singular - 2.0 * strength, 0.0)) @ right
    assert u @ v.T == pytest.approx(shrunken, abs=1e-3)
    assert u_sgd @ v_sgd.T == pytest.approx(shrunken, abs=1e-3)
    reached = losses.factorisation_loss(u, v, TABLE, strength)
    assert losses.factorisation_loss(u_sgd, v_sgd, TABLE, strength) == pytest.approx(reached, abs=1e-4)


def test_a_network_over_both_vectors_and_its_cross_entropy() -> None:
    """Case 4, by hand: hidden (0.4 + 0.7, -0.1 - 0.6 cut at 0) = (1.1, 0), logit 2 * 1.1 - 1.2 = 1."""
    layers = [([[1.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, -1.0]], [0.7, 0.0]), ([[2.0, 9.0]], [-1.2])]
    found = losses.mlp_probability([0.1, 0.2], [0.3, 0.4], layers)
    assert found == pytest.approx(1.0 / (1.0 + math.exp(-1.0)))
    assert losses.binary_cross_entropy(found, 1.0) == pytest.approx(math.log1p(math.exp(-1.0)))
    assert losses.binary_cross_entropy(found, 0.0) == pytest.approx(1.0 + math.log1p(math.exp(-1.0)))
    assert losses.similarity_loss(losses.cosine([0.1, 0.2], [0.3, 0.4]), 1.0) == pytest.approx(
        (1.0 - 0.11 / math.sqrt(0.05 * 0.25)) ** 2
    )


def test_generator_and_discriminator() -> None:
    assert losses.generator_loss(0.25) == pytest.approx(2.0 * math.log(2.0))
    assert losses.discriminator_loss(0.5, 0.5) == pytest.approx(2.0 * math.log(2.0))
    assert losses.discriminator_loss(0.75, 0.25) == pytest.approx(-2.0 * math.log(0.75))
    assert losses.discriminator_loss(0.9, 0.1) < losses.discriminator_loss(0.6, 0.4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: losses.generator_loss(0.0), "judged_made is"),
        (lambda: losses.binary_cross_entropy(1.0, 1.0), "probability is"),
        (lambda: losses.alternating_step([[1.0]], [[1.0]], 0.0), "regularization is 0.0"),
        (lambda: losses.mlp_probability([1.0], [1.0], [(np.eye(2), np.zeros(2))]), "one output is needed"),
    ],
)
def test_what_has_no_finite_answer_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
