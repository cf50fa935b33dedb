"""The benchmarks' own arithmetic, and a few rows in small: that they run and fit together, not how fast."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks.__main__ import MEASUREMENTS, NAMES, run
from benchmarks.bench import open_bench
from benchmarks.estimate import costs, needs, needs_table
from benchmarks.libraries import retrieval_rows
from benchmarks.memory import raw_user_bytes
from benchmarks.plots import line_plot
from benchmarks.profile import function_table, parse
from benchmarks.report import DOCUMENT, Goal, put_into, row_of, table
from benchmarks.soak import Generations, slope_per_s
from benchmarks.workloads import Stream
from streams.events import Event
from streams.settings import Settings, ValidationSettings

SMALL = ("learn", "lists_online", "latency_500_p50", "latency_500_p99")


def test_a_stream_is_the_same_each_time_and_has_the_shape_of_events() -> None:
    stream = Stream(500, 50, 30)
    records = list(stream.records())
    assert records == list(stream.records())
    assert len({msgspec.json.decode(value, type=Event).event_id for _, value in records}) == 500
    assert 200 <= sum(len(value) for _, value in records) / 500 <= 300
    for key, value in records:
        event = msgspec.json.decode(value, type=Event)
        assert event.user_id.encode() == key
        assert event.item_id is not None
        assert event.event_type in ValidationSettings().weights()


def test_a_skewed_stream_has_favourites_and_an_even_one_has_none() -> None:
    def largest_share(skew: float) -> float:
        keys = [key for key, _ in Stream(5000, 500, 30, skew=skew).records()]
        return max(keys.count(key) for key in set(keys)) / len(keys)

    assert largest_share(1.5) > 0.04 > largest_share(0.0)


def test_generations_come_and_go() -> None:
    plan = Generations(count=400, users=40, items=20, stay=100)
    users = [{key for key, _ in plan.records(start, 100)} for start in range(0, plan.count, plan.stay)]
    assert not users[0] & users[2]
    assert users[0] & users[1]
    assert len(set.union(*users)) <= plan.met()["users"]
    assert list(plan.records(0, 400)) == [r for start in (0, 200) for r in plan.records(start, 200)]


def test_a_row_reports_the_median_of_its_rounds_and_whether_the_bar_was_met() -> None:
    rate = row_of(Goal("a", "ours", "theirs", 0.6), "events/s", [10.0, 30.0, 80.0], [20.0, 40.0, 50.0])
    assert rate.reached == 0.75
    assert rate.met
    delay = row_of(Goal("b", "ours", "theirs", 2.0, "lower"), "ms", [30.0], [10.0])
    assert delay.met is False
    open_ended = row_of(Goal("c", "ours", "theirs", None), "s", [3.0], [1.0])
    assert open_ended.met is None
    lines = table([rate, delay, open_ended]).splitlines()
    assert [line.split("|")[-2].strip() for line in lines] == ["met", "---", "yes", "NO", ""]


def test_names_of_rows_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 18
    assert len(MEASUREMENTS) <= len(NAMES)


def test_a_profile_counts_the_worker_loop_alone() -> None:
    raw = (
        "main (streams/cli.py:1);run (streams/worker.py:9);read (streams/intake.py:3) 30\n"
        "main (streams/cli.py:1);run (streams/worker.py:7) 10\n"
        "thread (threading.py:5);poll (other.py:1) 60\n"
    )
    profile = parse(raw, us_per_event=20.0)
    assert profile.samples == 40
    assert profile.total["run (streams/worker.py)"] == 40
    assert "| `read (streams/intake.py)` | 75.0% | 15.00 | 75.0% |" in function_table(profile)
    assert "poll" not in function_table(profile)


def test_the_slope_is_that_of_the_second_half() -> None:
    growing = [(float(x), 100.0 + 2.0 * x) for x in range(50)]
    assert slope_per_s(growing) == pytest.approx(2.0)
    flat_at_the_end = [(float(x), min(50.0, float(x))) for x in range(200)]
    assert slope_per_s(flat_at_the_end) == pytest.approx(0.0, abs=1e-9)


def test_a_plot_is_well_formed_and_stays_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "a.svg"
    lines = {"a < b": [(1_000.0, 3.0), (1_000_000.0, 7.5)], "c": [(1_000.0, 0.0), (10_000.0, 1.0)]}
    line_plot(file, "A title", "items", "µs", lines, log_x=True)
    root = ElementTree.fromstring(file.read_text("utf-8"))
    places = [
        tuple(map(float, point.split(",")))
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
        for point in line.attrib["points"].split()
    ]
    assert len(places) == 4
    assert all(0 <= x <= 640 and 0 <= y <= 360 for x, y in places)
    with pytest.raises(ValueError, match="nothing to plot"):
        line_plot(file, "empty", "x", "y", {"a": []})


def test_packed_arrays_of_a_user_are_counted_field_by_field() -> None:
    raw = raw_user_bytes()
    assert raw["factor"] == 256
    assert raw["seen items"] == 200
    assert sum(raw.values()) < 4096


@pytest.mark.timeout(900)  # the first worker on a fresh machine compiles its kernels
def test_rows_in_small_have_figures_that_belong_together(
    kafka: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHET_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    with open_bench(quick=True, rounds=1) as bench:
        rows, failed = run(bench, SMALL, tmp_path)
    assert not failed
    assert {row.goal.name for row in rows} == set(SMALL)
    for name in SMALL:
        stored = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
        assert math.isfinite(stored["reached"])
        assert stored["reached"] == pytest.approx(stored["ours_median"] / stored["against_median"], rel=0.02)
        assert stored["environment"]["versions"]["numpy"]
        assert stored["met"] in (True, False)


def test_the_estimate_multiplies_what_was_measured_and_leaves_out_what_was_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--only learn"):
        costs(tmp_path)
    written = {"interactions": 100.0, "user-state": 1000.0}
    learn = {"ours_median": 100_000.0, "details": {"written_bytes_an_event": written}}
    (tmp_path / "learn.json").write_text(json.dumps(learn), "utf-8")
    alone = needs(costs(tmp_path), 1_000_000.0, 1e8)
    assert [row.need for row in alone] == [
        "10 workers of one core",
        "1,000 MB/s over all partitions",
        "100 MB/s",
    ]
    items = {"details": {"whole_state_us": 2.0}}
    (tmp_path / "items.json").write_text(json.dumps(items), "utf-8")
    (tmp_path / "memory_item.json").write_text(json.dumps({"ours_median": 1000.0}), "utf-8")
    text = needs_table(needs(costs(tmp_path), 1_000_000.0, 1e8))
    assert "| applying the log, in every worker | 2.0 cores | 500,000 events/s" in text
    assert "| item state, in every worker | 100 GB | 256,000,000 items" in text


def test_a_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n", "utf-8")
    put_into(page, "table", "| new |")
    put_into(page, "table", "| newer |\n")
    assert page.read_text("utf-8") == "before\n<!-- table -->\n| newer |\n<!-- /table -->\nafter\n"
    with pytest.raises(ValueError, match="no marks"):
        put_into(page, "profile", "x")


def test_the_page_has_a_place_for_each_table() -> None:
    text = DOCUMENT.read_text("utf-8")
    for name in ("table", "profile learn", "profile lists", "profile ranker", "estimate"):
        assert f"<!-- {name} -->\n" in text
        assert f"<!-- /{name} -->" in text


def test_scripts_that_print_json_become_rows() -> None:
    near = {
        "recall_at_100": 0.96,
        "exact_ms": 20.0,
        "approximate_ms": {"p50": 0.5},
        "moved_item_found_ms": 2.0,
    }
    found = {
        "items": 10, "dimension": 4, "rounds": 5, "seed": 1,
        "exact": {
            "single_ms": {"top_k": 10.0, "sgemv": 9.0, "sum": 12.0},
            "batch_ms": {"top_k": 100.0, "sgemm_whole": 60.0, "sgemm_1024": 50.0},
        },
        "approximate": near,
        "approximate_gaussian": near,
    }  # fmt: skip
    single, batch, approximate = retrieval_rows(found)
    assert [row.reached for row in (single, batch, approximate)] == pytest.approx([0.9, 0.5, 40.0])
    assert [row.met for row in (single, batch, approximate)] == [True, False, True]
    forgetful = retrieval_rows({**found, "approximate": {**near, "recall_at_100": 0.9}})[2]
    assert forgetful.reached > 20
    assert forgetful.met is False
