"""A replica follows `models`: a store that does not answer is asked again, for what is then wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.registry.manifest import MODEL_FILE
from serving.registry.store import Published
from streams import replica as module
from streams.model_records import announce, model_records
from streams.replica import Replica
from streams.settings import Settings
from streams.topic_admin import check_layout
from streams.validation import EventValidator
from tests.test_serving.version_cases import publish_table, successor_table
from tests.test_streams.test_model_state import record

ITEMS = [f"item-{n}" for n in range(20)]


@pytest.fixture
def replica(settings: Settings) -> Iterator[Replica]:
    made = Replica(settings, EventValidator(settings.validation, lambda key: 0), check_layout(settings))
    yield made
    made.close()


def published(folder: Path) -> list[Published]:
    """`v1` and `v2`, of other scores each."""
    return [
        publish_table(folder, version, ITEMS, successor_table(20, number))[1]
        for number, version in enumerate(("v1", "v2"), start=1)
    ]


def follow_until(replica: Replica, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        replica.follow()
        time.sleep(0.01)


def test_what_was_refused_counts_until_it_is_asked_for_again(settings: Settings, replica: Replica) -> None:
    """A version that was mended is not taken back for what was found before, by an owner to come."""
    folder = Path(settings.registry.url)
    first, second = published(folder)
    model = folder / "ranker" / "v2" / MODEL_FILE
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    announce(settings, record("v1", digest=first.digest))
    announce(settings, record("v2", digest=second.digest))
    follow_until(replica, lambda: "live" in replica.refused)
    announce(settings, record("v1", digest=first.digest))
    announce(settings, record("v2", "shadow", digest=second.digest))
    follow_until(replica, lambda: set(replica.refused) == {"shadow"})
    model.write_bytes(whole)
    announce(settings, record("v2", "dropped"))
    announce(settings, record("v2", "shadow", digest=second.digest))
    follow_until(replica, lambda: replica.trial is not None)
    announce(settings, record("v2", digest=second.digest))
    follow_until(replica, lambda: replica.slot.current is not None and replica.slot.current.version == "v2")
    assert not replica.refused


def test_what_is_lacking_is_said_until_a_version_serves(settings: Settings, replica: Replica) -> None:
    folder = Path(settings.registry.url)
    first, second = published(folder)
    model = folder / "ranker" / "v1" / MODEL_FILE
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    assert replica.catch_up(lambda: False)
    assert replica.lacking is None, "nothing was announced"
    announce(settings, record("v1", digest=first.digest))
    follow_until(replica, lambda: "live" in replica.refused)
    assert replica.lacking is not None
    assert replica.lacking.startswith("ranker v1 can't be loaded: another size or SHA-256")
    restarted = Replica(settings, EventValidator(settings.validation, lambda key: 0), check_layout(settings))
    try:
        assert restarted.catch_up(lambda: False)
        assert restarted.lacking == "ranker v1 is being loaded"
        follow_until(restarted, lambda: "live" in restarted.refused)
        assert restarted.lacking == replica.lacking
    finally:
        restarted.close()
    announce(settings, record("v2", digest=second.digest))
    follow_until(replica, lambda: replica.slot.current is not None)
    assert replica.lacking is None
    announce(settings, record("v1", digest=first.digest))
    follow_until(replica, lambda: "live" in replica.refused)
    assert replica.lacking is None, "v2 goes on serving"


def test_a_store_that_is_asked_again_is_lacking_all_the_while(
    settings: Settings, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    folder = Path(settings.registry.url)
    digest = publish_table(folder, "v1", ITEMS, successor_table(20, 1))[1].digest
    folder.rename(folder.with_name("away"))
    announce(settings, record("v1", digest=digest))
    follow_until(replica, lambda: "live" in replica.refused)
    first = replica.refused["live"]
    said = "ranker v1 can't be loaded: the registry could not be read"
    while replica.refused.get("live") in (first, None):
        assert replica.lacking == said
        replica.follow()
        time.sleep(0.01)
    folder.with_name("away").rename(folder)
    follow_until(replica, lambda: replica.slot.current is not None)
    assert replica.lacking is None


def test_a_record_too_large_to_be_answered_is_passed_over(settings: Settings, replica: Replica) -> None:
    folder = Path(settings.registry.url)
    digest = publish_table(folder, "v1", ITEMS, successor_table(20, 1))[1].digest
    announce(settings, record("v1", digest=digest))
    for odd in (record("v" * 129), record("v2", metrics={"m" * 300_000: 1.0})):
        announce(settings, odd)
    announce(settings, record("v3", "refused"))
    follow_until(replica, lambda: not replica.slot.loading and replica.slot.current is not None)
    time.sleep(0.5)
    replica.follow()
    assert replica.models.live is not None
    assert replica.models.live.version == "v1"
    assert {one.version for one in model_records(settings)} == {"v1", "v3"}


def test_a_store_that_did_not_answer_is_asked_again(
    settings: Settings, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.3)
    folder = Path(settings.registry.url)
    first, second = published(folder)
    folder.rename(folder.with_name("away"))
    announce(settings, record("v1", digest=first.digest))
    announce(settings, record("v2", "shadow", digest=second.digest))
    follow_until(replica, lambda: len(replica.refused) == 2)
    assert {event.kind for event in replica.refused.values()} == {"store"}
    assert replica.slot.current is None
    assert replica.trial is None
    folder.with_name("away").rename(folder)
    follow_until(replica, lambda: replica.trial is not None)
    assert replica.slot.current is not None
    assert replica.slot.shadow is not None
    assert (replica.slot.current.version, replica.slot.shadow.version) == ("v1", "v2")
    announce(settings, record("v2", "dropped"))
    follow_until(replica, lambda: replica.slot.shadow is None)
    assert replica.trial is None
