"""Slices, intervals and coverage by known answers; and that each of them can refuse, with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_models.evaluation.significance import paired_bootstrap
from serving.ranker.ranker import Ranker
from serving.registry.manifest import GateReport
from serving.training.examples import Examples
from serving.training.gate import Judged, gate
from serving.training.gate_ranks import Catalogue, Ranking
from serving.training.gate_slices import compared, coverage, gains, parts_of, score_of, slice_scores
from serving.training.settings import GateSettings
from tests.test_serving.gate_cases import examples_of, feature_ranker, slice_of
from tests.test_serving.version_cases import successor_table, table_ranker

ITEMS = 40
IDS = [f"i{n}" for n in range(ITEMS)]
USED_OFTEN = dict.fromkeys(IDS, 9.0)


def ranking(ranks: Sequence[float], top: Sequence[Sequence[int]] = ()) -> Ranking:
    listed = np.full((len(ranks), 10), -1, dtype=np.int64)
    for row, items in enumerate(top):
        listed[row, : len(items)] = items
    return Ranking(np.array(ranks, dtype=np.float64), listed)


def test_gains_and_scores_are_those_of_their_definition() -> None:
    ranks = np.array([0.0, 2.0, 9.5, 10.0, np.inf])
    np.testing.assert_allclose(gains(ranks), [1.0, 0.5, 1 / np.log2(11.5), 0.0, 0.0])
    assert score_of(ranks).hr_at_10 == pytest.approx(0.6)
    assert score_of(ranks).ndcg_at_10 == pytest.approx((1.5 + 1 / np.log2(11.5)) / 5)
    assert score_of(np.empty(0)).ndcg_at_10 == 0.0


def test_the_interval_of_two_users_ends_where_one_is_drawn_alone() -> None:
    """Drawn means are user 0's (a quarter), user 1's (a quarter) or that of all three events."""
    found = compared(
        np.array([0.0, 0.0, 2.0]), np.array([np.inf, 2.0, 2.0]), np.array([4, 4, 7]), "x", 2000, 0
    )
    assert found.ndcg_gain == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert found.low == 0.0
    assert found.high == pytest.approx(0.75)


@given(st.integers(0, 1000))
def test_the_interval_is_the_evaluators(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, other = rng.integers(0, 14, (2, 30)).astype(np.float64)
    users = rng.integers(0, 9, 30).astype(np.int64)
    found = compared(own, other, users, "x", 300, seed)
    expected = paired_bootstrap(gains(own) - gains(other), users, 300, seed)
    np.testing.assert_allclose((found.low, found.high), expected)


def test_parts_are_told_by_what_came_before() -> None:
    """Histories of 0, 5, 6 and 25 events; items 0 and 1 are rare, item 2 is unknown, item 3 common."""
    newest = slice_of([[0], [*range(4, 9), 1], [*range(4, 10), 3], [*range(4, 29), 2]], ITEMS)
    counts = {"i0": 4.0, "i1": 1.0, "i3": 5.0}
    parts = parts_of(Catalogue(newest, [table_ranker(IDS, successor_table(ITEMS, 1))], 10**6), counts)
    assert {name: np.flatnonzero(chosen).tolist() for name, chosen in parts.items()} == {
        "new_users": [0, 1],
        "new_items": [0, 1, 3],
        "history_0": [0],
        "history_1_5": [1],
        "history_6_20": [2],
        "history_21_50": [3],
        "history_51_up": [],
    }


def test_slices_hold_every_contestants_mean() -> None:
    parts = {"some": np.array([True, False, True]), "none": np.zeros(3, dtype=np.bool_)}
    rankings = {"challenger": ranking([0.0, 0.0, 2.0]), "popularity": ranking([np.inf, 0.0, 0.0])}
    some, none = slice_scores(parts, rankings)
    assert (some.events, some.challenger, some.popularity, some.champion) == (2, 0.75, 0.5, None)
    assert (none.events, none.challenger, none.popularity) == (0, None, None)


def test_coverage_counts_distinct_items() -> None:
    assert coverage(ranking([0.0, 0.0], [[3, 1], [1, 5, 3]])) == 3
    assert coverage(ranking([])) == 0


BARS = GateSettings(bootstrap_samples=200, min_slice_events=3, ndcg_tolerance=2.0)
LOSING = msgspec.structs.replace(BARS, min_ndcg_gain=-2.0)
"""Lets what loses to all others pass, so that a test sees the other bars."""
COVERING_LESS = msgspec.structs.replace(BARS, max_loss_coverage=1.0)


def decided(
    challenger: Ranker,
    champion: Ranker | None = None,
    *,
    histories: Sequence[Sequence[int]],
    popularity: dict[str, float] | None = None,
    examples: Examples | None = None,
    parity: float = 1e-6,
    precision: str = "fp32",
    weights: dict[str, npt.NDArray[np.float32]] | None = None,
    bars: GateSettings = BARS,
) -> GateReport:
    newest = slice_of(histories, ITEMS)
    judged = Judged(newest, USED_OFTEN if popularity is None else popularity, examples)
    return gate(challenger, champion, judged, bars, parity, precision=precision, weights=weights)


ONE_ON = table_ranker(IDS, successor_table(ITEMS, 1), fused=False)
"""Knows that item n + 1 follows item n."""
LONG = [[*range(n, n + 8)] for n in range(20)]
"""Users of eight events, each item following the one before."""
SHORT = [[n, n + 1] for n in range(5)]


def without(columns: Sequence[int]) -> Ranker:
    """As `ONE_ON`, with the lowest scores for some items."""
    table = successor_table(ITEMS, 1)
    table[:, 1 + np.array(columns)] = -1.0
    return table_ranker(IDS, table, fused=False)


def test_what_new_items_lose_is_refused_with_its_numbers() -> None:
    rare = {**USED_OFTEN, "i7": 4.0, "i8": 0.0, "i9": 1.0}
    report = decided(without([7, 8, 9]), ONE_ON, histories=LONG, popularity=rare, bars=LOSING)
    assert [reason for reason in report.reasons if "distinct" not in reason] == [
        "NDCG@10 of new items falls from 1.0000 (champion) to 0.0000 on 3 events; at most 0.02 may be lost"
    ]
    bars = msgspec.structs.replace(LOSING, max_loss_new_items=1.0, max_loss_coverage=1.0)
    lenient = decided(without([7, 8, 9]), ONE_ON, histories=LONG, popularity=rare, bars=bars)
    assert lenient.accepted, lenient.reasons


def test_what_new_users_lose_is_refused_and_too_few_of_them_decide_nothing() -> None:
    """A user's second item is one of 1 to 5, which the challenger ranks lowest."""
    bars = msgspec.structs.replace(LOSING, max_loss_coverage=1.0)
    report = decided(without(range(1, 6)), ONE_ON, histories=LONG + SHORT, bars=bars)
    assert report.reasons == (
        "NDCG@10 of new users falls from 1.0000 (champion) to 0.0000 on 5 events; at most 0.02 may be lost",
    )
    more = msgspec.structs.replace(bars, min_slice_events=6)
    assert decided(without(range(1, 6)), ONE_ON, histories=LONG + SHORT, bars=more).accepted


def test_lists_of_few_items_are_refused() -> None:
    """The challenger lists the same ten items for everybody, the champion what follows too."""
    table = successor_table(ITEMS, 1)
    table[:, 31:41] += 50.0
    report = decided(table_ranker(IDS, table, fused=False), ONE_ON, histories=LONG, bars=LOSING)
    assert report.coverage["challenger"] == 10
    assert report.reasons == (
        f"the lists of ten hold 10 distinct items, those of champion {report.coverage['champion']}; at most "
        "30% may be lost",
    )


def test_the_interval_must_lie_above_the_tolerance() -> None:
    """One of twenty users gains all that there is, and one loses it: the mean gain is a little above 0."""
    champion = without([8])
    worse = without([9])
    strict = msgspec.structs.replace(COVERING_LESS, ndcg_tolerance=0.01)
    report = decided(worse, champion, histories=[*LONG, LONG[1]], bars=strict)
    against = report.comparisons[-1]
    assert against.ndcg_gain == pytest.approx(1 / 21)
    assert against.low < -0.01
    assert report.reasons == (
        f"NDCG@10 is +0.0476 against champion on 21 events (95 % {against.low:+.4f} to {against.high:+.4f}); "
        "more than +0.0000 is asked for, and an interval above -0.0100",
    )
    assert decided(worse, champion, histories=[*LONG, LONG[1]], bars=COVERING_LESS).accepted


def test_the_online_blend_must_be_beaten_where_lists_are_known() -> None:
    newest = slice_of(LONG, ITEMS)
    lists = [[history[-1], *range(30, 40)] for history in LONG]
    right, wrong = [[1.0, *[0.0] * 10]] * 20, [[0.0, *range(1, 11)]] * 20
    fused = feature_ranker(IDS)
    good = decided(
        fused, histories=LONG, examples=examples_of(newest, lists, wrong, right), bars=COVERING_LESS
    )
    assert good.accepted, good.reasons
    assert good.judged_on == "lists"
    assert good.online is not None
    assert good.online.ndcg_at_10 == 0.0
    bad = decided(
        fused, histories=LONG, examples=examples_of(newest, lists, right, wrong), bars=COVERING_LESS
    )
    assert any("-1.0000 against online on 20 events" in reason for reason in bad.reasons)
    assert bad.figures()["gain_against_online"] == -1.0


def test_a_fused_ranker_without_lists_is_not_judged() -> None:
    report = decided(ONE_ON, feature_ranker(IDS, "v7"), histories=LONG, bars=LOSING)
    assert report.reasons[0].startswith(
        "v7 reads the online models' features, and none of the 20 newest events"
    )


def test_numbers_that_are_none_are_refused_wherever_they_stand() -> None:
    broken = {"bias": np.array([0.0, np.nan], np.float32), "table": np.ones((2, 2), np.float32)}
    report = decided(ONE_ON, histories=LONG, weights=broken)
    assert report.reasons == ("weights: 1 of 2 numbers of bias are not finite",)
    table = successor_table(ITEMS, 1)
    table[9, 12] = np.nan  # after item 8, of item 11
    report = decided(table_ranker(IDS, table, fused=False), histories=LONG)
    assert report.challenger is None
    assert report.reasons[0].startswith("scores: ")
    assert "not finite" in report.reasons[0]


def test_a_champion_that_gives_no_numbers_is_left_out_and_named() -> None:
    table = np.full((ITEMS + 2, ITEMS + 2), np.nan, dtype=np.float32)
    report = decided(ONE_ON, table_ranker(IDS, table, fused=False), histories=LONG)
    assert report.accepted, report.reasons
    assert report.champion is None
    assert report.notes[0].startswith("the champion is left out: ")


def test_parity_is_asked_of_full_precision_only() -> None:
    assert not decided(ONE_ON, histories=LONG, parity=0.01).accepted
    assert decided(ONE_ON, histories=LONG, parity=0.01, precision="int8").accepted
    assert not decided(ONE_ON, histories=LONG, parity=float("nan"), precision="int8").accepted


def test_a_report_survives_its_json_and_names_its_figures() -> None:
    report = decided(ONE_ON, without([8]), histories=[*LONG, *SHORT])
    assert msgspec.json.decode(msgspec.json.encode(report), type=GateReport) == report
    figures = report.figures()
    assert figures["challenger_ndcg_at_10"] == 1.0
    assert figures["new_users_events"] == 5.0
    assert figures["new_users_challenger_ndcg_at_10"] == 1.0
    assert figures["gain_against_champion"] == pytest.approx(1 / 25)
    assert figures["challenger_coverage_at_10"] == report.coverage["challenger"]
    assert "online_ndcg_at_10" not in figures
