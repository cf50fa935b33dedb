"""The generator of negatives where several processes train, and where a training is killed and continued."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
import torch

from serving.training import train as training
from serving.training.checkpoint import Checkpoint, decode
from serving.training.dataset import LogSplit, split_by_time
from serving.training.device import Place
from serving.training.train import Progress, train
from tests.test_serving.chain import SETTINGS, markov_log

IRGAN = msgspec.structs.replace(
    SETTINGS, dim=16, blocks=1, dropout=0.2, adversarial="irgan", max_epochs=3, patience=3,
    max_cpu_seconds=600.0, max_seconds=600.0, min_interactions=100,
)  # fmt: skip
USERS = 33  # the last batch is one window, so that one of two processes has none
SCRIPT = """
    import hashlib, json, sys
    from pathlib import Path
    import msgspec
    from serving.training.dataset import split_by_time
    from serving.training.device import Place
    from serving.training.distributed import joined
    from serving.training.settings import TrainerSettings
    from serving.training.train import _Run
    from serving.training.windows import training_batches
    from tests.test_serving.chain import markov_log

    settings = msgspec.json.decode(sys.argv[1], type=TrainerSettings)

    def trained(split, place, epochs):
        run = _Run(split, settings, None, place, None)
        run.resume()
        for _ in range(epochs):
            run.epoch()
        return run

    def digests(run):
        weights = hashlib.sha256()
        for _, values in sorted(run._stepper.parts()["adversary"].items()):
            weights.update(values.numpy().tobytes())
        network = hashlib.sha256()
        for _, values in sorted(run._network.state_dict().items()):
            network.update(values.numpy().tobytes())
        return [weights.hexdigest(), network.hexdigest()]

    with joined(Place.of(settings).device) as world:
        split = split_by_time(markov_log(users={users}), settings)
        whole = trained(split, Place.of(settings, world), 3)
        folder = Path(sys.argv[2])
        trained(split, Place.of(settings, world, folder), 2)
        world.wait()
        again = trained(split, Place.of(settings, world, folder), 1)
        told = dict(whole=digests(whole), again=digests(again), resumed_from=again._trained.resumed_from)
        print(json.dumps(told))
"""


def split() -> LogSplit:
    return split_by_time(markov_log(users=USERS), IRGAN)


def test_two_processes_end_with_one_generator_and_so_after_a_restart(tmp_path: Path) -> None:
    outputs = _both(tmp_path)
    assert outputs[0] == outputs[1], "generators differ, or the rankers that they were trained against"
    assert outputs[0]["resumed_from"] == 2
    assert outputs[0]["again"] == outputs[0]["whole"], "a restart is not without a trace"


def test_one_that_was_killed_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    whole = train(split(), IRGAN, place=Place(folder=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(split(), IRGAN, progress=_interrupt, place=Place(folder=tmp_path / "again"))
    again = train(split(), IRGAN, place=Place(folder=tmp_path / "again"))
    assert again.resumed_from == 2
    for name, weights in whole.weights().items():
        assert (weights == again.weights()[name]).all(), name
    one, other = (_checkpoint(tmp_path / name).parts["adversary"] for name in ("whole", "again"))
    assert one.keys() == other.keys()
    assert any(name.startswith("moment.") for name in one)
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def _interrupt(point: Progress) -> None:
    if point.epoch == 2:
        raise KeyboardInterrupt


def _checkpoint(folder: Path) -> Checkpoint:
    [file] = folder.glob("*.safetensors")
    _, digest = training._checkpoint_of(split(), IRGAN, None, Place(folder=folder))
    found = decode(file.read_bytes(), digest)
    assert found is not None
    return found


def _both(folder: Path) -> list[dict[str, object]]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(users=USERS))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environ = {**os.environ, **told, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), msgspec.json.encode(IRGAN).decode(), str(folder)]
    processes = [
        subprocess.Popen(
            command, env={**environ, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(out) for out, _ in outputs]
