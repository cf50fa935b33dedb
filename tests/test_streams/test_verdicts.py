"""The owner of partition 0 adds up what all workers report on a real topic, and says how a trial ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from serving.registry.swap import RankerSlot, SwapEvent
from streams.clients import make_producer, producer_config
from streams.events import ModelRecord, TrialStats
from streams.model_records import announce, open_registry
from streams.model_state import ModelState
from streams.replica import Replica
from streams.settings import Settings
from streams.topic_admin import check_layout
from streams.validation import EventValidator
from streams.verdicts import Verdicts
from tests.test_serving.version_cases import publish_table, successor_table
from tests.test_streams.test_model_state import on_probation, record

VOCABULARY = [f"item-{n}" for n in range(20)]
Produce = Callable[[bytes], None]


@pytest.fixture
def limited(settings: Settings) -> Settings:
    ranker = msgspec.structs.replace(
        settings.ranker, shadow_min_events=100, shadow_max_events=1000, probation_events=500
    )
    return msgspec.structs.replace(settings, ranker=ranker)


@pytest.fixture
def replica(limited: Settings) -> Iterator[Replica]:
    made = Replica(limited, EventValidator(limited.validation, lambda key: 0), check_layout(limited))
    yield made
    made.close()


@pytest.fixture
def verdicts(limited: Settings) -> Iterator[Verdicts]:
    made = Verdicts(limited)
    yield made
    made.close()


@pytest.fixture
def produce(limited: Settings) -> Produce:
    producer = make_producer(producer_config(limited))

    def send(value: bytes) -> None:
        producer.produce(limited.names["worker-stats"], value, b"w")
        assert producer.flush(10) == 0

    return send


def part(worker: str, replica: Replica, **counts: Any) -> bytes:
    """One worker's report on the trial in hand."""
    trial = replica.models.trial
    assert trial is not None
    stats = TrialStats(
        kind=trial.kind, live=trial.live, live_digest=trial.live_digest, other=trial.other,
        other_digest=trial.other_digest, **counts,
    )  # fmt: skip
    return msgspec.json.encode({"worker": worker, "epoch": 1, "more": [1], "trial": stats})


def said(verdicts: Verdicts, replica: Replica, *, wait_s: float = 120.0) -> list[ModelRecord]:
    """What is said next, decoded, and taken by the replica as it would be once committed."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        found = verdicts.poll(replica)
        if found:
            records = [msgspec.json.decode(one.value or b"", type=ModelRecord) for one in found]
            for one, made in zip(found, records, strict=True):
                expected = "ranker" if made.status == "live" else f"ranker#{made.version}"
                assert one.key == expected.encode()
                replica.models.take(made)
            return records
        time.sleep(0.05)
    return []


def told(records: list[ModelRecord]) -> list[tuple[str, str]]:
    return [(one.version, one.status) for one in records]


def take(replica: Replica, *records: ModelRecord) -> None:
    for one in records:
        replica.models.take(one)


def test_two_workers_counts_together_promote_a_shadow(
    verdicts: Verdicts, replica: Replica, produce: Produce
) -> None:
    take(replica, record("v1"), record("v2", "shadow"))
    assert said(verdicts, replica, wait_s=0.1) == []
    produce(part("a", replica, events=60, live_hits=5, other_hits=14, other_only=10, live_only=1))
    produce(b"not a report")
    for counts in ({"other_only": 10**12}, {"other_only": -1}, {"other_hits": 61}, {"events": 10**15}):
        odd = {"events": 60, "live_hits": 5, "other_hits": 14, "live_only": 1, **counts}
        produce(part("c", replica, **odd))
    assert said(verdicts, replica, wait_s=1.5) == [], "60 events are fewer than 100"
    produce(part("b", replica, events=60, live_hits=5, other_hits=14, other_only=10, live_only=1))
    records = said(verdicts, replica)
    assert told(records) == [("v2", "live"), ("v2", "promoted")]
    live, promoted = records
    assert (live.against, live.against_digest, live.replaces) == ("v1", "d-v1", "v1")
    assert "better than the live version: HR@10 0.0833 live, 0.2333 shadow over 120 events" in str(
        promoted.reason
    )
    assert promoted.metrics["shadow_hr_at_10"] == pytest.approx(28 / 120)
    assert said(verdicts, replica, wait_s=0.8) == [], "it is on probation now, and that is another trial"
    produce(part("a", replica, events=500, live_hits=50, other_hits=50, live_only=9, other_only=9))
    [kept] = said(verdicts, replica)
    assert (kept.version, kept.status, kept.against, kept.trial) == ("v2", "live", None, "probation")
    assert replica.models.trial is None


def test_a_worse_version_is_rolled_back_once(verdicts: Verdicts, replica: Replica, produce: Produce) -> None:
    take(replica, record("v1", metrics={"ndcg_at_10": 0.3}), on_probation("v2", "v1"))
    assert said(verdicts, replica, wait_s=0.1) == []
    counts = {"events": 200, "live_hits": 10, "other_hits": 45, "live_only": 5, "other_only": 40}
    produce(part("a", replica, **counts))
    trial = part("a", replica, **counts)
    live, dropped = said(verdicts, replica)
    assert told([live, dropped]) == [("v1", "live"), ("v2", "dropped")]
    assert (live.digest, live.against, live.replaces) == ("d-v1", None, "v2")
    assert "v2 was rolled back: worse than the version before it" in str(live.reason)
    assert live.metrics["ndcg_at_10"] == 0.3
    assert dropped.trial == "probation"
    produce(trial)
    assert said(verdicts, replica, wait_s=0.8) == []


def test_a_shadow_that_fails_is_dropped_with_the_reason(
    verdicts: Verdicts, replica: Replica, produce: Produce
) -> None:
    take(replica, record("v1"), record("v2", "shadow"))
    assert said(verdicts, replica, wait_s=0.1) == []
    produce(part("a", replica, failed="v2: 3 of 9 scores are not finite"))
    [dropped] = said(verdicts, replica)
    assert (dropped.status, dropped.reason) == ("dropped", "v2: 3 of 9 scores are not finite")
    assert replica.models.trial is None


def test_what_was_not_compared_ends_too(verdicts: Verdicts, replica: Replica) -> None:
    take(replica, record("v1", "shadow"))
    records = said(verdicts, replica)
    assert told(records) == [("v1", "live"), ("v1", "promoted")], "nothing is live"
    time.sleep(0.6)
    take(replica, record("v2", "shadow"), record("v3", "shadow"))
    assert told(said(verdicts, replica)) == [("v2", "dropped")], "superseded by v3"
    take(replica, record("v4"), record("v1", replaces="v9"))
    assert told(said(verdicts, replica)) == [("v4", "live")], "a verdict on v9 came too late"
    assert said(verdicts, replica, wait_s=0.8) == []


def test_a_verdict_that_came_too_late_swaps_nothing(limited: Settings, replica: Replica) -> None:
    folder = Path(limited.registry.url)
    made = [publish_table(folder, version, VOCABULARY, successor_table(20, 1))[1] for version in ("v1", "v2")]
    first, second = (record(one.manifest.version, digest=one.digest) for one in made)
    for one in (first, second, msgspec.structs.replace(first, replaces="v9")):
        announce(limited, one)
    deadline = time.monotonic() + 120
    while not replica.models.overtaken or replica.slot.loading:
        assert time.monotonic() < deadline
        replica.follow()
    served = [event.version for _ in range(5) if (event := replica.slot.swap_if_ready()) is not None]
    assert replica.slot.current is not None
    assert replica.slot.current.version == "v2"
    assert "v1" not in served


class Serving(SimpleNamespace):
    """A replica whose slot holds a version and has refused another, as `streams.replica` shows it."""

    models: ModelState


def serving(limited: Settings, kind: str, role: Any = "live") -> Serving:
    models = ModelState("ranker")
    slot = RankerSlot(open_registry(limited), limited.ranker)
    slot.current = SimpleNamespace(version="v1", digest="d-v1")  # type: ignore[assignment]
    event = SwapEvent("refused", "v2", "d-v2", "v1", "v2 refused: why", 0.1, role, kind)
    return Serving(models=models, slot=slot, refused={role: event})


def test_a_faulty_live_version_gives_way_to_what_serves(limited: Settings, verdicts: Verdicts) -> None:
    replica: Any = serving(limited, "digest")
    take(replica, record("v1"), on_probation("v2", "v1"))
    live, refused = said(verdicts, replica)
    assert told([live, refused]) == [("v1", "live"), ("v2", "refused")]
    assert live.reason == "it goes on serving: v2 refused: why"
    assert live.uri.endswith("/ranker/v1")
    assert (refused.trial, refused.reason) == ("load", "v2 refused: why")
    assert said(verdicts, replica, wait_s=0.8) == []


@pytest.mark.parametrize("kind", ["store", "slow", "load"])
def test_what_may_lie_with_one_machine_is_no_matter_for_all(
    limited: Settings, verdicts: Verdicts, kind: str
) -> None:
    replica: Any = serving(limited, kind)
    take(replica, record("v1"), record("v2"))
    assert said(verdicts, replica, wait_s=1.0) == []


def test_a_shadow_that_can_t_be_loaded_is_dropped(limited: Settings, verdicts: Verdicts) -> None:
    replica: Any = serving(limited, "slow", "shadow")
    take(replica, record("v1"), record("v2", "shadow"))
    assert told(said(verdicts, replica)) == [("v2", "dropped")]
    lost: Any = serving(limited, "probe", "shadow")
    take(lost, record("v3"), on_probation("v1", "v2"))
    assert told(said(verdicts, lost)) == [("v1", "live")], "without the version before, probation is over"
