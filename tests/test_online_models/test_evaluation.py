"""Rankings, figures and protocols, against answers by hand or by another way of counting."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import online_models.evaluation
from online_models import CoVisitation, DecayedPopularity, ItemTable
from online_models.evaluation import kernels, metrics
from online_models.evaluation.arena import Catalogue
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import (
    PROTOCOLS,
    Run,
    last_positive_out,
    prequential,
    run_protocol,
    temporal,
)
from online_models.evaluation.report import html_report
from online_models.evaluation.results import summarise

MODULES = [info.name for info in pkgutil.iter_modules(online_models.evaluation.__path__)]


class Fixed:
    """A model whose scores are given: it learns which items there are, and nothing else."""

    def __init__(self, scores: Mapping[str, float], predicts_ratings: bool = False) -> None:
        self.items = ItemTable()
        self.scores = dict(scores)
        self.predicts_ratings = predicts_ratings
        self.learned: list[tuple[str, str]] = []

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, Any] | None = None) -> None:
        self.items.ensure([item])
        self.learned.append((user, item))

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = None) -> float:
        return self.scores[item]

    def score_rows(self, user: str, rows: np.ndarray) -> np.ndarray:
        names = [self.items.ids[row] if row >= 0 else "" for row in rows.tolist()]
        return np.array([self.scores.get(name, 0.0) for name in names], dtype=np.float32)


def ranks_of(run: Run, name: str) -> list[float]:
    return next(run.ranks(entrant).tolist() for entrant in run.entrants if entrant.name == name)


def some_stream(n: int, users: int = 12, items: int = 30, seed: int = 0) -> list[Interaction]:
    rng = np.random.default_rng(seed)
    who, what = rng.integers(0, users, n), np.minimum(rng.geometric(0.1, n), items)
    return [
        Interaction(f"u{u}", f"i{i}", 1.0, {"timestamp": 1000 * k})
        for k, (u, i) in enumerate(zip(who.tolist(), what.tolist(), strict=True))
    ]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_show_what_happens(name: str) -> None:
    module = importlib.import_module(f"online_models.evaluation.{name}")
    assert doctest.testmod(module).failed == 0


# ── where an item stands ─────────────────────────────────────────────────────────────────────────────────


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_ranks_and_lists_equal_a_sort(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    scores = np.array(data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), dtype=np.float32)
    rows = np.array(data.draw(st.lists(st.sampled_from([-1, 3]), min_size=n, max_size=n)), dtype=np.int32)
    all_items = data.draw(st.booleans())
    seen = data.draw(st.sets(st.integers(0, n - 1)))
    candidates = [k for k in range(n) if k not in seen and (all_items or rows[k] >= 0)]
    target = data.draw(st.sampled_from([-1, *candidates]))
    top, hidden = np.full(10, -9, dtype=np.int32), np.zeros(n + 3, dtype=np.bool_)
    above, tied, size, bad = kernels.rank_target(
        scores, rows, all_items, np.array(sorted(seen), dtype=np.int32), target, hidden, top
    )
    wanted = sorted(candidates, key=lambda k: (-scores[k], k))[:10]
    assert top[:size].tolist() == wanted
    assert bad == -1
    assert not hidden.any()
    if target >= 0:
        assert above == sum(scores[k] > scores[target] for k in candidates)
        assert tied == sum(scores[k] == scores[target] for k in candidates) - 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_found_and_the_scratch_is_left_clean(value: float) -> None:
    scores, hidden = np.array([1.0, value, 2.0], dtype=np.float32), np.zeros(3, dtype=np.bool_)
    rows, top = np.zeros(3, dtype=np.int32), np.zeros(10, dtype=np.int32)
    found = kernels.rank_target(scores, rows, False, np.array([0], dtype=np.int32), 2, hidden, top)
    assert found[3] == 1
    assert not hidden.any()


def test_a_list_is_described_by_hand() -> None:
    catalogue = Catalogue({"tea": ["drink", "hot"], "milk": ["drink", "cold"], "nails": []})
    for item in ("tea", "milk", "nails", "new"):
        catalogue.enrol(item)
    shown, events = np.array([1, 0, 0, 0]), np.array([4, 2, 2, 0])
    surprise, apart, pairs = kernels.describe_list(
        np.array([0, 1, 2, 3], dtype=np.int32), events, 8, catalogue.words, shown
    )
    assert surprise == pytest.approx(1.0 + 2.0 + 2.0 + 3.0)  # -log2 of 4/8, 2/8, 2/8 and, for none, 1/8
    assert (apart, pairs) == (pytest.approx(1 - 1 / 3), 1)  # drink of drink, hot, cold; two have no category
    assert shown.tolist() == [2, 1, 1, 1]


def test_more_categories_than_a_word_has_bits() -> None:
    left = [f"c{k:03d}" for k in range(100)]
    right = [f"c{k:03d}" for k in range(50, 150)]
    catalogue = Catalogue({"a": left, "b": right})
    catalogue.enrol("a")
    catalogue.enrol("b")
    none = np.zeros(2, dtype=np.int64)
    _, apart, pairs = kernels.describe_list(np.array([0, 1], dtype=np.int32), none, 0, catalogue.words, none)
    assert (apart, pairs) == (pytest.approx(1 - 50 / 150), 1)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_of_ranks_by_hand() -> None:
    ranks = np.array([0.0, 0.5, 9.5, 10.0, 49.5, np.inf])
    assert metrics.hits(ranks, 10).tolist() == [True, True, True, False, False, False]
    assert metrics.hits(ranks, 50).mean() == pytest.approx(5 / 6)
    expected = [1.0, 1 / math.log2(2.5), 1 / math.log2(11.5), 0.0, 0.0, 0.0]
    assert metrics.gains(ranks).tolist() == pytest.approx(expected)
    assert metrics.reciprocals(ranks).tolist() == pytest.approx([1, 1 / 1.5, 1 / 10.5, 1 / 11, 1 / 50.5, 0])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_is_half_the_relative_mean_difference(shown: list[int]) -> None:
    total, n = sum(shown), len(shown)
    expected = sum(abs(a - b) for a in shown for b in shown) / (2 * n * total) if total else 0.0
    assert metrics.gini(np.array(shown)) == pytest.approx(expected)
    assert metrics.coverage(np.array(shown)) == sum(count > 0 for count in shown) / n


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0.5, 1.0),
)
def test_windows_and_fading_equal_their_definitions(
    values: list[float], window: int, step: int, fading: float
) -> None:
    ends, means = metrics.sliding_means(np.array(values), window, step)
    assert ends.tolist() == sorted({*range(step, len(values), step), len(values)})
    for end, mean in zip(ends.tolist(), means.tolist(), strict=True):
        part = values[max(end - window, 0) : end]
        assert mean == pytest.approx(sum(part) / len(part), abs=1e-9)
    total = number = 0.0
    for value in values:
        total, number = value + fading * total, 1.0 + fading * number
    assert metrics.faded_mean(np.array(values), fading) == pytest.approx(total / number, abs=1e-9)


# ── protocols ────────────────────────────────────────────────────────────────────────────────────────────


def test_prequential_equals_asking_for_every_item_alone() -> None:
    events = some_stream(300)
    judged, watched = DecayedPopularity(half_life_s=50.0), DecayedPopularity(half_life_s=50.0)
    had: dict[str, set[str]] = {}
    expected = []
    for event in events:
        seen = had.setdefault(event.user, set())
        if event.item not in seen:
            known = [item for item in watched.items.ids if item not in seen]
            scores = {item: watched.predict_one(event.user, item) for item in known}
            mine = scores.get(event.item)
            above = sum(score > mine for score in scores.values()) if mine is not None else math.inf
            tied = sum(score == mine for score in scores.values()) - 1 if mine is not None else 0
            expected.append(above + tied / 2)
        watched.learn_one(*event[:4])
        seen.add(event.item)
    run = prequential({"popularity": judged}, events)
    assert ranks_of(run, "popularity") == expected
    assert run.repeats == len(events) - len(expected) > 0
    assert judged.digest() == watched.digest(), "judging changes nothing"


def test_an_item_that_lost_its_row_is_no_candidate_and_a_miss() -> None:
    model = DecayedPopularity(half_life_s=0.0)
    model.items = ItemTable(limit=4)
    items = ["a", "b", "c", "d", "e", "f", "g"]
    events = [Interaction("u", item) for item in items]
    gone = [item for item in items if item not in _known_after(events, limit=4)]
    assert gone
    run = prequential(
        {"popularity": model}, [*events, Interaction("v", gone[0]), Interaction("v", items[-1])]
    )
    first, second = ranks_of(run, "popularity")[-2:]
    assert math.isinf(first)
    assert second < 4, "only items with a row stand above"


def _known_after(events: Sequence[Interaction], limit: int) -> set[str]:
    model = DecayedPopularity(half_life_s=0.0)
    model.items = ItemTable(limit=limit)
    for event in events:
        model.learn_one(*event[:4])
    return {item for item in model.items.ids if item}


def test_models_side_by_side_are_as_alone() -> None:
    events = some_stream(150)
    both = prequential({"c": CoVisitation(), "p": DecayedPopularity()}, events)
    for name, model in (("c", CoVisitation()), ("p", DecayedPopularity())):
        assert ranks_of(both, name) == ranks_of(prequential({name: model}, events), name)


def test_a_model_that_has_learned_before_may_be_evaluated() -> None:
    model = DecayedPopularity(half_life_s=0.0)
    for item in ("x", "y", "y"):
        model.learn_one("before", item)
    run = prequential(
        {"p": model, "fresh": DecayedPopularity()}, [Interaction("u", "x"), Interaction("u", "y")]
    )
    assert ranks_of(run, "p") == [1.0, 0.0]  # y stands above x; then x is had
    assert ranks_of(run, "fresh") == [math.inf, math.inf]


def test_temporal_judges_the_last_fifth_alone_and_goes_on_learning() -> None:
    events = [Interaction(f"u{k}", "ab"[k % 2]) for k in range(8)]
    events += [Interaction("late", "c"), Interaction("late", "a")]
    model = Fixed({"a": 1.0, "b": 2.0, "c": 3.0})
    run = temporal({"m": model}, events)
    assert run.event.tolist() == [8, 9]
    assert ranks_of(run, "m") == [math.inf, 1.0]  # c is new; then b stands above a, and c is had
    assert len(model.learned) == 10
    found = summarise(run, "tiny").models[0].slices["user_event"]
    assert (found["first"].judged, found["first"].hr_at_10) == (1, 0.0)
    assert (found["last"].judged, found["last"].hr_at_10) == (1, 1.0)


@pytest.mark.parametrize("protocol", ["prequential", "temporal"])
def test_with_a_delay_events_are_learned_later_in_their_order(protocol: str) -> None:
    events = [Interaction(f"u{k}", f"i{k}", 1.0, {"timestamp": 1000 * k}) for k in range(10)]

    class Watched(Fixed):
        def score_rows(self, user: str, rows: np.ndarray) -> np.ndarray:
            asked[user] = len(self.learned)
            return super().score_rows(user, rows)

    asked: dict[str, int] = {}
    model = Watched({})
    run = run_protocol(protocol, {"m": model}, events, delay_s=2.5)
    assert asked["u9"] == 7, "those of 0 to 6 seconds; 6.5 would be the last"
    assert model.learned == [(f"u{k}", f"i{k}") for k in range(7)]
    assert run.exposures.tolist() == [0] * len(run.event)


def test_with_a_delay_what_a_user_has_had_is_known_at_once() -> None:
    events = [Interaction("ann", item, 1.0, {"timestamp": 0}) for item in ("x", "x")]
    run = prequential({"m": Fixed({})}, events, delay_s=60.0)
    assert (run.event.tolist(), run.repeats) == ([0], 1)


def rated(user: str, item: str, rating: float) -> Interaction:
    return Interaction(user, item, rating, {"weight": 1.0}, rating)


def test_last_positive_out_by_hand() -> None:
    events = [
        rated("ann", "x", 5.0),
        rated("bob", "w", 4.0),
        rated("ann", "y", 4.0),  # held out
        rated("bob", "x", 5.0),  # held out
        rated("ann", "z", 3.0),
        rated("cem", "y", 2.0),
        rated("dora", "only", 5.0),  # held out, and nobody else has it
    ]
    model = Fixed({"w": 2.0, "x": 1.0, "y": 1.0, "z": 3.0, "only": 9.0})
    run = last_positive_out({"m": model}, events)
    assert model.learned == [("ann", "x"), ("bob", "w"), ("ann", "z"), ("cem", "y")]
    assert run.event.tolist() == [2, 3, 6]
    # ann: x and z are had, w stands above y; bob: w is had, z stands above x, which is tied with y; `only`
    # scores 0 where the model doesn't know it, and is a miss for dora
    assert ranks_of(run, "m") == [1.0, 1.5, math.inf]
    assert run.history.tolist() == [2, 1, 0]
    assert run.exposures.tolist() == [1, 1, 0]
    assert summarise(run, "tiny").models[0].windows == []


def test_last_positive_out_ranks_items_nobody_learned_of_too() -> None:
    events = [
        rated("ann", "x", 5.0),
        rated("bob", "x", 2.0),
        rated("bob", "y", 2.0),
        rated("cem", "new", 5.0),
    ]
    run = last_positive_out({"m": Fixed({"x": -1.0, "y": -2.0})}, events)
    assert ranks_of(run, "m") == [1.0, math.inf]  # for ann, `new` scores 0 and stands above x


def test_without_ratings_a_positive_weight_is_positive() -> None:
    events = [Interaction("ann", "x"), Interaction("ann", "y", -1.0), Interaction("bob", "y")]
    run = last_positive_out({"m": Fixed({})}, events)
    assert run.event.tolist() == [0, 2]


def test_protocols_by_name() -> None:
    for name in PROTOCOLS:
        assert run_protocol(name, {"m": Fixed({})}, some_stream(20)).protocol == name
    with pytest.raises(ValueError, match="no protocol 'random'; there are prequential"):
        run_protocol("random", {}, [])


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────


def test_figures_of_a_run_by_hand() -> None:
    events = [
        rated("ann", "x", 5.0),
        rated("bob", "x", 4.0),
        rated("ann", "y", 1.0),
        rated("bob", "y", 3.0),
        rated("bob", "y", 2.0),
        Interaction("cem", "x", -1.0),
    ]
    model = Fixed({"x": 1.0, "y": 2.0}, predicts_ratings=True)
    run = prequential({"m": model}, events, {"x": ["a"], "y": ["b"]})
    result = summarise(run, "tiny", window=2)
    figures = result.models[0]
    assert (result.events, result.users, result.items) == (6, 3, 2)
    assert (result.judged, result.repeats) == (4, 1)
    assert ranks_of(run, "m") == [math.inf, 0.0, math.inf, 0.0]
    assert (figures.hr_at_10, figures.recall_at_10, figures.ndcg_at_10, figures.mrr) == (0.5, 0.5, 0.5, 0.5)
    # lists were: none, [x], none (x is had), [y]; x had 1 of 1 events then, y 1 of 3
    assert figures.novelty == pytest.approx((0.0 + math.log2(3)) / 2)
    assert (figures.coverage_at_10, figures.gini, figures.diversity) == (1.0, 0.0, None)
    errors = [1 - 5, 1 - 4, 2 - 1, 2 - 3, 2 - 2]
    assert figures.rmse == pytest.approx(math.sqrt(sum(error**2 for error in errors) / 5))
    assert figures.slices["history"]["0"].judged == 2
    assert figures.slices["history"]["1-4"].hr_at_10 == 0.5
    assert figures.slices["item_exposures"]["0-4"].judged == 4
    assert figures.slices["item_exposures"]["5+"].judged == 0
    assert [(point.judged, point.event, point.hr_at_10) for point in figures.windows] == [
        (1, 0, 0.0),
        (2, 1, 0.5),
        (3, 2, 0.5),
        (4, 3, 0.5),
    ]
    assert figures.hr_at_10_faded == pytest.approx((0.999**2 + 1) / sum(0.999**k for k in range(4)))


def test_diversity_is_the_mean_over_lists() -> None:
    learned = [Interaction("before", item) for item in ("x", "y", "z")]
    run = prequential(
        {"m": Fixed({"x": 3.0, "y": 2.0, "z": 1.0})},
        [*learned, Interaction("ann", "x"), Interaction("ann", "y")],
        {"x": ["a"], "y": ["a", "b"], "z": ["c"]},
    )
    # lists: for `before` never two items it has not had; for ann x, y, z, then y, z
    assert summarise(run, "tiny").models[0].diversity == pytest.approx(((0.5 + 1 + 1) / 3 + 1.0) / 2)


def test_a_model_that_predicts_no_ratings_has_no_rmse() -> None:
    run = prequential({"m": DecayedPopularity()}, [rated("ann", "x", 5.0), rated("bob", "x", 4.0)])
    assert summarise(run, "tiny").models[0].rmse is None


def test_the_wrong_number_of_scores_is_refused() -> None:
    class Short(Fixed):
        def score_rows(self, user: str, rows: np.ndarray) -> np.ndarray:
            return super().score_rows(user, rows)[:-1]

    with pytest.raises(ValueError, match=r"Short: \(0,\) scores of 1 items"):
        prequential({"m": Short({})}, [Interaction("ann", "x"), Interaction("bob", "y")])


class Page(HTMLParser):
    """Counts tags and keeps what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_report_is_one_page_that_loads_nothing(protocol: str) -> None:
    models = {"<b>bold</b>": CoVisitation(), "plain": DecayedPopularity()}
    result = summarise(run_protocol(protocol, models, some_stream(120)), "a & b", window=20)
    html = html_report(result)
    page = Page()
    page.feed(html)
    assert page.outside == []
    assert "://" not in html
    assert "b" not in page.tags, "names are text, not markup"
    assert {"<b>bold</b>", "plain", "a & b, " + protocol} <= set(page.text)
    assert page.tags.count("polyline") == (0 if protocol == "last-positive-out" else 4)
    assert f"{result.models[0].hr_at_10:.4f}" in page.text
