"""Proves from the topics alone, committed records only, that a finished run was exactly once.

A model of its own replays the input one record after the other: what must have been accepted, rejected and
dropped, what every user must have seen, in which order lists must have been made. `violations` then names
every difference.
Only the validator and the decoders are the program's; both have tests of their own.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, TopicPartition

from online_models.item_state import ItemState
from streams.clients import partition_for
from streams.events import Recommendation
from streams.learning_log import decode_record, learning_batch
from streams.rejects import Reason, Rejected
from streams.settings import Settings
from streams.user_state import Shard
from streams.validation import AcceptedEvent, EventValidator

__all__ = ["Record", "Run", "assert_exactly_once", "read_run", "replayed_digests", "violations"]

INPUTS = ("events", "requests")
HEADER = "freshet.errors."


@dataclass(frozen=True)
class Record:
    """One Kafka record, as bytes."""

    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Row:
    """One interaction of the learning log."""

    event_id: str
    token: int
    item_id: str | None
    event_type: str
    time_ms: int
    weight: float
    partition: int
    offset: int
    before: bytes
    after: bytes


@dataclass(frozen=True)
class Run:
    """All that a run has left behind."""

    events: list[Record]
    requests: list[Record]
    dead: list[Record]
    lists: list[Record]
    rows: list[Row]
    shards: dict[int, Shard]
    committed: dict[tuple[str, int], int]
    ends: dict[tuple[str, int], int]


@dataclass
class ModelUser:
    """What a user's state must be after a sequential replay."""

    dedupe: OrderedDict[str, int] = field(default_factory=OrderedDict)
    recent: list[tuple[str, str, int]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    events: int = 0
    lists: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Of each accepted event: its id, and what the user had seen by then, the event included."""
    positives: list[str | None] = field(default_factory=list)
    """Of each accepted event: the item that its predecessor's list is judged by, if any."""


@dataclass
class Model:
    """What must have come of the input."""

    accepted: list[AcceptedEvent] = field(default_factory=list)
    rejected: list[tuple[str, Record, str]] = field(default_factory=list)
    duplicates: int = 0
    requests: list[str] = field(default_factory=list)
    users: dict[str, ModelUser] = field(default_factory=dict)


def _read(settings: Settings, name: str) -> list[Record]:
    """Every committed record of a topic, partition by partition, up to its end."""
    topic = settings.names[name]
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "auditor",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    try:
        left = set(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, 0) for p in left])
        found: list[Record] = []
        while left:
            waiting = consumer.consume(1, 10.0)
            assert waiting, f"{topic}: neither a record nor its end within 10 s"
            for message in [*waiting, *consumer.consume(5000, 0)]:
                if message.error() is not None:
                    left.discard(message.partition())  # the end of the partition; all else fails below
                    assert message.error().name() == "_PARTITION_EOF", message.error()
                    continue
                found.append(
                    Record(
                        message.partition(),
                        message.offset(),
                        message.timestamp()[1],
                        message.key(),
                        message.value(),
                        tuple(message.headers() or ()),
                    )
                )
    finally:
        consumer.close()
    return sorted(found, key=lambda r: (r.partition, r.offset))


def _rows(records: Iterable[Record]) -> list[Row]:
    rows = []
    for record in records:
        log = decode_record(record.value, f"interactions@{record.offset}")
        vectors = [log.column(name, "<f4", log.widths[1]) for name in ("before", "after")]
        items = [None if i < 0 else log.item_ids[i] for i in log.column("item", "<i4").tolist()]
        kinds = [log.event_types[k] for k in log.column("event_type", "u1").tolist()]
        plain = [
            log.column(name, kind).tolist()
            for name, kind in (("token", "<u8"), ("time_ms", "<i8"), ("weight", "<f4"), ("partition", "<i4"))
        ]
        offsets = log.column("offset", "<i8").tolist()
        for n in range(log.n):
            token, time_ms, weight, partition = (column[n] for column in plain)
            before, after = (vector[n].tobytes() for vector in vectors)
            rows.append(
                Row(log.event_ids[n], token, items[n], kinds[n], time_ms, weight, partition, offsets[n],
                    before, after)
            )  # fmt: skip
    return rows


def _offsets(settings: Settings) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int]]:
    """Committed offsets of the workers' group and end offsets, by (name, partition)."""
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": settings.worker_group})
    names = {settings.names[name]: name for name in INPUTS}
    try:
        wanted = [
            TopicPartition(t, p) for t in names for p in consumer.list_topics(t, 10).topics[t].partitions
        ]
        committed = {(names[tp.topic], tp.partition): tp.offset for tp in consumer.committed(wanted, 10)}
        ends = {(names[tp.topic], tp.partition): consumer.get_watermark_offsets(tp, 10)[1] for tp in wanted}
    finally:
        consumer.close()
    return committed, ends


def read_run(settings: Settings) -> Run:
    """Read what a run has left on the broker."""
    shards: dict[int, Shard] = {}
    for record in _read(settings, "user-state"):
        shard = shards.setdefault(
            record.partition,
            Shard(record.partition, settings.user_state, settings.models.factors.dimension),
        )
        shard.restore(record.key or b"", record.value, f"user-state[{record.partition}]@{record.offset}")
    committed, ends = _offsets(settings)
    return Run(
        events=_read(settings, "events"),
        requests=_read(settings, "requests"),
        dead=_read(settings, "events-dlq"),
        lists=_read(settings, "recommendations"),
        rows=_rows(_read(settings, "interactions")),
        shards=shards,
        committed=committed,
        ends=ends,
    )


def replay(run: Run, settings: Settings) -> Model:
    """The sequential model of the input."""
    model = Model()
    partitions = len({partition for _, partition in run.ends})
    validator = EventValidator(settings.validation, lambda key: partition_for(key, partitions))
    newest: Counter[int] = Counter()
    for record in run.events:
        found = validator.decode_event(
            record.value,
            record.key,
            record.partition,
            record.offset,
            record.time_ms,
            newest[record.partition],
        )
        if isinstance(found, Rejected):
            model.rejected.append(("events", record, found.reason.value))
        else:
            _model_event(model, found, newest, settings)
    for record in run.requests:
        request = validator.decode_request(
            record.value, record.key, record.partition, record.offset, record.time_ms
        )
        if isinstance(request, Rejected):
            model.rejected.append(("requests", record, request.reason.value))
        else:
            model.requests.append(request.request.request_id)
    return model


def _model_event(model: Model, found: AcceptedEvent, newest: Counter[int], settings: Settings) -> None:
    caps, event = settings.user_state, found.event
    user = model.users.setdefault(event.user_id, ModelUser())
    earlier = user.dedupe.get(event.event_id)
    if earlier is not None and abs(found.time_ms - earlier) <= caps.dedupe_window_s * 1000:
        model.duplicates += 1
        return
    newest[found.partition] = max(newest[found.partition], min(found.time_ms, found.kafka_time_ms))
    user.dedupe[event.event_id] = found.time_ms
    user.dedupe.move_to_end(event.event_id)
    while len(user.dedupe) > caps.dedupe_entries:
        user.dedupe.popitem(last=False)
    user.events += 1
    item = event.item_id
    if item is not None and found.weight != 0:
        if item not in user.seen:
            user.seen = [*user.seen, item][-caps.seen :]
        if found.weight > 0:
            user.recent = [*user.recent, (item, event.event_type, found.time_ms)][-caps.recent :]
    user.lists.append((event.event_id, frozenset(user.seen)))
    user.positives.append(item if found.weight > 0 else None)
    model.accepted.append(found)


def violations(run: Run, settings: Settings) -> list[str]:
    """Every way in which the run was not exactly once; empty when it was."""
    model = replay(run, settings)
    return [
        *_log_violations(run, model),
        *_dead_violations(run, model),
        *_list_violations(run, model),
        *_offset_violations(run),
        *_counter_violations(run, model),
        *_user_violations(run, model),
    ]


def _different(what: str, wanted: Counter[Any], found: Counter[Any]) -> list[str]:
    missing, extra = wanted - found, found - wanted
    return [
        *(f"{what}: missing {n} x {key!r}"[:300] for key, n in missing.items()),
        *(f"{what}: {n} too many of {key!r}"[:300] for key, n in extra.items()),
    ]


def _log_violations(run: Run, model: Model) -> list[str]:
    """Every accepted event stands in the learning log once, with its own item, type, time and weight."""
    wanted = Counter(
        (a.partition, a.offset, a.event.event_id, a.event.item_id, a.event.event_type, a.time_ms, a.weight)
        for a in model.accepted
    )
    found = Counter(
        (r.partition, r.offset, r.event_id, r.item_id, r.event_type, r.time_ms, r.weight) for r in run.rows
    )
    return _different("learning log", wanted, found)


def _dead_violations(run: Run, model: Model) -> list[str]:
    """Every reject stands in the dead letters once: key, value and headers byte for byte, then the reason."""
    wanted = Counter(
        (name, r.partition, r.offset, reason, r.key, r.value, r.headers) for name, r, reason in model.rejected
    )
    found: Counter[Any] = Counter()
    for record in run.dead:
        own = {n.removeprefix(HEADER): (v or b"").decode() for n, v in record.headers if n.startswith(HEADER)}
        original = tuple((n, v) for n, v in record.headers if not n.startswith(HEADER))
        name = next((n for n in (*INPUTS, "items") if own["topic"].endswith(n)), own["topic"])
        if name != "items":
            place = int(own["partition"]), int(own["offset"])
            found[name, *place, own["reason"], record.key, record.value, original] += 1
    return _different("dead letters", wanted, found)


def _list_violations(run: Run, model: Model) -> list[str]:
    """One list for each accepted event and request, in each user's order, without anything the user has
    used."""
    problems: list[str] = []
    by_user: dict[str, list[Recommendation]] = {}
    answered: Counter[str] = Counter()
    for record in run.lists:
        made = msgspec.json.decode(record.value or b"", type=Recommendation)
        if record.key != (made.user_id or made.request_id or "").encode():
            problems.append(f"list of {made.event_id}: key {record.key!r} is not its user's")
        if made.request_id is not None:
            answered[made.request_id] += 1
        else:
            by_user.setdefault(made.user_id or "", []).append(made)
    problems += _different("answers", Counter(model.requests), answered)
    for user_id in by_user.keys() | model.users.keys():
        wanted = model.users[user_id].lists if user_id in model.users else []
        found = by_user.get(user_id, [])
        if [event_id for event_id, _ in wanted] != [made.event_id for made in found]:
            ids = Counter(event_id for event_id, _ in wanted)
            problems += _different(f"lists of {user_id}", ids, Counter(m.event_id or "" for m in found)) or [
                f"lists of {user_id}: not in the order of the events"
            ]
            continue
        for made, (event_id, seen) in zip(found, wanted, strict=True):
            used = seen & {item.item_id for item in made.items}
            if used:
                problems.append(f"list of {event_id}: holds {sorted(used)}, which {user_id} has used")
    return problems


def _offset_violations(run: Run) -> list[str]:
    stands = {
        (name, p): offset for p, shard in run.shards.items() for name, offset in shard.next_offsets.items()
    }
    problems = []
    for key, end in run.ends.items():
        if run.committed.get(key) != end:
            problems.append(
                f"{key}: the group has committed {run.committed.get(key)}, the topic ends at {end}"
            )
        if stands.get(key) != end:
            problems.append(f"{key}: the partition's record says {stands.get(key)}, the topic ends at {end}")
    return problems


def _counter_violations(run: Run, model: Model) -> list[str]:
    total: Counter[str] = Counter()
    for shard in run.shards.values():
        total.update(msgspec.structs.asdict(shard.stats))
    late = sum(name == "events" and reason == Reason.LATE for name, _, reason in model.rejected)
    rejected = sum(name == "events" for name, _, _ in model.rejected) - late
    judged = [item for user in model.users.values() for item in user.positives if item is not None]
    wanted = {
        "accepted": len(model.accepted),
        "rejected": rejected,
        "late": late,
        "duplicate": model.duplicates,
        "requests": len(model.requests),
        "requests_rejected": len(model.rejected) - rejected - late,
        "recommendations": len(run.lists),
        "coalesced": 0,
        "evaluated": len(judged),
    }
    if not model.requests:
        wanted["hits_at_10"] = _hits(run, model)
    problems = [f"counter {k}: {total[k]}, must be {v}" for k, v in wanted.items() if total[k] != v]
    handled = sum(total[k] for k in ("accepted", "rejected", "late", "duplicate"))
    if handled != len(run.events):
        problems.append(f"counters: {handled} events accounted for, {len(run.events)} produced")
    return problems


def _hits(run: Run, model: Model) -> int:
    """Positive events whose item stood among the first ten of the list emitted for the user just before."""
    by_user: dict[str, list[list[str]]] = {}
    for record in run.lists:
        made = msgspec.json.decode(record.value or b"", type=Recommendation)
        by_user.setdefault(made.user_id or "", []).append([item.item_id for item in made.items[:10]])
    hits = 0
    for user_id, user in model.users.items():
        before = [[], *by_user.get(user_id, [])]
        hits += sum(item in shown for item, shown in zip(user.positives, before, strict=False) if item)
    return hits


def _user_violations(run: Run, model: Model) -> list[str]:
    """Each user's state is that of a sequential replay, and its factor the one that the log ends with."""
    states = {user_id: user for shard in run.shards.values() for user_id, user in shard.users.items()}
    problems = [f"user-state holds {u}, who did nothing" for u in states.keys() - model.users.keys()]
    rows: dict[int, list[Row]] = {}
    for row in sorted(run.rows, key=lambda r: (r.partition, r.offset)):
        rows.setdefault(row.token, []).append(row)
    shown: dict[str, list[str]] = {}
    for record in run.lists:
        made = msgspec.json.decode(record.value or b"", type=Recommendation)
        shown[made.user_id or ""] = [item.item_id for item in made.items[:10]]
    for user_id, wanted in model.users.items():
        if wanted.events == 0:
            continue
        state = states.get(user_id)
        if state is None:
            problems.append(f"user-state: {user_id} is missing")
            continue
        recent = list(zip(state.recent_items, state.recent_types, state.recent_times, strict=True))
        own = rows.get(state.token, [])
        links = itertools.pairwise(own)
        checks = {
            "events": state.events == wanted.events == len(own),
            "recent items": recent == wanted.recent,
            "seen items": list(state.seen) == wanted.seen,
            "last list": state.last_list == shown.get(user_id),
            "dedupe times": list(state.dedupe.values()) == list(wanted.dedupe.values()),
            "factor": bool(own) and own[-1].after == state.factor.astype(np.float32).tobytes(),
            "chain of factors": all(first.after == second.before for first, second in links),
        }
        problems += [f"user {user_id}: {what} differ" for what, holds in checks.items() if not holds]
    return problems


def assert_exactly_once(settings: Settings) -> Run:
    """Audit the topics of `settings`; returns what was read, for further checks."""
    run = read_run(settings)
    found = violations(run, settings)
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:30])
    return run


def replayed_digests(settings: Settings, offsets: Iterable[int]) -> dict[int, str]:
    """Digests of the item state that the learning log gives when its records before each offset are
    replayed."""
    state, left, digests = ItemState(settings.models), sorted(offsets), {}
    for record in [*_read(settings, "interactions"), None]:
        while left and (record is None or left[0] <= record.offset):
            digests[left.pop(0)] = state.digest()
        if record is not None:
            where = f"interactions@{record.offset}"
            batch = learning_batch(decode_record(record.value, where), state.settings_digest, where)
            if batch is not None:
                state.apply(batch)
    return digests


def lists_of(run: Run, records: Sequence[Record] | None = None) -> list[Recommendation]:
    """The lists, decoded."""
    chosen = run.lists if records is None else records
    return [msgspec.json.decode(record.value or b"", type=Recommendation) for record in chosen]
