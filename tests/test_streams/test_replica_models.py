"""A replica follows `models`: a store that does not answer is asked again, for what is then wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streams import replica as module
from streams.model_records import announce
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


def follow_until(replica: Replica, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        replica.follow()
        time.sleep(0.01)


def test_a_store_that_did_not_answer_is_asked_again(
    settings: Settings, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.3)
    folder = Path(settings.registry.url)
    first, second = (
        publish_table(folder, version, ITEMS, successor_table(20, number))[1]
        for number, version in enumerate(("v1", "v2"), start=1)
    )
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
