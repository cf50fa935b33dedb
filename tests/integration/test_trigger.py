"""What makes a list: every event, every request, and, only far behind, one list for several events."""

from __future__ import annotations

import msgspec

from streams.dumps import dump_state
from streams.events import Recommendation
from tests.chaos.records import read_topic
from tests.integration.worker_process import Deployment, Input, stream_of


def lists(fleet: Deployment) -> list[Recommendation]:
    """All that were made, each partition's in order."""
    records = read_topic(fleet.settings, "recommendations")
    return [msgspec.json.decode(record.value or b"", type=Recommendation) for record in records]


def test_far_behind_lists_are_coalesced_to_the_newest_and_counted(fleet: Deployment) -> None:
    events = stream_of(1200, seed=5, users=12)
    fleet.produce("events", events)
    fleet.worker("w1", TRIGGER__COALESCE_LAG="300")
    fleet.wait_handled()
    made = lists(fleet)
    totals = [row for row in dump_state(fleet.settings) if row["kind"] == "partition"]
    coalesced = sum(row["coalesced"] for row in totals)
    assert sum(row["accepted"] for row in totals) == 1200, "learning goes on for every event"
    assert coalesced > 0
    assert len(made) + coalesced == 1200
    newest = {record.key: msgspec.json.decode(record.value)["event_id"] for record in events if record.value}
    last = {answer.user_id: answer.event_id for answer in made}
    assert last == {key.decode(): event_id for key, event_id in newest.items() if key is not None}


def test_nothing_is_coalesced_where_that_is_off(fleet: Deployment) -> None:
    fleet.produce("events", stream_of(600, seed=6, users=6))
    fleet.worker("w1", TRIGGER__COALESCE_LAG="0")
    fleet.wait_handled()
    made = lists(fleet)
    assert len(made) == len({answer.event_id for answer in made}) == 600


def test_triggers_can_be_switched_off(fleet: Deployment) -> None:
    fleet.produce("events", stream_of(50, seed=7, users=5))
    fleet.produce("requests", [Input(b"user-1", b'{"request_id": "r", "user_id": "user-1"}')])
    worker = fleet.worker("w1", TRIGGER__EVENTS="false", TRIGGER__REQUESTS="false")
    fleet.wait_handled()
    assert lists(fleet) == []
    worker.stop()
    fleet.worker("w1", TRIGGER__EVENTS="false")
    fleet.produce("requests", [Input(b"user-1", b'{"request_id": "s", "user_id": "user-1"}')])
    fleet.wait_handled()
    assert [answer.request_id for answer in lists(fleet)] == ["s"]
