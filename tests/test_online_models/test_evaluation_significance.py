"""Tests of differences, against sums over all outcomes and against another way of resampling."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from statistics import NormalDist, quantiles

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_models import CoVisitation, DecayedPopularity
from online_models.evaluation.comparison import compare
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import prequential
from online_models.evaluation.results import summarise
from online_models.evaluation.significance import mcnemar, paired_bootstrap


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_sums_all_outcomes_that_are_as_extreme(one: int, other: int) -> None:
    n = one + other
    extreme = [k for k in range(n + 1) if abs(2 * k - n) >= abs(one - other)]
    expected = Fraction(sum(math.comb(n, k) for k in extreme), 2**n)
    assert mcnemar(one, other) == pytest.approx(float(expected))
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_of_many_is_chi_squared_with_continuity_correction() -> None:
    statistic = (abs(600 - 700) - 1) ** 2 / 1300
    assert mcnemar(600, 700) == pytest.approx(2 * (1 - NormalDist().cdf(math.sqrt(statistic))))
    exact = 2 * sum(math.comb(1300, k) for k in range(601)) / 2**1300
    assert mcnemar(600, 700) == pytest.approx(exact, rel=0.02)
    assert mcnemar(5000, 5000) == 1.0
    assert mcnemar(9000, 1000) < 1e-300


def test_the_two_ways_meet_where_one_gives_way_to_the_other() -> None:
    exact = 2 * sum(math.comb(1001, k) for k in range(461)) / 2**1001
    assert mcnemar(460, 540) == pytest.approx(2 * sum(math.comb(1000, k) for k in range(461)) / 2**1000)
    assert mcnemar(460, 541) == pytest.approx(exact, rel=0.02)


def test_the_bootstrap_equals_another_resampling_of_users() -> None:
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    difference = rng.normal(0.1, 0.3, len(user)) + rng.normal(0, 0.2, 40)[user]
    groups = [difference[user == u].tolist() for u in range(40)]
    draw, means = random.Random(1), []
    for _ in range(4000):
        drawn = [value for _ in groups for value in groups[draw.randrange(40)]]
        means.append(sum(drawn) / len(drawn))
    cuts = quantiles(means, n=40)
    low, high = paired_bootstrap(difference, user, samples=4000, seed=5)
    assert low == pytest.approx(cuts[0], abs=0.01)
    assert high == pytest.approx(cuts[-1], abs=0.01)


def test_with_an_event_a_user_the_interval_is_the_normal_one() -> None:
    difference = np.random.default_rng(0).normal(0.02, 0.5, 3000)
    low, high = paired_bootstrap(difference, np.arange(3000), samples=2000)
    half = 1.96 * difference.std() / math.sqrt(3000)
    assert low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.1 * half)


def test_events_of_one_user_are_not_independent() -> None:
    user = np.repeat(np.arange(20), 50)
    difference = np.random.default_rng(1).normal(0, 1, 20)[user]
    low, high = paired_bootstrap(difference, user)
    alone = paired_bootstrap(difference, np.arange(1000))
    assert high - low > 4 * (alone[1] - alone[0])


def test_the_bootstrap_is_seeded_and_has_numbers_for_nothing() -> None:
    difference, user = np.random.default_rng(2).normal(0, 1, 50), np.arange(50) // 2
    assert paired_bootstrap(difference, user, seed=1) == paired_bootstrap(difference, user, seed=1)
    assert paired_bootstrap(difference, user, seed=1) != paired_bootstrap(difference, user, seed=2)
    assert paired_bootstrap(np.zeros(0), np.zeros(0, dtype=np.int32)) == (0.0, 0.0)


def test_models_are_compared_event_by_event() -> None:
    rng, events = np.random.default_rng(0), []
    for user in range(60):  # each user walks along a ring: co-visitation knows the next item
        start = int(rng.integers(0, 100))
        events += [Interaction(f"u{user}", f"i{(start + step) % 100}") for step in range(8)]
    run = prequential({"popularity": DecayedPopularity(), "covisitation": CoVisitation()}, events)
    popular, ring = run.entrants
    pair = compare(run, popular, ring)
    assert (pair.model, pair.against) == ("covisitation", "popularity")
    hits = [[rank < 10 for rank in entrant.ranks] for entrant in (ring, popular)]
    assert pair.hits_only_model == sum(a and not b for a, b in zip(*hits, strict=True))
    assert pair.hits_only_against == sum(b and not a for a, b in zip(*hits, strict=True))
    figures = {model.model: model for model in summarise(run, "ring").models}
    difference = figures["covisitation"].ndcg_at_10 - figures["popularity"].ndcg_at_10
    assert pair.ndcg_difference == pytest.approx(difference)
    assert 0 < pair.interval_95[0] < difference < pair.interval_95[1]
    assert pair.p_value < 1e-6
    assert compare(run, ring, popular) == pair
