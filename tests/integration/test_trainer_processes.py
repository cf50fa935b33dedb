"""`freshet trainer` as processes on a real log: it trains because users change, and under torchrun as one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from serving.training.checkpoint import Numbers
from streams.events import ModelRecord
from streams.model_records import live_record, model_records, open_registry
from streams.settings import Settings
from tests.integration.trainer_cases import CHAIN_USERS, chain_events, records_of, write

WAIT_S = 300.0
"""Until what must come is there: two busy cores import PyTorch for a minute."""
TRAINER = (sys.executable, "-m", "streams.cli", "trainer")
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
    "-m", "streams.cli", "trainer",
)  # fmt: skip
SMALL = {
    "trainer.dim": 8, "trainer.blocks": 1, "trainer.history_length": 10, "trainer.max_epochs": 2,
    "trainer.min_interactions": 500, "trainer.max_cpu_seconds": 86_400, "trainer.max_seconds": 86_400,
    "trainer.gate.min_ndcg_gain": -1, "trainer.gate.ndcg_tolerance": 1, "trainer.gate.max_loss_coverage": 1,
    "trainer.gate.max_loss_new_users": 1, "trainer.gate.max_loss_new_items": 1,
    "trainer.gate.latency_budget_ms": 60_000,
    "trainer.compression.candidates": "[]",
    "schedule.every_s": 0, "schedule.every_interactions": 10**9, "schedule.niceness": 0,
}  # fmt: skip
"""A network that is trained in a second, and no reason to train."""


class Running:
    """A command that runs until it is told to stop, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def text(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def wait_for(self, told: Callable[[], object]) -> None:
        """Until `told` says so; fails with the output when the process ends first."""
        deadline = time.monotonic() + WAIT_S
        while not told():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.2)

    def end(self, sent: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after that signal."""
        self.process.send_signal(sent)
        return self.process.wait(WAIT_S)

    def rank(self, number: int) -> psutil.Process:
        """Of torchrun's processes the one with that rank."""
        [found] = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.environ().get("RANK") == str(number)
        ]
        return found


@contextlib.contextmanager
def running(command: Sequence[str], environ: dict[str, str], log: Path, **more: object) -> Iterator[Running]:
    """The trainer with `SMALL` settings and `more`; ended when the test ends."""
    words = [word for key, value in {**SMALL, **more}.items() for word in ("--set", f"{key}={value}")]
    with log.open("ab") as out:
        process = subprocess.Popen([*command, *words], env=environ, stdout=out, stderr=out)
    children: list[psutil.Process] = []
    try:
        yield Running(process, log)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(process.pid).children(recursive=True)
        for one in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.wait(WAIT_S)


@pytest.fixture
def environ(freshet_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    paths = os.pathsep.join(sys.path)
    return {**freshet_env, "FRESHET_HOME": str(tmp_path / "home"), "PYTHONPATH": paths}


def live(settings: Settings) -> ModelRecord | None:
    return live_record(model_records(settings), "ranker")


def only_version(settings: Settings) -> ModelRecord:
    """The live version, and the registry holds no other."""
    found = live(settings)
    assert found is not None
    assert open_registry(settings).list() == [found.version]
    return found


def checkpoint_of(tmp_path: Path) -> Numbers | None:
    """Of the one training that is under way, or was killed."""
    for file in (tmp_path / "home" / "training").rglob("*.safetensors"):
        data = file.read_bytes()
        told = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        return msgspec.json.decode(told["numbers"], type=Numbers)
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_trains_because_users_turn_to_something_else(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    records = records_of(settings, chain_events([7] * 20 + [11] * 5))
    before, after = records[:-1], records[-1:]
    assert sum(record.n for record in before) == 20 * CHAIN_USERS
    write(settings, before)
    log, drift = tmp_path / "log", {"schedule.on_drift": "true", "trainer.head_examples": 2000}
    with running(TRAINER, environ, log, **drift) as trainer:
        trainer.wait_for(lambda: "following the learning log" in trainer.text())
        write(settings, after)
        trainer.wait_for(lambda: live(settings))
        assert trainer.end() == 0
    found = live(settings)
    assert found is not None
    assert found.reason is not None
    assert found.reason.startswith("trained on drift at ")
    assert found.trained_on["to_offset"] == len(records) - 1, "it trained before the change"
    assert f"training: {found.reason.removeprefix('trained on ')}" in log.read_text()
    assert len(open_registry(settings).list()) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_follow_the_log_train_once_and_end_together(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    records = records_of(settings, chain_events([7] * 20))
    write(settings, records)
    log = tmp_path / "log"
    with running(TORCHRUN, environ, log, **{"schedule.every_interactions": 20 * CHAIN_USERS}) as trainer:
        trainer.wait_for(lambda: live(settings))
        trainer.end()
    assert log.read_text().count(f"trainer stopped after {20 * CHAIN_USERS} interactions") == 2
    assert "SIGKILL" not in log.read_text(), "torchrun had to kill one"
    found = only_version(settings)
    assert found.trained_on["to_offset"] == len(records) - 1
    assert found.reason is not None
    assert found.reason.startswith(f"trained on {20 * CHAIN_USERS} new interactions")
    assert [record.status for record in model_records(settings)] == ["live"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_once_and_end(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    write(settings, records_of(settings, chain_events([7] * 20)))
    log = tmp_path / "log"
    with running((*TORCHRUN, "--once", "--json"), environ, log) as trainer:
        assert trainer.process.wait(WAIT_S) == 0, trainer.text()
    found = only_version(settings)
    assert log.read_text().count(f'"version": "{found.version}"') == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_process_that_dies_ends_both_and_the_next_start_continues(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    """The training is too long to end: it is only ever killed, and told to stop."""
    write(settings, records_of(settings, chain_events([7] * 20)))
    endless = {"schedule.every_interactions": 1000, "trainer.max_epochs": 10_000, "trainer.patience": 10_000}
    log, home = tmp_path / "log", tmp_path / "home" / "training"
    with running(TORCHRUN, environ, log, **endless) as trainer:
        trainer.wait_for(lambda: checkpoint_of(tmp_path))
        trainer.rank(1).kill()
        assert trainer.process.wait(WAIT_S) == 1, trainer.text()
        assert "exitcode  : -9" in trainer.text(), "torchrun did not say which"
    killed_at = checkpoint_of(tmp_path)
    assert killed_at is not None
    assert list(home.rglob("begun.json")), "it is forgotten that a training was under way"
    log.unlink()
    with running(TORCHRUN, environ, log, **endless) as trainer:
        trainer.wait_for(lambda: f"epoch {killed_at.epoch + 2}," in trainer.text())
        trainer.end()
    assert "continuing the training on the log up to offset" in log.read_text()
    assert "epoch 1," not in log.read_text(), "the training began anew"
    assert log.read_text().count("training interrupted") == 2
    assert "SIGKILL" not in log.read_text(), "torchrun had to kill one"
    stopped_at = checkpoint_of(tmp_path)
    assert stopped_at is not None
    assert stopped_at.epoch > killed_at.epoch
    assert live(settings) is None
