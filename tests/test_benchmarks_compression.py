"""The arithmetic of the compression table, and the whole of it in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.compression import as_text, goal_met, log_of, main
from serving.training.compress import Candidate
from streams.datasets import load_dataset

SMALLER = Candidate(
    "int8_static", 30, 0.1, size_ratio=0.3, latency_ratio=1.1, ndcg_loss=0.001, low=-0.004, high=0.006
)


def test_the_goal_is_three_times_smaller_or_twice_as_fast_at_under_a_percent_lost() -> None:
    assert goal_met(SMALLER)
    assert not goal_met(replace(SMALLER, size_ratio=0.34))
    assert goal_met(replace(SMALLER, size_ratio=0.34, latency_ratio=0.5))
    assert not goal_met(replace(SMALLER, high=0.01))
    assert not goal_met(Candidate("pruned", 0, 0.0, size_ratio=0.1, verdict="could not be made: because"))


def test_the_table_says_what_was_measured_and_what_could_not_be_made() -> None:
    text = as_text([SMALLER, Candidate("pruned", 0, 0.0, verdict="could not be made: because")])
    assert "| int8_static | 0 kB | 3.33 x | 0.91 x | 0.1000 | +0.10 % | -0.40 to +0.60 % | met |" in text
    assert "| pruned | could not be made: because | | | | | | |" in text


def test_a_log_is_in_order_of_time() -> None:
    log = log_of(load_dataset("synthetic"), 500)
    times_ms = log.column("time_ms").tolist()
    assert len(log) == 500
    assert times_ms == sorted(times_ms)
    assert len(set(log.column("item").tolist())) == len(log.item_ids)


@pytest.mark.slow
def test_every_graph_is_made_and_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--small", "--results", str(tmp_path)], catch_exceptions=False)
    rows = json.loads((tmp_path / "compression.json").read_text("utf-8"))["rows"]
    assert [row["kind"] for row in rows] == [
        "fp32", "int8_rows", "int8_dynamic", "int8_static", "fp16", "pruned", "distilled",
    ]  # fmt: skip
    assert all(row["size_bytes"] > 0 for row in rows), done.output
    assert all(row["size_ratio"] < 1.0 for row in rows[1:])
