"""Kernels are compiled once a machine, by several processes at a time, and never while a worker works."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams import warm_up
from streams.settings import load_settings


def _compile(cache: Path | None = None) -> str:
    """What numba says of its cache while all is compiled, in `cache` if given."""
    own = {} if cache is None else {"NUMBA_CACHE_DIR": str(cache)}
    env = {**os.environ, **own, "NUMBA_DEBUG_CACHE": "1"}
    command = [sys.executable, "-m", "streams.warm_up"]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_once_compiled_all_is_loaded_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _compile()
    if "data saved to" in said:  # this test runs alone, on a machine that has nothing yet
        said = _compile()
    assert said.count("data loaded from") > 40
    assert "data saved to" not in said

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(warm_up.subprocess, "Popen", started)
    assert warm_up.compile_all(load_settings(environ={})) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_a_machine_without_any_several_processes_compile_each_kernel(tmp_path: Path) -> None:
    """Each file that they wrote has its place in an index, and the next process finds every one."""
    _compile(tmp_path)
    assert len(list(tmp_path.rglob("*.nbi"))) > 100
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
    said = _compile(tmp_path)
    assert "data saved to" not in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == written


def test_a_part_that_fails_is_told_and_left_to_this_process(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), warm_up._beside(["no such part"]) as wait:
        wait()
    assert "ended with 1; its part is compiled here" in caplog.text


def test_leaving_early_ends_the_others() -> None:
    with pytest.raises(KeyError), warm_up._beside(["lists"]):
        raise KeyError


def test_without_another_process_all_is_compiled_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with caplog.at_level(logging.WARNING), warm_up._beside(warm_up.PARTS) as wait:
        wait()
    assert "no process for models" in caplog.text


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen so on Linux")
def test_one_core_of_several_counts_as_one() -> None:
    mine = os.sched_getaffinity(0)
    assert warm_up._cores() == len(mine)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert warm_up._cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
