"""Snapshots of single models: what they carry, and what they refuse."""

from __future__ import annotations

import json

import pytest
import safetensors.numpy

from online_models import DecayedPopularity, SnapshotMismatchError
from online_models.checks import random_events
from online_models.snapshot import METADATA_KEY, metadata_of


def _learned(half_life_s: float = 60.0) -> DecayedPopularity:
    model = DecayedPopularity(half_life_s=half_life_s)
    for event in random_events(30):
        model.learn_one(*event)
    return model


def test_a_snapshot_says_what_made_it() -> None:
    found = metadata_of(_learned().to_bytes())
    assert found["model"] == "DecayedPopularity"
    assert found["parameters"]["half_life_s"] == "60.0"
    assert {"kernel_version", "cpu_name", "cpu_features"} <= set(found)


def test_other_parameters_are_refused_by_name_and_change_nothing() -> None:
    model = _learned(half_life_s=90.0)
    before = model.digest()
    with pytest.raises(SnapshotMismatchError, match=r"parameters .*'60\.0'.*here .*'90\.0'"):
        model.from_bytes(_learned().to_bytes())
    assert model.digest() == before


@pytest.mark.parametrize("name", ["kernel_version", "cpu_name", "cpu_features", "model", "format"])
def test_another_target_is_refused_by_name(name: str) -> None:
    data = _learned().to_bytes()
    metadata = metadata_of(data) | {name: "another"}
    forged = safetensors.numpy.save(
        safetensors.numpy.load(data), metadata={METADATA_KEY: json.dumps(metadata)}
    )
    with pytest.raises(SnapshotMismatchError, match=f"{name} 'another'"):
        _learned().from_bytes(forged)


def test_bytes_that_are_no_snapshot_are_refused() -> None:
    with pytest.raises(safetensors.SafetensorError):
        _learned().from_bytes(b"not a snapshot")
