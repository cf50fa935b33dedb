"""The contract of every online model, as checks that a test runs over all models that discovery finds.

Each check takes a function that makes a fresh model, raises AssertionError with what differed, and returns
nothing.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import numpy as np

import online_models
from online_models.base import FACTORS, Context, OnlineRanker, user_token
from online_models.learning_batch import LearningBatch

__all__ = [
    "Event",
    "all_checks",
    "check_bad_rewards_are_refused",
    "check_batches_split_freely",
    "check_finite_after_random_input",
    "check_forgotten_item_is_unknown",
    "check_forgotten_user_is_unknown",
    "check_learn_many_is_learn_one",
    "check_owner_and_replicas_are_one_process",
    "check_predicting_changes_nothing",
    "check_rank_orders_ties_by_id",
    "check_recommend_is_sorted_prediction",
    "check_retraction_undoes",
    "check_snapshot_round_trip",
    "discover_models",
    "random_events",
]

Event = tuple[str, str, float, Context | None]
MakeModel = Callable[[], OnlineRanker]


def discover_models() -> list[type[OnlineRanker]]:
    """Every concrete model defined in a module of this package, by name."""
    found: dict[str, type[OnlineRanker]] = {}
    for module_info in pkgutil.iter_modules(online_models.__path__):
        module = importlib.import_module(f"online_models.{module_info.name}")
        for name, value in inspect.getmembers(module, inspect.isclass):
            if issubclass(value, OnlineRanker) and not inspect.isabstract(value):
                found[name] = value
    return [found[name] for name in sorted(found)]


def all_checks() -> list[Callable[[MakeModel], None]]:
    """Every check of this module that needs nothing but a model, by name."""
    names = sorted(name for name in globals() if name.startswith("check_"))
    return [globals()[name] for name in names]


def random_events(n: int, seed: int = 0, users: int = 7, items: int = 12) -> list[Event]:
    """Seeded events with repeats, disorder in time, negative, zero and large weights."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([1.0, 1.0, 1.0, 0.1, 5.0, 1e6, 0.0, -0.5, -1.0, -1e6], size=n)
    times = 1_600_000_000_000 + np.cumsum(rng.integers(-50_000, 4_000_000, size=n))
    who, what = rng.integers(0, users, size=n), rng.integers(0, items, size=n)
    return [
        (
            f"user-{who[k]}",
            f"item-{what[k]}",
            float(weights[k]),
            {"timestamp": int(times[k]), "event_id": str(k)},
        )
        for k in range(n)
    ]


def check_predicting_changes_nothing(make: MakeModel) -> None:
    """predict_one and rank, of the known and the unknown, leave every byte of state as it was."""
    model = _learned(make(), random_events(60))
    before = model.digest()
    for user in ("user-0", "stranger"):
        for item in ("item-0", "item-1", "never seen"):
            value = model.predict_one(user, item)
            assert np.isfinite(value), f"predict_one({user!r}, {item!r}) is {value}"
        model.rank(user, ["item-0", "item-1", "never seen"])
    assert model.digest() == before, "predicting changed the state"


def check_learn_many_is_learn_one(make: MakeModel) -> None:
    """learn_many on a stream equals learn_one on each of its events, bit for bit."""
    events = random_events(80)
    one_by_one = _learned(make(), events)
    together = make()
    users, items, rewards, contexts = zip(*events, strict=True)
    together.learn_many(users, items, rewards, contexts)
    _assert_equal(one_by_one, together, "learn_one and learn_many")


def check_batches_split_freely(make: MakeModel, cuts: Sequence[int] = (1, 7, 8, 33)) -> None:
    """A replica that reads the log in other batches ends in the same item state."""
    log = _log_of(make(), random_events(60))
    whole, parts = make(), make()
    record = LearningBatch.concat(log)
    _replicate(whole, record)
    edges = [0, *sorted({min(cut, len(record)) for cut in cuts}), len(record)]
    for start, stop in pairwise(edges):
        _replicate(parts, record.slice(start, stop))
    _assert_equal(whole, parts, f"one batch and batches cut at {list(cuts)}")


def check_owner_and_replicas_are_one_process(make: MakeModel) -> None:
    """Two owners with a replica each, at zero delay of the log, end where one process does."""
    events = random_events(80)
    single, owners = make(), (make(), make())
    for event in events:
        single.learn_one(*event)
        owner = owners[int(event[0].removeprefix("user-")) % 2]
        record = owner.learn_user([event])
        for replica in owners:
            _replicate(replica, record)
        same = owner.predict_one(event[0], event[1]) == single.predict_one(event[0], event[1])
        assert same, f"owner and single process predict differently after {event}"
    for number, replica in enumerate(owners):
        _assert_equal(single, replica, f"one process and replica {number}")


def check_snapshot_round_trip(make: MakeModel) -> None:
    """A restored model has the same bytes, and goes on learning to the same bytes."""
    events = random_events(120)
    model = _learned(make(), events[:80])
    restored = make()
    restored.from_arrays(model.to_arrays())
    assert restored.digest() == model.digest(), "a restored model has other bytes"
    again = make()
    again.from_bytes(model.to_bytes())
    for one in (model, restored, again):
        _learned(one, events[80:])
    assert restored.digest() == model.digest(), "a restored model learns differently"
    assert again.to_bytes() == model.to_bytes(), "a model restored from bytes learns differently"


def check_finite_after_random_input(make: MakeModel) -> None:
    """Weights of every sign and size, repeats and disorder leave finite state and scores."""
    model = _learned(make(), random_events(400, seed=1, users=3, items=5))
    for name, array in model.to_arrays().items():
        if np.issubdtype(array.dtype, np.floating):
            assert np.isfinite(array).all(), f"{name} has values that are not finite"
    for item in model.items.ids:
        assert np.isfinite(model.predict_one("user-0", item)), f"score of {item} is not finite"


def check_rank_orders_ties_by_id(make: MakeModel) -> None:
    """rank is by falling prediction, then item id, in whatever order the items come."""
    model = _learned(make(), random_events(30))
    items = [f"item-{k}" for k in range(12)] + [f"new-{k}" for k in range(8)]
    expected = sorted(items, key=lambda item: (-model.predict_one("user-1", item), item))
    for given in (items, items[::-1], set(items)):
        assert model.rank("user-1", given) == expected, "rank differs from sorted (-prediction, id)"


def check_recommend_is_sorted_prediction(make: MakeModel) -> None:
    """recommend gives what sorting all known items by (-predict_one, id) gives, ties included."""
    model = _learned(make(), random_events(60))
    exclude = {"user-1": {"item-0", "item-3", "never seen"}}
    for user in ("user-1", "user-2", "stranger"):
        items = [item for item in model.items.ids if item and item not in exclude.get(user, ())]
        score_of = {item: model.predict_one(user, item) for item in items}
        expected = sorted(items, key=lambda item: (-score_of[item], item))
        for k in (1, 4, 100):
            [found] = model.recommend([user], k, exclude)
            assert found == [(item, score_of[item]) for item in expected[:k]], f"{user}, k = {k}"


def check_bad_rewards_are_refused(make: MakeModel) -> None:
    """What is not a finite number of stated size is refused by name, and changes nothing; nor does a rating
    that is refused take the one back that it would replace."""
    model = _learned(make(), random_events(10))
    rating = {"event_type": "rating", "timestamp": 1_700_000_000_000}
    model.learn_one("user-0", "item-0", 3.0, rating)
    before = model.digest()
    for y, x in product((float("nan"), float("inf"), -float("inf"), 1e7), (None, rating)):
        said = ""
        try:
            model.learn_one("user-0", "item-0", y, x)
        except ValueError as error:
            said = str(error)
        assert repr(y) in said or "weight" in said, (
            f"y = {y} was learned, or refused without its name: {said}"
        )
    assert model.digest() == before, "a refused event changed the state"


def check_retraction_undoes(make: MakeModel) -> None:
    """Counts and pairs become what they were without the event, within 1e-5, whatever came after it; factors
    step back towards it (over three first uses of an item: one step may overshoot). Withdrawing it once more,
    or an unknown one, changes nothing."""
    events, moved, left = _plain_events(60), 0.0, 0.0
    first = [k for k, event in enumerate(events) if event[:2] not in [earlier[:2] for earlier in events[:k]]]
    for place in first[-3:] if make().learns == FACTORS else (40, 55, 59):
        user, item, *_ = events[place]
        model, without = _learned(make(), events[: place + 1]), _learned(make(), events[:place])
        if model.learns == FACTORS:
            before, after = without.predict_one(user, item), model.predict_one(user, item)
            assert model.retract(user, f"e{place}"), "a known event was not withdrawn"
            moved += abs(after - before)
            left += abs(model.predict_one(user, item) - before)
        else:
            _learned(model, events[place + 1 :])
            _learned(without, events[place + 1 :])
            assert model.retract(user, f"e{place}"), "a known event was not withdrawn"
            _assert_near(model, without, f"event {place} of {user} was withdrawn")
        digest = model.digest()
        assert not model.retract(user, f"e{place}")
        assert not model.retract("stranger", "e1")
        assert model.digest() == digest, "withdrawing what is not there changed the state"
    assert left < moved or moved == 0.0, f"the events moved predictions by {moved}, withdrawn, {left} is left"


def check_forgotten_user_is_unknown(make: MakeModel) -> None:
    """No id and no token remains; counts are those of a stream without the user; he is predicted like a
    stranger, and may come back."""
    events = [event for event in _plain_events(60) if event[0] != "user-1" or event[1] != "item-0"]
    events.append(("user-2", "item-0", 1.0, {"timestamp": 1_700_000_000_000, "event_id": "last"}))
    model = _learned(make(), events)
    model.forget("user-1")
    for name, array in model.to_arrays().items():
        assert b"user-1" not in array.tobytes(), f"{name} still holds the id"
        tokens = array.astype(np.uint64) if array.dtype == np.uint64 else np.zeros(0, dtype=np.uint64)
        assert user_token("user-1") not in tokens.tolist(), f"{name} still holds the token"
    if model.learns != FACTORS:
        _assert_near(model, _learned(make(), [e for e in events if e[0] != "user-1"]), "user-1 was forgotten")
        for item in model.items.ids:
            same = model.predict_one("user-1", item) == model.predict_one("stranger", item)
            assert same, f"user-1 is predicted unlike a stranger on {item}"
    digest = model.digest()
    model.forget("user-1")
    model.forget("stranger")
    assert model.digest() == digest, "forgetting the unknown changed the state"
    model.learn_one("user-1", "item-3", 1.0, {"timestamp": 1_700_000_001_000})
    assert np.isfinite(model.predict_one("user-1", "item-2"))


def check_forgotten_item_is_unknown(make: MakeModel) -> None:
    """Its id is gone, it is predicted like one never seen and never recommended, and may come back."""
    model = _learned(make(), _plain_events(60))
    model.forget(item="item-3")
    for name, array in model.to_arrays().items():
        assert b"item-3" not in array.tobytes(), f"{name} still holds the id"
    for user in ("user-1", "user-2", "stranger"):
        unknown = model.predict_one(user, "never seen")
        assert model.predict_one(user, "item-3") == unknown, f"{user}: the forgotten item is known"
        [found] = model.recommend([user], 100)
        assert "item-3" not in dict(found), f"{user}: the forgotten item is recommended"
        assert all(np.isfinite(score) for _, score in found)
    restored = make()
    restored.from_arrays(model.to_arrays())
    assert restored.digest() == model.digest(), "a restored model has other bytes after forgetting"
    for one in (model, restored):
        one.learn_one("user-1", "item-3", 1.0, {"timestamp": 1_700_000_001_000})
    assert "item-3" in model.items.ids
    assert np.isfinite(model.predict_one("user-2", "item-3"))
    _assert_equal(model, restored, "learning on after forgetting an item, and after a restore")


def _plain_events(n: int, users: int = 5, items: int = 9) -> list[Event]:
    """Seeded positive events in order of time, with repeats; ids e0, e1, ... Every item is used by many."""
    rng = np.random.default_rng(5)
    weights = rng.choice([1.0, 0.5, 2.0], size=n)
    times = 1_600_000_000_000 + np.cumsum(rng.integers(0, 4_000_000, size=n))
    return [
        (
            f"user-{k % users if k < users else rng.integers(users)}",
            f"item-{(k * 4) % items if k < 4 * items else rng.integers(items)}",
            float(weights[k]),
            {"timestamp": int(times[k]), "event_id": f"e{k}"},
        )
        for k in range(n)
    ]


def _assert_near(left: OnlineRanker, right: OnlineRanker, what: str) -> None:
    """Both predict the same within 1e-5, for five users and a stranger, on every item of either."""
    items = sorted({item for item in [*left.items.ids, *right.items.ids] if item})
    for user in [*(f"user-{k}" for k in range(5)), "stranger"]:
        for item in items:
            ours, theirs = left.predict_one(user, item), right.predict_one(user, item)
            near = abs(ours - theirs) <= 1e-5 * max(1.0, abs(theirs))
            assert near, f"{what}: {user} on {item} has {ours}, but {theirs} where it never was"


def _learned(model: OnlineRanker, events: Sequence[Event]) -> OnlineRanker:
    for event in events:
        model.learn_one(*event)
    return model


def _log_of(model: OnlineRanker, events: Sequence[Event]) -> list[LearningBatch]:
    log: list[LearningBatch] = []
    for event in events:
        log.append(model.learn_user([event]))
        _replicate(model, log[-1])
    return list(_padded(log))


def _padded(log: Sequence[LearningBatch]) -> Iterator[LearningBatch]:
    """Records with equally many columns, as a log writer would pack them."""
    recent = max(record.recent.shape[1] for record in log)
    negatives = max(record.negatives.shape[1] for record in log)
    for record in log:
        record.recent = _widened(record.recent, recent)
        record.negatives = _widened(record.negatives, negatives)
        yield record


def _widened(
    column: np.ndarray[tuple[int, ...], np.dtype[np.int32]], width: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.pad(column, ((0, 0), (0, width - column.shape[1])), constant_values=-1)


def _replicate(model: OnlineRanker, record: LearningBatch) -> None:
    record.validate()
    model.apply(record, model.items.resolve(record))


def _assert_equal(left: OnlineRanker, right: OnlineRanker, what: str) -> None:
    """Items and item state are equal byte for byte; the users' own state may live elsewhere."""
    assert left.items.ids == right.items.ids, f"{what}: items differ"
    ours, theirs = left.item_arrays(), right.item_arrays()
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), f"{what}: {name} differs"
