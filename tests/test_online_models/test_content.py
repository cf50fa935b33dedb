"""Items by their content: vectors and steps against plain numpy, cold items, catalogues that change."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ContentModel, DecayedPopularity, LearningBatch, checks
from online_models.content_features import tokens
from online_models.item_content import ItemContent
from online_models.item_table import ItemTable

SHOP: dict[str, dict[str, Any]] = {
    "green tea": {"title": "Green tea", "categories": ["drinks"], "price": 4.0},
    "black tea": {"title": "Black tea", "categories": ["drinks"], "price": 5.0},
    "nails": {"title": "Steel nails", "categories": ["tools"], "price": 2.0},
    "saw": {"title": "Steel saw", "categories": ["tools"], "price": 20.0},
    "gloves": {"title": "Rubber gloves", "labels": {"colour": "green", "size": 9}},
}


def shop(**kwargs: Any) -> ContentModel:
    model = ContentModel(**kwargs)
    for item, entry in SHOP.items():
        model.learn_item(item, entry)
    return model


def catalogued(**kwargs: Any) -> ContentModel:
    """A model that knows the items of `checks.random_events`."""
    model = ContentModel(**kwargs)
    for n in range(12):
        entry = {
            "title": f"a{n % 3} b{n % 4}",
            "categories": [f"c{n % 2}"],
            "embeddings": {"e": [1.0, n, n % 3]},
        }
        model.learn_item(f"item-{n}", entry)
    return model


def hashed(group: int, name: str, buckets: int) -> tuple[int, float]:
    number = int.from_bytes(
        hashlib.blake2b(name.encode(), key=bytes([group]), digest_size=8).digest(), "little"
    )
    return (number // 2) % buckets, 1.0 if number % 2 else -1.0


def vector(groups: list[list[tuple[int, str, float]]], buckets: int) -> Any:
    """The content vector of groups of (group, name, value): each of length 1, then the whole."""
    total = np.zeros(buckets)
    for group in groups:
        part = np.zeros(buckets)
        for number, name, value in group:
            bucket, sign = hashed(number, name, buckets)
            part[bucket] += sign * value
        total += part / np.linalg.norm(part)
    return total / math.sqrt(len(groups))


def of_model(model: ContentModel, item: str) -> Any:
    """The vector that the model keeps of an item, dense."""
    [slot] = model._content.slots([item])
    contents, out = model._content.contents, np.zeros(model._content.width)
    for k in range(contents.length[slot]):
        out[contents.feature[slot, k]] += contents.value[slot, k]
    out[model.buckets :] = contents.dense[slot]
    return out


def test_vectors_are_what_the_equations_say() -> None:
    model = ContentModel(buckets=512)
    entries = {
        "a": {"title": "Red lamp, red!", "categories": ["home"], "price": 3.0},
        "b": {"title": "Red chair", "description": "A lamp"},
    }
    for item, entry in entries.items():
        model.learn_item(item, entry)
    rarity = {
        word: 1.0 + math.log(3 / (1 + n)) for word, n in {"red": 2, "lamp": 2, "chair": 1, "a": 1}.items()
    }
    place = 2.0 * math.log2(3.0)  # 3.17: between the buckets 3 and 4
    a = [
        [(0, "red", (1 + math.log(2)) * rarity["red"]), (0, "lamp", rarity["lamp"])],
        [(1, "category:home", 1.0)],
        [(2, "price:3", 4.0 - place), (2, "price:4", place - 3.0)],
    ]
    b = [[(0, word, rarity[word]) for word in ("red", "chair", "a", "lamp")]]
    assert of_model(model, "a") == pytest.approx(vector(a, 512), abs=1e-6)
    assert of_model(model, "b") == pytest.approx(vector(b, 512), abs=1e-6)


def test_scores_are_taste_times_content() -> None:
    model = shop(learning_rate=0.0, linear_learning_rate=0.0, query_decay=0.5, start_weight=2.0)
    model.learn_many(["ann"] * 3, ["green tea", "nails", "saw"], [1.0, -3.0, 0.5])
    tea, nails, saw = (of_model(model, item) for item in ("green tea", "nails", "saw"))
    taste = (0.5 * saw - 0.5 * nails + 0.25 * tea) / 1.25  # a weight counts as -1 at the least
    for item in SHOP:
        assert model.predict_one("ann", item) == pytest.approx(2.0 * taste @ of_model(model, item), abs=1e-6)
    assert model.predict_one("ann", "unknown") == 0.0


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_a_step_climbs_the_slope_of_the_pairs_likelihood(weight: float) -> None:
    model = ContentModel(
        buckets=64,
        negatives=1,
        learning_rate=0.04,
        linear_learning_rate=0.02,
        regularization=0.0,
        start_weight=1.5,
    )
    for item, title in [("liked", "red lamp"), ("taken", "red chair"), ("other", "blue lamp")]:
        model.learn_item(item, {"title": title, "embeddings": {"e": [float(len(title)), 1.0]}})
    model.learn_one("ann", "liked", 0.0)  # a weight of 0 teaches nothing, but makes a taste for the record
    assert (model._metric.diagonal == 1.5).all()
    assert not model._metric.linear.any()
    taste = of_model(model, "liked")
    difference = of_model(model, "taken") - of_model(model, "other")  # the only negative that there is

    def likelihood(diagonal: Any, linear: Any) -> float:
        return -math.log1p(
            math.exp(-math.copysign(1.0, weight) * float((diagonal * taste + linear) @ difference))
        )

    width, step = len(taste), 1e-5
    gradients, start = np.zeros((2, width)), (np.full(width, 1.5), np.zeros(width))
    for which, k in np.ndindex(2, width):
        ends = []
        for side in (step, -step):
            moved = [start[0].copy(), start[1].copy()]
            moved[which][k] += side
            ends.append(likelihood(*moved))
        gradients[which, k] = (ends[0] - ends[1]) / (2.0 * step)
    model.learn_one("ann", "taken", weight)
    rates = np.array([[0.04], [0.02]]) * abs(weight)
    expected = np.stack(start) + rates * gradients / np.sqrt(0.01 + gradients**2)
    assert model._metric.diagonal == pytest.approx(expected[0], abs=1e-5)
    assert model._metric.linear == pytest.approx(expected[1], abs=1e-5)


def test_an_item_without_events_stands_above_others_for_a_matching_taste() -> None:
    model = shop()
    model.learn_many(["ann", "bob"], ["green tea", "saw"])
    assert model.items.row("black tea") == model.items.row("nails") == -1
    assert model.rank("ann", [*SHOP, "unknown"])[:2] == ["green tea", "black tea"]
    assert model.rank("bob", SHOP)[:2] == ["saw", "nails"]
    [[(first, score), *_], [(other, _), *_]] = model.recommend(
        ["ann", "bob"], 3, {"ann": {"green tea"}, "bob": {"saw"}}
    )
    assert (first, other) == ("black tea", "nails")
    assert score == model.predict_one("ann", "black tea")


def test_recommend_is_sorted_prediction_over_the_used_and_the_listed() -> None:
    model = shop()
    model.learn_many(["ann", "ann", "bob"], ["green tea", "not listed", "nails"])
    known = [*SHOP, "not listed"]
    for user in ("ann", "bob", "stranger"):
        expected = sorted(known, key=lambda item: (-model.predict_one(user, item), item))
        assert [item for item, _ in model.recommend([user], 10)[0]] == expected == model.rank(user, known)


def test_what_is_disliked_pushes_away() -> None:
    model = shop()
    model.learn_many(["ann", "ann"], ["gloves", "nails"], [1.0, -1.0])
    assert model.rank("ann", ["black tea", "saw"]) == ["black tea", "saw"]
    assert model.predict_one("ann", "saw") < 0.0


def test_features_alone_answer_for_a_third_user() -> None:
    """Case "four ratings": items by two numbers each; the third user has no event."""
    model = ContentModel()
    for item, numbers in {"i1": [0.3, 0.4], "i2": [0.5, 0.6], "i3": [0.7, 0.8]}.items():
        model.learn_item(item, {"embeddings": {"features": numbers}})
    for _ in range(20):
        for user, item, rating in [
            ("u1", "i1", 5.0),
            ("u1", "i2", 3.0),
            ("u2", "i1", 4.0),
            ("u2", "i3", 2.0),
        ]:
            model.learn_one(user, item, rating - 3.5)
    answers = [model.predict_one("u3", item) for item in ("i1", "i2", "i3")]
    assert np.isfinite(answers).all()
    assert answers[0] > answers[1] > answers[2]  # the ratings fall in the direction in which i3 lies


def topics(events: int, seed: int = 3) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, bool]]]:
    """Items of six topics, told by one word of two besides noise; a new one each 12 events. People keep to a
    topic, and take new items as readily as old ones. (user, item, is the item's exposure below 5?)"""
    rng, catalogue, seen = np.random.default_rng(seed), {}, {}
    stream: list[tuple[str, str, bool]] = []
    for k in range(events):
        n = 60 + k // 12
        for item in range(len(catalogue), n):
            noise = [f"n{value}" for value in rng.integers(0, 200, size=4)]
            catalogue[f"i{item}"] = {"title": " ".join([f"t{item % 6}-{item % 4}", *noise])}
        user = int(rng.integers(0, 40))
        item = f"i{int(rng.integers(0, n // 6)) * 6 + user % 6}"
        stream.append((f"u{user}", item, seen.get(item, 0) < 5))
        seen[item] = seen.get(item, 0) + 1
    return catalogue, stream


def test_text_helps_with_items_that_few_have_used() -> None:
    catalogue, stream = topics(1500)
    models = ContentModel(), DecayedPopularity()
    for item, entry in catalogue.items():
        models[0].learn_item(item, entry)
    hits = np.zeros(2)
    judged = 0
    for user, item, is_cold in stream:
        if is_cold:
            judged += 1
            candidates = [*models[1].items.ids, item]
            hits += [item in model.rank(user, candidates)[:10] for model in models]
        for model in models:
            model.learn_one(user, item)
    assert judged > 500
    assert hits[0] / judged > 0.25 > 5 * hits[1] / judged


def test_the_metric_learns_which_features_tell() -> None:
    """What people take depends on the material, never on the colour."""
    model, rng = ContentModel(), np.random.default_rng(0)
    for n in range(80):
        model.learn_item(f"i{n}", {"labels": [f"material {n % 4}", f"colour {n // 4 % 4}"]})
    for _ in range(1500):
        user = int(rng.integers(0, 20))
        model.learn_one(f"u{user}", f"i{4 * int(rng.integers(0, 20)) + user % 4}")
    weights = [
        [model._metric.diagonal[hashed(1, f"label:{name} {n}", model.buckets)[0]] for n in range(4)]
        for name in ("material", "colour")
    ]
    assert min(weights[0]) > 1.5 * max(weights[1])


def test_a_stranger_is_shown_what_everybody_seeks() -> None:
    model = shop()
    for k in range(40):
        model.learn_one(f"u{k}", ("saw", "nails")[k % 2], x={"timestamp": k})
    assert set(model.rank("stranger", SHOP)[:2]) == {"saw", "nails"}


def test_withdrawing_takes_the_step_back() -> None:
    model = catalogued(regularization=0.0, learning_rate=0.02, linear_learning_rate=0.02)
    for k in range(30):
        model.learn_one(f"u{k % 4}", f"item-{k * 5 % 12}", x={"timestamp": 1000 * k, "event_id": f"e{k}"})
    before = [array.copy() for array in model._metric[:2]]
    model.learn_one("u1", "item-7", x={"timestamp": 90_000, "event_id": "last"})
    after = [array.copy() for array in model._metric[:2]]
    assert model.retract("u1", "last")
    for was, then, now in zip(before, after, model._metric, strict=False):
        assert np.abs(then - was).max() > 1e-3
        assert np.abs(now - was).max() < 0.2 * np.abs(then - was).max()


def test_replicas_with_the_same_entries_at_the_same_places_are_equal() -> None:
    log: list[LearningBatch] = []
    owner = catalogued()
    for event in checks.random_events(60):
        log.append(owner.learn_user([event]))
        owner.replicate(log[-1])
    copies = catalogued(), catalogued()
    for copy, size in zip(copies, (1, 7), strict=True):
        for start in (0, 28):
            for first in range(start, start + 28, size):
                copy.replicate(LearningBatch.concat(checks_padded(log[first : first + size])))
            copy.learn_item("item-3", {"title": "another one"})
    assert copies[0].digest() == copies[1].digest()
    assert copies[0]._metric.diagonal.tolist() != owner._metric.diagonal.tolist()


def checks_padded(log: list[LearningBatch]) -> list[LearningBatch]:
    for record in log:
        missing = 50 - record.recent.shape[1]
        record.recent = np.pad(record.recent, ((0, 0), (0, missing)), constant_values=-1)
    return log


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["use", "list", "forget", "reload"]), st.integers(0, 9)),
        min_size=1,
        max_size=50,
    )
)
@settings(max_examples=40, deadline=None)
def test_a_changing_catalogue_keeps_rows_and_slots_together(steps: list[tuple[str, int]]) -> None:
    """Items come, are used, lose their row or their slot and come back: a score is that of the item's present
    entry, whatever way it is asked for, and a restored model goes on alike."""
    model = ContentModel(buckets=64, max_items=6, max_features=4, learning_rate=0.0, linear_learning_rate=0.0)
    model.items = ItemTable(limit=4)
    entries: dict[str, str] = {}
    for k, (step, number) in enumerate(steps):
        item = f"i{number}"
        if step == "use":
            model.learn_one("ann", item, x={"timestamp": k})
        elif step == "list":
            model.learn_item(item, {"title": f"w{number % 3} x{k}"})
            entries.pop(item, None)
            entries[item] = f"w{number % 3} x{k}"
            entries = dict(list(entries.items())[-6:])
        elif step == "forget":
            model.forget(item=item)
            entries.pop(item, None)
        else:
            restored = ContentModel(
                buckets=64, max_items=6, max_features=4, learning_rate=0.0, linear_learning_rate=0.0
            )
            restored.from_arrays(model.to_arrays())
            assert restored.digest() == model.digest()
            limited = ItemTable.from_arrays(model.items.to_arrays(), limit=4)
            model, restored.items = restored, limited
    assert list(model._content) == list(entries)
    for item in [f"i{n}" for n in range(10)]:
        row = model.items.row(item)
        by_row = model.score_rows("ann", np.array([row], dtype=np.int32))[0] if row >= 0 else None
        assert by_row is None or by_row == np.float32(model.predict_one("ann", item))
        if item not in entries:
            assert model.predict_one("ann", item) == 0.0
    documents = np.zeros(64, dtype=np.int64)
    for title in entries.values():
        for bucket in {hashed(0, word, 64)[0] for word in title.split()}:
            documents[bucket] += 1
    assert model._content._documents.tolist() == documents.tolist()


def test_the_oldest_entry_makes_room() -> None:
    model = ContentModel(max_items=3)
    for item in ("a", "b", "c", "a", "d"):
        model.learn_item(item, {"title": f"word {item}"})
    assert list(model._content) == ["c", "a", "d"]
    assert [item for item, _ in model.recommend(["ann"], 9)[0]] == ["a", "c", "d"]


def test_an_item_of_the_catalogue_alone_can_be_forgotten() -> None:
    model = shop()
    model.learn_one("ann", "green tea")
    model.forget(item="black tea")
    assert model.predict_one("ann", "black tea") == 0.0
    assert "black tea" not in dict(model.recommend(["ann"], 9)[0])
    assert all(b"black tea" not in array.tobytes() for array in model.to_arrays().values())


def test_a_snapshot_holds_the_catalogue() -> None:
    model, restored = shop(), ContentModel()
    model.learn_one("ann", "green tea")
    restored.from_arrays(model.to_arrays())
    assert restored.recommend(["ann", "bob"], 9) == model.recommend(["ann", "bob"], 9)
    for one in (model, restored):
        for n in range(20):
            one.learn_item(f"more {n}", {"title": f"tea number {n}", "embeddings": {"image": [1.0, n]}})
        one.learn_one("ann", "more 7")
    assert restored.digest() == model.digest()


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"title": 7}, "tea: title is 7, but text is needed"),
        ({"description": b"x"}, "tea: description is b'x'"),
        ({"categories": "drinks"}, "tea: categories is 'drinks', but a list of names is needed"),
        ({"labels": [1]}, r"tea: labels is \[1\]"),
        ({"labels": {"a", "b"}}, "tea: labels is {.*}, but a list of names"),  # it has no order
        ({"price": float("nan")}, "tea: price is nan, but a finite number of at least 0"),
        ({"price": -1.0}, "tea: price is -1.0"),
        ({"price": True}, "tea: price is True"),
        ({"embeddings": {"e": [1.0, float("inf")]}}, "tea: embedding 'e' is no list of finite numbers"),
        ({"embeddings": {"e": []}}, "tea: embedding 'e' is no list"),
        ({"embeddings": {"e": "text"}}, "tea: embedding 'e' is no list"),
        ({"embeddings": [1.0]}, "tea: embeddings is list, but names to lists are needed"),
        (
            {"embeddings": {"e": [1.0, 2.0, 3.0]}},
            "tea: embedding 'e' has 3 dimensions, but the first one had 2",
        ),
        ({"embeddings": {"f": [1.0] * 65_535}}, "tea: f bring the embeddings to 65537 dimensions"),
    ],
)
def test_bad_entries_are_refused_by_name_and_change_nothing(entry: dict[str, Any], named: str) -> None:
    model = ContentModel()
    model.learn_item("tea", {"title": "tea", "embeddings": {"e": [3.0, 4.0]}})
    before = model.digest()
    with pytest.raises(ValueError, match=named):
        model.learn_item("tea", entry)
    assert model.digest() == before
    with pytest.raises(TypeError, match="item must be a non-empty string"):
        model.learn_item("", {})


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"buckets": 8}, "buckets is 8, but 16 to"),
        ({"max_items": 1}, "max_items is 1"),
        ({"max_features": 0}, "max_features is 0"),
        ({"query_length": 51}, "query_length is 51"),
        ({"query_decay": 1.5}, "query_decay is 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"linear_learning_rate": -0.1}, "linear_learning_rate is -0.1"),
        ({"regularization": 2.0}, "regularization is 2.0"),
        ({"negatives": 65}, "negatives is 65"),
        ({"start_weight": -1.0}, "start_weight is -1.0"),
    ],
)
def test_parameters_out_of_range_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ContentModel(**kwargs)


@given(
    st.lists(st.text(max_size=12), max_size=6),
    st.floats(0.0, 1e300),
    st.lists(st.floats(-1e300, 1e300), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_every_vector_has_length_one_or_is_nothing(
    words: list[str], price: float, numbers: list[float]
) -> None:
    store = ItemContent(buckets=32, max_features=5, max_items=4)
    embeddings = {"e": numbers} if numbers else {}
    slot, _ = store.put("i", {"title": " ".join(words), "price": price, "embeddings": embeddings})
    used = store.contents.length[slot]
    length = np.sqrt((store.contents.value[slot, :used] ** 2).sum() + (store.contents.dense[slot] ** 2).sum())
    assert length == pytest.approx(1.0, abs=0.75)  # features that share a bucket add up, or cancel
    assert np.isfinite(store.contents.value).all()


def test_words_are_told_apart_in_any_script() -> None:
    assert tokens("Пила 2000, ПИЛА") == ["пила", "2000", "пила"]
    assert tokens("咖啡机coffee") == ["咖啡", "啡机", "coffee"]
    assert tokens("") == tokens(" -- ") == []


@pytest.mark.parametrize(
    "kwargs", [{}, {"max_items": 5, "learning_rate": 0.5, "regularization": 0.0}], ids=str
)
@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_with_a_catalogue(
    check: Callable[[Callable[[], ContentModel]], None], kwargs: dict[str, Any]
) -> None:
    check(lambda: catalogued(**kwargs))
