"""Proves from the topics alone, committed records only, that a finished run was exactly once.

A model of its own (`tests.chaos.model`) replays the input one record after the other: what must have been
accepted, rejected and dropped, what every user must have seen, in which order lists must have been made.
`findings` then names every difference, and says of each whether records were lost or duplicated.
Only the validator and the decoders are the program's; both have tests of their own.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from online_models.item_state import ItemState
from online_models.learning_batch import LEARN, WITHDRAW
from streams.events import Recommendation
from streams.learning_log import decode_record, learn_record
from streams.rejects import Reason
from streams.settings import Settings
from streams.user_records import PARTITION_KEY, PartitionRecord, ShardRecords
from tests.chaos.model import Model, ModelUser, replay
from tests.chaos.ownership import Authors, backward_commits
from tests.chaos.records import Commit, Finding, Record, offsets_of_group, read_topic

__all__ = [
    "Record",
    "Run",
    "assert_exactly_once",
    "count",
    "findings",
    "lists_of",
    "model_of",
    "read_run",
    "replayed_digests",
    "violations",
]

INPUTS = ("events", "requests", "items")
HEADER = "freshet.errors."


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
    kind: int
    """What the row does: LEARN, or a kind of correction."""
    order: int
    """Place among the rows of the log."""


@dataclass(frozen=True)
class Run:
    """All that a run has left behind."""

    events: list[Record]
    requests: list[Record]
    dead: list[Record]
    lists: list[Record]
    rows: list[Row]
    shards: dict[int, ShardRecords]
    committed: dict[tuple[str, int], int]
    ends: dict[tuple[str, int], int]
    items: list[Record] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    """The partitions' records in `user-state`, in log order within each partition."""
    log: list[Record] = field(default_factory=list)
    """The records of `interactions`, which hold `rows`."""
    corrections: list[Row] = field(default_factory=list)
    """The rows of the log that take something back; `rows` are the others."""
    forgotten: frozenset[str] = frozenset()
    """Users with a tombstone, who did nothing after it."""


def _rows(records: Iterable[Record]) -> list[Row]:
    rows = []
    for record in records:
        log = decode_record(record.value, f"interactions@{record.offset}")
        vectors = [log.column(name, "<f4", log.widths[1]) for name in ("before", "after")]
        item_ids, event_ids = log.item_ids, log.event_ids
        items = [None if i < 0 else item_ids[i] for i in log.column("item", "<i4").tolist()]
        kinds = [log.event_types[k] for k in log.column("event_type", "u1").tolist()]
        plain = [
            log.column(name, kind).tolist()
            for name, kind in (("token", "<u8"), ("time_ms", "<i8"), ("weight", "<f4"), ("partition", "<i4"))
        ]
        offsets, does = log.column("offset", "<i8").tolist(), log.kinds.tolist()
        for n in range(log.n):
            token, time_ms, weight, partition = (column[n] for column in plain)
            before, after = (vector[n].tobytes() for vector in vectors)
            rows.append(
                Row(event_ids[n], token, items[n], kinds[n], time_ms, weight, partition, offsets[n],
                    before, after, does[n], len(rows))
            )  # fmt: skip
    return rows


def read_run(settings: Settings) -> Run:
    """Read what a run has left on the broker."""
    shards: dict[int, ShardRecords] = {}
    commits = []
    for record in read_topic(settings, "user-state"):
        shard = shards.setdefault(
            record.partition,
            ShardRecords(record.partition, settings.user_state),
        )
        shard.add(record.key or b"", record.value, f"user-state[{record.partition}]@{record.offset}")
        if record.key == PARTITION_KEY and record.value is not None:
            own = msgspec.json.decode(record.value, type=PartitionRecord)
            commits.append(
                Commit(record.partition, record.offset, own.worker, own.epoch, dict(own.next_offsets))
            )
    committed, ends = offsets_of_group(settings)
    log = read_topic(settings, "interactions")
    logged = _rows(log)
    return Run(
        events=read_topic(settings, "events"),
        requests=read_topic(settings, "requests"),
        dead=read_topic(settings, "events-dlq"),
        lists=[r for r in read_topic(settings, "recommendations") if r.value is not None],
        rows=[row for row in logged if row.kind == LEARN],
        corrections=[row for row in logged if row.kind != LEARN],
        forgotten=frozenset(
            (record.key or b"").decode() for record in read_topic(settings, "users") if record.value is None
        ),
        shards=shards,
        committed=committed,
        ends=ends,
        items=read_topic(settings, "items"),
        commits=commits,
        log=log,
    )


def model_of(run: Run, settings: Settings) -> Model:
    """What must have come of the run's input."""
    inputs = {"events": run.events, "requests": run.requests, "items": run.items}
    return replay(inputs, len({partition for _, partition in run.ends}), settings)


def findings(run: Run, settings: Settings, model: Model | None = None) -> list[Finding]:
    """Every way in which the run was not exactly once; empty when it was."""
    model = model or model_of(run, settings)
    made = lists_of(run)
    return [
        *_log_findings(run, model),
        *_dead_findings(run, model),
        *_list_findings(run, model, made),
        *backward_commits(run.commits),
        *_offset_findings(run),
        *_counter_findings(run, model, made),
        *_user_violations(run, model, made),
    ]


def violations(run: Run, settings: Settings) -> list[str]:
    """The findings as text."""
    return [finding.text for finding in findings(run, settings)]


def count(found: Iterable[Finding], kind: str) -> int:
    """How many records were `lost` or `duplicated`, or how many findings are `wrong`."""
    return sum(finding.count for finding in found if finding.kind == kind)


def _wrong(text: str) -> Finding:
    return Finding("wrong", 1, text)


def _different(what: str, wanted: Counter[Any], found: Counter[Any]) -> list[Finding]:
    """What is missing is lost; what stands there too often is duplicated, or wrong where it must not be at
    all."""
    missing, extra = wanted - found, found - wanted
    return [
        *(Finding("lost", n, f"{what}: missing {n} x {key!r}"[:300]) for key, n in missing.items()),
        *(
            Finding("duplicated" if key in wanted else "wrong", n, f"{what}: {n} too many of {key!r}"[:300])
            for key, n in extra.items()
        ),
    ]


def _log_findings(run: Run, model: Model) -> list[Finding]:
    """Every accepted event stands in the learning log once, with its own item, type, time and weight."""
    wanted = Counter(
        (a.partition, a.offset, a.event.event_id, a.event.item_id, a.event.event_type, a.time_ms, a.weight)
        for a in model.accepted
    )
    found = Counter(
        (r.partition, r.offset, r.event_id, r.item_id, r.event_type, r.time_ms, r.weight) for r in run.rows
    )
    taken_back = Counter(
        (step.partition, step.offset, step.event_id, step.withdrawn)
        for user in model.users.values()
        for step in user.steps
        if step.withdrawn is not None
    )
    withdrawn = Counter(
        (r.partition, r.offset, r.event_id, r.item_id) for r in run.corrections if r.kind == WITHDRAW
    )
    return [
        *_different("learning log", wanted, found),
        *_different("withdrawn in the learning log", taken_back, withdrawn),
    ]


def _dead_findings(run: Run, model: Model) -> list[Finding]:
    """Every reject stands in the dead letters once: key, value and headers byte for byte, then the reason."""
    wanted = Counter(
        (name, r.partition, r.offset, reason, r.key, r.value, r.headers) for name, r, reason in model.rejected
    )
    found: Counter[Any] = Counter()
    for record in run.dead:
        own = {n.removeprefix(HEADER): (v or b"").decode() for n, v in record.headers if n.startswith(HEADER)}
        original = tuple((n, v) for n, v in record.headers if not n.startswith(HEADER))
        name = next((n for n in INPUTS if own["topic"].endswith(n)), own["topic"])
        place = int(own["partition"]), int(own["offset"])
        found[name, *place, own["reason"], record.key, record.value, original] += 1
    return _different("dead letters", wanted, found)


def _list_findings(run: Run, model: Model, made: Sequence[Recommendation]) -> list[Finding]:
    """One list for each accepted event and request, in each user's order, without anything the user has
    used, by the worker that owned the partition."""
    problems: list[Finding] = []
    by_user: dict[str, list[tuple[Record, Recommendation]]] = {}
    answered: Counter[str] = Counter()
    authors = Authors(run.commits)
    for record, one in zip(run.lists, made, strict=True):
        if record.key != (one.user_id or one.request_id or "").encode():
            problems.append(_wrong(f"list of {one.event_id}: key {record.key!r} is not its user's"))
        if one.request_id is None:
            by_user.setdefault(one.user_id or "", []).append((record, one))
            continue
        answered[one.request_id] += 1
        places = model.requests.get(one.request_id, [])
        if len(places) == 1:  # else which of them this answers can't be told
            what = f"the answer to {one.request_id}"
            problems += authors.finding(what, record.headers, "requests", places[0])
    wanted = Counter({request_id: len(places) for request_id, places in model.requests.items()})
    problems += _different("answers", wanted, answered)
    for user_id in by_user.keys() | model.users.keys():
        user = model.users.get(user_id, ModelUser())
        problems += _user_list_findings(user_id, user, by_user.get(user_id, []), authors)
    return problems


def _user_list_findings(
    user_id: str, user: ModelUser, found: Sequence[tuple[Record, Recommendation]], authors: Authors
) -> list[Finding]:
    if [step.event_id for step in user.steps] != [one.event_id for _, one in found]:
        wanted = Counter(step.event_id for step in user.steps)
        return _different(f"lists of {user_id}", wanted, Counter(one.event_id or "" for _, one in found)) or [
            _wrong(f"lists of {user_id}: not in the order of the events")
        ]
    problems: list[Finding] = []
    used: set[str] = set()
    for (record, one), step in zip(found, user.steps, strict=True):
        used |= {step.used} if step.used is not None else set()
        used -= {step.evicted, step.unseen} - {None}
        again = sorted({item.item_id for item in one.items} & used)
        if again:
            problems.append(_wrong(f"list of {step.event_id}: holds {again}, which {user_id} has used"))
        place = step.partition, step.offset
        problems += authors.finding(f"the list of {step.event_id}", record.headers, "events", place)
    return problems


def _offset_findings(run: Run) -> list[Finding]:
    stands = {
        (name, p): offset for p, shard in run.shards.items() for name, offset in shard.next_offsets.items()
    }
    problems = []
    for key, end in run.ends.items():
        if run.committed.get(key) != end:
            problems.append(
                _wrong(f"{key}: the group has committed {run.committed.get(key)}, the topic ends at {end}")
            )
        if stands.get(key) != end:
            problems.append(
                _wrong(f"{key}: the partition's record says {stands.get(key)}, the topic ends at {end}")
            )
    return problems


def _counter_findings(run: Run, model: Model, made: Sequence[Recommendation]) -> list[Finding]:
    """The counters of each partition, and the totals; together they account for every record produced."""
    by_partition: dict[str, Counter[int]] = {
        "accepted": Counter(a.partition for a in model.accepted),
        "rejected": Counter(
            r.partition for n, r, why in model.rejected if n == "events" and why != Reason.LATE
        ),
        "late": Counter(r.partition for n, r, why in model.rejected if n == "events" and why == Reason.LATE),
        "duplicate": model.duplicates,
        "requests": Counter(p for places in model.requests.values() for p, _ in places),
        "requests_rejected": Counter(r.partition for n, r, _ in model.rejected if n == "requests"),
    }
    total: Counter[str] = Counter()
    problems: list[Finding] = []
    for partition, shard in run.shards.items():
        own = msgspec.structs.asdict(shard.stats)
        total.update(own)
        problems += [
            _wrong(f"counter {name} of partition {partition}: {own[name]}, must be {wanted[partition]}")
            for name, wanted in by_partition.items()
            if own[name] != wanted[partition]
        ]
    sums = {name: sum(wanted.values()) for name, wanted in by_partition.items()}
    judged = sum(step.positive is not None for user in model.users.values() for step in user.steps)
    sums |= {"recommendations": len(run.lists), "coalesced": 0, "evaluated": judged}
    if not model.requests:
        sums["hits_at_10"] = _hits(model, made)
    problems += [_wrong(f"counter {k}: {total[k]}, must be {v}") for k, v in sums.items() if total[k] != v]
    handled = sum(total[k] for k in ("accepted", "rejected", "late", "duplicate"))
    if handled != len(run.events):
        problems.append(_wrong(f"counters: {handled} events accounted for, {len(run.events)} produced"))
    return problems


def _hits(model: Model, made: Sequence[Recommendation]) -> int:
    """Positive events whose item stood among the first ten of the list emitted for the user just before."""
    by_user: dict[str, list[list[str]]] = {}
    for one in made:
        by_user.setdefault(one.user_id or "", []).append([item.item_id for item in one.items[:10]])
    hits = 0
    for user_id, user in model.users.items():
        before = [[], *by_user.get(user_id, [])]
        wanted = [step.positive for step in user.steps]
        hits += sum(item in shown for item, shown in zip(wanted, before, strict=False) if item)
    return hits


def _user_violations(run: Run, model: Model, made: Sequence[Recommendation]) -> list[Finding]:
    """Each user's state is that of a sequential replay, and its factor the one that the log ends with."""
    states = {user_id: user for shard in run.shards.values() for user_id, user in shard.users.items()}
    rows: dict[int, list[Row]] = {}
    for row in sorted((*run.rows, *run.corrections), key=lambda r: (r.partition, r.offset, r.order)):
        rows.setdefault(row.token, []).append(row)
    shown: dict[str, list[str]] = {}
    for one in made:
        shown[one.user_id or ""] = [item.item_id for item in one.items[:10]]
    active = {user_id: user for user_id, user in model.users.items() if user.steps}
    problems = [_wrong(f"user-state holds {u}, who did nothing") for u in states.keys() - active.keys()]
    problems += [_wrong(f"user-state holds {u}, who is forgotten") for u in states.keys() & run.forgotten]
    for user_id, wanted in active.items():
        if user_id in run.forgotten:
            continue
        state = states.get(user_id)
        if state is None:
            problems.append(_wrong(f"user-state: {user_id} is missing"))
            continue
        recent = list(zip(state.recent_items, state.recent_types, state.recent_times, strict=True))
        own = rows.get(state.token, [])
        links = itertools.pairwise(own)
        checks = {
            "events": state.events == len(wanted.steps) == sum(row.kind == LEARN for row in own),
            "recent items": recent == wanted.recent,
            "seen items": list(state.seen) == list(wanted.seen),
            "last list": state.last_list == shown.get(user_id),
            "dedupe hashes and times": list(state.dedupe.items()) == list(wanted.dedupe.values()),
            "factor": bool(own) and own[-1].after == state.factor.astype(np.float32).tobytes(),
            "chain of factors": all(first.after == second.before for first, second in links),
        }
        problems += [_wrong(f"user {user_id}: {what} differ") for what, holds in checks.items() if not holds]
    return problems


def assert_exactly_once(settings: Settings, *, compacted: bool = False) -> Run:
    """Audit the topics of `settings`; returns what was read, for further checks.

    Where `user-state` has been `compacted`, who committed what can no longer be told: the partitions' older
    records are gone.
    """
    run = read_run(settings)
    found = [line for line in violations(run, settings) if not (compacted and line.startswith("zombie:"))]
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:30])
    return run


def replayed_digests(
    settings: Settings, offsets: Iterable[int], log: Sequence[Record] | None = None
) -> dict[int, str]:
    """Digests of the item state that the learning log gives when its records before each offset are
    replayed."""
    state, left, digests = ItemState(settings.models), sorted(set(offsets)), {}
    records = read_topic(settings, "interactions") if log is None else log
    for record in [*records, None]:
        while left and (record is None or left[0] <= record.offset):
            digests[left.pop(0)] = state.digest()
        if record is not None:
            where = f"interactions@{record.offset}"
            learn_record(state, decode_record(record.value, where), where)
    return digests


def lists_of(run: Run, records: Sequence[Record] | None = None) -> list[Recommendation]:
    """The lists, decoded."""
    chosen = run.lists if records is None else records
    return [msgspec.json.decode(record.value or b"", type=Recommendation) for record in chosen]
