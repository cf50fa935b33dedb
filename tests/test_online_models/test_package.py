from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import online_models


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


@pytest.mark.parametrize("name", ["covisitation", "popularity", "isgd"])
def test_every_model_has_a_doctest(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"online_models.{name}")).attempted >= 2


@pytest.mark.parametrize("bad", [None, 7, ""])
def test_ids_that_are_no_strings_are_refused(bad: object) -> None:
    model = online_models.CoVisitation()
    with pytest.raises(TypeError, match="user must be a non-empty string"):
        model.learn_one(bad, "item")
    with pytest.raises(TypeError, match="item must be a non-empty string"):
        model.learn_one("user", bad)
    assert len(model.items) == 0
