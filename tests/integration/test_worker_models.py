"""Item state over restarts, and rankers swapped while events flow: real workers, real files."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import msgspec

from serving.registry.manifest import MODEL_FILE
from serving.registry.store import Published
from streams.events import ModelRecord, Recommendation
from tests.integration.auditor import assert_exactly_once, lists_of, replayed_digests
from tests.integration.test_worker_crashes import snapshots
from tests.integration.worker_process import Deployment, Input, Tail, stream_of
from tests.test_serving.version_cases import publish_table, successor_table


def test_a_restart_from_snapshot_and_tail_gives_the_same_state(fleet: Deployment) -> None:
    common = {
        "WORKER__MAX_BATCH": "50",
        "WORKER__SNAPSHOT_INTERACTIONS": "100",
        "WORKER__SNAPSHOTS_KEPT": "100",
    }
    fleet.produce("events", stream_of(500, seed=21))
    fleet.worker(None, **common)
    fleet.wait_handled()
    fleet.workers[-1].stop()
    folder = Path(fleet.settings.state.dir)
    newest = max(folder.rglob("items-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    older = set(snapshots(folder, whole=lambda path: path != newest))
    assert older
    fleet.produce("events", stream_of(300, seed=22, name="more"))
    second = fleet.worker(None, **common)
    fleet.wait_handled()
    second.stop()
    assert f"{newest.name}: its bytes do not have its digest (truncated or altered); not used" in second.log
    start = f"at learning-log offset {max(older)}, 0 records"
    assert "item state: " in second.log
    assert start not in second.log, "the tail was not read"
    states = snapshots(folder, whole=lambda path: path != newest)
    assert max(states) > max(older)
    assert {o: s.digest() for o, s in states.items()} == replayed_digests(fleet.settings, states)
    assert len(assert_exactly_once(fleet.settings).rows) == 800


def _announce(fleet: Deployment, published: Published) -> None:
    record = ModelRecord(
        model="ranker",
        version=published.manifest.version,
        status="live",
        digest=published.digest,
        uri=published.uri,
        published_at=int(time.time() * 1000),
    )
    fleet.produce("models", [Input(b"ranker", msgspec.json.encode(record))])


def test_swap_under_load(fleet: Deployment) -> None:
    folder = Path(fleet.settings.registry.url)
    vocabulary, table = [f"item-{n}" for n in range(151)], successor_table(151, 1)
    _, good = publish_table(folder, "v1", vocabulary, table)
    _, bad = publish_table(folder, "v2", vocabulary, table)
    damaged = folder / "ranker" / "v2" / MODEL_FILE
    damaged.write_bytes(damaged.read_bytes()[:-50])
    small = {"WORKER__MAX_BATCH": "10"}
    stream = stream_of(20_000, seed=23, items=150)  # more than can be handled while a version is loaded
    lists = fleet.tail("recommendations")
    worker = fleet.worker(None, **small)
    sent = _flow_until(fleet, stream, 0, lambda: len(lists.records) > 50, lists)
    _announce(fleet, good)
    sent = _flow_until(fleet, stream, sent, lambda: _newest_ranker(lists) == "v1", lists)
    _announce(fleet, bad)
    sent = _flow_until(fleet, stream, sent, lambda: "v2 refused" in worker.log, lists)
    fleet.produce("events", stream[sent : sent + 200])
    fleet.produce("models", [Input(b"ranker", b"not a record")])
    fleet.wait_handled()
    worker.stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == sent + 200
    made = sorted(lists_of(run), key=lambda m: m.generated_at)
    assert [ranker for ranker, _ in groupby(m.ranker for m in made)] == [None, "v1"]
    assert not any(m.degraded for m in made)
    assert "v2 refused" in worker.log
    assert "not a models record" in worker.log


def test_lists_say_that_the_live_version_could_not_be_loaded(fleet: Deployment) -> None:
    """A worker that restarts beside a damaged registry goes on from the online models, and says so, until a
    version is in service."""
    folder = Path(fleet.settings.registry.url)
    vocabulary, table = [f"item-{n}" for n in range(151)], successor_table(151, 1)
    _, first = publish_table(folder, "v1", vocabulary, table)
    _, second = publish_table(folder, "v2", vocabulary, table)
    small = {"WORKER__MAX_BATCH": "10"}
    stream = stream_of(900, seed=24, items=150)
    lists = fleet.tail("recommendations")
    _announce(fleet, first)
    worker = fleet.worker(None, **small)
    sent = _flow_until(fleet, stream, 0, lambda: _newest_ranker(lists) == "v1", lists)
    worker.stop()
    served = sent
    damaged = folder / "ranker" / "v1" / MODEL_FILE
    damaged.write_bytes(damaged.read_bytes()[:-50])
    worker = fleet.worker(None, **small)
    refused = "ranker v1 can't be loaded: another size or SHA-256"
    sent = _flow_until(fleet, stream, sent, lambda: refused in str(_newest(lists).degraded_reason), lists)
    sent = _flow_until(fleet, stream, sent, lambda: len(lists.records) > served + 20, lists)
    _announce(fleet, second)
    sent = _flow_until(fleet, stream, sent, lambda: _newest_ranker(lists) == "v2", lists)
    fleet.wait_handled()
    worker.stop()
    run = assert_exactly_once(fleet.settings)
    made = sorted(lists_of(run), key=lambda m: m.generated_at)
    assert all(m.degraded == (m.ranker is None) == (m.degraded_reason is not None) for m in made)
    reasons = [reason for reason, _ in groupby(m.degraded_reason for m in made)]
    loading = [f"ranker {version} is being loaded" for version in ("v1", "v2")]
    told = [reason for reason in reasons if reason not in loading]
    assert [reason is None for reason in told] == [True, False, True]
    assert str(told[1]).startswith(refused)
    counted = sum(own.stats.degraded for shard in run.shards.values() if (own := shard.record()) is not None)
    assert counted == sum(m.degraded for m in made) >= 20


def _newest(lists: Tail) -> Recommendation:
    return msgspec.json.decode(lists.records[-1].value() or b"", type=Recommendation)


def _newest_ranker(lists: Tail) -> str | None:
    return _newest(lists).ranker if lists.records else None


def _flow_until(
    fleet: Deployment, stream: list[Input], sent: int, reached: Callable[[], bool], lists: Tail
) -> int:
    """Send ten events after the other, each ten answered before the next, until `reached`; returns how many
    are sent."""
    while not reached():
        assert sent < len(stream), f"not reached after {sent} events\n{fleet.logs()}"
        fleet.produce("events", stream[sent : sent + 10])
        sent += 10
        fleet.wait_for(lists, sent)
    return sent
