"""The sequential comparison of two versions: its statistic by hand, and its error bounded by exact count."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ranker.settings import RankerSettings
from serving.registry.verdict import PairedCounts, log_evidence, probation_verdict, shadow_verdict

SETTINGS = RankerSettings(shadow_min_events=100, shadow_max_events=1000, probation_events=500)


def mixture(wins: int, losses: int) -> Fraction:
    """2^(N+1) times the integral of p^W (1-p)^L over [1/2, 1], by expanding (1-p)^L: exact."""
    total = Fraction(0)
    for k in range(losses + 1):
        power = wins + k + 1
        total += Fraction((-1) ** k * math.comb(losses, k), power) * (1 - Fraction(1, 2**power))
    return Fraction(2 ** (wins + losses + 1)) * total


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_evidence_is_the_mixture_s_integral(wins: int, losses: int) -> None:
    exact = mixture(wins, losses)
    expected = math.log(exact.numerator) - math.log(exact.denominator)
    assert log_evidence(wins, losses) == pytest.approx(expected, abs=1e-8)


def test_ten_wins_in_a_row_by_hand() -> None:
    """2^11 (1 - 2^-11) / 11 = 186.09."""
    assert math.exp(log_evidence(10, 0)) == pytest.approx(2047 / 11)
    assert log_evidence(0, 10) == pytest.approx(math.log(1 / 11))
    assert log_evidence(100_000, 100_000) < 0.7, "many events alike are no evidence, and overflow nothing"


@pytest.mark.parametrize("alpha", [0.1, 0.01])
@pytest.mark.parametrize("p", [0.5, 0.45])
def test_looking_at_every_event_errs_no_more_often_than_alpha(alpha: float, p: float) -> None:
    """The probability that the evidence ever passes 1/α within 400 events that favour the other or nobody, by
    exact dynamic programming over all walks."""
    alive, crossed = np.array([1.0]), 0.0
    for n in range(1, 401):
        step = np.zeros(n + 1)
        step[1:] += alive * p
        step[:-1] += alive * (1 - p)
        over = [log_evidence(wins, n - wins) >= -math.log(alpha) for wins in range(n + 1)]
        crossed += step[over].sum()
        step[over] = 0.0
        alive = step
    assert crossed <= alpha
    assert crossed > alpha / 100, "a test that never fires would pass, too"


def counts(events: int, both: int, live_only: int, other_only: int) -> PairedCounts:
    return PairedCounts(
        events=events,
        live_hits=both + live_only,
        other_hits=both + other_only,
        live_only=live_only,
        other_only=other_only,
    )


@pytest.mark.parametrize(
    ("given_counts", "outcome"),
    [
        (counts(99, 0, 0, 99), None),
        (counts(100, 10, 5, 30), "promoted"),
        (counts(100, 10, 30, 5), "dropped"),
        (counts(999, 100, 50, 50), None),
        (counts(1000, 100, 50, 50), "promoted"),
        (counts(1000, 100, 51, 50), "dropped"),
    ],
)
def test_a_shadow_ends_as_promoted_or_dropped(given_counts: PairedCounts, outcome: str | None) -> None:
    verdict = shadow_verdict(given_counts, SETTINGS)
    assert (None if verdict is None else verdict.outcome) == outcome


@pytest.mark.parametrize(
    ("given_counts", "outcome"),
    [
        (counts(99, 0, 0, 99), None),
        (counts(100, 10, 5, 30), "rolled_back"),
        (counts(100, 10, 30, 5), None),
        (counts(500, 100, 50, 51), "kept"),
        (counts(500, 10, 20, 80), "rolled_back"),
    ],
)
def test_a_probation_ends_as_kept_or_rolled_back(given_counts: PairedCounts, outcome: str | None) -> None:
    verdict = probation_verdict(given_counts, SETTINGS)
    assert (None if verdict is None else verdict.outcome) == outcome


def test_a_verdict_says_its_numbers() -> None:
    verdict = probation_verdict(counts(200, 20, 10, 60), SETTINGS)
    assert verdict is not None
    assert "HR@10 0.1500 live, 0.4000 former over 200 events" in verdict.reason
    assert "10 hits were live's alone, 60 former's" in verdict.reason


def test_counts_of_workers_add_up() -> None:
    total = counts(10, 1, 2, 3).plus(PairedCounts(events=5, live_hits=1, live_ndcg_sum=0.5))
    assert total.events == 15
    assert total.live_hits == 4
    assert total.metrics("shadow") == {
        "trial_events": 15.0,
        "live_hr_at_10": 4 / 15,
        "shadow_hr_at_10": 4 / 15,
        "live_ndcg_at_10": 0.5 / 15,
        "shadow_ndcg_at_10": 0.0,
    }
