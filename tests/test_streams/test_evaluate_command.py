"""`freshet evaluate` on small files: what it prints is read as a user's script would read it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from online_models import DecayedPopularity, registry
from online_models.corrections import EVENT_TYPES as MODEL_TYPES
from online_models.evaluation.interactions import Interaction
from streams.cli import cli
from streams.datasets import Dataset
from streams.errors import DatasetError, FreshetError
from streams.events import EVENT_TYPES, Event, Item
from streams.interactions import Interactions

USERS, ITEMS = 20, 15
KEYS = {
    "model", "judged", "hr_at_10", "ndcg_at_10", "hr_at_50", "mrr", "recall_at_10", "coverage_at_10",
    "novelty", "diversity", "gini", "rmse", "hr_at_10_faded", "ndcg_at_10_faded", "seconds",
    "events_per_second", "score_us", "learn_us", "slices", "windows", "parameters",
}  # fmt: skip


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """20 users with 8 ratings each, and titles with genres for the items."""
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for k in range(USERS * 8):
        user, turn = k % USERS, k // USERS
        lines.append(f"u{user}\ti{(3 * user + turn) % ITEMS}\t{1 + (user + turn) % 5}\t{1000 + k // 3}")
    file = tmp_path / "shop.inter"
    file.write_text("\n".join(lines) + "\n")
    genres = "\n".join(f"i{k}\tThing {k}\tgenre{k % 3} common" for k in range(ITEMS))
    (tmp_path / "shop.item").write_text(f"item_id:token\ttitle:token_seq\tclass:token_seq\n{genres}\n")
    return file


def invoke(*arguments: str | Path, fails: bool = False) -> Result:
    result = CliRunner().invoke(cli, ["--log-level", "warning", "evaluate", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, f"{result.output}\n{result.exception!r}"
    return result


def judged(*arguments: str | Path) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.stdout.count("\n") == 1, "one object and nothing else"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_one_object_with_all_that_was_promised(ratings: Path) -> None:
    found = judged("--dataset", ratings, "--models", "popularity,covisitation,isgd", "--window", "50")
    assert {name: found[name] for name in ("dataset", "events", "users", "items", "protocol", "window")} == {
        "dataset": "shop", "events": 160, "users": USERS, "items": ITEMS, "protocol": "prequential",
        "window": 50,
    }  # fmt: skip
    assert [model["model"] for model in found["models"]] == ["popularity", "covisitation", "isgd"]
    for model in found["models"]:
        assert set(model) == KEYS
        assert model["judged"] == 160
        assert 0 < model["ndcg_at_10"] < model["hr_at_10"] <= model["hr_at_50"] < 1
        assert model["rmse"] is None
        assert 0 < model["diversity"] < 1
        assert set(model["slices"]["history"]) == {"0", "1-4", "5-9", "10+"}
        assert set(model["slices"]["item_exposures"]) == {"0", "1-4", "0-4", "5+"}
        assert set(model["slices"]["user_events"]) == {"first 1", "first 2", "first 5", "first 10"}
        assert model["windows"][-1]["judged"] == 160
        assert model["events_per_second"] == pytest.approx(160 / model["seconds"])
    assert len(found["comparisons"]) == 3
    for pair in found["comparisons"]:
        low, high = pair["interval_95"]
        assert low <= pair["ndcg_difference"] <= high
        assert 0 <= pair["p_value"] <= 1


def test_the_installed_command_prints_json_alone_on_stdout(ratings: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "evaluate", "--dataset", str(ratings), "--models", "popularity",
         "--json"],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 160
    assert "160 events" in done.stderr


@pytest.mark.parametrize(("protocol", "count"), [("last-positive-out", USERS), ("temporal", 32)])
def test_the_other_protocols(ratings: Path, protocol: str, count: int) -> None:
    found = judged("--dataset", ratings, "--models", "popularity", "--protocol", protocol)
    assert (found["protocol"], found["judged"], found["events"]) == (protocol, count, 160)


def test_where_nothing_can_be_judged_the_figures_are_numbers_and_that_is_said(ratings: Path) -> None:
    held = ("--protocol", "last-positive-out", "--positive-from", "6")
    result = invoke("--dataset", ratings, *held, "--json")
    found = json.loads(result.stdout)
    assert found["judged"] == 0
    assert [model["hr_at_10"] for model in found["models"]] == [0.0, 0.0]
    assert "no event could be judged" in result.stderr


def test_a_subset_by_number_and_by_rating(ratings: Path) -> None:
    assert judged("--dataset", ratings, "--models", "popularity", "--events", "30")["events"] == 30
    assert judged("--dataset", ratings, "--models", "popularity", "--min-rating", "5")["events"] == 32


def test_parameters_reach_the_model(ratings: Path) -> None:
    common = ("--dataset", ratings, "--models", "covisitation")
    plain = judged(*common)["models"][0]
    changed = judged(*common, "--param", "covisitation.window=1", "--param", "covisitation.query_length=1")
    assert changed["models"][0]["mrr"] != plain["mrr"]


@pytest.mark.parametrize("protocol", ["prequential", "last-positive-out", "temporal"])
def test_parameters_are_searched_on_the_first_events_alone(ratings: Path, protocol: str) -> None:
    common = ("--dataset", ratings, "--models", "popularity,biased_mf", "--param", "biased_mf.dimension=4")
    common = (*common, "--protocol", protocol, "--search", "3", "--search-share", "0.25", "--seed", "2")
    found = judged(*common)
    assert found["searched_on_events"] == 40
    popular, factors = found["models"]
    assert set(popular["parameters"]) <= {"half_life_s"}
    assert factors["parameters"]["dimension"] == 4
    assert [popular["slices"]["search"][part]["judged"] for part in ("searched on", "after it")] == {
        "prequential": [40, 120], "last-positive-out": [0, 20], "temporal": [0, 32],
    }[protocol]  # fmt: skip
    lines = ratings.read_text().splitlines()
    other = ratings.with_name("other.inter")  # the same first forty events, and the rest another way about
    times = [f"\t{1013 + k // 3}" for k in range(120)]
    rest = [line.rpartition("\t")[0] + time for line, time in zip(reversed(lines[41:]), times, strict=True)]
    other.write_text("\n".join([*lines[:41], *rest]) + "\n")
    if protocol == "prequential":
        again = judged("--dataset", other, *common[2:])
        assert [model["parameters"] for model in again["models"]] == [
            popular["parameters"],
            factors["parameters"],
        ]


def test_a_search_is_shown(ratings: Path) -> None:
    result = invoke("--dataset", ratings, "--models", "popularity", "--search", "2")
    assert "Searched on the first 32 events" in result.stdout
    assert "on the first 32 events" in result.stderr
    result = invoke("--dataset", ratings, "--models", "popularity", "--search", "2", "--param",
                    "popularity.half_life_s=60.0")  # fmt: skip
    assert "popularity: nothing to search" in result.stderr


def test_without_optuna_a_search_says_what_to_install(ratings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = invoke("--dataset", ratings, "--models", "popularity", "--search", "2", fails=True)
    assert isinstance(result.exception, FreshetError)
    assert "--search" in str(result.exception)
    assert "extra `search`" in str(result.exception)


def test_river_beside_ours(ratings: Path) -> None:
    found = judged(
        "--dataset", ratings, "--models", "popularity", "--peers", "river", "--protocol", "last-positive-out"
    )
    names = [model["model"] for model in found["models"]]
    assert names == ["popularity", "river.BiasedMF", "river.FunkMF", "river.Baseline"]
    assert [model["rmse"] is None for model in found["models"]] == [True, False, False, False]
    assert all(math.isfinite(model["hr_at_10"]) for model in found["models"])


def test_tables_and_the_page(ratings: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = invoke("--dataset", ratings, "--models", "popularity,covisitation", "--report", page)
    assert "HR@10" in result.stdout
    assert "McNemar" in result.stdout
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "covisitation" in html
    assert "://" not in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "oracle"], r"no model 'oracle'; there are .*covisitation"),
        (["--models", ","], r"--models names none"),
        (
            ["--models", "isgd", "--param", "isgd.colour=red"],
            r"isgd has no parameter colour; it has dimension",
        ),
        (["--models", "isgd", "--param", "isgd.dimension=0"], r"dimension is 0"),
        (["--models", "isgd", "--param", "dimension=3"], r"write MODEL\.NAME=VALUE"),
        (["--models", "isgd", "--param", "popularity.top_size=3"], r"--param names popularity"),
        (["--peers", "spark"], r"--peers: no peer 'spark'; there are river"),
        (["--peers", "implicit"], r"--peers: implicit fits in batch"),
        (["--column", "user_id"], r"write OURS=THEIRS"),
        (["--column", "colour=x"], r"no column colour can be named"),
        (["--column", "user_id=who"], r"has no column who"),
        (["--min-rating", "6"], r"holds no event"),
        (["--models", "isgd", "--param", "isgd.dimension=few"], r"isgd\.dimension='few' has the wrong type"),
        (["--report", "no/folder/page.html"], r"page\.html: there is no folder .*folder; make it first"),
    ],
)
def test_mistakes_are_named(ratings: Path, arguments: list[str], message: str) -> None:
    result = invoke("--dataset", ratings, *arguments, fails=True)
    assert isinstance(result.exception, FreshetError)
    assert result.stdout == ""
    with pytest.raises(FreshetError, match=message):
        raise result.exception


def test_scores_that_are_not_finite_end_the_run(ratings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(DecayedPopularity):
        def score_rows(self, user: str, rows: np.ndarray) -> np.ndarray:
            return np.full(len(rows), np.nan, dtype=np.float32)

    monkeypatch.setattr(registry, "make_model", lambda name, parameters: Broken())
    result = invoke("--dataset", ratings, "--models", "popularity", "--json", fails=True)
    assert isinstance(result.exception, FreshetError)
    assert "Broken: score of item 'i0' for user 'u1' is not finite (nan)" in str(result.exception)
    assert result.stdout == ""


def test_a_peer_that_is_not_installed_says_what_to_install(
    ratings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    result = invoke(
        "--dataset", ratings, "--peers", "implicit", "--protocol", "last-positive-out", fails=True
    )
    assert "pip install implicit" in str(result.exception)


# ── events as interactions ───────────────────────────────────────────────────────────────────────────────


def event(number: int, kind: str, item: str | None = "x", **more: Any) -> Event:
    at = more.pop("timestamp", number)
    return Event(event_id=f"e{number}", user_id="ann", event_type=kind, timestamp=at, item_id=item, **more)


def test_only_a_users_events_of_one_moment_change_places() -> None:
    events = [
        Event(event_id=f"e{k}", user_id=f"u{k % 3}", event_type="click", timestamp=k // 12, item_id=f"i{k}")
        for k in range(48)
    ]
    plain = list(Interactions(Dataset("d", events), EVENT_TYPES))
    orders = [list(Interactions(Dataset("d", events), EVENT_TYPES, tie_seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert len({str(order) for order in (plain, *orders)}) == 3
    for order in orders:
        assert sorted(order, key=str) == sorted(plain, key=str)
        for before, after in zip(plain, order, strict=True):
            assert (before.user, before.x["timestamp"]) == (after.user, after.x["timestamp"])


def test_the_catalogue_has_what_is_stated() -> None:
    items = {"x": Item(item_id="x", title="Tea", categories=["a"], price=2.5), "y": Item(item_id="y")}
    found = Interactions(Dataset("d", [event(0, "click")], items), EVENT_TYPES).catalogue()
    assert found == {"x": {"item_id": "x", "title": "Tea", "categories": ["a"], "price": 2.5},
                     "y": {"item_id": "y"}}  # fmt: skip


def test_event_types_have_the_models_codes_in_whatever_order_they_are_named() -> None:
    weights = {"wink": 1.0, "rating": 1.0, "click": 1.0}
    events = [event(k, kind, item=f"i{k}") for k, kind in enumerate(weights)]
    codes = [found.x["event_type"] for found in Interactions(Dataset("d", events), weights)]
    assert codes == [len(MODEL_TYPES), MODEL_TYPES.index("rating"), MODEL_TYPES.index("click")]


def test_events_become_interactions_by_their_types_weight() -> None:
    events = [
        event(0, "rating", value=4.0),
        event(1, "impression"),
        event(2, "dislike", item="y"),
        event(3, "search", item=None, query="tea"),
        event(4, "purchase", timestamp="1970-01-01T00:00:01Z", value=9.5),
    ]
    stream = Interactions(Dataset("d", events, {"x": Item(item_id="x", categories=["a"])}), EVENT_TYPES)
    codes = {kind: code for code, kind in enumerate(EVENT_TYPES)}
    assert stream.left_out == 2
    assert list(stream) == [
        Interaction("ann", "x", 4.0, _x(0, 1.0, codes["rating"], "e0"), 4.0),
        Interaction("ann", "y", -1.0, _x(2, -1.0, codes["dislike"], "e2"), None),
        Interaction("ann", "x", 2.0, _x(1000, 2.0, codes["purchase"], "e4"), None),
    ]
    assert stream[1:] == list(stream)[1:]
    assert stream.categories() == {"x": ["a"]}


def _x(time_ms: int, weight: float, code: int, event_id: str) -> dict[str, Any]:
    return {"timestamp": time_ms, "weight": weight, "event_type": code, "event_id": event_id}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event(7, "wink"), "event e7: event_type 'wink' is unknown"),
        (event(7, "rating", value=math.nan), "event e7: value nan is not finite"),
        (Event(event_id="e7", user_id="", event_type="click", timestamp=1, item_id="x"), "e7 has no user_id"),
        (event(7, "impression"), "holds no event with an item"),
        (event(7, "click", timestamp="noon"), "event e7: timestamp 'noon' is no time"),
        (event(7, "click", timestamp=-1), "event e7: timestamp -1 is -1 ms, outside 0 to 253402300799999"),
    ],
)
def test_events_that_can_not_be_learned_are_named(bad: Event, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Interactions(Dataset("d", [bad]), EVENT_TYPES)
