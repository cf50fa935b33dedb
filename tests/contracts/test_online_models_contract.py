"""Every model that discovery finds keeps the contract of `online_models.checks`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import checks
from online_models.base import OnlineRanker

MODELS = checks.discover_models()
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "CoVisitation": [
        {},
        {"half_life_s": 3600.0, "shrinkage": 2.0, "gap_decay": 0.7, "backward_weight": 0.5},
        {"row_capacity": 8, "window": 4},
    ],
    "DecayedPopularity": [{}, {"half_life_s": 60.0}, {"half_life_s": 0.0, "top_size": 4}],
    "ISGD": [{}, {"dimension": 5, "learning_rate": 0.5, "negatives": 0}],
}
CASES = [
    pytest.param(lambda model=model, kwargs=kwargs: model(**kwargs), id=f"{model.__name__}-{number}")
    for model in MODELS
    for number, kwargs in enumerate(VARIANTS.get(model.__name__, [{}]))
]


def test_discovery_finds_the_models() -> None:
    names = {model.__name__ for model in MODELS}
    assert {"CoVisitation", "DecayedPopularity", "ISGD"} <= names
    assert set(VARIANTS) <= names, "a variant is listed for a model that is gone"


@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", CASES)
def test_contract(
    make: Callable[[], OnlineRanker], check: Callable[[Callable[[], OnlineRanker]], None]
) -> None:
    check(make)


@pytest.mark.parametrize("make", CASES)
@given(cuts=st.lists(st.integers(1, 59), max_size=8))
@settings(max_examples=15, deadline=None)
def test_any_split_of_the_log_gives_the_same_state(make: Callable[[], OnlineRanker], cuts: list[int]) -> None:
    checks.check_batches_split_freely(make, cuts)


def test_checks_notice_a_model_that_learns_while_predicting() -> None:
    class Leaky(MODELS[0]):  # type: ignore[misc, valid-type]
        def predict_one(self, user: str, item: str, x: Any = None) -> float:
            self.items.ensure([item])
            return float(super().predict_one(user, item, x))

    with pytest.raises(AssertionError, match="predicting changed the state"):
        checks.check_predicting_changes_nothing(Leaky)


def test_clone_has_the_same_parameters() -> None:
    for case in CASES:
        model = case.values[0]()
        assert model.clone()._get_params() == model._get_params()


def test_state_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from online_models import checks\n"
        "for model in checks.discover_models():\n"
        "    made = model()\n"
        "    for event in checks.random_events(40):\n"
        "        made.learn_one(*event)\n"
        "    print(made.digest(), made.rank('user-1', {f'item-{k}' for k in range(20)}))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == len(MODELS)
