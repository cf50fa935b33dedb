"""Which items are introduced: the newest with content and without use, bounded, in turns, and again after a
restart; and their rows in the learning log, which every follower of it takes alike."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from online_models.item_state import ItemState
from online_models.learning_batch import LearningBatch
from online_models.settings import ModelSettings
from serving.catalogue import Catalogue, CatalogueEntry
from serving.content.settings import ContentSettings
from serving.content.vectors import ContentVectors
from serving.settings import ServingSettings
from serving.training.replay import FeatureReplay
from streams import introductions as module
from streams.errors import LearningLogError
from streams.introductions import Arrivals, Introductions
from streams.learning_log import LogRecord, decode_record, learn_record
from streams.log_kinds import DISMISS, INTRODUCE
from streams.replica import Replica
from streams.settings import Settings
from tests.test_streams.user_model import Ev, Worker, settings_of


class Owner:
    """The owner of partition 0, without Kafka: a catalogue, and a log that comes back when `follow` says."""

    def __init__(self, most: int, per_batch: int = 100, max_items: int = 1000, dim: int = 2) -> None:
        self.settings = Settings(
            content=ContentSettings(
                embeddings={"look": dim}, introduce_items=most, introduce_per_batch=per_batch
            ),
            models=ModelSettings(max_items=max_items),
        )
        self.items = ItemState(self.settings.models)
        self.catalogue = Catalogue(self.items.items)
        self.content = ContentVectors(embeddings={"look": dim})
        self.written: list[Arrivals] = []
        self.restart()

    def restart(self) -> None:
        replica = SimpleNamespace(items=self.items, catalogue=self.catalogue, content=self.content)
        self.introductions = Introductions(self.settings, cast(Replica, replica))

    def put(self, *item_ids: str, hidden: bool = False) -> None:
        for item_id in item_ids:
            self.content.put(item_id, {"embeddings": {"look": [1.0, 2.0]}})
            self.catalogue.put(item_id, CatalogueEntry(is_hidden=hidden), 1)

    def remove(self, item_id: str) -> None:
        """As a tombstone does on every replica, and in the log."""
        self.content.forget(item_id)
        self.catalogue.remove(item_id, 1)
        self.items.forget_item(item_id)

    def use(self, *item_ids: str) -> None:
        n, d = len(item_ids), self.settings.models.factors.dimension
        none = np.full((n, 1), -1, dtype=np.int32)
        self.items.apply(
            LearningBatch(
                item_ids=list(item_ids), item=np.arange(n, dtype=np.int32), recent=none,
                time_ms=np.zeros(n, np.int64), weight=np.ones(n, np.float32),
                event_type=np.zeros(n, np.uint8), user_before=np.zeros((n, d), np.float32),
                user_after=np.zeros((n, d), np.float32), negatives=none,
            )
        )  # fmt: skip

    def look(self) -> Arrivals:
        self.introductions._due = 0.0
        return self.introductions.poll()

    def follow(self) -> Arrivals:
        """Look, and have what was written learned."""
        found = self.look()
        self.items.introduce(found.introduced)
        for item_id in found.dismissed:
            self.items.dismiss(item_id)
        return found

    @property
    def introduced(self) -> set[str]:
        return {self.items.items.ids[row] for row in np.flatnonzero(self.items.introduced).tolist()}


def names(first: int, last: int) -> list[str]:
    return [f"i{k}" for k in range(first, last)]


def test_the_newest_that_nobody_has_used() -> None:
    owner = Owner(most=5)
    owner.put(*names(0, 8))
    owner.content.put("plain", {})
    owner.put("hidden", hidden=True)
    owner.use("i7")
    assert owner.look().introduced == ["i6", "i5", "i4", "i3", "i2"]
    assert not owner.look(), "they are on their way"


def test_those_that_come_take_the_place_of_those_that_came_longest_ago() -> None:
    owner = Owner(most=5)
    owner.put(*names(0, 5))
    owner.follow()
    assert owner.introduced == set(names(0, 5))
    owner.put("i5", "i6")
    found = owner.follow()
    assert (found.introduced, len(found.dismissed)) == (["i6", "i5"], 2)
    assert owner.introduced == set(names(2, 7))
    assert not owner.follow()
    owner.use("i3")
    owner.introductions._due_anyway = 0.0
    assert owner.follow().introduced == ["i1"], "one is introduced no longer, but used"
    owner.restart()
    assert not owner.follow(), "nothing is owed after a restart"


def test_in_parts_and_none_too_many() -> None:
    owner = Owner(most=50, per_batch=8)
    owner.put(*names(0, 60))
    parts = []
    while found := owner.follow():
        parts.append(len(found.introduced))
        assert len(parts) < 100
    assert parts == [8] * 6 + [2]
    assert owner.introduced == set(names(10, 60))
    table = Owner(most=500, max_items=64)
    table.put(*names(0, 60))
    assert len(table.look().introduced) == 64 // module.TABLE_SHARE


def test_a_full_table_is_left_alone() -> None:
    owner = Owner(most=8, max_items=64)
    owner.use(*names(100, 157))
    owner.put(*names(0, 20))
    assert len(owner.follow().introduced) == owner.settings.models.max_items - 2 - 57
    owner.use(*names(200, 210))
    assert not owner.introduced, "they went first"
    owner.introductions._due_anyway = 0.0
    assert not owner.follow()


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_so_many_of_the_newest_entries_are_looked_at(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what they are: used, introduced, hidden and without content. Only what has no row is asked for
    content."""
    monkeypatch.setattr(module, "LOOKED_AT", 12)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    owner = Owner(most=5)
    owner.put(*names(0, 10))
    owner.items.introduce(["i3"])
    owner.put("hidden", hidden=True)
    owner.use("i5", "i7")
    owner.content.put("plain", {})
    asked: list[str] = []
    has = owner.content.has

    def noted(item_ids: Iterable[str]) -> Any:
        asked.extend(item_ids := list(item_ids))
        return has(item_ids)

    monkeypatch.setattr(owner.content, "has", noted)
    assert owner.look().introduced == ["i9", "i8", "i6", "i4"]
    assert not {"i3", "i5", "i7"} & set(asked)
    owner = Owner(most=5)
    owner.put(*names(0, 20))
    owner.use(*names(8, 20))
    assert not owner.look(), "twelve entries are newer"
    owner.use("i20")
    owner.content.forget("i19")
    assert owner.look().introduced == ["i7"]


def test_what_was_removed_comes_back_with_the_catalogue_alone() -> None:
    owner = Owner(most=5)
    owner.put("a", "b")
    owner.follow()
    owner.remove("a")
    for _ in range(3):
        owner.introductions._due_anyway = 0.0
        assert not owner.follow()
        owner.restart()
    owner.items.introduce(["a"])  # its record was on its way when the tombstone was read
    assert owner.follow() == Arrivals([], ["a"])
    owner.put("a")
    assert owner.follow().introduced == ["a"]


def test_none_wanted_takes_all_back() -> None:
    owner = Owner(most=5, per_batch=3)
    owner.put(*names(0, 5))
    while owner.follow():
        pass
    assert len(owner.introduced) == 5
    content = msgspec.structs.replace(owner.settings.content, introduce_items=0)
    owner.settings = msgspec.structs.replace(owner.settings, content=content)
    owner.restart()
    assert owner.follow() == Arrivals([], ["i4", "i3", "i2"]), "in the order in which they got their rows"
    assert owner.follow() == Arrivals([], ["i1", "i0"])
    assert not owner.items.has_introduced


def test_without_content_nothing_is_looked_for() -> None:
    owner = Owner(most=5)
    owner.content = ContentVectors()
    owner.restart()
    owner.put("a")
    assert not owner.follow()


def _packed(worker: Worker, arrivals: Arrivals) -> list[LogRecord]:
    rows = worker.learner.withdrawals.introduce(arrivals, worker.admit([]).events)
    assert rows is not None
    values = list(worker.learner.log.pack(rows))
    worker.follow(values)
    return [decode_record(value, "here") for value in values]


def test_its_rows_stand_in_the_log_and_every_follower_takes_them() -> None:
    settings = settings_of()
    worker = Worker(settings)
    assert worker.learner.withdrawals.introduce(Arrivals([], []), worker.admit([]).events) is None
    records = _packed(worker, Arrivals(["a", "b", "c"], []))
    records += _packed(worker, Arrivals(["d"], ["b", "nobody"]))
    assert [record.kinds.tolist() for record in records] == [[INTRODUCE] * 3, [DISMISS] * 2 + [INTRODUCE]]
    assert {record.topics[k] for record in records for k in record.column("topic", "u1")} == {
        settings.names["items"]
    }
    replay = FeatureReplay(settings.models, ServingSettings(), 1)
    for record in records:
        learn_record(replay, record, "here")
    for state in (worker.items, replay.items):
        rows = np.flatnonzero(state.introduced).tolist()
        assert sorted(state.items.ids[row] for row in rows) == ["a", "c", "d"]
    assert replay.items.digest() == worker.items.digest()


def test_a_worker_draws_no_introduced_item_as_a_negative() -> None:
    worker = Worker(settings_of())
    _packed(worker, Arrivals([f"n{k}" for k in range(20)], []))
    drawn: list[int] = []
    for k in range(40):
        _, rows = worker.take([Ev(f"u{k % 5}", f"e{k}", time_ms=k, item=f"i{k % 10}")])
        assert rows is not None
        drawn += rows.negatives[rows.negatives < -1].tolist()
        worker.apply(rows)
    names_of = {worker.items.items.ids[-row - 2] for row in drawn}
    assert names_of <= {f"i{k}" for k in range(10)}
    assert len(drawn) > 40
    assert worker.items.introduced.sum() == 20


def test_a_kind_of_a_later_version_is_refused() -> None:
    worker = Worker(settings_of())
    [record] = _packed(worker, Arrivals(["a"], []))
    later: Any = msgspec.structs.replace(record, kind=bytes([DISMISS + 1]))
    with pytest.raises(LearningLogError, match=f"rows of kind {DISMISS + 1}, this version knows 0 to"):
        learn_record(worker.items, later, "here")
