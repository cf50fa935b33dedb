"""Shared tastes, mapped into domains: against the equations, and on a stream with planted tastes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import CrossDomain, DecayedPopularity, checks
from online_models.factor_table import start_vectors
from online_models.item_domains import domain_code
from online_models.item_table import ItemTable


def listed(**kwargs: Any) -> CrossDomain:
    """A model that knows the domains of the items of `checks.random_events`: four of them, and none."""
    model = CrossDomain(**kwargs)
    for n in range(12):
        model.learn_item(f"item-{n}", {"domain": f"d{n % 5}" if n % 5 else None})
    return model


def factor(model: CrossDomain, name: str) -> Any:
    return start_vectors(model.seed, [name], model.dimension, model.start_scale)[0].astype(np.float64)


def state(model: CrossDomain, items: tuple[str, ...], user: str) -> list[Any]:
    """Biases, factors, the items' mappings, and the user's factor, as float64."""
    rows = model.items.rows(items)
    table, slots = model._table.rows[rows].astype(np.float64), model._domains.of_row[rows]
    own = model._user_factor(user).astype(np.float64)
    return [table[:, 0], table[:, 1:], model._domains.mapping[slots].astype(np.float64), own]


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_a_step_climbs_the_slope_of_the_pairs_likelihood(weight: float) -> None:
    """Two items in two domains: each is the other's only negative. Gradients by differences, all from the
    state before the event."""
    model = CrossDomain(
        dimension=3, negatives=1, learning_rate=0.3, bias_learning_rate=0.2, mapping_learning_rate=0.1,
        regularization=0.04, mapping_regularization=0.03, start_scale=0.5,
    )  # fmt: skip
    for k, (user, item, domain) in enumerate(
        [("x", "i", "a"), ("y", "j", "b"), ("z", "i", "a"), ("x", "j", "b")]
    ):
        model.learn_one(user, item, 1.0, {"timestamp": k, "domain": domain})
    before = state(model, ("i", "j"), "ann")
    assert not np.array_equal(before[2][0], before[2][1])

    def objective(parts: list[Any]) -> float:
        biases, factors, mappings, user = parts
        values = [biases[k] + (mappings[k] @ user) @ factors[k] for k in range(2)]
        return -math.log1p(math.exp(-math.copysign(1.0, weight) * float(values[0] - values[1])))

    model.learn_one("ann", "i", weight, {"timestamp": 9})
    after = state(model, ("i", "j"), "ann")
    penalties = [0.0, 0.04, 0.03, 0.04]
    anchors = [0.0, 0.0, np.eye(3), 0.0]
    for part, rate in enumerate([0.2, 0.3, 0.1, 0.3]):
        gradient = np.zeros_like(before[part])
        for place in np.ndindex(gradient.shape):
            ends = []
            for side in (1e-5, -1e-5):
                moved = [values.copy() for values in before]
                moved[part][place] += side
                ends.append(objective(moved))
            gradient[place] = (ends[0] - ends[1]) / 2e-5
        gradient -= penalties[part] * (before[part] - anchors[part])
        assert after[part] == pytest.approx(before[part] + rate * abs(weight) * gradient, abs=2e-5)


def test_scores_are_biased_products_through_the_domains_mapping() -> None:
    model = listed(dimension=4, mapping_learning_rate=0.3)
    for event in checks.random_events(80):
        model.learn_one(*event)
    assert model.domains() == 5
    items = tuple(item for item in model.items.ids if item)
    biases, factors, mappings, own = state(model, items, "user-1")
    expected = [b + (w @ own) @ q for b, w, q in zip(biases, mappings, factors, strict=True)]
    assert [model.predict_one("user-1", item) for item in items] == pytest.approx(expected, abs=1e-5)
    assert model.predict_one("user-1", "unknown") == 0.0


def planted(events: int, seed: int = 0) -> tuple[list[checks.Event], list[tuple[str, str]]]:
    """Four tastes in films and books; of 120 people 40 have seen films only, and what books they would take
    is given apart. In both domains a taste's first items are taken most, and one event in seven is of any."""
    rng = np.random.default_rng(seed)

    def take(user: int, domain: str, items: int) -> str:
        group = user % 4 if rng.random() < 0.85 else int(rng.integers(4))
        return f"{domain}-{int(rng.integers(0, items // 4)) ** 2 // (items // 4) * 4 + group}"

    stream: list[checks.Event] = []
    for k in range(events):
        user = int(rng.integers(0, 120))
        domain, items = ("book", 24) if user < 80 and rng.random() < 0.5 else ("film", 40)
        stream.append((f"u{user}", take(user, domain, items), 1.0, {"timestamp": 1000 * k, "domain": domain}))
    return stream, [(f"u{user}", take(user, "book", 24)) for user in range(80, 120) for _ in range(10)]


def test_what_is_known_from_films_helps_with_books() -> None:
    stream, wanted = planted(3000)
    shares = []
    for model in (CrossDomain(), DecayedPopularity()):
        model.learn_many(*zip(*stream, strict=True))
        books = [item for item in model.items.ids if item.startswith("book")]
        lists = {user: model.rank(user, books)[:3] for user, _ in wanted}
        shares.append(sum(item in lists[user] for user, item in wanted) / len(wanted))
    ours, popularity = shares
    assert ours > 1.5 * popularity > 0.45  # the three best books of a taste are most of what it takes


def short_lived(events: int) -> list[checks.Event]:
    """Films go by genre and mood, 16 tastes in all, books by mood alone; the 24 books change every 150
    events, so that what a book's few readers have in common must be seen through what all moods share."""
    rng = np.random.default_rng(0)
    stream: list[checks.Event] = []
    for k in range(events):
        user, film = int(rng.integers(160)), rng.random() < 0.6
        tastes, own = (16, user % 16) if film else (4, user // 4 % 4)
        kind = own if rng.random() < 0.85 else int(rng.integers(tastes))
        number = int(rng.integers(6)) * tastes + kind + (0 if film else 24 * (k // 150))
        domain = "film" if film else "book"
        stream.append((f"u{user}", f"{domain}-{number}", 1.0, {"timestamp": 1000 * k, "domain": domain}))
    return stream


def test_a_learned_mapping_tells_new_items_apart_better_than_a_fixed_one() -> None:
    stream, shares = short_lived(5000), []
    kept = {"dimension": 16, "negatives": 6, "candidates": 1, "mapping_regularization": 0.01}
    for rate in (0.05, 0.0):
        model = CrossDomain(mapping_learning_rate=rate, **kept)
        hits: list[bool] = []
        for k, event in enumerate(stream):
            if k >= 2500 and event[1].startswith("book") and model.items.row(event[1]) >= 0:
                books = [f"book-{24 * (k // 150) + n}" for n in range(24)]
                books = [book for book in books if model.items.row(book) >= 0]
                if len(books) > 6:
                    hits.append(event[1] in model.rank(event[0], books)[:3])
            model.learn_one(*event)
        shares.append(sum(hits) / len(hits))
    assert len(hits) > 500
    assert shares[0] > shares[1] + 0.015, shares


def test_the_domain_is_that_of_the_items_first_event() -> None:
    model = CrossDomain(max_domains=3)
    model.learn_item("dune", {"domain": "books"})
    events = [("dune", "films"), ("alien", "films"), ("alien", "books"), ("heidi", None), ("doom", "games")]
    for item, domain in events:
        model.learn_one("ann", item, x={"domain": domain})
    slots = dict(zip(model.items.ids, model._domains.of_row.tolist(), strict=False))
    assert slots == {"dune": 1, "alien": 2, "heidi": 0, "doom": 0}  # no slot is left for games
    assert model._domains.codes.tolist() == [0, domain_code("books"), domain_code("films")]


def test_the_domain_travels_in_the_record() -> None:
    """A replica without a catalogue ends in the owner's state."""
    owner, replica = listed(), CrossDomain()
    for event in checks.random_events(60):
        record = owner.learn_user([event])
        for one in (owner, replica):
            one.replicate(record)
    assert replica.domains() == 5
    for name, array in owner.item_arrays().items():
        assert array.tobytes() == replica.item_arrays()[name].tobytes(), name


def test_an_item_that_lost_its_row_may_come_back_in_another_domain() -> None:
    model = CrossDomain()
    model.items = ItemTable(limit=2)
    for k, (item, domain) in enumerate([("a", "x"), ("b", "y"), ("c", "x"), ("a", "y")]):
        model.learn_one("ann", item, x={"timestamp": k, "domain": domain})
    slots = {item: model._domains.of_row[model.items.row(item)] for item in ("a", "c")}
    assert slots == {"a": 2, "c": 1}
    model.forget(item="c")
    model.learn_one("ann", "c", x={"timestamp": 9, "domain": "y"})
    assert model._domains.of_row[model.items.row("c")] == 2


def test_withdrawing_takes_the_step_back() -> None:
    model = listed(
        learning_rate=0.02, bias_learning_rate=0.02, mapping_learning_rate=0.02, regularization=0.0,
        mapping_regularization=0.0, candidates=1,
    )  # fmt: skip
    for k in range(40):
        model.learn_one(f"u{k % 4}", f"item-{k * 5 % 12}", x={"timestamp": 1000 * k, "event_id": f"e{k}"})
    before = state(model, tuple(model.items.ids), "u1")
    model.learn_one("u1", "item-7", x={"timestamp": 90_000, "event_id": "last"})
    after = state(model, tuple(model.items.ids), "u1")
    assert model.retract("u1", "last")
    for was, then, now in zip(before, after, state(model, tuple(model.items.ids), "u1"), strict=True):
        assert np.abs(then - was).max() > 1e-3
        assert np.abs(now - was).max() < 0.2 * np.abs(then - was).max()


@given(weights=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_no_weights_lead_out_of_bounds(weights: list[float]) -> None:
    model = listed(
        dimension=2, learning_rate=0.5, bias_learning_rate=0.5, mapping_learning_rate=0.5, regularization=0.0,
        mapping_regularization=0.0, start_scale=1.0,
    )  # fmt: skip
    for k in range(5 * len(weights)):
        model.learn_one(f"u{k % 3}", f"item-{k % 7}", weights[k % len(weights)], {"timestamp": k})
    assert np.abs(model._table.rows).max() <= 10.0
    assert np.abs(model._domains.mapping).max() <= 10.0
    assert np.isfinite([model.predict_one("u0", item) for item in model.items.ids]).all()


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"dimension": 0}, "dimension is 0"),
        ({"max_domains": 0}, "max_domains is 0, but 1 to 1024"),
        ({"max_items": 0}, "max_items is 0"),
        ({"learning_rate": 0.7}, "learning_rate is 0.7"),
        ({"bias_learning_rate": -0.1}, "bias_learning_rate is -0.1"),
        ({"mapping_learning_rate": float("nan")}, "mapping_learning_rate is nan"),
        ({"regularization": 2.0}, "regularization is 2.0"),
        ({"mapping_regularization": 2.0}, "mapping_regularization is 2.0"),
        ({"negatives": 0}, "negatives is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"start_scale": -1.0}, "start_scale is -1.0"),
    ],
)
def test_parameters_out_of_range_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CrossDomain(**kwargs)


def test_bad_domains_and_records_are_refused_by_name() -> None:
    model = CrossDomain(dimension=4)
    with pytest.raises(ValueError, match="domain is 7, but text is needed"):
        model.learn_item("i", {"domain": 7})
    with pytest.raises(ValueError, match=r"domain is \['a'\], but text is needed"):
        model.learn_one("u", "i", x={"domain": ["a"]})
    assert len(model.items) == 0
    assert not model._past
    batch = CrossDomain(dimension=6).learn_user([("u", "i", 1.0, None)])
    with pytest.raises(ValueError, match="7 columns, but this model has 5"):
        model.apply(batch, model.items.resolve(batch))
    with pytest.raises(ValueError, match="2 events, but a factor model's owner learns one at a time"):
        model.learn_user([("u", "i", 1.0, None)] * 2)


@pytest.mark.parametrize("kwargs", [{"max_domains": 3}, {"dimension": 5, "negatives": 1}], ids=str)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_with_domains(
    check: Callable[[Callable[[], CrossDomain]], None], kwargs: dict[str, Any]
) -> None:
    check(lambda: listed(**kwargs))
