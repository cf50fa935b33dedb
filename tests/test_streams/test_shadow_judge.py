"""Two versions are counted as lists made by each alone would be: the oracle serves each version by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ranker.errors import RankerError
from serving.ranker.ranker import Ranker
from streams.answers import Answers
from streams.model_state import Trial
from streams.shadow_judge import ShadowJudge, Tally
from streams.validation import AcceptedRequest
from tests.test_serving.version_cases import successor_table, table_ranker
from tests.test_streams.test_answers import ITEMS, Answering, Lists, _request
from tests.test_streams.user_model import T0, TYPES, Ev, settings_of

TRIAL = Trial("shadow", "live", "live", "other", "other")
USERS = ["u", "v", "w"]


class Judging(Answering):
    """A worker that asks a second ranker as well."""

    def judge(self, live: Ranker, other: Ranker | None, share: float = 1.0) -> Tally:
        self.tally = Tally()
        self.shadow_judge = ShadowJudge(self.tally, self.shards, self.learner.codes)
        self.answers = Answers(
            self.settings,
            self.pipeline,
            self.shards,
            self.learner,
            self.encoder,
            "worker",
            1,
            self.shadow_judge,
        )
        self.pipeline.use(live)
        self.pipeline.use_beside(other, share)
        self.shadow_judge.begin(TRIAL)
        return self.tally

    def batch(self, taken: list[Ev], asked: list[AcceptedRequest]) -> Lists:
        lists, rows = self.answer(taken, asked)
        log = list(self.learner.log.pack(rows)) if rows is not None else []
        self.shadow_judge.collect()  # before rows change hands
        self.follow(log)
        self.commit()
        return lists


def workers(n: int) -> list[Judging]:
    made = settings_of(
        trigger={"count": 10, "coalesce_lag": 0},
        validation={"event_types": {**TYPES, "search": 1.0}},
        user_state={"seen": 4},
    )
    return [Judging(made) for _ in range(n)]


def shown(lists: list[dict[str, Any]]) -> Iterator[list[str]]:
    for one in lists:
        yield [item["item_id"] for item in one["items"]]


LIVE = table_ranker(ITEMS, successor_table(len(ITEMS), 3), "live")
OTHER = table_ranker(ITEMS, successor_table(len(ITEMS), 5), "other")

events = st.builds(
    Ev,
    user=st.sampled_from(USERS),
    event=st.just(""),
    item=st.sampled_from([*ITEMS, *ITEMS, None]),
    type=st.sampled_from(["good", "good", "half", "bad", "nothing"]),
)
batches = st.tuples(st.lists(events, max_size=12), st.lists(st.sampled_from([*USERS, None]), max_size=2))


@given(work=st.lists(batches, min_size=2, max_size=8))
@settings(deadline=None, max_examples=20)
def test_counts_are_those_of_two_workers_that_serve_one_version_each(work: list[Any]) -> None:
    both, first, second = workers(3)
    tally = both.judge(LIVE, OTHER)
    first.judge(LIVE, None)
    second.judge(OTHER, None)
    waiting: dict[str, tuple[list[str], list[str]]] = {}
    wanted = dict.fromkeys(("events", "live_hits", "other_hits", "live_only", "other_only"), 0)
    for turn, (drawn, users) in enumerate(work):
        taken = [replace(one, event=f"e{turn}-{n}", time_ms=turn) for n, one in enumerate(drawn)]
        asked = [_request(10 * turn + n, user) for n, user in enumerate(users)]
        both.batch(taken, asked)
        live, other = first.batch(taken, asked), second.batch(taken, asked)
        for one in taken:
            if one.weight > 0 and any(waiting.get(one.user, ())):  # an empty list is no comparison
                a, b = (one.item in lists for lists in waiting[one.user])
                for name, add in zip(wanted, (1, a, b, a and not b, b and not a), strict=True):
                    wanted[name] += int(add)
            key = (one.user, one.event)
            waiting[one.user] = next(shown(live[key])), next(shown(other[key]))
        for request in asked:
            user = request.request.user_id
            key = (user, request.request.request_id)
            if user is not None and any(key in lists for lists in (live,)) and user in waiting:
                waiting[user] = next(shown(live[key])), next(shown(other[key]))
    stats = tally.stats
    assert stats is not None
    assert {name: getattr(stats, name) for name in wanted} == wanted
    assert stats.failed is None


def chain(length: int, step: int, start: int = 0) -> list[Ev]:
    """One user's walk: each item `step` places after the one before."""
    return [Ev("u", f"e{n}", time_ms=n, item=ITEMS[(start + n * step) % len(ITEMS)]) for n in range(length)]


def test_the_version_that_knows_what_comes_next_wins() -> None:
    """Users walk in steps of 5, which OTHER knows; with 16 items of which 10 are shown, and 4 seen."""
    [worker] = workers(1)
    table = successor_table(len(ITEMS), 5)
    worst = table_ranker(ITEMS, -table, "live")
    tally = worker.judge(worst, OTHER)
    for event in chain(40, 5):
        worker.batch([event], [])
    stats = tally.stats
    assert stats is not None
    assert stats.events == 35, "there is nothing to list before the user has seen more than is kept in mind"
    assert stats.other_hits == 39 - 15, "the first round meets items that nobody has used yet"
    assert stats.other_only - stats.live_only > 10
    assert stats.other_ndcg_sum == pytest.approx(39 - 15), "on the first place each time"


def test_a_share_of_the_queries_is_asked() -> None:
    [worker] = workers(1)
    tally = worker.judge(LIVE, OTHER, share=0.25)
    for start in range(0, 400, 10):
        worker.batch(chain(400, 3)[start : start + 10], [])
    stats = tally.stats
    assert stats is not None
    assert 60 < stats.scored < 140
    assert 0 <= stats.scored - stats.events <= 1, "each list is judged by the event that follows it"


def test_a_ranker_that_fails_is_told_and_serving_goes_on() -> None:
    [worker] = workers(1)
    broken = table_ranker(ITEMS, np.full((18, 18), np.nan, np.float32), "other")
    tally = worker.judge(LIVE, broken)
    lists = [worker.batch([event], []) for event in chain(6, 3)]
    assert tally.stats is not None
    assert "scores are not finite" in str(tally.stats.failed)
    assert tally.stats.events == 0
    assert all(one["ranker"] == "live" and not one["degraded"] for made in lists for [one] in made.values())
    with pytest.raises(RankerError):
        broken.score([["item-1"]], [["item-2"]])


def test_another_trial_begins_from_nothing() -> None:
    [worker] = workers(1)
    tally = worker.judge(LIVE, OTHER)
    for event in chain(10, 3):
        worker.batch([event], [])
    assert tally.stats is not None
    before = tally.stats.events
    assert before > 0
    worker.shadow_judge.begin(TRIAL)
    assert tally.stats.events == before, "the same trial goes on"
    worker.shadow_judge.begin(replace(TRIAL, other="third", other_digest="third"))
    assert tally.stats.events == 0
    worker.batch([Ev("u", "later", item=ITEMS[0], time_ms=T0)], [])
    assert tally.stats.events == 0, "lists of the trial before say nothing of this one"
    worker.shadow_judge.begin(None)
    assert tally.taken() is None
