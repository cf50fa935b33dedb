"""Search of parameters: it finds what is planted, looks at nothing else, and is the same each time."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from online_models import DecayedPopularity, registry
from online_models.evaluation import search as searching
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.search import SPACES, MissingOptunaError, Span, search, spans_of

DAY_MS = 86_400_000


def shifting(n: int = 400, items: int = 60, seed: int = 0) -> list[Interaction]:
    """What is popular changes from day to day, twenty events each: a short half-life is better."""
    rng, events = np.random.default_rng(seed), []
    for k in range(n):
        first = 7 * (k // 20) % items
        item = (first + int(rng.integers(0, 5))) % items
        events.append(Interaction(f"u{k}", f"i{item}", 1.0, {"timestamp": k * DAY_MS // 20}))
    return events


def test_spans_are_of_parameters_that_there_are_and_hold_the_defaults() -> None:
    assert len(SPACES) >= 12
    for model, spans in SPACES.items():
        declared = inspect.signature(registry.model_class(model)).parameters
        for name, span in spans.items():
            assert span.low < span.high
            default = declared[name].default
            assert default in span, f"{model}.{name}: {default} is not in {span.low} to {span.high}"
            assert isinstance(default, int) == isinstance(span.low, int), f"{model}.{name}"


def test_the_better_parameter_is_found_and_the_same_each_time() -> None:
    events = shifting()
    done: list[int] = []
    found = search("popularity", events, trials=12, seed=3, progress=done.append)
    assert done == list(range(1, 13))
    assert found.changed["half_life_s"] < 3 * 86_400
    best = searching.score_of(DecayedPopularity(**found.changed), events)
    assert found.score == best > found.start_score == searching.score_of(DecayedPopularity(), events)
    assert search("popularity", events, trials=12, seed=3) == found


def test_where_nothing_is_better_the_start_stays() -> None:

    def make(_: str, parameters: Mapping[str, Any]) -> DecayedPopularity:
        return DecayedPopularity(half_life_s=86_400.0)

    found = search("popularity", shifting(100), trials=3, make=make)
    assert (found.changed, found.score, found.trials) == ({}, found.start_score, 3)


def test_parameters_that_do_not_go_together_are_counted_and_passed_over() -> None:

    def make(name: str, parameters: dict[str, Any]) -> Any:
        if parameters.get("query_length", 10) > 12:
            raise ValueError("too long")
        return registry.make_model("covisitation", {**parameters, "row_capacity": 64})

    found = search("covisitation", shifting(60), trials=8, seed=1, make=make)
    assert 0 < found.failed < 8
    assert found.changed.get("query_length", 10) <= 12


def test_what_was_given_stays_and_is_not_searched() -> None:
    asked: list[dict[str, Any]] = []

    def make(_: str, parameters: dict[str, Any]) -> Any:
        asked.append(parameters)
        return DecayedPopularity()

    given = {"window": 7, "seed": 5}
    search("covisitation", shifting(30), trials=4, given=given, make=make)
    assert all(parameters["window"] == 7 and parameters["seed"] == 5 for parameters in asked)
    assert asked[0] == given
    assert all(set(p) == {"seed", *SPACES["covisitation"]} for p in asked[1:])
    for parameters in asked[1:]:
        for name, span in spans_of("covisitation", given).items():
            assert parameters[name] in span
            assert isinstance(parameters[name], int) == isinstance(span.low, int)


def test_what_can_not_be_searched_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"nothing_of_that_name has nothing to search$"):
        search("nothing_of_that_name", [], 1)
    with pytest.raises(ValueError, match="popularity has nothing to search beside what was given"):
        search("popularity", [], 1, given={"half_life_s": 1.0})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingOptunaError, match=r"extra `search`.*pip install optuna"):
        search("popularity", shifting(10), 1)


def test_a_span_holds_its_ends_and_no_other_kind() -> None:
    span = Span(0.5, 2.0)
    assert [value in span for value in (0.5, 2.0, 0.49, math.nan, "1", None)] == [True, True, *[False] * 4]
