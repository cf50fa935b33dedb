"""A training that was interrupted goes on where it was, and ends with the bits of one that was not."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from serving.registry.store import Registry
from serving.training import checkpoint, slow_path
from serving.training.dataset import LogSplit, split_by_time
from serving.training.device import Place
from serving.training.slow_path import Outcome, run_slow_path
from serving.training.train import Progress, TrainedNetwork, train
from tests.test_serving.chain import SETTINGS, markov_log

SMALL = msgspec.structs.replace(
    SETTINGS, dim=16, max_epochs=4, dropout=0.3, max_cpu_seconds=600.0, max_seconds=600.0
)


class Killed(BaseException):
    """Comes out of the progress line, as a signal's handler would."""


@functools.cache
def split() -> LogSplit:
    return split_by_time(markov_log(users=80), SMALL)


@functools.cache
def uninterrupted() -> TrainedNetwork:
    return train(split(), SMALL)


def _kill_after(epoch: int, folder: Path) -> None:
    def progress(point: Progress) -> None:
        if point.epoch == epoch:
            raise Killed

    with pytest.raises(Killed):
        train(split(), SMALL, progress=progress, place=Place(folder=folder))


def _assert_same(one: TrainedNetwork, other: TrainedNetwork) -> None:
    assert one.weights().keys() == other.weights().keys()
    for name, weights in one.weights().items():
        np.testing.assert_array_equal(weights, other.weights()[name], err_msg=name)
    assert one.ndcg_at_10 == other.ndcg_at_10
    points = [[(p.epoch, p.loss, p.ndcg_at_10) for p in run.curve] for run in (one, other)]
    assert points[0] == points[1]


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_killed_training_ends_with_the_same_bits(epoch: int, tmp_path: Path) -> None:
    _kill_after(epoch, tmp_path)
    resumed = train(split(), SMALL, place=Place(folder=tmp_path))
    assert resumed.resumed_from == epoch
    _assert_same(resumed, uninterrupted())


def test_an_adversary_goes_on_where_it_was_too(tmp_path: Path) -> None:
    irgan = msgspec.structs.replace(SMALL, adversarial="irgan", max_epochs=2, dim=8, blocks=1)
    whole = train(split(), irgan, place=Place(folder=tmp_path / "whole"))
    with pytest.raises(Killed):
        train(split(), irgan, progress=_killed, place=Place(folder=tmp_path / "again"))
    again = train(split(), irgan, place=Place(folder=tmp_path / "again"))
    assert again.resumed_from == 1
    _assert_same(again, whole)
    one, other = (_tensors(tmp_path / name) for name in ("whole", "again"))
    assert any(name.startswith("adversary/moment.") for name in one)
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def _killed(point: Progress) -> None:
    raise Killed


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that the one checkpoint in `folder` holds."""
    [file] = folder.glob("*.safetensors")
    return safetensors.torch.load_file(file)


def test_killed_twice(tmp_path: Path) -> None:
    _kill_after(1, tmp_path)
    _kill_after(2, tmp_path)
    _assert_same(train(split(), SMALL, place=Place(folder=tmp_path)), uninterrupted())


def test_a_training_that_had_ended_is_not_repeated(tmp_path: Path) -> None:
    _kill_after(4, tmp_path)
    seen: list[int] = []
    done = train(split(), SMALL, progress=lambda p: seen.append(p.epoch), place=Place(folder=tmp_path))
    assert not seen
    _assert_same(done, uninterrupted())


def test_other_data_or_settings_begin_anew(tmp_path: Path) -> None:
    _kill_after(2, tmp_path)
    other = msgspec.structs.replace(SMALL, seed=8, max_epochs=1)
    assert train(split(), other, place=Place(folder=tmp_path)).resumed_from == 0
    more = split_by_time(markov_log(users=81), SMALL)
    once = msgspec.structs.replace(SMALL, max_epochs=1)
    assert train(more, once, place=Place(folder=tmp_path)).resumed_from == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None], ids=["empty", "wrong", "cut"])
def test_a_broken_checkpoint_is_no_checkpoint(damage: bytes | None, tmp_path: Path) -> None:
    _kill_after(1, tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-50] if damage is None else damage)
    once = msgspec.structs.replace(SMALL, max_epochs=1)
    assert train(split(), SMALL, place=Place(folder=tmp_path)).resumed_from == 0
    assert checkpoint.decode(b"no file", checkpoint.digest_of_run(split(), once, None, 1)) is None


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Whoever opens it meanwhile reads the old one whole."""
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.write(path, b"old")
    with path.open("rb") as reader:
        checkpoint.write(path, b"newer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"newer"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    checkpoint.remove(path.parent)
    assert not path.parent.exists()


def test_a_checkpoint_keeps_every_bit() -> None:
    numbers = checkpoint.Numbers(
        epoch=3, best_epoch=2, best_ndcg_at_10=0.1 + 0.2, cpu_s=1.5, wall_s=2.5, finished=False,
        curve=((1.0, 0.5, 1.0),),
    )  # fmt: skip
    parts = {"network": {"a.b": torch.randn(3, 2)}, "steps": {"done": torch.tensor(7)}}
    data = checkpoint.encode(checkpoint.Checkpoint(numbers, parts), "digest")
    found = checkpoint.decode(data, "digest")
    assert found is not None
    assert found.numbers == numbers
    assert torch.equal(found.parts["network"]["a.b"], parts["network"]["a.b"])
    assert int(found.parts["steps"]["done"]) == 7
    assert checkpoint.decode(data, "another") is None


def _slow_path(registry: Registry, folder: Path) -> Outcome:
    log, once = markov_log(users=80), msgspec.structs.replace(SMALL, max_epochs=1)
    outcome = run_slow_path(log, registry, once, folder=folder)
    assert outcome is not None
    return outcome


def test_a_run_that_could_not_publish_is_repeated_from_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, failed = Registry(str(tmp_path / "models")), []

    def lost(*_: object) -> NoReturn:
        failed.append(1)
        raise RuntimeError("Connection closed by peer")

    with monkeypatch.context() as patched:
        patched.setattr(slow_path, "_judged", lost)
        with pytest.raises(RuntimeError, match="closed by peer"):
            _slow_path(registry, tmp_path / "runs")
    assert failed
    assert _slow_path(registry, tmp_path / "runs").product.trained.resumed_from == 1
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_nobody_repeats_is_dropped_after_a_week(tmp_path: Path) -> None:
    stale, fresh, other = tmp_path / ("a" * 16), tmp_path / ("b" * 16), tmp_path / "mine"
    week_ago = time.time() - checkpoint.STALE_S - 60.0
    for folder in (stale, fresh, other):
        checkpoint.write(folder / "x.safetensors", b"x")
    for folder in (stale, other):
        os.utime(folder, (week_ago, week_ago))
    checkpoint.remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == [fresh, other]
    checkpoint.remove_stale(tmp_path / "nothing")
