from __future__ import annotations

import math

import numpy as np
import pytest

from online_models import CoVisitation, DecayedPopularity
from online_models.prequential import Interaction, evaluate


def test_a_chain_is_found_by_covisitation_and_not_by_popularity() -> None:
    rng, events = np.random.default_rng(0), []
    for user in range(150):  # each user walks 8 steps along a ring of 200 items: the next one is known
        start = int(rng.integers(0, 200))
        events += [Interaction(f"u{user}", f"i{(start + step) % 200}") for step in range(8)]
    reports = evaluate({"covisitation": CoVisitation(), "popularity": DecayedPopularity()}, events)
    assert reports["covisitation"].hr_at_10 > 0.6
    assert reports["popularity"].hr_at_10 < 0.3
    assert reports["covisitation"].judged == 1200


def test_measures_by_hand() -> None:
    events = [Interaction("a", "x"), Interaction("a", "y"), Interaction("b", "x"), Interaction("b", "y")]
    report = evaluate({"p": DecayedPopularity(half_life_s=0.0)}, events)["p"]
    # x, y unknown: two misses; then x tied with y: rank 0.5; then y alone, x masked: rank 0
    assert (report.events, report.judged, report.repeats) == (4, 4, 0)
    assert report.hr_at_10 == 0.5
    assert report.ndcg_at_10 == pytest.approx((1 / math.log2(2.5) + 1) / 4)
    assert report.mrr == pytest.approx((1 / 1.5 + 1) / 4)


def test_repeats_and_dislikes_are_learned_but_not_judged() -> None:
    model = DecayedPopularity(half_life_s=0.0)
    events = [Interaction("a", "x"), Interaction("a", "x"), Interaction("b", "y", -1.0)]
    report = evaluate({"p": model}, events)["p"]
    assert (report.events, report.judged, report.repeats) == (3, 1, 1)
    assert model.predict_one("z", "x") == 2.0
    assert model.predict_one("z", "y") == -1.0


def test_a_score_that_is_not_finite_is_an_error() -> None:
    class Broken(DecayedPopularity):
        def score_rows(self, user: str, rows: np.ndarray) -> np.ndarray:
            return np.full(len(rows), np.nan, dtype=np.float32)

    with pytest.raises(ValueError, match="Broken: score of item 'x' for user 'b' is not finite"):
        evaluate({"broken": Broken()}, [Interaction("a", "x"), Interaction("b", "x")])
