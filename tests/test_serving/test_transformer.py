"""The transformer's attention by distance and time: by hand, and that times alone tell items apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serving.ranker.inputs import gap_buckets
from serving.training.networks.base import Shape, Tokens
from serving.training.networks.transformer import Block, Relation, Transformer
from serving.training.settings import TrainerSettings


def _tokens(items: list[int], gaps_s: list[float]) -> Tokens:
    gaps = gap_buckets(np.array([0.0, *gaps_s], dtype=np.float32))
    row = torch.tensor([[0, *items]])
    return Tokens(row, (row > 0).long(), torch.from_numpy(gaps).unsqueeze(0))


def _network(**changed: object) -> Transformer:
    settings = TrainerSettings(dim=8, heads=2, history_length=6, dropout=0.0, **changed)  # type: ignore[arg-type]
    torch.manual_seed(3)
    network = Transformer(Shape(9, 1), settings)
    return network.eval()


def test_time_between_two_items_is_told_to_a_factor_of_four_at_worst() -> None:
    network = _network()
    rng = np.random.default_rng(1)
    for _ in range(50):
        gaps = np.concatenate([[0.0], np.exp(rng.uniform(0.0, 12.0, 5))])
        since = network._since(_tokens([1, 2, 3, 4, 5, 6], gaps.tolist()))[0].numpy()
        real = np.concatenate([[0.0], np.cumsum(gaps)])
        assert since[0] == since[1] == 0.0
        for one in range(1, 7):
            for other in range(one + 1, 7):
                ratio = (since[other] - since[one]) / (real[other] - real[one])
                assert 1.7 / 4.0 - 1e-3 < ratio < 1.7 + 1e-3


def test_relations_are_distances_buckets_of_time_and_what_is_later() -> None:
    since = torch.tensor([[0.0, 0.0, 0.7, 1.2, 5.0, 1e9]])
    found = Relation.of(torch.arange(6).unsqueeze(0), since)
    assert found.distance[0, 3].tolist() == [3, 2, 1, 0, 0, 0]
    assert found.is_later[0, 3].tolist() == [False] * 4 + [True] * 2
    assert found.elapsed[0, 4].tolist() == [3, 3, 3, 2, 0, 0]  # 5, 5, 4.3, 3.8 s; none; later
    assert found.elapsed[0, 5].tolist() == [30, 30, 30, 30, 30, 0]
    alone = Relation.of(torch.tensor([[4]]), since)
    assert torch.equal(alone.elapsed[0, 0], found.elapsed[0, 4])
    assert torch.equal(alone.is_later[0, 0], found.is_later[0, 4])


def test_attention_is_the_equation_computed_apart() -> None:
    torch.manual_seed(0)
    block = Block(dim=6, heads=2, dropout=0.0, distances=5).eval()
    with torch.no_grad():
        block.distance.normal_()
        block.elapsed.normal_()
        x, since = torch.randn(1, 4, 6), torch.tensor([[0.0, 0.0, 3.0, 90.0]])
        relation = Relation.of(torch.arange(4).unsqueeze(0), since)
        given = block(x, relation)[0].double().numpy()
        weights = {name: value.double().numpy() for name, value in block.state_dict().items()}
        normed = block.attention_norm(x)[0].double().numpy()
    query = normed @ weights["query.weight"].T + weights["query.bias"]
    both = normed @ weights["key_value.weight"].T + weights["key_value.bias"]
    key, value = both[:, :6], both[:, 6:]
    bucket = {0.0: 0, 3.0: 2, 87.0: 7, 90.0: 7}
    merged = np.zeros((4, 6))
    for t in range(4):
        for h in range(2):
            own = slice(3 * h, 3 * h + 3)
            logits = [
                query[t, own] @ key[s, own] / np.sqrt(3.0)
                + weights["distance"][t - s, h]
                + weights["elapsed"][bucket[float(since[0, t] - since[0, s])], h]
                for s in range(t + 1)
            ]
            share = np.exp(logits) / np.exp(logits).sum()
            merged[t, own] = share @ value[: t + 1, own]
    after = torch.from_numpy(x[0].double().numpy() + merged @ weights["out.weight"].T + weights["out.bias"])
    with torch.no_grad():
        expected = after + block.double().feed_forward(after)
    assert given == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_same_items_at_other_times_are_another_user_once_times_have_weights() -> None:
    network = _network()
    soon, late = _tokens([1, 2, 3], [0.0, 2.0, 2.0]), _tokens([1, 2, 3], [0.0, 2.0, 90_000.0])
    contents = torch.zeros(11, 1)
    with torch.no_grad():
        assert torch.allclose(network.states(soon, contents), network.states(late, contents), atol=1e-6)
        for block in network.blocks:
            assert isinstance(block, Block)
            block.elapsed.normal_()
        changed = network.states(soon, contents) - network.states(late, contents)
    assert changed[0, :3].abs().max() < 1e-6  # before the late one nothing differs
    assert changed[0, 3].abs().max() > 1e-3


def test_half_precision_takes_the_bias_too() -> None:
    network, tokens, contents = _network(), _tokens([1, 2, 3, 4], [0.0, 5.0, 60.0, 9.0]), torch.zeros(11, 1)
    with torch.no_grad():
        full = network.states(tokens, contents)
        with torch.autocast("cpu", torch.bfloat16):
            half = network.states(tokens, contents)
    assert (half.float() - full).abs().max() < 0.1


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.dim=8 .* trainer\.heads=3"):
        Transformer(Shape(9), TrainerSettings(dim=8, heads=3))
