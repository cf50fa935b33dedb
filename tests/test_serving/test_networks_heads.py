"""Several heads: each predicts its own, and together they are one inner product."""

from __future__ import annotations

import functools

import msgspec
import numpy as np
import pytest
import torch

from serving.training.dataset import NotEnoughDataError, split_by_time
from serving.training.networks import build_network
from serving.training.networks.base import Shape
from serving.training.networks.heads import HeadView
from serving.training.objective import Objective
from serving.training.settings import HeadSettings
from serving.training.train import TrainedNetwork, train
from tests.test_serving.planted_cases import (
    BUY,
    ITEMS,
    SETTINGS,
    VIEW,
    next_scores,
    planted_log,
    planted_split,
    share_right,
    value_of,
)

HEADS = (
    HeadSettings(name="view", event_types=("view",)),
    HeadSettings(name="buy", event_types=("purchase",), score_weight=0.0),
    HeadSettings(name="rating", event_types=("purchase",), kind="value", score_weight=0.0),
)


def with_weights(*weights: float) -> tuple[HeadSettings, ...]:
    return tuple(
        msgspec.structs.replace(head, score_weight=w) for head, w in zip(HEADS, weights, strict=True)
    )


@functools.cache
def trained() -> TrainedNetwork:
    return train(planted_split(), msgspec.structs.replace(SETTINGS, network="cnn", score_heads=HEADS))


def reweighted(*weights: float) -> TrainedNetwork:
    """The same weights, heads counted otherwise."""
    settings = msgspec.structs.replace(SETTINGS, network="cnn", score_heads=with_weights(*weights))
    split = planted_split()
    network = build_network(Shape(ITEMS, split.event_types, 1), settings)
    network.load_state_dict(trained().network.state_dict())
    return TrainedNetwork(network, split.vocabulary, settings)


def test_each_head_predicts_the_next_item_of_its_own_events() -> None:
    states, numbers, contents = next_scores(trained().network, planted_split())
    with torch.no_grad():
        view, buy = (HeadView(trained().network, number).logits(states, contents) for number in (0, 1))
    assert share_right(view, numbers, VIEW) > 0.85
    assert share_right(buy, numbers, BUY) > 0.85


def test_a_value_head_predicts_values_in_their_own_unit() -> None:
    states, numbers, contents = next_scores(trained().network, planted_split())
    with torch.no_grad():
        found = HeadView(trained().network, 2).logits(states, contents)[:, 1 : ITEMS + 1]
    bought = (numbers.unsqueeze(1) + BUY) % ITEMS == numbers.unsqueeze(0)
    values = torch.tensor([value_of(int(item)) for item in numbers]).expand(ITEMS, ITEMS)
    error = (found - values)[bought]
    assert float(error.square().mean().sqrt()) < 0.7  # the values' own deviation is 1.4


def test_score_weights_change_the_order() -> None:
    for weights, step in (((1.0, 0.0, 0.0), VIEW), ((0.0, 1.0, 0.0), BUY)):
        network = reweighted(*weights).network
        states, numbers, contents = next_scores(network, planted_split())
        with torch.no_grad():
            assert share_right(network.logits(states, contents), numbers, step) > 0.85


def test_all_heads_fold_into_one_inner_product() -> None:
    weights = (0.5, 2.0, -0.25)
    network = reweighted(*weights).network
    states, _, contents = next_scores(network, planted_split())
    with torch.no_grad():
        expected = sum(w * HeadView(network, k).logits(states, contents) for k, w in enumerate(weights))
        places = torch.arange(1, ITEMS + 1).repeat(len(states), 1)
        users = torch.nn.functional.pad(network.fold(states), (0, 1), value=1.0)
        found = {
            "all": network.logits(states, contents)[:, 1 : ITEMS + 1],
            "pairs": network.scores(states, places, contents),
            "index": users @ network.retrieval_vectors(contents).T,
        }
    assert isinstance(expected, torch.Tensor)
    for scores in found.values():
        np.testing.assert_allclose(scores, expected[:, 1 : ITEMS + 1], atol=1e-4)


def test_the_view_of_a_head_agrees_with_itself() -> None:
    states, _, contents = next_scores(trained().network, planted_split())
    places = torch.arange(1, ITEMS + 1)
    with torch.no_grad():
        for number in range(3):
            view = HeadView(trained().network, number)
            whole = view.logits(states, contents)[:, 1 : ITEMS + 1]
            np.testing.assert_allclose(view.shared(states, places, contents), whole, atol=1e-5)
            pairs = view.scores(states, places.repeat(len(states), 1), contents)
            np.testing.assert_allclose(pairs, whole, atol=1e-5)


def test_heads_that_can_not_be_are_named() -> None:
    split, contents = planted_split(), torch.from_numpy(planted_split().contents)
    shape = Shape(ITEMS, split.event_types, 1)

    def objective(*heads: HeadSettings, network: str = "cnn") -> Objective:
        settings = msgspec.structs.replace(SETTINGS, network=network, score_heads=heads)
        return Objective(build_network(shape, settings), contents, split, settings)

    with pytest.raises(
        ValueError, match="'gift' learns from share, of which the log holds nothing; it holds view"
    ):
        objective(HeadSettings(name="gift", event_types=("share",)))
    with pytest.raises(ValueError, match="view, view are not all different"):
        objective(HEADS[0], HEADS[0])
    with pytest.raises(ValueError, match="network='ncf' gives no inner products"):
        objective(*HEADS, network="ncf")
    with pytest.raises(NotEnoughDataError, match="no event that 'rating' learns from has a value"):
        objective(HeadSettings(name="rating", event_types=("view",), kind="value"))


def test_values_come_with_the_events_they_belong_to() -> None:
    split = split_by_time(planted_log(users=20), SETTINGS)
    train_part = split.train
    assert train_part.values is not None
    for place, kind, value in zip(train_part.items, train_part.types, train_part.values, strict=True):
        if kind == 1:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(value_of(int(split.vocabulary[place - 1][1:])), abs=0.6)
