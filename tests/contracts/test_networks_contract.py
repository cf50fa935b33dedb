"""Every network that discovery finds keeps the one contract: scores, causality, padding, unseen items."""

from __future__ import annotations

import msgspec
import pytest
import torch

from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Tokens, tokens_of
from tests.contracts.network_cases import (
    ITEMS,
    LENGTH,
    NETWORKS,
    PLACES,
    SETTINGS,
    SHAPE,
    UNSEEN,
    assert_close,
    built,
    contents,
    history,
    tokens,
)

each_network = pytest.mark.parametrize("name", NETWORKS)


def test_networks_are_found() -> None:
    assert set(NETWORKS) >= {"cnn", "gru", "ncf", "transformer", "two_tower"}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"there is .*transformer"):
        build_network(SHAPE, msgspec.structs.replace(SETTINGS, network="nothing"))


@each_network
@torch.no_grad()
def test_one_item_has_one_score_however_it_is_asked_for(name: str) -> None:
    network, table = built(name), contents()
    states = network.states(tokens(4, LENGTH), table)[:, -1]
    places = torch.arange(1, UNSEEN).repeat(4, 1)
    pairs = network.scores(states, places, table)
    assert pairs.shape == (4, ITEMS)
    assert pairs.std(dim=1).min() > 0.01
    assert (pairs[0] - pairs[1]).abs().max() > 0.01, "the history changes nothing"
    assert_close(network.logits(states, table)[:, 1:UNSEEN], pairs)
    assert_close(network.shared(states, places[0], table), pairs)
    if not network.inner_product:
        with pytest.raises(ValueError, match="no inner products"):
            network.retrieval_vectors(table)
        return
    users = torch.nn.functional.pad(network.fold(states), (0, 1), value=1.0)
    assert_close(users @ network.retrieval_vectors(table).T, pairs)


@each_network
@torch.no_grad()
def test_a_state_never_depends_on_what_came_after(name: str) -> None:
    network, table, whole = built(name), contents(), tokens(3, LENGTH)
    states = network.states(whole, table)
    for column in range(LENGTH + 1):
        changed = Tokens(*(part.clone() for part in whole[:3]))
        for part in changed[:3]:
            part[:, column + 1 :] = 0
        found = network.states(changed, table)[:, : column + 1]
        assert_close(found, states[:, : column + 1])


@each_network
@pytest.mark.parametrize("part", range(3), ids=("item", "type", "gap"))
@torch.no_grad()
def test_item_type_and_gap_are_read(name: str, part: int) -> None:
    network, table, whole = built(name), contents(), tokens(2, LENGTH)
    changed = Tokens(*(column.clone() for column in whole[:3]))
    changed[part][:, -1] = (changed[part][:, -1] % 3) + 1 - (changed[part][:, -1] % 3 == 2) * 2
    assert (changed[part] != whole[part])[:, -1].all()
    before, after = (network.states(given, table)[:, -1] for given in (whole, changed))
    assert (before - after).abs().amax(dim=1).min() > 1e-3


@each_network
@torch.no_grad()
def test_the_users_vector_is_the_state_after_the_newest_item(name: str) -> None:
    """What is served is what was trained, however many zeros stand on the left."""
    network, table = built(name), contents()
    for length in range(LENGTH + 1):
        given = history(3, length)
        whole, _ = tokens_of(*(torch.nn.functional.pad(part, (LENGTH - length, 0)) for part in given))
        trained = network.states(Tokens(*(part[:, : length + 1] for part in whole[:3])), table)[:, -1]
        for width in range(max(1, length), LENGTH + 1):
            padded = [torch.nn.functional.pad(part, (width - length, 0)) for part in given]
            assert_close(network.encode(*tokens_of(*padded), table), trained)


@each_network
@torch.no_grad()
def test_an_empty_history_is_a_user_like_others(name: str) -> None:
    network, table = built(name), contents()
    nothing = torch.zeros(2, LENGTH, dtype=torch.int64)
    empty = network.encode(*tokens_of(nothing, nothing, nothing.float()), table)
    assert torch.isfinite(empty).all()
    assert_close(empty, network.states(tokens(2, LENGTH), table)[:, 0])


@each_network
@torch.no_grad()
def test_items_never_seen_are_what_their_content_says(name: str) -> None:
    """A place above V + 1 with the content of place V + 1 is that place; with other content it is another."""
    network, table = built(name), contents()
    table[UNSEEN + 1] = table[UNSEEN]
    states = network.states(tokens(2, LENGTH), table)[:, -1]
    places = torch.tensor([[UNSEEN, UNSEEN + 1, PLACES - 1]] * 2)
    common, same, other = network.scores(states, places, table).T
    assert_close(common, same)
    assert (common - other).abs().min() > 1e-3


@each_network
@torch.no_grad()
def test_a_hidden_item_is_one_never_seen(name: str) -> None:
    network, table = built(name), contents()
    table[UNSEEN + 1] = table[7]
    given = tokens(2, LENGTH)
    given.items[:, 3] = 7
    as_unseen = Tokens(torch.where(given.items == 7, UNSEEN + 1, given.items), given.types, given.gaps)
    shown = network.states(given, table)[:, -1]
    expected = network.states(as_unseen, table)[:, -1]
    network.hide(torch.tensor([7]))
    hidden = network.states(given, table)[:, -1]
    assert_close(hidden, expected)
    assert (hidden - shown).abs().max() > 1e-3
    places = torch.tensor([[7, UNSEEN + 1]] * 2)
    first, second = network.scores(hidden, places, table).T
    assert_close(first, second)
    assert_close(network.logits(hidden, table)[:, 7], first)


@each_network
@torch.no_grad()
def test_the_context_a_list_is_asked_for_in_counts_as_in_training(name: str) -> None:
    network, table, given = built(name), contents(), history(3, LENGTH)
    whole, column = tokens_of(*given)
    said = tokens(3, LENGTH).context
    assert said is not None
    asked = whole._replace(context=said)
    trained = network.queries(asked, table)
    assert_close(network.query(whole, column, said[:, -1], table), trained[:, -1])
    assert (trained - network.states(whole, table)).abs().amax(dim=2).min() > 1e-3
    items = network.logits(trained[:, -1], table) - network.logits(network.states(whole, table)[:, -1], table)
    assert items[:, 1:UNSEEN].std(dim=1).min() > 1e-3, "it favours some items"


@each_network
@torch.no_grad()
def test_without_context_a_network_is_the_one_that_reads_none(name: str) -> None:
    """To the bit: the weights they begin with, and what both give of the same weights and no context."""
    plain, reading = built_twice(name)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, reading.state_dict()[key])
    assert reading.context_map is not None
    assert not reading.context_map.any()
    reading.context_map.add_(torch.randn_like(reading.context_map))
    table, given = contents(), tokens(3, LENGTH)
    assert given.context is not None
    silent = given._replace(context=torch.zeros_like(given.context))
    expected = plain.queries(given._replace(context=None), table)
    assert torch.equal(reading.queries(silent, table), expected)
    assert torch.equal(plain.queries(given, table), expected)
    assert not torch.equal(reading.queries(given, table), expected)


def built_twice(name: str) -> tuple[SequenceNetwork, SequenceNetwork]:
    """Fresh networks of one seed, that read no context and that do."""
    settings = msgspec.structs.replace(SETTINGS, network=name)
    made = []
    for shape in (SHAPE._replace(context=0), SHAPE):
        torch.manual_seed(3)
        made.append(build_network(shape, settings).eval())
    return made[0], made[1]


@each_network
def test_one_seed_gives_one_network(name: str) -> None:
    first, second = built(name).state_dict(), built(name).state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key])
    other = built(name, seed=6).state_dict()
    assert not torch.equal(first["item_embedding.weight"], other["item_embedding.weight"])


@each_network
def test_every_weight_is_trained(name: str) -> None:
    """A weight that the scores don't depend on has no business in the file."""
    network, table = built(name), contents()
    states = network.queries(tokens(3, LENGTH), table)[:, 1:].flatten(0, 1)
    network.logits(states, table).square().mean().backward()  # type: ignore[no-untyped-call]
    idle = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle
