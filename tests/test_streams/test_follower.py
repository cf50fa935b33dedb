"""The follower's thread, on a real log: what it met in one session is not lost for the next."""

from __future__ import annotations

import time

import pytest

from streams.clients import make_producer, producer_config
from streams.errors import LearningLogError
from streams.follower import Follower
from streams.id_table import IdTable
from streams.item_codes import ItemCodes
from streams.replica import Replica
from streams.settings import Settings
from streams.topic_admin import check_layout
from streams.validation import EventValidator


def test_an_error_that_a_session_s_end_overtook_comes_out_of_the_next_join(settings: Settings) -> None:
    """The records are read by then: dropped with the session, they would never be learned."""
    producer = make_producer(producer_config(settings))
    producer.produce(settings.names["interactions"], b"no record of ours", partition=0)
    assert producer.flush(10) == 0
    replica = Replica(settings, EventValidator(settings.validation, lambda key: 0), check_layout(settings))
    follower = Follower(replica, settings.serving, lambda swap: None)
    codes = ItemCodes(replica.items, IdTable())
    time.sleep(2.0)  # the record waits in the client: the first look finds it
    try:
        with pytest.raises(LearningLogError, match=r"interactions\[0\]@0"):
            _sessions(follower, codes)
    finally:
        replica.close()


def _sessions(follower: Follower, codes: ItemCodes) -> None:
    for _ in range(50):
        follower.begin()
        follower.end()  # the first session is lost meanwhile
        follower.begin()
        follower.join(codes)
        time.sleep(0.1)
