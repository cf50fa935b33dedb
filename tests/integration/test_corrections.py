"""Retracted, rated anew, forgotten: on a real broker, through a kill, exactly once, and on every replica
alike."""

from __future__ import annotations

import random
from pathlib import Path

from online_models.learning_batch import UNCOUNT, WITHDRAW
from streams.dumps import dump_log
from streams.forget import forget
from streams.learning_log import FORGET_ITEM, FORGET_USER, decode_record
from tests.chaos.records import read_topic
from tests.integration.auditor import assert_exactly_once, read_run, replayed_digests
from tests.integration.test_worker_crashes import SMALL, snapshots
from tests.integration.worker_process import PATIENCE_S, START_MS, Deployment, Input, event

USERS, GONE = 12, "user-3"


def _stream(n: int, seed: int) -> list[Input]:
    """Users who rate again and again, dislike, and take back one event in six."""
    rng = random.Random(seed)
    made: list[Input] = []
    mine: dict[str, list[str]] = {}
    for k in range(n):
        user, time_ms = f"user-{rng.randrange(USERS)}", START_MS + 1000 * k
        before = mine.setdefault(user, [])
        if before and rng.random() < 1 / 6:
            made.append(event(f"e{k}", user, "any", time_ms, "retract", retracts=rng.choice(before)))
            continue
        before.append(f"e{k}")
        kind = rng.choice(["rating", "rating", "click", "dislike"])
        item = f"item-{min(int(rng.paretovariate(0.7)), 40)}"
        made.append(event(f"e{k}", user, item, time_ms, kind, value=rng.randrange(1, 6)))
    return made


def test_what_is_taken_back_is_taken_back_once_whoever_dies(fleet: Deployment, tmp_path: Path) -> None:
    often = {"WORKER__SNAPSHOT_INTERACTIONS": "60", "WORKER__SNAPSHOTS_KEPT": "100"}
    stream, lists = _stream(420, seed=31), fleet.tail("recommendations")
    fleet.produce("items", [Input(b"item-1", b'{"item_id": "item-1"}')])
    fleet.produce("events", stream[:240])
    first = fleet.worker("w1", **SMALL, **often)
    fleet.wait_for(lists, 90)
    first.kill()
    fleet.produce("events", stream[240:])
    second = fleet.worker("w1", **SMALL, **often)
    fleet.wait_handled()
    [token] = {row["user_token"] for row in dump_log(fleet.settings) if row["user_id"] == GONE}
    assert forget(fleet.settings, GONE, PATIENCE_S).done
    fleet.produce("items", [Input(b"item-1", None)])
    tail = fleet.tail("interactions")
    while not any(FORGET_ITEM in decode_record(r.value(), "here").kinds for r in tail.records):
        tail.more()
        fleet.check_alive([second])
    second.stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == 420
    kinds = [row.kind for row in run.corrections]
    assert kinds.count(WITHDRAW) > 50
    assert {UNCOUNT, FORGET_USER} == {
        row.kind for row in run.corrections if row.kind in (UNCOUNT, FORGET_USER)
    }
    assert {f"{row.token:016x}" for row in run.corrections if row.kind == FORGET_USER} == {token}
    assert [row.item_id for row in run.corrections if row.kind == FORGET_ITEM] == ["item-1"]
    _check_nothing_is_left_of(fleet, GONE)
    states = snapshots(tmp_path)
    assert len(states) > 2
    assert {o: state.digest() for o, state in states.items()} == replayed_digests(fleet.settings, states)
    totals = [shard.stats for shard in read_run(fleet.settings).shards.values()]
    assert min(sum(s.retracted for s in totals), sum(s.replaced for s in totals)) > 10
    assert sum(s.forgotten for s in totals) == 1


def _check_nothing_is_left_of(fleet: Deployment, user: str) -> None:
    """What compaction keeps, the last record under each key, does not hold the id; nor does the dump."""
    for name in ("user-state", "recommendations", "users"):
        last = {(record.partition, record.key): record for record in read_topic(fleet.settings, name)}
        kept = [(record.key or b"") + record.value for record in last.values() if record.value is not None]
        assert kept or name == "users"
        assert not [record for record in kept if user.encode() in record], name
    assert user not in {row["user_id"] for row in dump_log(fleet.settings, corrections=True)}
