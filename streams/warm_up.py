"""Compile what every event goes through, or load it from numba's cache, before the worker joins its group: a
member that compiles for half a minute after it was given partitions is taken for dead."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from online_models.item_state import ItemState, warm_up
from serving.catalogue import Catalogue
from serving.content.vectors import ContentVectors
from serving.pipeline import Pipeline
from serving.ranker import layout
from streams import user_kernels
from streams.clients import partition_for
from streams.intake import Batch, Intake
from streams.learner import Learner
from streams.learning_log import Interactions, decode_record, learn_record
from streams.records import Header
from streams.settings import Settings, load_settings
from streams.shards import Shard, Shards
from streams.user_records import ShardRecords
from streams.validation import Tombstone

__all__ = ["compile_all", "compile_streams"]

log = logging.getLogger("freshet.warm_up")

PARTITIONS = 2
USERS = ("ann", "bob")


class _Event:
    """A record that never was in Kafka."""

    def __init__(self, topic: str, user_id: str, n: int, time_ms: int) -> None:
        self._topic = topic
        self._user_id = user_id
        self._n = n
        self._time_ms = time_ms

    def key(self) -> bytes:
        return self._user_id.encode()

    def value(self) -> bytes:
        n = self._n
        fields = {
            "event_id": f"e{n}",
            "user_id": self._user_id,
            "item_id": f"i{n % 3}",
            "retracts": f"e{n - 2}",
        }
        kind = "retract" if n % 13 == 12 else "rating" if n % 5 == 0 else "click"
        return json.dumps({**fields, "event_type": kind, "timestamp": self._time_ms}).encode()

    def headers(self) -> None:
        return None

    def set_headers(self, value: list[Header], /) -> None:
        raise NotImplementedError("a record for warming up has no headers")

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return partition_for(self.key(), PARTITIONS)

    def offset(self) -> int:
        return self._n

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time_ms


def compile_streams(settings: Settings, models_ready: Callable[[], None]) -> None:
    """Take a handful of made-up events through everything that needs no broker: learned, written, read back.
    `models_ready` is called before the models learn any of it."""
    items = ItemState(settings.models)
    intake = Intake(settings, PARTITIONS)
    shards = _shards(settings, intake)
    learner = Learner(settings, items, shards, PARTITIONS)
    records = {p: ShardRecords(p, settings.user_state) for p in range(PARTITIONS)}
    topic, now_ms = settings.names["events"], 1_700_000_000_000
    made = [_Event(topic, USERS[n % 2], n, now_ms + n) for n in range(120)]
    first = _learn(made[:40], intake, shards, learner) + _learn(made[40:80], intake, shards, learner)
    first += _forget(learner, intake.admit([], shards))
    learner.codes.follow(*items.take_changes())
    _write(shards, records)
    again = _shards(settings, intake)
    for one in records.values():
        again.users.restore(one)
    row = again.users.row(USERS[0], partition_for(USERS[0].encode(), PARTITIONS))
    again.users.gather(np.array([row], np.int32), learner.codes.row_of, 1)
    again.users.touch(row)
    user_kernels.compact(again.users.users, user_kernels.RECENT, np.array([row], np.int32))
    again.users.unused_items(learner.codes.named)
    again.users.expire(partition_for(USERS[0].encode(), PARTITIONS), 0, 0)
    models_ready()
    for rows in (
        *first,
        *_learn(made[80:], intake, shards, learner),
        *_forget(learner, intake.admit([], shards)),
    ):
        for record in learner.log.pack(rows) if rows is not None else ():
            learn_record(items, decode_record(record, "warm-up"), "warm-up")
        learner.codes.follow(*items.take_changes())
    _write(shards, records)


def _learn(
    made: Sequence[_Event], intake: Intake, shards: Shards, learner: Learner
) -> list[Interactions | None]:
    """Take events in; returns what goes to the learning log."""
    batch = intake.admit(made, shards)
    learner.start(batch)
    return [learner.learn(batch, wave) for wave in batch.waves()]


def _write(shards: Shards, records: dict[int, ShardRecords]) -> None:
    for partition, keys, values in shards.users.drain_touched():
        for key, value in zip(keys, values, strict=True):
            records[partition].add(key, value, "warm-up")


def _forget(learner: Learner, batch: Batch) -> list[Interactions | None]:
    """One of the users, and an item."""
    user, item = (Tombstone(key, 0, 0, 0) for key in (USERS[1], "i0"))
    user.partition = partition_for(USERS[1].encode(), PARTITIONS)
    withdrawals = learner.withdrawals
    return [withdrawals.forget_user(user, batch.events), withdrawals.forget_items([item], batch.events)]


def _compile_models(settings: Settings) -> None:
    warm_up(settings.models)


def _compile_lists(settings: Settings) -> None:
    items = ItemState(settings.models)
    content = ContentVectors(embeddings={"any": 1})
    Pipeline(items, Catalogue(items.items), settings.serving, None, content)


PARTS = {"models": _compile_models, "lists": _compile_lists}
"""What other processes can do at the same time: this module, run as a command with a part's name, does it."""


def compile_all(settings: Settings) -> float:
    """Every kernel; returns the seconds it took: near none from the second time on a machine.

    On a machine that has none of them two more processes do the models and the lists meanwhile, in all nearly
    half. What several need, the first to have it leaves to the others in numba's cache. They may write it at
    once only because they write the same: no two of them compile one function for different types.
    """
    started = time.monotonic()
    layout.warm_up()
    missing = bool(cast(Any, layout.hide).stats.cache_misses)
    with _beside(PARTS if missing and _cores() > 1 else ()) as wait:
        compile_streams(settings, wait)
    for part in PARTS.values():
        part(settings)
    return time.monotonic() - started


def _cores() -> int:
    """Cores that this process may use: of a machine, a container or `taskset` may leave it one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _beside(parts: Iterable[str]) -> Iterator[Callable[[], None]]:
    """Processes that compile `parts`; yields what waits for them. Leaving the context ends them."""
    command, none = [sys.executable, "-m", "streams.warm_up"], subprocess.DEVNULL
    with contextlib.ExitStack() as stack:
        others = []
        for part in parts:  # a session of their own: Ctrl-C comes to this process, which ends the others
            try:
                other = subprocess.Popen([*command, part], stdin=none, stdout=none, start_new_session=True)
            except OSError as error:  # no memory, too many processes
                log.warning("no process for %s (%s); it is compiled here", part, error)
                break
            stack.callback(other.wait)
            stack.callback(other.kill)
            others.append(other)

        def wait() -> None:
            for other in others:
                if code := other.wait():
                    log.warning("%s ended with %d; its part is compiled here", other.args, code)

        yield wait


def _shards(settings: Settings, intake: Intake) -> Shards:
    shards = Shards(settings, "warm-up", intake.reader.type_names)
    shards.owned.update({p: Shard(p) for p in range(PARTITIONS)})
    return shards


if __name__ == "__main__":
    gc.disable()  # a tenth of the time, for a process that ends at once
    if sys.argv[1:]:
        if hasattr(os, "nice"):
            os.nice(10)  # the longest part is that of the process which waits for this one
        PARTS[sys.argv[1]](load_settings(environ={}))
    else:
        print(f"kernels compiled in {compile_all(load_settings(environ={})):.1f} s")  # a command
