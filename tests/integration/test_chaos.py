"""The chaos run, short: what `make chaos` does, for 60 s, and what its seed promises."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.__main__ import NO_BROKER
from tests.chaos.load import SHARES, Mix
from tests.chaos.schedule import schedule
from tests.conftest import _no_broker

SECONDS = 60
SEED = int(os.environ.get("CHAOS_SEED", secrets.randbelow(2**31)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**63))
def test_every_seed_kills_often_enough(seed: int) -> None:
    for seconds, least in ((60.0, 10), (900.0, 100)):
        actions = schedule(seed, seconds)
        kinds = Counter(action.kind for action in actions)
        assert kinds["kill"] >= least
        assert set(kinds) == {"kill", "zombie", "term", "add", "remove", "broker_kill", "broker_stop"}
        assert all(0 <= action.at_s < seconds for action in actions)
        assert [action.at_s for action in actions] == sorted(action.at_s for action in actions)
    assert schedule(seed, 60.0) == schedule(seed, 60.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**63))
def test_a_seed_sends_the_same_records_each_time(seed: int) -> None:
    first, again = Mix(seed), Mix(seed)
    drawn = [first.next() for _ in range(300)]
    assert drawn == [again.next() for _ in range(300)]
    ids = [record.value for _, record, what in drawn if what == "event"]
    assert len(set(ids)) == len(ids)


def test_the_load_has_everything_in_it() -> None:
    mix = Mix(1)
    kinds = Counter(what for _, _, what in itertools.islice(iter(mix.next, None), 20_000))
    assert set(kinds) == set(SHARES)


@pytest.mark.kafka
@pytest.mark.timeout(1000)  # most of it only where the kernels are not compiled yet
def test_a_minute_of_chaos_loses_and_repeats_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS), "--seed", str(SEED)]
    report = tmp_path / "report.json"
    command += ["--keep", str(tmp_path / "chaos"), "--json-file", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=980, check=False)
    if done.returncode == NO_BROKER:
        _no_broker(done.stderr)
    said = f"CHAOS_SEED={SEED}\n{done.stdout}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, said
    assert "lost=0 duplicated=0" in done.stdout.splitlines()[-1], said
    made = json.loads(report.read_text("utf-8"))
    assert made["kills"] >= 10, said
    assert made["broker_kills"] == made["broker_stops"] == 1, said
    assert made["accepted"] + made["rejected"] + made["duplicates"] + made["late"] == made["events"], said
    assert made["events"] > 1000, said
    assert made["snapshots"] > 0, said
