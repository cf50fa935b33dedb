"""`freshet trainer --once --dataset` as a data scientist runs it, on small data and without Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result

from streams.cli import cli

QUICK = (
    "--set", "trainer.dim=16", "--set", "trainer.blocks=1", "--set", "trainer.history_length=10",
    "--set", "trainer.max_epochs=2", "--set", "trainer.max_cpu_seconds=600",
    "--set", "trainer.max_seconds=600", "--set", "trainer.head_examples=400",
    "--set", "trainer.compression.candidates=[]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path / "home"))


def command(out: Path, *more: str | Path, dataset: str = "synthetic", events: str = "2500") -> list[str]:
    words = ["--log-level", "warning", "trainer", "--once", "--dataset", dataset, "--events", events]
    return [*words, *QUICK, "--out", str(out), *map(str, more)]


def invoke(*arguments: str | Path, fails: bool = False) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert (result.exit_code != 0) == fails, f"{result.output}\n{result.exception!r}"
    return result


def test_a_small_set_is_trained_judged_published_and_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    lenient = ("--set", "trainer.gate.ndcg_tolerance=1", "--set", "trainer.gate.min_ndcg_gain=-1")
    result = invoke(*command(tmp_path / "models", "--report", page, "--json", *lenient, "--network", "gru"))
    summary: dict[str, Any] = json.loads(result.stdout)
    assert summary["dataset"] == "synthetic"
    assert 2000 < summary["interactions"] <= 2500
    assert summary["epochs"] == len(summary["curve"]) == 2
    assert summary["curve"][1][1] < summary["curve"][0][1], "the loss did not fall"
    metrics = summary["metrics"]
    assert metrics["challenger_hr_at_10"] > metrics["popularity_hr_at_10"]
    assert metrics["online_ndcg_at_10"] > 0
    assert summary["version"] is not None, summary["reasons"]
    folder = Path(summary["uri"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["network"] == "gru"
    assert manifest["trained_on"]["interactions"] == summary["interactions"]
    assert {"model.onnx", "vocabulary.json", "weights.safetensors"} <= set(manifest["files"])
    text = page.read_text("utf-8")
    assert "gru on synthetic" in text
    assert f"Published</b> as {summary['version']}" in text
    assert text.count("<polyline") == 2
    assert f"{metrics['challenger_ndcg_at_10']:.4f}" in text
    assert "online models alone" in text
    assert not any(word in text for word in ("http:", "https:", "<script", "<link", "src="))
    assert not list((tmp_path / "home" / "training" / "data-sets").iterdir()), "the run's folder is left"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "synthetic"), "give --once, too"),
        (("--once", "--report", "page.html"), "--report only counts with --dataset"),
        (("--once", "--dataset", "synthetic", "--set", "trainer.dim"), "--set 'trainer.dim': write it as"),
        (("--once", "--dataset", "synthetic", "--set", "dim=1"), "name the section"),
        (("--once", "--dataset", "synthetic", "--set", "trainer.dim=wide"), "trainer.dim: Expected `int`"),
        (("--once", "--dataset", "synthetic", "--report", "nowhere/page.html"), "there is no folder"),
        (("--once", "--dataset", "nothing"), "no data set 'nothing'"),
        (("--once", "--dataset", "synthetic", "--events", "50"), "interactions in the log, 1000 asked for"),
        (("--once", "--dataset", "synthetic", "--set", "trainer.device=cuda"), "PyTorch sees no GPU"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(words: tuple[str, ...], message: str) -> None:
    import torch

    if "cuda" in words[-1] and torch.cuda.is_available():
        pytest.skip("here is a GPU")
    result = invoke("trainer", *words, fails=True)
    assert message in str(result.exception)


def _run(arguments: list[str], home: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "FRESHET_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", *arguments], env=environ, stdout=pipe, stderr=pipe, text=True
    )


def _weights(summary: dict[str, Any]) -> dict[str, np.ndarray]:
    data = (Path(summary["uri"]) / "weights.safetensors").read_bytes()
    found: dict[str, np.ndarray] = safetensors.numpy.load(data)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three runs, each by a process that compiles and imports anew
def test_a_run_killed_by_the_kernel_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    lenient = ("--set", "trainer.gate.ndcg_tolerance=1", "--set", "trainer.gate.min_ndcg_gain=-1")
    epochs = ("--set", "trainer.max_epochs=12", "--set", "trainer.patience=12", "--json", *lenient)
    home = tmp_path / "home"
    killed = _run(command(tmp_path / "one", *epochs), home)
    deadline = time.monotonic() + 600
    while not list(home.glob("training/data-sets/*/*.safetensors")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "one").exists()
    summaries = []
    for name, folder in (("one", home), ("two", tmp_path / "another home")):
        process = _run(command(tmp_path / name, *epochs), folder)
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error
        summaries.append(json.loads(out))
    assert 1 <= summaries[0]["resumed_from"] <= 12
    assert summaries[1]["resumed_from"] == 0
    one, two = (_weights(summary) for summary in summaries)
    assert one.keys() == two.keys()
    for name, weights in one.items():
        np.testing.assert_array_equal(weights, two[name], err_msg=name)
    assert summaries[0]["metrics"].keys() == summaries[1]["metrics"].keys()
    assert not list((home / "training" / "data-sets").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three runs, each by a process that compiles and imports anew
def test_torchrun_trains_with_two_processes_and_publishes_one_version(tmp_path: Path) -> None:
    arguments = command(tmp_path / "models", "--json", "--set", "trainer.gate.min_ndcg_gain=-1")
    environ = {**os.environ, "FRESHET_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "streams.cli", *arguments, "--set", "trainer.gate.ndcg_tolerance=1"],
        env=environ, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [line] = [text for text in done.stdout.splitlines() if text.startswith("{")]
    summary = json.loads(line)
    assert [path.parent.name for path in (tmp_path / "models").glob("*/*/manifest.json")] == [
        summary["version"]
    ]


def test_longer_histories_than_workers_keep_are_refused(tmp_path: Path) -> None:
    """Such a network would be judged on what it is never served."""
    result = invoke(*command(tmp_path, "--set", "trainer.history_length=80"), fails=True)
    assert "trainer.history_length=80" in str(result.exception)
    assert "user_state.recent" in str(result.exception)
    both = ("--set", "trainer.history_length=80", "--set", "user_state.recent=80", "--report", "no/page.html")
    assert "--report no/page.html" in str(invoke(*command(tmp_path, *both), fails=True).exception)
