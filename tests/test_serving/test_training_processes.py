"""Two processes train one network: the losses of one, one adversary for both, and one that dies ends both."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from serving.training.dataset import split_by_time
from serving.training.distributed import ALONE, local_rank, world_size
from serving.training.train import TrainedNetwork, train
from serving.training.windows import training_batches
from tests.test_serving.chain import SETTINGS, markov_log

SMALL = msgspec.structs.replace(
    SETTINGS, dim=16, blocks=1, dropout=0.0, max_epochs=3, max_cpu_seconds=600.0, max_seconds=600.0
)
USERS = 70  # windows in no even number of whole batches
IRGAN = msgspec.structs.replace(SMALL, dropout=0.2, adversarial="irgan", min_interactions=100, patience=3)
FEW = 33  # the last batch is one window, so that one of the two processes has none
SCRIPT = """
    import hashlib, json, os, sys
    from pathlib import Path
    import msgspec
    from serving.training.dataset import split_by_time
    from serving.training.device import Place
    from serving.training.distributed import joined
    from serving.training.settings import TrainerSettings
    from serving.training.train import _Run, train
    from tests.test_serving.chain import markov_log

    settings, irgan = (msgspec.json.decode(text, type=TrainerSettings) for text in sys.argv[1:3])
    folder, die = Path(sys.argv[3]), len(sys.argv) > 4

    def progress(point):
        if die:
            os.kill(os.getpid(), 9)

    def adversarial(place, epochs):
        run = _Run(split_by_time(markov_log(users={few}), irgan), irgan, None, place, None)
        run.resume()
        for _ in range(epochs):
            run.epoch()
        return run

    def digests(run):
        parts = run._network.state_dict(), run._stepper.parts()["adversary"]
        return [digest(part) for part in parts]

    def digest(tensors):
        found = hashlib.sha256()
        for _, values in sorted(tensors.items()):
            found.update(values.numpy().tobytes())
        return found.hexdigest()

    with joined(Place.of(settings).device) as world:
        split = split_by_time(markov_log(users={users}), settings)
        trained = train(split, settings, progress=progress, place=Place.of(settings, world))
        whole = adversarial(Place.of(irgan, world), 3)
        adversarial(Place.of(irgan, world, folder), 2)
        world.wait()
        again = adversarial(Place.of(irgan, world, folder), 1)
        found = dict(curve=[[p.loss, p.ndcg_at_10] for p in trained.curve], whole=digests(whole))
        found |= dict(again=digests(again), resumed_from=again._trained.resumed_from)
        print(json.dumps(found))
"""
LEAVE = """
    import torch
    from serving.training.distributed import Interrupted, joined

    with joined(torch.device("cpu")) as world:
        world.wait()
        if world.leads:
            raise Interrupted
        world.total(1.0)
"""


def _start(folder: Path, rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    settings = (msgspec.json.encode(each).decode() for each in (SMALL, IRGAN))
    text = SCRIPT.format(users=USERS, few=FEW)
    return _started(folder, rank, port, text, *settings, str(folder / "runs"), *arguments)


def _started(folder: Path, rank: int, port: int, text: str, *arguments: str) -> subprocess.Popen[str]:
    script = folder / f"script {rank}.py"
    script.write_text(textwrap.dedent(text))
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    environ = {**os.environ, **told, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@functools.cache
def _both(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes says that ran the script to its end."""
    port = _free_port()
    processes = [_start(folder, rank, port) for rank in range(2)]
    outputs = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(out) for out, _ in outputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("both")


def test_two_processes_have_the_losses_of_one(folder: Path) -> None:
    outputs = _both(folder)
    alone: TrainedNetwork = train(split_by_time(markov_log(users=USERS), SMALL), SMALL)
    found = np.array(outputs[0]["curve"])
    expected = np.array([[p.loss, p.ndcg_at_10] for p in alone.curve])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected[-1, 0] < expected[0, 0] - 0.3, "nothing was learned, so nothing was compared"


def test_two_processes_have_one_adversary_and_so_after_a_restart(folder: Path) -> None:
    first, second = _both(folder)
    assert first["whole"] == second["whole"], "rankers or generators differ"
    assert first["resumed_from"] == second["resumed_from"] == 2
    assert first["again"] == second["again"] == first["whole"]


@pytest.mark.slow
def test_one_that_dies_ends_the_other_with_an_error(tmp_path: Path) -> None:
    port = _free_port()
    first, second = (_start(tmp_path, rank, port, "die") for rank in range(2))  # only the first reports
    assert first.wait(timeout=200) == -9
    _, error = second.communicate(timeout=60)
    assert second.returncode not in (0, None)
    assert "ProcessLostError: process 1 of 2 lost another one" in error


def test_one_that_is_told_to_leave_ends_quietly_and_the_other_says_whom_it_lost(tmp_path: Path) -> None:
    port = _free_port()
    first, second = (_started(tmp_path, rank, port, LEAVE) for rank in range(2))
    outputs = [process.communicate(timeout=250) for process in (first, second)]
    assert first.returncode == 0, outputs
    assert second.returncode == 1, outputs
    assert "ProcessLostError: process 1 of 2 lost another one" in outputs[1][1]


def test_shares_are_all_of_a_batch() -> None:
    split = split_by_time(markov_log(users=USERS), SMALL)
    for batch in training_batches(split.train, SMALL, np.random.default_rng(3)):
        parts = [batch.part(rank, 3) for rank in range(3)]
        assert sum(len(part.inputs) for part in parts) == len(batch.inputs)
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part.targets, batch.targets[rank::3])
            assert part.inputs.shape[1] == batch.inputs.shape[1]


def test_without_torchrun_a_process_is_alone() -> None:
    assert world_size({}) == 1
    assert local_rank({}) == 0
    assert world_size({"WORLD_SIZE": "4"}) == 4
    assert (ALONE.agree(0.25), ALONE.total(3.0), ALONE.share(b"x")) == (0.25, 3.0, b"x")
    assert ALONE.either(True)
    assert not ALONE.either(False)
    ALONE.wait()
