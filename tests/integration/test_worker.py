"""The fast path, bytes in to bytes out: a real worker process on a real broker."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema

from streams.schemas import record_schema
from tests.integration.auditor import Run, assert_exactly_once, lists_of, read_run
from tests.integration.worker_process import START_MS, Deployment, Input, event, stream_of
from tests.test_streams.hostile_corpus import hostile_records

DAY_MS = 86_400_000


def _item(item_id: str, **fields: Any) -> Input:
    return Input(item_id.encode(), json.dumps({"item_id": item_id, **fields}).encode())


def _request(request_id: str, user: str | None = None, **fields: Any) -> Input:
    asked = {"request_id": request_id, **({} if user is None else {"user_id": user}), **fields}
    return Input((user or request_id).encode(), json.dumps(asked).encode())


def _answers(run: Run) -> dict[str, list[str]]:
    """Items by request."""
    return {made.request_id: [i.item_id for i in made.items] for made in lists_of(run) if made.request_id}


def _check_record(run: Run, worker: str) -> None:
    """Every list keeps to its published schema and says who made it."""
    validator = jsonschema.Draft7Validator(record_schema("recommendations"))
    for record in run.lists:
        validator.validate(json.loads(record.value or b""))
        headers = dict(record.headers)
        assert headers["worker"] == worker.encode()
        assert START_MS < int(headers["epoch"] or b"0") <= time.time() * 1000


def test_bytes_in_to_bytes_out(fleet: Deployment) -> None:
    catalogue = [
        _item(f"item-{k}", title=f"Title {k}", categories=["odd" if k % 2 else "even"]) for k in range(80)
    ]
    now_ms = int(time.time() * 1000)
    catalogue += [
        _item("item-1", title="Hidden", is_hidden=True),
        _item("item-2", title="Expired", expires_at=now_ms - 1000),
        _item("item-3", title="Not yet", published_at=now_ms + DAY_MS),
        Input(b"item-4", None),
        _item("item-5", title="Ends soon", expires_at=now_ms + 60 * DAY_MS),
    ]
    fleet.produce("items", catalogue)
    fleet.produce("events", stream_of(400, seed=1, users=10, items=80))
    worker = fleet.worker("w1")
    fleet.wait_handled()
    fleet.wait_followed()
    pairs = [event(f"pair-{k}", "pair-user", f"item-{30 + k}", START_MS + DAY_MS + k) for k in range(2)]
    fleet.produce("events", pairs)
    fleet.produce(
        "requests",
        [
            _request("plain", "user-1"),
            _request("three", "user-1", count=3),
            _request("even", "user-2", categories=["even"], count=5),
            _request("without", "user-3", exclude=["item-6", "item-7", "item-8"], count=30),
            _request("these", "user-4", candidates=["item-9", "item-10", "item-1", "never-used"]),
            _request("session", session_items=["item-6", "item-9"]),
            _request("stranger", "nobody-yet"),
        ],
    )
    fleet.wait_handled()
    assert worker.stop() < 10.0
    run = assert_exactly_once(fleet.settings)
    _check_record(run, "w1")
    shown = {item.item_id for made in lists_of(run) for item in made.items}
    assert len(shown) > 20
    assert not shown & {"item-1", "item-2", "item-3", "item-4"}
    first, second = (made for made in lists_of(run) if made.user_id == "pair-user")
    assert {"item-30"}.isdisjoint(i.item_id for i in first.items)
    assert {"item-30", "item-31"}.isdisjoint(i.item_id for i in second.items)
    assert [i.item_id for i in first.items] != [i.item_id for i in second.items]
    assert first.online_offset > 0
    _check_answers(run)


def _check_answers(run: Run) -> None:
    answers = _answers(run)
    users = {u.user_id: u for shard in run.shards.values() for u in shard.users.values()}
    assert len(answers["plain"]) == 10
    assert answers["three"] == answers["plain"][:3]
    assert len(answers["even"]) == 5
    assert all(int(item.removeprefix("item-")) % 2 == 0 for item in answers["even"])
    assert set(answers["without"]).isdisjoint({"item-6", "item-7", "item-8"} | set(users["user-3"].seen))
    assert set(answers["these"]) == {"item-9", "item-10", "never-used"}
    assert answers["these"][-1] == "never-used"
    assert answers["session"]
    assert set(answers["session"]).isdisjoint({"item-6", "item-9"})
    assert len(answers["stranger"]) == 10
    keys = {m.request_id: r.key for r, m in zip(run.lists, lists_of(run), strict=True)}
    assert keys["session"] == b"session"
    assert keys["plain"] == b"user-1"
    titles = {"item-6": "Title 6", "item-9": "Title 9"}
    [session] = [m for m in lists_of(run) if m.request_id == "session"]
    because = {item for i in session.items for item in i.reason.because}
    assert because <= set(titles)
    assert any(titles[i] in item.reason.text for item in session.items for i in item.reason.because)


def _poison(fleet: Deployment, good: int, bad: int) -> None:
    """`bad` hostile records spread among `good` ones, some of which come twice: one goes to its place, all
    others on."""
    stream = stream_of(good, seed=2)
    stream += stream[-good // 50 :]
    hostile = [
        Input(h.key, h.value, tuple(h.headers)) for h in hostile_records(bad, seed=3, time_ms=START_MS)
    ]
    step = len(stream) / len(hostile)
    mixed: list[Input] = []
    for k, record in enumerate(hostile):
        mixed += [*stream[int(k * step) : int((k + 1) * step)], record]
    fleet.produce("events", mixed + stream[int(len(hostile) * step) :])
    worker = fleet.worker("w1")
    fleet.wait_handled()
    worker.stop()
    run = assert_exactly_once(fleet.settings)
    learned, totals = len(run.rows), [shard.stats for shard in run.shards.values()]
    assert (learned, len(run.dead)) == (good, bad)
    assert sum(t.rejected for t in totals) == bad
    assert sum(t.duplicate for t in totals) == good // 50
    assert sorted((r.key or b"", r.value or b"") for r in run.dead) == sorted(
        (h.key or b"", h.value or b"") for h in hostile
    )


def test_poison_among_good(fleet: Deployment) -> None:
    _poison(fleet, 10_000, 1000)


def test_sigterm_under_load_leaves_nothing_half_done(fleet: Deployment) -> None:
    fleet.produce("events", stream_of(1200, seed=4))
    lists = fleet.tail("recommendations")
    worker = fleet.worker("w1", WORKER__MAX_BATCH="20")
    fleet.wait_for(lists, 200)
    assert worker.stop() < 10.0
    stopped = assert_partly_done(fleet)
    assert fleet.worker("w1").exited() is None
    fleet.wait_handled()
    fleet.workers[-1].stop()
    run = assert_exactly_once(fleet.settings)
    assert len(run.rows) == 1200
    assert 200 <= stopped < 1200


def assert_partly_done(fleet: Deployment) -> int:
    """Whatever was taken is whole: offsets, log, lists and state speak of the same events. Returns how
    many."""
    run = read_run(fleet.settings)
    stands = {(name, p): o for p, shard in run.shards.items() for name, o in shard.next_offsets.items()}
    assert stands == run.committed
    assert len(run.rows) == len(run.lists) == sum(s.stats.accepted for s in run.shards.values())
    assert sum(o for (name, _), o in stands.items() if name == "events") == len(run.rows)
    return len(run.rows)


def test_duplicates_are_dropped_within_the_window_and_over_a_restart(fleet: Deployment) -> None:
    now_ms = int(time.time() * 1000)
    old_ms = now_ms - 3 * DAY_MS
    first = [event(f"e{k}", f"user-{k % 5}", f"item-{k}", old_ms + 1000 * k) for k in range(50)]
    fleet.produce("events", [*first, *first[:10], first[0], first[0]])
    fleet.worker("w1")
    fleet.wait_handled()
    fleet.workers[-1].stop()
    future = [event(f"future-{u}", f"user-{u}", "item-0", now_ms + DAY_MS // 2) for u in range(5)]
    again = [event(f"e{k}", f"user-{k % 5}", f"item-{k}", old_ms + 1000 * k + 2 * DAY_MS) for k in range(5)]
    fleet.produce("events", [*future, *first, *again, *again])
    fleet.worker("w1")
    fleet.wait_handled()
    fleet.workers[-1].stop()
    run = assert_exactly_once(fleet.settings)
    assert sum(shard.stats.duplicate for shard in run.shards.values()) == 12 + 50 + 5
    ids = [row.event_id for row in run.rows]
    assert len(ids) == 50 + 5 + 5
    assert ids.count("e0") == 2
