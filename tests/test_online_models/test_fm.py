"""The factorisation machine against its equation written out pair by pair, and its steps against numeric
derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_models import DecayedPopularity, FactorizationMachine, Fusion, LearningBatch, checks
from online_models.base import Context
from online_models.fm_features import features_of, hashed
from online_models.item_table import ItemTable

SMALL: dict[str, Any] = {"dimension": 4, "negatives": 3, "candidates": 1, "recent_length": 3, "buckets": 64}
DAY = {"context": {"time": "morning", "hour": 0.5, "is_mobile": True}, "event_type": "purchase"}
ENTRY = {"categories": ["drinks", "hot"], "labels": {"size": 0.25}, "domain": "shop"}
Blocks = dict[str, NDArray[np.float64]]


def rich(**kwargs: Any) -> FactorizationMachine:
    """A model that has learned contexts, labels, categories and plain events."""
    model = FactorizationMachine(**{**SMALL, **kwargs})
    for k in range(9):
        model.learn_item(f"item-{k}", {**ENTRY, "categories": [f"c{k % 3}", "all"]})
    model.learn_profile("user-1", {"labels": {"age": "young", "score": -0.75}})
    for n, (user, item, weight, x) in enumerate(checks.random_events(60, items=9)):
        context = {"time": ["morning", "evening"][n % 2], "hour": n % 24}
        model.learn_one(user, item, min(max(weight, -1.0), 2.0), {**(x or {}), "context": context})
    return model


def blocks_of(model: FactorizationMachine) -> Blocks:
    """All parameters by feature name, float64: [weight, factor], from the arrays of a snapshot."""
    arrays, d = model.to_arrays(), model.dimension
    found: Blocks = {"world": arrays["fm.world"][:1].astype(float)}
    for row, item in enumerate(model.items.ids):
        found[f"item:{item}"] = arrays["fm.items"][row, : 1 + d].astype(float)
        found[f"recent:{item}"] = arrays["fm.items"][row, 1 + d : 2 + 2 * d].astype(float)
    for bucket, values in enumerate(model._shared.buckets):
        found[f"bucket:{bucket}"] = values[: 1 + d].astype(float)
    for user, values in model._users.items():
        found[f"user:{user}"] = values[: 1 + d].astype(float)
    return found


def features(
    model: FactorizationMachine, user: str, item: str, x: Context, recent: list[str]
) -> list[tuple[str, float]]:
    """What the docstring says an event consists of, as (name of its block, value)."""
    named = [(f"item:{item}", 1.0)] + ([(f"user:{user}", 1.0)] if user in model._users else [])
    kept = recent[: model.recent_length]
    shares = [model.recent_decay**r for r in range(len(kept))]
    named += [(f"recent:{other}", share / sum(shares)) for other, share in zip(kept, shares, strict=True)]
    listed = [hashed("type=6", 1.0, model.buckets)] if x.get("event_type") == "purchase" else []
    listed += features_of("context", x.get("context", {}), model.buckets)
    if user == "user-1":
        listed += features_of("user", {"age": "young", "score": -0.75}, model.buckets)
    listed = listed[: model.context_features]
    if item.startswith("item-"):
        k = int(item[5:])
        listed += features_of(
            "item", {"domain": "shop", "categories": [f"c{k % 3}", "all"]}, model.buckets
        ) + features_of("label", {"size": 0.25}, model.buckets)
    return named + [(f"bucket:{bucket}", value) for bucket, value in listed]


def pairwise(blocks: Blocks, named: list[tuple[str, float]]) -> float:
    """w_0 + sum w x + the sum over all pairs f < g of <v_f, v_g> x_f x_g, one pair after another."""
    total = float(blocks["world"][0])
    for place, (name, x) in enumerate(named):
        total += blocks[name][0] * x
        for other, y in named[place + 1 :]:
            total += float(np.dot(blocks[name][1:], blocks[other][1:])) * x * y
    return total


def test_the_score_is_the_sum_over_all_pairs() -> None:
    model = rich()
    blocks = blocks_of(model)
    for user in ("user-1", "user-2", "stranger"):
        recent = model._recent.get(user, [])
        for item in ("item-0", "item-5"):
            expected = pairwise(blocks, features(model, user, item, DAY, recent))
            assert model.predict_one(user, item, DAY) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(blocks["user:user-1"]).max() > 0.01, "nothing was learned"


def loss(blocks: Blocks, examples: list[tuple[list[tuple[str, float]], float]]) -> float:
    """Sum of the logistic losses of (features, target)."""
    scores = [(pairwise(blocks, named), target) for named, target in examples]
    return float(sum(np.logaddexp(0.0, -score if target else score) for score, target in scores))


@pytest.mark.parametrize("user", ["user-1", "user-3"])
def test_one_step_follows_the_numeric_gradient(user: str) -> None:
    rate = 1e-3
    model = rich(use_ids=True)
    model._rule = model._rule._replace(rate=rate, weight_rate=rate, slowing=0.0, penalty=0.0)
    before, recent = blocks_of(model), list(model._recent[user])
    record = model.learn_user([(user, "item-4", 1.0, {**DAY, "timestamp": 1_700_000_000_000})])
    drawn = [record.item_ids[index] for index in record.negatives[0]]
    model.apply(record, model.items.resolve(record))
    after = blocks_of(model)
    examples = [(features(model, user, "item-4", DAY, recent), 1.0)]
    examples += [(features(model, user, item, DAY, recent), 0.0) for item in drawn]
    assert len(drawn) == 3
    touched = {name for named, _ in examples for name, _ in named} | {"world"}
    for name, block in before.items():
        for k in range(len(block)) if name in touched else ():
            kept = block[k]
            block[k] = kept + 1e-4
            above = loss(before, examples)
            block[k] = kept - 1e-4
            slope = (above - loss(before, examples)) / 2e-4
            block[k] = kept
            moved = (after[name][k] - kept) / rate
            assert moved == pytest.approx(-slope, rel=0.02, abs=2e-3), f"{name}[{k}]"
        if name not in touched:
            assert (after[name] == block).all(), f"{name} is no feature of the event, but moved"


def test_squared_loss_gives_the_four_ratings_back() -> None:
    ratings = [("u1", "i1", 5.0), ("u1", "i2", 3.0), ("u2", "i1", 4.0), ("u2", "i3", 2.0)]
    model = FactorizationMachine(
        dimension=4, loss="squared", recent_length=0, learning_rate=0.05, slowing=0.0, regularization=0.0
    )
    for _ in range(200):
        for user, item, rating in ratings:
            model.learn_one(user, item, rating)
    for user, item, rating in ratings:
        assert model.predict_one(user, item) == pytest.approx(rating, abs=0.05)
    assert model.rank("u1", ["i2", "i1"]) == ["i1", "i2"]
    assert model.rank("u2", ["i3", "i1"]) == ["i1", "i3"]
    assert model.predicts_ratings


def test_features_alone_estimate_for_a_third_user() -> None:
    model = FactorizationMachine(
        dimension=4, loss="squared", use_ids=False, learning_rate=0.05, slowing=0.0, regularization=0.0
    )
    for item, values in {"i1": (0.3, 0.4), "i2": (0.5, 0.6), "i3": (0.7, 0.8)}.items():
        model.learn_item(item, {"labels": dict(zip("xy", values, strict=True))})
    for user, values in {"u1": (0.1, 0.2), "u2": (0.3, 0.4), "u3": (0.2, 0.3)}.items():
        model.learn_profile(user, {"labels": dict(zip("ab", values, strict=True))})
    for _ in range(300):
        for user, item, rating in [
            ("u1", "i1", 5.0),
            ("u1", "i2", 3.0),
            ("u2", "i1", 4.0),
            ("u2", "i3", 2.0),
        ]:
            model.learn_one(user, item, rating)
    estimates = {item: model.predict_one("u3", item) for item in ("i1", "i2", "i3")}
    assert estimates["i1"] > estimates["i2"] > estimates["i3"]  # as with those whose labels lie either side
    assert 4.0 < estimates["i1"] < 5.0
    assert 1.0 < estimates["i3"] < 3.0
    without = FactorizationMachine(use_ids=False)
    without.learn_one("u1", "i1")
    assert without.predict_one("u1", "i1") == without.predict_one("u3", "i2")  # no feature tells them apart


def planted(n: int, seed: int) -> list[tuple[str, str, Context]]:
    """In the morning people take one of ten items, in the evening one of ten others, of equal popularity."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(n):
        time, item = int(rng.integers(2)), int(rng.integers(10))
        x = {"context": {"time": ["morning", "evening"][time]}, "event_id": f"e{k}"}
        made.append((f"u{rng.integers(40)}", f"{'me'[time]}{item}", x))
    return made


def test_context_tells_morning_from_evening() -> None:
    model, plain = FactorizationMachine(dimension=8, recent_length=0), DecayedPopularity()
    hits = {"fm": 0, "popularity": 0}
    for k, (user, item, x) in enumerate(planted(1200, seed=1)):
        if k >= 800:
            hits["fm"] += item in model.rank(user, model.items.ids, x)[:10]
            hits["popularity"] += item in plain.rank(user, plain.items.ids)[:10]
        model.learn_one(user, item, 1.0, x)
        plain.learn_one(user, item)
    assert hits["fm"] > 0.85 * 400  # ten of twenty, and the right ten
    assert hits["popularity"] < 0.65 * 400


def test_an_item_that_no_event_had_is_known_by_its_category() -> None:
    model = FactorizationMachine(dimension=8)
    for item, category in {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "a9": "a", "b9": "b"}.items():
        model.learn_item(item, {"categories": [category]})
    for _ in range(20):
        model.learn_many(["ann", "bob", "ann", "bob"], ["a1", "b1", "a2", "b2"])
    assert model.items.row("a9") == -1
    assert model.rank("ann", ["a9", "b9"]) == ["a9", "b9"]
    assert model.rank("bob", ["a9", "b9"]) == ["b9", "a9"]


def test_replicas_learn_contexts_from_the_record_alone() -> None:
    def make() -> FactorizationMachine:
        made = FactorizationMachine(**SMALL)
        for k in range(8):  # fewer than there are items
            made.learn_item(f"item-{k}", {"categories": [f"c{k % 3}"]})
        made.learn_profile("user-2", {"labels": {"age": "young"}})
        return made

    single, owner, replica, late = make(), make(), make(), make()
    log = []
    for n, (user, item, weight, x) in enumerate(checks.random_events(80)):
        event = (user, item, weight, {**(x or {}), "context": {"time": str(n % 3)}, "event_type": n % 4})
        single.learn_one(*event)
        log.append(owner.learn_user([event]))
        for model in (owner, replica):
            model.replicate(log[-1])
        assert owner.predict_one(user, item, event[3]) == single.predict_one(user, item, event[3])
    for record in checks._padded(log):
        record.validate()
    late.replicate(LearningBatch.concat(log))
    for model in (owner, replica, late):
        for name, array in single.item_arrays().items():
            assert array.tobytes() == model.item_arrays()[name].tobytes(), name


def test_a_snapshot_holds_contexts_labels_and_catalogue() -> None:
    model = rich()
    restored = FactorizationMachine(**SMALL)
    restored.from_arrays(model.to_arrays())
    assert restored.digest() == model.digest()
    for one in (model, restored):
        one.learn_one("user-1", "item-2", 1.0, DAY)
    assert restored.digest() == model.digest()
    for item in ("item-2", "item-8", "never seen"):
        assert restored.predict_one("user-1", item, DAY) == model.predict_one("user-1", item, DAY)


def test_a_step_back_undoes_a_small_step() -> None:
    model = rich()
    model._rule = model._rule._replace(rate=1e-3, weight_rate=1e-3, slowing=0.0, penalty=0.0)
    before = model.item_arrays()["fm.items"][:, :10].copy()
    model.learn_one("user-4", "item-3", 1.0, {"event_id": "last", "timestamp": 1_700_000_000_000})
    moved = np.abs(model.item_arrays()["fm.items"][:, :10] - before).max()
    assert model.retract("user-4", "last")
    left = np.abs(model.item_arrays()["fm.items"][:, :10] - before).max()
    assert moved > 1e-4
    assert left < 0.02 * moved


def test_what_is_forgotten_leaves_no_feature() -> None:
    model = rich()
    model.forget("user-1")
    model.forget(item="item-4")
    for name, array in model.to_arrays().items():
        assert b"user-1" not in array.tobytes(), name
        assert b"item-4" not in array.tobytes(), name
    assert model.predict_one("user-1", "item-2", DAY) == model.predict_one("stranger", "item-2", DAY)
    assert model.predict_one("user-2", "item-4") == model.predict_one("user-2", "never seen")
    model.learn_item("never used", {"categories": ["c1"]})
    model.forget(item="never used")
    assert b"never used" not in model.to_arrays()["fm.catalogue.ids"].tobytes()


def test_features_follow_an_item_to_another_row() -> None:
    model = FactorizationMachine(**SMALL)
    model.items = ItemTable(limit=8)
    for k in range(30):
        model.learn_item(f"i{k}", {"categories": [f"c{k}"]})
    rng = np.random.default_rng(2)
    for n, item in enumerate(rng.integers(0, 30, size=150).tolist()):
        model.learn_one(f"u{n % 5}", f"i{item}")
    assert model.items.evictions > 50
    expected = [
        hashed(f"item:categories=c{item[1:]}", 1.0, 64) if item else (0, 0.0) for item in model.items.ids
    ]
    state = model._shared.state()
    assert list(zip(state.feature[:, 0].tolist(), state.amount[:, 0].tolist(), strict=True)) == expected
    restored = FactorizationMachine(**SMALL)
    restored.from_arrays(model.to_arrays())
    assert restored.digest() == model.digest()


def test_the_last_type_of_a_user_stands_for_one_that_is_not_named() -> None:
    model = FactorizationMachine(**SMALL)
    model.learn_many(
        ["u", "u", "v"], ["a", "b", "a"], x=[{"event_type": "view"}, {"event_type": "cart"}, None]
    )
    assert model.predict_one("u", "a") == model.predict_one("u", "a", {"event_type": "cart"})
    assert model.predict_one("u", "a") != model.predict_one("u", "a", {"event_type": "view"})
    assert model.predict_one("v", "b") != model.predict_one("v", "b", {"event_type": "view"})


def test_a_fusion_takes_it_as_a_part() -> None:
    model = Fusion({"fm": FactorizationMachine(**SMALL), "popularity": DecayedPopularity()})
    for user, item, x in planted(60, seed=2):
        model.learn_one(user, item, 1.0, x)
    assert model.regret()["events"] > 20
    assert np.isfinite(model.predict_one("u1", "m1"))


VALUES = st.one_of(
    st.text(max_size=8), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers()
)


@given(context=st.dictionaries(st.text(max_size=6), VALUES, max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_flat_context_is_learned_within_bounds(context: dict[str, Any]) -> None:
    model = FactorizationMachine(**SMALL)
    for item in ("a", "b", "a"):
        model.learn_one("u", item, 1e6, {"context": context})
    assert math.isfinite(model.predict_one("u", "b", {"context": context}))
    assert all(abs(value) <= 10.0 for _, value in features_of("context", context, 64))


@pytest.mark.parametrize(
    ("context", "error", "said"),
    [
        ({"hour": math.nan}, ValueError, "'hour' is nan"),
        ({"hour": math.inf}, ValueError, "'hour' is inf"),
        ({"place": {"city": "x"}}, TypeError, "'place'"),
    ],
)
def test_a_bad_context_is_refused_by_name(context: dict[str, Any], error: type[Exception], said: str) -> None:
    model = rich()
    digest = model.digest()
    with pytest.raises(error, match=said):
        model.learn_one("user-1", "item-1", 1.0, {"context": context})
    assert model.digest() == digest


def test_a_record_of_other_settings_is_refused() -> None:
    record = FactorizationMachine(**SMALL).learn_user([("u", "a", 1.0, None)])
    other = FactorizationMachine(**{**SMALL, "context_features": 3})
    with pytest.raises(ValueError, match=r"21 columns, but this model has 11"):
        other.apply(record, other.items.resolve(record))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dimension", 0), ("learning_rate", -0.1), ("slowing", -1.0), ("negatives", 65), ("candidates", 0),
        ("recent_length", 51), ("recent_decay", 1.5), ("buckets", 0), ("context_features", 257),
        ("loss", "hinge"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        FactorizationMachine(**{name: value})
