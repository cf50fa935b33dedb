"""A partition that nobody owns for 30 s is an alarm on the live page, in red and in words, and not before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from streams.clients import make_consumer, tail_consumer_config
from streams.settings import Settings
from tests.browser.test_live_page import browser, complaints, text, wait
from tests.integration.test_monitor import Monitor, now_ms, send, with_port
from tests.test_streams.monitor_records import worker_stats

pytestmark = [pytest.mark.browser, pytest.mark.slow]

__all__ = ["browser"]


@pytest.fixture
def monitor(settings: Settings, tmp_path: Path) -> Iterator[Monitor]:
    running = Monitor(with_port(settings), tmp_path)
    yield running
    if running.process is not None:
        running.stop()


def test_nobody_owns_a_partition_for_30_s(monitor: Monitor, browser: Any) -> None:
    settings = monitor.settings
    consumer = make_consumer({**tail_consumer_config(settings), "group.id": settings.worker_group})
    consumer.commit(offsets=[TopicPartition(settings.names["events"], 0, 0)], asynchronous=False)
    consumer.close()
    monitor.start()

    def pill() -> str:
        send(settings, "worker-stats", worker_stats("w1", at=now_ms()))
        return str(browser.find_element("id", "status").get_attribute("class"))

    browser.get(monitor.url)
    wait(browser, lambda: pill() == "pill warn")
    noticed_s = time.monotonic()
    assert text(browser, "status").endswith("partitions unowned")
    wait(browser, lambda: pill() == "pill bad", 45.0)
    assert 25.0 < time.monotonic() - noticed_s < 40.0
    assert "Start a worker" in text(browser, "problem")
    assert "stale" not in str(browser.find_element("tag name", "body").get_attribute("class"))
    assert complaints(browser) == []
