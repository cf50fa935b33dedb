"""What the tests of snapshots share."""

from __future__ import annotations

import msgspec
import pytest

from streams.clients import make_producer, producer_config
from streams.settings import Settings
from tests.test_streams.snapshot_log import MODELS


@pytest.fixture
def small_log(settings: Settings) -> Settings:
    """A deployment with small models whose learning log holds 100 records."""
    producer = make_producer(producer_config(settings))
    for _ in range(100):
        producer.produce(settings.names["interactions"], b"x", partition=0)
    assert producer.flush(10) == 0
    return msgspec.structs.replace(settings, models=MODELS)
