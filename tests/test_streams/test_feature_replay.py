"""One log, two ways: what workers serve before each event, and what the trainer's replay makes of the log,
are the same candidates, features and context, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from serving.filters import Filter
from serving.pipeline import Pipeline
from serving.query import QueryBatch, RankedBatch
from serving.ranker.inputs import CONTEXT, HASHED
from serving.scoring import RankerView, asked_of
from serving.training import replay as replay_module
from serving.training.as_served import upon_event
from serving.training.dataset import InteractionLog
from serving.training.examples import Examples
from serving.training.replay import FeatureReplay
from serving.training.settings import ExamplesOf
from streams.events import Request
from streams.learning_log import decode_record, learn_record
from streams.settings import Settings
from streams.trainer_log import append_record
from streams.user_kernels import COUNT, SEEN, TOKEN
from streams.validation import AcceptedRequest
from tests.test_streams.test_answers import Answering
from tests.test_streams.user_model import T0, Ev, settings_of

USERS = [f"u{n}" for n in range(12)]
SERVING = {"covisitation_candidates": 6, "popularity_candidates": 4, "factor_candidates": 3}
RANKER = {"context_keys": ["device", "volume"]}
MODELS = {"factors": {"dimension": 3, "negatives": 2}, "covisitation": {"window": 15}}


class Served(NamedTuple):
    """What one list was made of."""

    ids: list[str]
    features: bytes
    context: bytes
    online: npt.NDArray[np.float32]
    """NaN for what is not among the list's items."""


class Recording(Pipeline):
    """A pipeline that notes what a fused ranker would have been given."""

    served: list[Served]

    def _rank(self, batch: QueryBatch, allowed: Filter, view: RankerView | None) -> RankedBatch:
        wanted, found = self._retriever.retrieve(batch, allowed)
        asked = asked_of(batch, wanted, found, self.items, with_features=True)
        ranked = super()._rank(batch, allowed, view)
        ids = self.items.items.ids
        for user, length in enumerate(found.length.tolist()):
            online = {row: ranked.scores[user, k] for k, row in enumerate(ranked.rows[user].tolist())}
            rows = found.rows[user, :length].tolist()
            self.served.append(
                Served(
                    [ids[row] for row in rows],
                    asked.features[user, :length].tobytes(),
                    asked.context[user].tobytes(),
                    np.array([online.get(row, np.nan) for row in rows], dtype=np.float32),
                )
            )
        return ranked


class Serving(Answering):
    """A worker whose pipeline records."""

    def _join(self) -> None:
        super()._join()
        if not isinstance(self.pipeline, Recording):
            self.pipeline.__class__ = Recording
            assert isinstance(self.pipeline, Recording)
            self.pipeline.served = []

    def serve(self, events: Sequence[Ev]) -> list[Served]:
        """A list for each event's user, as of the event's time and in its context."""
        assert isinstance(self.pipeline, Recording)
        self.pipeline.served = []
        asked = [
            AcceptedRequest(
                Request(request_id=f"r-{e.event}", user_id=e.user, context=e.context),
                e.partition,
                0,
                T0 + e.time_ms,
                0,
            )
            for e in events
        ]
        self.answer([], asked)
        return list(self.pipeline.served)

    def token(self, user: str) -> int:
        return int(self.users.users.long[self.users.row(user, 0), TOKEN]) % 2**64

    def is_met(self, user: str) -> bool:
        """Whether the user is known, but by events that teach nothing alone."""
        row = self.users.row(user, 0)
        return row >= 0 and int(self.users.users.small[row, COUNT + SEEN]) == 0

    def learn(self, events: Sequence[Ev]) -> list[bytes]:
        """The records that a batch of events writes to the learning log, which are followed, too."""
        _, rows = self.answer(events)
        records = list(self.learner.log.pack(rows)) if rows is not None else []
        self.follow(records)
        return records


class Both(NamedTuple):
    worker: Serving
    replay: FeatureReplay
    log: InteractionLog
    served: dict[tuple[int, int, str], Served]
    """By the event's user, time and item."""


def stream(rng: random.Random, n: int, items: int) -> Iterator[list[Ev]]:
    """Batches of events of all kinds, with repeats, dislikes, impressions, ratings given anew, and events
    that are taken back."""
    number, at = 0, 0
    done: list[Ev] = []
    while number < n:
        batch = []
        for _ in range(rng.choice([1, 1, 2, 5])):
            number, at = number + 1, at + rng.choice([0, 1, 900, 40_000])
            user, item = rng.choice(USERS), f"item-{int(rng.paretovariate(0.3)) % items}"
            kind = rng.choice(["good"] * 6 + ["half", "bad", "nothing"])
            fields: dict[str, Any] = {"item": item, "type": kind}
            if rng.random() < 0.08:
                fields = {"item": item, "type": "rating", "rates": 4.0}
            elif done and rng.random() < 0.08:
                old = rng.choice(done)
                user, fields = old.user, {"retracts": old.event}
            said = (
                {"device": ("phone", "tv", "car")[number % 3], "volume": number % 7} if number % 4 else None
            )
            batch.append(Ev(user, f"e{number}", at, **fields, context=said))
        done += [e for e in batch if e.retracts is None]
        yield batch


class Pasts:
    """What each user did and has not taken back, of what counts for a user, in order."""

    def __init__(self) -> None:
        self._events: dict[str, list[Ev]] = {}

    def newest(self, user: str) -> Ev | None:
        return next(reversed(self._events.get(user, [])), None)

    def add(self, event: Ev) -> None:
        kept = self._events.setdefault(event.user, [])
        if event.retracts is not None:
            kept[:] = [one for one in kept if one.event != event.retracts]
        elif event.weight > 0:
            if event.type == "rating":
                kept[:] = [one for one in kept if (one.type, one.item) != ("rating", event.item)]
            kept.append(event)


def list_before(worker: Serving, pasts: Pasts, event: Ev, examples: ExamplesOf) -> Ev:
    """The time and context for which the event's list is made: its own, or those of the event before."""
    before = pasts.newest(event.user)
    if before is None or worker.users.row(event.user, 0) < 0:
        return event
    user, time_ms = np.array([worker.token(event.user)], np.uint64), np.array([T0 + event.time_ms])
    return before if upon_event(user, time_ms, examples)[0] else event


def replayed(
    settings: Settings,
    seed: int,
    n: int,
    items: int,
    replay: FeatureReplay | None = None,
    examples: ExamplesOf = "requests",
) -> Both:
    worker, pasts = Serving(settings), Pasts()
    if replay is None:
        replay = FeatureReplay(settings.models, settings.serving, capacity=n, examples=examples)
    both, offset = Both(worker, replay, InteractionLog(), {}), 0
    for batch in stream(random.Random(seed), n, items):
        first = [e for k, e in enumerate(batch) if e.user not in {other.user for other in batch[:k]}]
        plain = not any(e.retracts or e.type == "rating" for e in batch)
        plain &= not any(worker.is_met(e.user) for e in first)
        asked = [replace(e, **for_(list_before(worker, pasts, e, examples))) for e in first]
        contexts = [one.context for one in worker.serve(asked)]
        served = [one._replace(context=c) for one, c in zip(worker.serve(first), contexts, strict=True)]
        records = worker.learn(batch)
        for event in batch:
            pasts.add(event)
        for event, one in zip(first, served, strict=True):
            if plain and event.item is not None:
                both.served[worker.token(event.user), T0 + event.time_ms, event.item] = one
        for value in records:
            record = decode_record(value, "here")
            replay.offset = offset
            learn_record(replay, record, "here")
            append_record(both.log, record, offset)
            offset += 1
    return both


def for_(event: Ev) -> dict[str, Any]:
    return {"time_ms": event.time_ms, "context": event.context}


def as_served(examples: Examples, n: int) -> Served:
    length = int(examples.length[n])
    ids = [examples.item_ids[code] for code in examples.candidates[n, :length].tolist()]
    features, context = examples.features[n, :length].tobytes(), examples.context[n].tobytes()
    return Served(ids, features, context, examples.online[n, :length])


def compared(both: Both) -> Iterator[tuple[Served, Served]]:
    """What the replay made of an event, and what was served before it."""
    examples = both.replay.examples()
    for n in range(len(examples)):
        item_id = examples.item_ids[examples.target_items[n]]
        one = both.served.get((int(examples.users[n]), int(examples.times_ms[n]), item_id))
        if one is not None:
            yield as_served(examples, n), one


@pytest.fixture(scope="module")
def both() -> Both:
    return replayed(settings_of(serving=SERVING, models=MODELS, ranker=RANKER), seed=0, n=700, items=60)


def test_the_replay_gives_what_was_served(both: Both) -> None:
    pairs = list(compared(both))
    assert len(pairs) > 100
    for again, served in pairs:
        assert again.ids == served.ids
        assert again.features == served.features
        assert again.context == served.context
        in_list = ~np.isnan(served.online)
        assert again.online[in_list].tobytes() == served.online[in_list].tobytes()


@pytest.mark.parametrize("examples", ["events", "both"])
def test_lists_upon_events_are_replayed_as_served(examples: ExamplesOf) -> None:
    """The time and the context of the event before, and no time since."""
    settings = settings_of(serving=SERVING, models=MODELS, ranker=RANKER)
    found = replayed(settings, seed=2, n=250, items=60, examples=examples)
    pairs = list(compared(found))
    assert len(pairs) > 30
    assert all(again[:3] == served[:3] for again, served in pairs)
    contexts = np.array([np.frombuffer(served.context, np.float32) for _, served in pairs])
    is_idle = contexts[:, CONTEXT.index("log_idle")] > 0
    assert is_idle.any() == (examples == "both")
    assert len(np.unique(contexts[:, -HASHED:], axis=0)) > 10


def test_items_that_lose_their_rows_change_nothing() -> None:
    models = {**MODELS, "max_items": 16, "popularity": {"half_life_s": 60.0}}
    few = replayed(settings_of(serving=SERVING, models=models), seed=1, n=150, items=60)
    assert few.replay.items.evictions > 10
    pairs = list(compared(few))
    assert len(pairs) > 20
    assert all(again[:3] == served[:3] for again, served in pairs)


def test_the_item_state_is_a_replica(both: Both) -> None:
    assert both.replay.items.digest() == both.worker.items.digest()
    assert int(both.replay.items.activity.exposures.sum()) > 0, "impressions reach the trainer, too"


def test_only_impressions_are_exposures() -> None:
    worker = Serving(settings_of(serving=SERVING, models=MODELS))
    worker.learn([Ev("u0", "e0", 0, "item-1"), Ev("u0", "e1", 1, "item-2")])
    worker.learn(
        [
            Ev("u1", "e2", 2, "item-1", "nothing"),
            Ev("u2", "e3", 3, "item-1", "nothing"),
            Ev("u0", "e4", 4, "item-2", retracts="e0"),
            Ev("u3", "e5", 5, "never-used", "nothing"),
        ]
    )
    items = worker.items
    shown = {item_id: int(items.activity.exposures[row]) for row, item_id in enumerate(items.items.ids)}
    assert shown == {"item-1": 2, "item-2": 0}


def test_other_settings_would_be_noticed(both: Both) -> None:
    """The comparison can fail: with more candidates the shares are others."""
    other = {**SERVING, "popularity_candidates": 30}
    settings = settings_of(serving=SERVING, models=MODELS)
    changed = settings_of(serving=other, models=MODELS)
    replay = FeatureReplay(settings.models, changed.serving, capacity=400)
    one = replayed(settings, seed=0, n=120, items=40, replay=replay)
    assert any(again.features != served.features for again, served in compared(one))


def test_examples_are_found_in_the_log(both: Both) -> None:
    examples = both.replay.examples()
    located = examples.located(both.log)
    assert 0 < len(located) <= len(examples)
    names, rows = both.log.item_ids, located.rows
    assert np.array_equal(both.log.column("user")[rows], located.users)
    assert np.array_equal(both.log.column("offset")[rows], located.offsets)
    ids = [names[item] for item in both.log.column("item")[rows].tolist()]
    assert ids == [located.item_ids[item] for item in located.target_items.tolist()]
    first = int(rows[0])
    kept = both.log.chosen(np.delete(np.arange(len(both.log)), first))
    assert len(examples.located(kept)) == len(located) - 1, "an event taken back is no example"


def test_a_target_that_retrieval_missed_stands_behind_the_others(both: Both) -> None:
    examples = both.replay.examples()
    missed = (examples.targets >= 0) & ~examples.retrieved
    assert 10 < missed.sum() < len(examples) - 10
    for n in np.flatnonzero(missed).tolist():
        length = int(examples.length[n])
        assert examples.targets[n] == length
        assert examples.candidates[n, length] == examples.target_items[n]
        assert examples.target_items[n] not in examples.candidates[n, :length]
        assert examples.online[n, length] == -np.inf
        assert np.isfinite(examples.features[n]).all()
    never = examples.targets < 0
    assert never.any()
    assert not examples.retrieved[never].any()


def test_the_oldest_examples_give_way() -> None:
    settings = settings_of(serving=SERVING, models=MODELS)
    whole = replayed(settings, seed=0, n=80, items=40)
    small = FeatureReplay(settings.models, settings.serving, capacity=7)
    replayed(settings, seed=0, n=80, items=40, replay=small)
    newest, all_of_them = small.examples(), whole.replay.examples()
    assert len(newest) == len(small) == 7
    assert newest.times_ms.tolist() == all_of_them.times_ms[-7:].tolist()
    for n in range(7):
        assert as_served(newest, n)[:3] == as_served(all_of_them, len(all_of_them) - 7 + n)[:3]


def test_items_that_nothing_names_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 16 rows, 30 events and 7 examples: these stay the same, and names do not pile up."""
    models = {**MODELS, "max_items": 16, "popularity": {"half_life_s": 60.0}}
    settings = settings_of(serving=SERVING, models=models)
    monkeypatch.setattr(replay_module, "PAST_EVENTS", 30)
    both = []
    for most in (10**9, 1):
        monkeypatch.setattr(replay_module, "MOST_ITEMS", most)
        replay = FeatureReplay(settings.models, settings.serving, capacity=7)
        both.append(replayed(settings, seed=4, n=150, items=80, replay=replay).replay)
    unbounded, bounded = both
    found, expected = bounded.examples(), unbounded.examples()
    assert len(found) == len(expected) == 7
    for n in range(7):
        assert as_served(found, n)[:3] == as_served(expected, n)[:3]
        names = [examples.item_ids[examples.target_items[n]] for examples in (found, expected)]
        assert names[0] == names[1]
    assert len(bounded._codes.ids) < len(unbounded._codes.ids)


def test_a_share_of_the_events_and_those_behind_an_offset() -> None:
    settings = settings_of(serving=SERVING, models=MODELS)
    whole = replayed(settings, seed=2, n=80, items=40).replay
    half = FeatureReplay(settings.models, settings.serving, capacity=400, share=0.5)
    replayed(settings, seed=2, n=80, items=40, replay=half)
    assert 0.3 < len(half) / len(whole) < 0.7
    late = FeatureReplay(settings.models, settings.serving, capacity=400, sample_from=20)
    replayed(settings, seed=2, n=80, items=40, replay=late)
    assert 0 < len(late) < len(whole)
    assert late.examples().offsets.min() >= 20
    assert late.items.digest() == whole.items.digest()


def test_a_forgotten_user_is_a_new_one() -> None:
    settings = settings_of(serving=SERVING, models=MODELS)
    both = replayed(settings, seed=3, n=60, items=40)
    token = both.worker.token("u1")
    both.replay.forget_users(np.array([token], dtype=np.uint64))
    places = both.replay._pasts.add([token], np.array([0], np.int32), np.array([T0]), np.ones(1, np.bool_))
    assert places.tolist() == [-1]
