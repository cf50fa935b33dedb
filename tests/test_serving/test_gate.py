"""The gate lets the better one through, and tells every other by how much it fell short."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from serving.ranker.ranker import Ranker
from serving.registry.manifest import GateReport
from serving.registry.store import Registry
from serving.training.dataset import LogSplit, split_by_time
from serving.training.gate import Judged, gate
from serving.training.settings import GateSettings
from serving.training.slow_path import run_slow_path
from tests.test_serving.chain import ITEMS, SETTINGS, STEP, item_name, markov_log
from tests.test_serving.ranker_cases import markov_outcome
from tests.test_serving.version_cases import successor_table, table_ranker


def judge(
    challenger: Ranker, champion: Ranker | None = None, parity: float = 1e-6, **settings: float
) -> GateReport:
    split: LogSplit = split_by_time(markov_log(), SETTINGS)
    return gate(
        challenger,
        champion,
        Judged(split.newest, split.popularity),
        msgspec.structs.replace(GateSettings(bootstrap_samples=200), **settings),
        parity,
    )


NAMES = [item_name(index) for index in range(ITEMS)]
TABLE = successor_table(ITEMS, STEP)


def chain(table: npt.NDArray[np.float32] = TABLE) -> Ranker:
    """Knows what follows each item, without training."""
    return table_ranker(NAMES, table, fused=False)


def shuffled(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).permutation(table)


def test_a_bad_challenger_is_refused_with_numbers() -> None:
    bad = chain(shuffled(TABLE))
    report = judge(bad, champion=chain())
    assert not report.accepted
    assert report.champion is not None
    assert report.challenger is not None
    assert report.champion.ndcg_at_10 > 0.6 > 0.2 > report.challenger.ndcg_at_10
    against_champion = next(c for c in report.comparisons if c.against == "champion")
    assert against_champion.low <= against_champion.ndcg_gain <= against_champion.high < 0
    assert any(
        f"{against_champion.ndcg_gain:+.4f} against champion on {report.events} events" in r
        for r in report.reasons
    )


def test_the_good_one_replaces_the_bad_one() -> None:
    bad = chain(shuffled(TABLE))
    report = judge(chain(), champion=bad)
    assert report.accepted, report.reasons
    assert all(c.low > 0 for c in report.comparisons)


def test_a_challenger_without_gain_is_refused() -> None:
    report = judge(chain(), champion=chain())
    assert report.reasons == (
        f"NDCG@10 is +0.0000 against champion on {report.events} events (95 % +0.0000 to +0.0000); "
        "more than +0.0000 is asked for, and an interval above -0.0100",
    )


def test_scores_that_are_no_numbers_are_refused_and_never_counted_as_hits() -> None:
    report = judge(chain(TABLE * np.float32(np.nan)), parity=math.nan)
    assert report.challenger is None
    assert report.parity is None
    assert any("scores are not finite" in reason for reason in report.reasons)
    assert any("differ by nan" in reason for reason in report.reasons)
    msgspec.json.decode(msgspec.json.encode(report), type=GateReport)


def test_equal_scores_for_all_items_earn_nothing() -> None:
    """200 items, at most 14 seen: with half credit for ties, the target stands near place 93."""
    report = judge(chain(np.zeros_like(TABLE)))
    assert report.challenger is not None
    assert not report.accepted
    assert report.challenger.hr_at_10 < 0.2


def test_parity_and_latency_are_asked_for() -> None:
    report = judge(chain(), parity=2e-3, latency_budget_ms=1e-6)
    assert [reason.split(" take ")[0].split(", at most")[0] for reason in report.reasons] == [
        "ONNX Runtime and PyTorch differ by 0.002",
        "16 users x 200 candidates",
    ]


def test_a_smaller_vocabulary_is_no_advantage() -> None:
    """What only the champion knows is in the catalogue, and a miss for the challenger."""
    full = chain()
    few = Ranker(full.session, full.vocabulary[:20], version="few", history_length=full.history_length)
    alone, judged = judge(few), judge(few, champion=full)
    assert alone.catalogue == 20
    assert judged.catalogue == 200
    assert judged.challenger is not None
    assert judged.challenger.hr_at_10 <= 0.2
    assert not judged.accepted


def test_pairs_are_bounded_and_the_newest_events_taken() -> None:
    report = judge(chain(), max_scored_pairs=200 * 50)
    assert report.events == 50


@pytest.mark.slow
def test_the_same_log_again_publishes_nothing_worse() -> None:
    registry, outcome = markov_outcome()
    assert outcome.published is not None
    settings = msgspec.structs.replace(SETTINGS, max_epochs=1, gate=GateSettings(min_ndcg_gain=0.5))
    again = run_slow_path(markov_log(), registry, settings, outcome.published.manifest.version)
    assert again is not None
    assert again.published is None
    assert again.champion_problem == ""
    assert again.report.champion is not None
    assert again.report.champion.ndcg_at_10 == outcome.report.challenger.ndcg_at_10  # type: ignore[union-attr]
    assert registry.list() == [outcome.published.manifest.version]


@pytest.mark.slow
def test_a_champion_that_is_gone_is_named_and_left_out() -> None:
    settings = msgspec.structs.replace(SETTINGS, max_epochs=3)
    outcome = run_slow_path(markov_log(), Registry("memory://gone"), settings, "v-gone")
    assert outcome is not None
    assert "v-gone is left out: can't read" in outcome.champion_problem
    assert outcome.report.champion is None
