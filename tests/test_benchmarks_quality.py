"""The table of quality in small: that its rows come of the runs, and that figures are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.quality import Gaps, main, models_table
from benchmarks.quality_rows import ANCHOR, QualityRow, all_rows, quality_table, regret_row, split_rows
from benchmarks.quality_runs import EventPopularity, joined_run, rmse_of
from online_models import CoVisitation, DecayedPopularity
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.results import summarise

NAMES = {
    "single_hr", "single_ndcg", "fusion_hr", "fusion_ndcg", "fives_hr", "fives_ndcg", "first_event_fusion",
    "first_event_single", "cost", "split_a", "regret", "rmse",
}  # fmt: skip


def stream(n: int = 400, seed: int = 0) -> list[Interaction]:
    rng = np.random.default_rng(seed)
    who, what = rng.integers(0, 40, n), np.minimum(rng.geometric(0.06, n), 60)
    return [
        Interaction(f"u{u}", f"i{i}", float(r), {"weight": 1.0}, float(r))
        for u, i, r in zip(who.tolist(), what.tolist(), rng.integers(1, 6, n).tolist(), strict=True)
    ]


def test_the_small_table_has_every_row_and_goes_to_a_file(tmp_path: Path) -> None:
    arguments = ["--small", "--dataset", "synthetic", "--results", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "quality.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == NAMES - {"fives_hr", "fives_ndcg", "rmse"}
    assert all(0 <= rows[name]["reached"] <= 1 for name in ("single_hr", "fusion_hr", "split_a"))
    assert rows["single_hr"]["met"] == (rows["single_hr"]["reached"] >= 0.205)
    assert found["not_measured"] == [
        "synthetic states no ratings: no rows of ratings of 5 and of their errors"
    ]
    assert found["runs"]["all ratings"]["events"] == 1000
    assert rows["single_hr"]["by"] in result.stdout
    again = CliRunner().invoke(main, ["--render", "--results", str(tmp_path)], catch_exceptions=False)
    assert again.stdout == result.stdout


def test_rows_are_of_the_runs() -> None:
    events, failed = stream(), []  # type: ignore[var-annotated]
    made = {"covisitation": CoVisitation, "popularity": DecayedPopularity, ANCHOR: EventPopularity}
    run = joined_run("all", "prequential", made, events, failed)
    rows = {row.name: row for row in all_rows(run, run)}
    assert failed == []
    figures = {model.model: model for model in summarise(run, "s").models}
    single = max(figures["covisitation"], figures["popularity"], key=lambda model: model.ndcg_at_10)
    assert (rows["single_hr"].by, rows["single_hr"].reached) == (single.model, single.hr_at_10)
    assert rows["single_ndcg"].details["last 80%"] == round(
        figures[single.model].slices["stream"]["last 80%"].ndcg_at_10, 4
    )
    first = rows["first_event_single"]
    here, anchor = (figures[name].slices["history"]["0"].hr_at_10 for name in (first.by, ANCHOR))
    assert first.reached == pytest.approx(here - anchor)
    assert "fusion_hr" not in rows


def test_the_peers_mean_is_the_bar_of_split_a() -> None:
    made = {
        "popularity": DecayedPopularity,
        "implicit.ALS": EventPopularity,
        "implicit.ALS 1": EventPopularity,
    }
    run = joined_run("A", "last-positive-out", made, stream(), [])
    hits = {model.model: model.hr_at_10 for model in summarise(run, "s").models}
    (row,) = split_rows(run, ["implicit.ALS", "implicit.ALS 1"])
    assert row.to_reach == round((hits["implicit.ALS"] + hits["implicit.ALS 1"]) / 2, 4)
    assert (row.by, row.reached) == ("popularity", hits["popularity"])
    (alone,) = split_rows(run, [])
    assert alone.to_reach == 0.1955
    assert "not installed" in alone.details["ALS"]


def test_regret_is_the_share_of_the_best_parts_hits_that_is_lacking() -> None:
    made = {"fusion": DecayedPopularity, "part a": CoVisitation, "part b": EventPopularity}
    run = joined_run("all", "prequential", made, stream(), [])
    row = regret_row(run, {})
    assert row is not None
    hits = {entrant.name: int((run.ranks(entrant) < 10).sum()) for entrant in run.entrants}
    best = max(hits["part a"], hits["part b"])
    assert row.reached == pytest.approx((best - hits["fusion"]) / best)
    assert regret_row(joined_run("all", "prequential", {"x": CoVisitation}, stream(60), []), {}) is None


def test_the_anchor_halves_with_its_events() -> None:
    model = EventPopularity(half_life=2.0)
    for item in ("a", "b", "b", "a"):
        model.learn_one("u", item)
    assert model.predict_one("v", "a") == pytest.approx(1 + 0.5**1.5)
    assert model.predict_one("v", "b") == pytest.approx(0.5 + 0.5**0.5)
    assert model.predict_one("v", "c") == 0.0
    plain = EventPopularity(float("inf"))
    for item in ("a", "b", "b"):
        plain.learn_one("u", item)
    assert [plain.predict_one("v", item) for item in "ab"] == [1.0, 2.0]


def test_errors_of_ratings_are_taken_before_learning() -> None:
    class Last(EventPopularity):
        last = 0.0

        def predict_one(self, user: str, item: str, x: object = None) -> float:
            return self.last

        def learn_one(self, user: str, item: str, y: float = 1.0, x: object = None) -> None:
            self.last = y

    events = [Interaction("u", "a", rating, {}, rating) for rating in (3.0, 4.0, 2.0)]
    assert rmse_of({"m": Last()}, events)["m"] == pytest.approx(((9 + 1 + 4) / 3) ** 0.5)


def test_what_fails_is_named_and_the_others_go_on() -> None:
    def broken() -> DecayedPopularity:
        raise ValueError("no such thing")

    gaps = Gaps()
    run = joined_run("all", "prequential", {"x": broken, "p": DecayedPopularity}, stream(50), gaps.failed)
    assert gaps.failed == ["all, x: ValueError: no such thing"]
    assert [entrant.name for entrant in run.entrants] == ["p"]
    with pytest.raises(ValueError, match="none of x could be run"):
        joined_run("all", "prequential", {"x": broken}, stream(50), [])


def test_tables() -> None:
    made = {
        name: QualityRow(
            name="n",
            what="w",
            anchor="a",
            figure="HR@10",
            to_reach=0.2,
            better=better,
            reached=reached,
            by=name,
        )
        for name, better, reached in (("x", "higher", 0.25), ("y", "lower", 0.25), ("z", "higher", None))
    }
    lines = quality_table(list(made.values())).splitlines()
    assert [line.rpartition(" | ")[2] for line in lines[2:]] == ["yes |", "NO |", " |"]
    assert "≤ 0.2" in lines[3]
    assert "not measured" in lines[4]
    run = joined_run("all", "prequential", {"p": DecayedPopularity}, stream(80), [])
    table = models_table({"all": summarise(run, "s"), "again": summarise(run, "s")})
    figures = summarise(run, "s").models[0]
    cell = f"{figures.hr_at_10:.4f} / {figures.ndcg_at_10:.4f}"
    assert table.splitlines()[2] == f"| p | {cell} | {cell} |"
