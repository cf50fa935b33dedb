"""Parts of the judged events and paired figures of them, counted another way; ties and NaN in any place."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import CoVisitation, DecayedPopularity
from online_models.evaluation import kernels, metrics
from online_models.evaluation.comparison import compare, paired
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import prequential
from online_models.evaluation.results import summarise
from online_models.evaluation.significance import mcnemar
from online_models.evaluation.slices import slices


def stream(n: int = 300, users: int = 25, items: int = 40, seed: int = 0) -> list[Interaction]:
    rng = np.random.default_rng(seed)
    who, what = rng.integers(0, users, n), np.minimum(rng.geometric(0.08, n), items)
    return [Interaction(f"u{u}", f"i{i}") for u, i in zip(who.tolist(), what.tolist(), strict=True)]


def test_parts_equal_counting_before_every_event() -> None:
    events = stream()
    run = prequential({"p": DecayedPopularity()}, events)
    users, items, had, expected = Counter[str](), Counter[str](), set(), {}
    for place, (user, item, *_) in enumerate(events):
        if (user, item) not in had:
            ahead = sum(count > items[item] for count in items.values())
            popular = items[item] > 0 and ahead < len(items) / 10
            expected[place] = (users[user], items[item], popular)
        users[user] += 1
        items[item] += 1
        had.add((user, item))
    places = np.array(list(expected))
    history, exposures, popular = (np.array(column) for column in zip(*expected.values(), strict=True))
    assert run.event.tolist() == places.tolist()
    found = slices(run, searched=60)
    wanted = {
        ("user_events", "first 1"): history == 0,
        ("user_events", "first 5"): history < 5,
        ("item_exposures", "0"): exposures == 0,
        ("item_exposures", "0-4"): exposures < 5,
        ("item_popularity", "top 10%"): popular,
        ("item_popularity", "other 90%"): ~popular,
        ("stream", "last 70%"): places >= 90,
        ("search", "searched on"): places < 60,
        ("search", "after it"): places >= 60,
    }
    for (kind, name), chosen in wanted.items():
        assert found[kind][name].tolist() == chosen.tolist(), (kind, name)
        assert 0 < chosen.sum() < len(places), "a part that is empty or whole shows nothing"
    figures = summarise(run, "s", searched=60, parameters={"p": {"half_life_s": 5.0}})
    assert figures.searched_on_events == 60
    assert figures.models[0].parameters == {"half_life_s": 5.0}
    hit = run.ranks(run.entrants[0])[history == 0] < 10
    assert figures.models[0].slices["user_events"]["first 1"].hr_at_10 == pytest.approx(hit.mean())
    assert "search" not in summarise(run, "s").models[0].slices


def test_first_events_and_stretches_are_paired() -> None:
    run = prequential({"p": DecayedPopularity(), "c": CoVisitation()}, stream(600, seed=4))
    pair = compare(run, *run.entrants, window=100)
    hits = {entrant.name: run.ranks(entrant) < 10 for entrant in run.entrants}
    ours, theirs = hits[pair.model], hits[pair.against]
    first = [k for k, before in enumerate(run.history) if before == 0]
    assert pair.first_events.judged == len(first) == 25
    assert pair.first_events.hits_only_model == sum(ours[k] and not theirs[k] for k in first)
    assert pair.first_events.hits_only_against == sum(theirs[k] and not ours[k] for k in first)
    won = lost = 0
    for start in range(0, len(ours), 100):
        stretch = slice(start, start + 100)
        only = sum(a and not b for a, b in zip(ours[stretch], theirs[stretch], strict=True))
        other = sum(b and not a for a, b in zip(ours[stretch], theirs[stretch], strict=True))
        won += mcnemar(only, other) < 0.05 and only > other
        lost += mcnemar(only, other) < 0.05 and only < other
    assert (pair.windows, pair.windows_model, pair.windows_against) == (-(-len(ours) // 100), won, lost)


def test_a_part_without_events_is_no_difference() -> None:
    nothing = np.zeros(0, dtype=np.bool_)
    assert (paired(nothing, nothing).hr_difference, paired(nothing, nothing).p_value) == (0.0, 1.0)


def rank(scores: np.ndarray, target: int) -> tuple[int, int, int]:
    n = len(scores)
    above, tied, _, bad = kernels.rank_target(
        scores, np.zeros(n, dtype=np.int32), False, np.zeros(0, dtype=np.int32), target,
        np.zeros(n, dtype=np.bool_), np.zeros(10, dtype=np.int32),
    )  # fmt: skip
    return above, tied, bad


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=50), st.data())
@settings(max_examples=100, deadline=None)
def test_ties_get_half_of_what_an_order_by_chance_gives_or_takes(
    values: list[int], data: st.DataObject
) -> None:
    scores = np.array(values, dtype=np.float32)
    target = data.draw(st.integers(0, len(values) - 1))
    above, tied, bad = rank(scores, target)
    assert bad == -1
    best, worst = above, above + tied  # the target before all that are tied with it, and behind them all
    order = sorted(range(len(values)), key=lambda k: (-scores[k], k != target))
    assert order.index(target) == best
    order = sorted(range(len(values)), key=lambda k: (-scores[k], k == target))
    assert order.index(target) == worst
    half = np.array([above + tied / 2.0])
    assert half[0] == (best + worst) / 2
    gained = [metrics.gains(np.array([float(r)]))[0] for r in (worst, half[0], best)]
    assert gained == sorted(gained)


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=50),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_a_score_that_is_not_finite_is_found_wherever_it_is(
    values: list[float], broken: float, data: st.DataObject
) -> None:
    scores = np.array(values, dtype=np.float32)
    place, target = (data.draw(st.integers(0, len(values) - 1)) for _ in range(2))
    scores[place] = broken
    assert rank(scores, target)[2] == place
