from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

import online_models
from online_models.drift import DriftMonitor, MonitoredModel
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import prequential
from online_models.registry import MODEL_NAMES


def test_every_name_in_all_is_there() -> None:
    for name in online_models.__all__:
        assert getattr(online_models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'; it offers BPR"):
        online_models.Nothing  # noqa: B018  # reading it is the test


def test_settings_load_neither_numba_nor_river() -> None:
    program = (
        "import sys, online_models.settings; print(sorted({'numba', 'river', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MODULES = [info.name for info in pkgutil.iter_modules(online_models.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_show_what_happens(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"online_models.{name}")).failed == 0


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_has_a_doctest(name: str) -> None:
    tests = doctest.DocTestFinder().find(importlib.import_module(f"online_models.{name}"))
    assert sum(len(test.examples) for test in tests) >= 2


@pytest.mark.parametrize("bad", [None, 7, ""])
def test_ids_that_are_no_strings_are_refused(bad: object) -> None:
    model = online_models.CoVisitation()
    with pytest.raises(TypeError, match="user must be a non-empty string"):
        model.learn_one(bad, "item")
    with pytest.raises(TypeError, match="item must be a non-empty string"):
        model.learn_one("user", bad)
    assert len(model.items) == 0


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ({"timestamp": float("nan")}, "timestamp is nan, but a finite number from 0 to 253402300799999"),
        ({"timestamp": -1}, "timestamp is -1"),
        ({"timestamp": 1e300}, r"timestamp is 1e\+300"),
        ({"timestamp": "2020-01-01"}, r"timestamp is '2020-01-01' \(str\), but a number is needed"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"weight": "2"}, "weight is '2'"),
        ({"event_type": "sold"}, "event_type is 'sold', but one of impression, view"),
        ({"event_type": 256}, "event_type is 256"),
        ({"event_id": "\ud800"}, r"event_id '\\ud800' is no Unicode text"),
    ],
)
def test_what_an_event_says_wrongly_is_named(x: dict[str, object], said: str) -> None:
    model = online_models.CoVisitation()
    model.learn_one("ann", "tea")
    before = model.digest()
    with pytest.raises((TypeError, ValueError), match=said):
        model.learn_one("ann", "cup", 1.0, x)
    assert model.digest() == before


def test_an_id_that_no_file_can_hold_is_refused() -> None:
    """A lone surrogate, as a wrong decoding makes: a snapshot could not be written any more."""
    model = online_models.CoVisitation()
    for user, item in (("\ud800", "tea"), ("ann", "\ud800")):
        with pytest.raises(ValueError, match=r"'\\ud800' is no Unicode text"):
            model.learn_one(user, item)
    model.learn_one("Zoë", "\u8336")
    assert model.to_bytes()


def test_numbers_of_numpy_and_what_is_none_are_taken_as_meant() -> None:
    one, other = online_models.CoVisitation(), online_models.CoVisitation()
    one.learn_one("ann", "tea", 2.0, {"timestamp": 5, "event_type": "click", "event_id": "17"})
    one.learn_one("ann", "cup")
    x = {"timestamp": np.int64(5), "event_type": np.uint8(2), "event_id": 17, "weight": None}
    other.learn_one("ann", "tea", np.float32(2.0), x)  # type: ignore[arg-type]  # as arrays give it
    other.learn_one("ann", "cup", 1, {"timestamp": None, "event_type": None, "event_id": None})
    assert one.digest() == other.digest()
    assert other.retract("ann", 17)  # type: ignore[arg-type]  # as the event's own id was given
    assert one.retract("ann", "17")
    assert one.digest() == other.digest()


def test_a_follow_and_a_monitored_event_may_leave_weight_and_time_out() -> None:
    nothing = {"timestamp": None, "weight": None}
    model = online_models.SocialRanker()
    model.learn_one("ann", "-", 1.0, {**nothing, "event_type": "follow", "target_user": "bob"})
    assert model.trust("ann", "bob") == 1.0
    watched = MonitoredModel(online_models.DecayedPopularity(), DriftMonitor())
    watched.learn_one("ann", "tea", 1.0, nothing)
    assert watched.monitor.events == 1
    run = prequential(
        {"popularity": online_models.DecayedPopularity()}, [Interaction("ann", "tea", 1.0, nothing)]
    )
    assert len(run.event) == 1


def test_a_list_of_fewer_than_no_items_is_refused() -> None:
    model = online_models.DecayedPopularity()
    model.learn_one("ann", "tea")
    assert model.recommend(["ann"], 0) == [[]]
    with pytest.raises(ValueError, match="k is -1, but at least 0"):
        model.recommend(["ann"], -1)
