"""The trainer on a real log: where it begins, what it trains on, and that a killed training is continued."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from serving.training.interaction_log import InteractionLog
from serving.training.slow_path import Stage
from streams.errors import FreshetError, SettingsError
from streams.model_records import live_record, model_records
from streams.settings import Settings
from streams.synthetic import synthetic
from streams.trainer import Trainer
from streams.trainer_log import append_record
from streams.trainer_start import first_offset
from tests.integration.trainer_cases import T0, quick, records_of, write


class Killed(BaseException):
    """Comes out of the progress line, where a kill would stop everything."""


def test_it_begins_at_an_offset_or_a_time(settings: Settings) -> None:
    records = records_of(settings, synthetic().events[:1200])
    write(settings, records, [T0 + 60_000 * n for n in range(len(records))])
    assert len(records) >= 3
    assert first_offset(settings) == 0
    assert first_offset(quick(settings, from_offset=2)) == 2
    assert first_offset(quick(settings, from_time=str(T0 + 60_000))) == 1
    assert first_offset(quick(settings, from_time="2023-11-14T22:14:20.001Z")) == 2
    assert first_offset(quick(settings, from_time=str(T0 + 10**9))) == len(records)
    with pytest.raises(SettingsError, match="set one"):
        first_offset(quick(settings, from_time=str(T0), from_offset=1))
    later = quick(settings, from_offset=1)
    positive = sum(int((record.column("weight", "<f4") > 0).sum()) for record in records[1:])
    with pytest.raises(FreshetError, match=f"training on {positive} interactions"):
        Trainer(msgspec.structs.replace(later, trainer=msgspec.structs.replace(
            later.trainer, min_interactions=10**6))).run_once()  # fmt: skip


@pytest.mark.slow
def test_a_killed_training_is_continued_on_the_data_that_it_had(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path / "home"))
    own = quick(settings)
    records = records_of(own, synthetic().events[:4000])
    first, rest = records[:6], records[6:]
    write(own, first)

    def kill(stage: Stage) -> None:
        if "epoch 2" in stage.text:
            raise Killed

    count = sum(append_record(InteractionLog(), record, n) for n, record in enumerate(first))
    with pytest.raises(Killed):
        Trainer(quick(settings, every_interactions=count), kill).run()
    assert live_record(model_records(own), "ranker") is None
    write(own, rest)

    def stop(stage: Stage) -> None:
        if stage.name == "published":
            again._stop.set()

    again = Trainer(own, stop)
    with caplog.at_level(logging.INFO, "freshet.trainer"):
        again.run()
    live = live_record(model_records(own), "ranker")
    assert live is not None
    assert live.trained_on is not None
    assert live.trained_on["to_offset"] == len(first) - 1
    assert live.reason == f"trained on {count} new interactions (schedule.every_interactions={count})"
    assert f"continuing the training on the log up to offset {len(first)}" in caplog.text
    assert "epoch 1," not in caplog.text, "the training began anew"
    assert "epoch 3," in caplog.text
    assert not list((tmp_path / "home" / "training").rglob("*.safetensors"))
    assert not list((tmp_path / "home" / "training").rglob("begun.json"))
