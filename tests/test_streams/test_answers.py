"""Lists made for a whole batch at once are those that one event after the other would have got, and judge the
next event as those would have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.catalogue import Catalogue
from serving.list_encoding import ListEncoder
from serving.pipeline import Pipeline
from streams.answers import Answers
from streams.events import Request
from streams.learner import joined
from streams.learning_log import Interactions
from streams.source import Source
from streams.validation import AcceptedRequest
from tests.test_streams.user_model import T0, TYPES, Ev, Worker, check_table, live_users, settings_of

USERS = ["u", "v", "w", "x"]
ITEMS = [f"item-{n}" for n in range(16)]
FIGURES = ("evaluated", "hits_at_10", "ndcg_at_10_sum", "popularity_hits_at_10", "popularity_ndcg_at_10_sum")
COUNTS = ("accepted", "duplicate", "recommendations", "requests", "degraded")
WHEN = ("latency_ms", "generated_at")

Lists = dict[tuple[str, str], list[dict[str, Any]]]
"""By user and event or request, in their order."""


class Behind:
    """Where a worker reads, as far as lists want to know it."""

    def __init__(self, records: int = 0) -> None:
        self._records = records

    def lag(self) -> tuple[int, float]:
        return self._records, 0.0


class Answering(Worker):
    """A worker that makes lists, too."""

    def _join(self) -> None:
        super()._join()
        if not hasattr(self, "pipeline"):
            catalogue = Catalogue(self.items.items)
            self.pipeline = Pipeline(self.items, catalogue, self.settings.serving)
            self.encoder = ListEncoder(self.items.items, catalogue)
        self.answers = Answers(
            self.settings, self.pipeline, self.shards, self.learner, self.encoder, "worker", 1
        )

    def answer(
        self, events: Sequence[Ev], requests: Sequence[AcceptedRequest] = (), *, behind: int = 0
    ) -> tuple[Lists, Interactions | None]:
        """One batch as the worker's loop takes it: the lists by (user, event or request), and what goes into
        the learning log."""
        batch = self.admit(events)
        batch.requests = list(requests)
        learned: list[Interactions] = []
        for wave, chosen in self.answers.waves(batch, cast(Source, Behind(behind))):
            learned.append(self.learner.learn(batch, wave, listed=not learned))
            self.answers.ask(batch, chosen)
        made = [self.answers.to_events(batch, self.offset), self.answers.to_requests(batch.requests, 0)]
        return _told(*(records.values for records in made if records is not None)), joined(learned)

    def follow(self, log: Iterable[bytes]) -> None:
        super().follow(log)
        self.pipeline.rows_changed(np.arange(len(self.items.items), dtype=np.int32))

    def tighten(self) -> None:
        """Leave the pools no more room than they need now: whatever grows makes room first."""
        for which, prefix in enumerate(("recent", "seen", "dedupe")):
            room = int(self.users._fixed["ends"][which] + self.users._fixed["headroom"][which])
            for name, pool in self.users._pools.items():
                if name.startswith(prefix):
                    pool.resize(min(room, len(pool)), refcheck=False)
        self.users.users = self.users._view()


def _told(*values: Sequence[bytes | None]) -> Lists:
    found: Lists = {}
    for value in [one for part in values for one in part]:
        one = {k: v for k, v in json.loads(value or b"").items() if k not in (*WHEN, "online_offset")}
        found.setdefault((one["user_id"], one["event_id"] or one["request_id"]), []).append(one)
    return found


def _state(worker: Worker) -> dict[Any, Any]:
    """All users but for their tokens, which are random."""
    return {key: {**user, "token": ""} for key, user in live_users(worker.users).items()}


def _figures(worker: Worker, partition: int) -> list[Any]:
    return [getattr(worker.shards[partition].stats, name) for name in FIGURES]


def _request(number: int, user: str | None, **fields: Any) -> AcceptedRequest:
    request = Request(request_id=f"r{number}", user_id=user, **fields)
    return AcceptedRequest(request, 0, 0, T0, 0)


events = st.builds(
    Ev,
    user=st.sampled_from(USERS),
    event=st.integers(0, 90).map(lambda n: f"e{n}"),
    time_ms=st.integers(0, 1000),
    item=st.sampled_from([*ITEMS, *ITEMS, None]),
    type=st.sampled_from(["good", "good", "good", "half", "bad", "nothing"]),
    partition=st.sampled_from([0, 0, 1]),
).map(lambda one: replace(one, event=f"{one.event}-{one.partition}"))
requests = st.tuples(
    st.none() | st.sampled_from([*USERS, "stranger"]),
    st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers(1, 12),
            "candidates": st.lists(st.sampled_from([*ITEMS, "unknown-1", "unknown-2"]), max_size=6),
            "exclude": st.lists(st.sampled_from(ITEMS), max_size=6),
        },
    ),
)
batches = st.tuples(
    st.lists(events, max_size=40),
    st.lists(requests, max_size=3),
    st.sampled_from(["", "", "move", "restart", "expire", "tighten"]),
)
caps = st.fixed_dictionaries(
    {"recent": st.integers(1, 9), "seen": st.integers(1, 12), "dedupe_entries": st.integers(1, 60)}
)
counts = st.sampled_from([1, 3, 10, 14])


def _workers(limits: dict[str, int], count: int, n: int) -> list[Answering]:
    return [
        Answering(
            settings_of(
                user_state=limits,
                trigger={"count": count, "coalesce_lag": 1},
                validation={"event_types": {**TYPES, "search": 1.0}},
            )
        )
        for _ in range(n)
    ]


def _between(worker: Answering, what: str) -> None:
    if what == "move":
        worker.move(0)
    elif what == "restart":
        worker.restart()
    elif what == "expire":
        worker.users.expire(0, 1000, T0 + 500)


def _one_by_one(worker: Answering, taken: Sequence[Ev]) -> Lists:
    lists: Lists = {}
    for event in taken:
        for key, made in worker.answer([event])[0].items():
            lists.setdefault(key, []).extend(made)
        worker.commit()
    return lists


def _show_all(worker: Worker, state: dict[tuple[int, str], dict[str, Any]]) -> None:
    """Every user has the list last shown that `state` says."""
    for (partition, user), known in state.items():
        row = worker.users.row(user, partition)
        codes = worker.users.items.codes_of([item.encode() for item in known["last_list"]], ensure=True)
        worker.users.make_room()
        worker.users.users.last_list[row] = -1
        worker.users.users.last_list[row, : len(codes)] = codes


@given(limits=caps, count=counts, work=st.lists(batches, min_size=2, max_size=6))
@settings(deadline=None, max_examples=60)
def test_a_batch_at_once_and_one_event_after_the_other_are_the_same(
    limits: dict[str, int], count: int, work: list[Any]
) -> None:
    whole, single = _workers(limits, count, 2)
    for turn, (taken, asked, between) in enumerate(work):
        wanted = [_request(1000 * turn + n, user, **fields) for n, (user, fields) in enumerate(asked)]
        if between == "tighten":
            whole.tighten()
        lists, rows = whole.answer(taken, wanted)
        assert lists == _one_by_one(single, taken) | single.answer([], wanted)[0]
        log = list(whole.learner.log.pack(rows)) if rows is not None else []
        for worker in (whole, single):
            worker.follow(log)
            worker.commit()
            _between(worker, between)
        check_table(whole.users, (limits["recent"], limits["seen"], limits["dedupe_entries"]))
        assert _state(whole) == _state(single)
    for p in range(2):
        stats = [worker.shards[p].stats for worker in (whole, single)]
        for name in COUNTS:
            assert getattr(stats[0], name) == getattr(stats[1], name), name
        assert _figures(whole, p) == [pytest.approx(value, rel=1e-9) for value in _figures(single, p)]


@given(limits=caps, count=counts, work=st.lists(st.lists(events, max_size=40), min_size=2, max_size=5))
@settings(deadline=None, max_examples=40)
def test_far_behind_only_the_newest_event_of_a_user_gets_the_list_that_it_would_have_got(
    limits: dict[str, int], count: int, work: list[list[Ev]]
) -> None:
    behind, single, judge = _workers(limits, count, 3)
    for taken in work:
        lists, rows = behind.answer(taken, behind=2)
        expected = _one_by_one(single, taken)
        assert all(made[-1] == expected[key][-1] for key, made in lists.items())
        judge.take(taken)
        for worker in (behind, single, judge):
            worker.follow(list(behind.learner.log.pack(rows)) if rows is not None else [])
        assert _state(behind) == _state(single)
        _show_all(judge, _state(behind))
        behind.commit()
        judge.commit()
    for p in range(2):
        stats = behind.shards[p].stats
        assert stats.recommendations + stats.coalesced == stats.accepted == single.shards[p].stats.accepted
        assert _figures(behind, p) == _figures(judge, p)


def test_event_types_are_told_by_the_codes_of_the_users_held_now() -> None:
    """A worker that restores other users may meet as many types that the settings don't name, but others."""
    worker = Answering(settings_of())
    worker.users.kinds.codes_of([b"of another partition"], ensure=True)
    worker.answer([Ev("u", "e1", 1, "item-1", "good", 0)])
    assert worker.pipeline.event_types[-1] == "of another partition"
    worker.restart()
    worker.users.kinds.codes_of([b"of this one"], ensure=True)
    worker.answer([Ev("u", "e2", 2, "item-2", "good", 0)])
    assert worker.pipeline.event_types[-1] == "of this one"
