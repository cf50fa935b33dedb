"""The live page in real Chromium, on a running monitor and a real broker: what was produced is what is read.

Skipped where Chromium or its driver is missing; with `REQUIRE_BROWSER=1` that is a failure.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from streams.clients import make_consumer, make_producer, producer_config, tail_consumer_config
from streams.settings import Settings
from tests.integration.test_monitor import Monitor, now_ms, send, with_port
from tests.test_streams.monitor_records import model_record, partition_stats, worker_stats

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HOSTILE = "</td><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def _missing(what: str) -> None:
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, and there is no {what}")
    pytest.skip(f"no {what}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium with a profile of its own; its console is read at the end."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        _missing("chromium" if chromium is None else "chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def monitor(settings: Settings, tmp_path: Path) -> Iterator[Monitor]:
    folder = tmp_path / "cwd"
    folder.mkdir()
    running = Monitor(with_port(settings), folder)
    yield running
    if running.process is not None:
        running.stop()


def text(browser: Any, identifier: str) -> str:
    return str(browser.find_element("id", identifier).text)


def wait(browser: Any, done: Callable[[], bool], limit_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline_s, browser.find_element("tag name", "body").text
        time.sleep(0.2)


def complaints(browser: Any) -> list[str]:
    """What the browser's console says of errors, policy violations among them."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def resize(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_without_data_the_page_says_so(monitor: Monitor, browser: Any) -> None:
    monitor.start()
    browser.get(monitor.url)
    wait(browser, lambda: text(browser, "status") == "No data yet")
    for tile in ("t-events", "t-latency", "t-hits", "t-ranker"):
        assert text(browser, tile) == "no data yet"
    assert "no worker has reported" in text(browser, "workers")
    assert text(browser, "t-lag") == "0", "the topics are there and empty: that is known"
    assert complaints(browser) == []


def test_page_shows_what_was_produced(monitor: Monitor, browser: Any) -> None:
    settings = monitor.settings
    topic = settings.names["events"]
    producer = make_producer(producer_config(settings))
    for number in range(40):
        producer.produce(topic, value=b"x", partition=number % 4)
    assert producer.flush(10) == 0
    consumer = make_consumer({**tail_consumer_config(settings), "group.id": settings.worker_group})
    consumer.commit(offsets=[TopicPartition(topic, number, 7) for number in range(4)], asynchronous=False)
    consumer.close()
    send(settings, "models", model_record("v7"), model_record("v8", status="refused", reason=HOSTILE))
    send(settings, "events-dlq", b"x", b"y", headers={"freshet.errors.reason": b"invalid_json"})
    monitor.start()

    def report() -> None:
        parts = {str(number): partition_stats() for number in range(4)}
        send(settings, "worker-stats", worker_stats("w-east", at=now_ms(), ranker="v7", partitions=parts))

    report()
    browser.get(monitor.url)
    wait(browser, lambda: report() is None and text(browser, "t-events") == "100")
    wait(browser, lambda: text(browser, "t-lag") == "12")
    assert text(browser, "t-hits") == "0.200"
    assert text(browser, "n-hits") == "popularity 0.080 · 2.5×"
    assert text(browser, "t-ranker") == "v7"
    assert text(browser, "t-lags").endswith("s")
    wait(browser, lambda: report() is None and "invalid_json 2" in text(browser, "dead"))
    for word in ("w-east", "running", "0–3", "943"):
        assert word in text(browser, "workers"), word
    assert "ranker v7" in text(browser, "models")
    assert HOSTILE in text(browser, "models"), "shown as text, not run"
    assert browser.title != "owned"
    assert text(browser, "partitions").count("UNOWNED") == 12
    assert "4,000" in text(browser, "totals")
    chart = "#charts svg"
    wait(
        browser,
        lambda: (
            browser.find_element("css selector", chart).get_attribute("aria-label")
            == "Lag, records: records 12"
        ),
    )
    assert browser.find_elements("css selector", "#charts svg path.line")
    assert complaints(browser) == []


def test_page_fits_wide_and_narrow_screens_and_works_by_keyboard(monitor: Monitor, browser: Any) -> None:
    monitor.start()
    browser.get(monitor.url)
    send(monitor.settings, "worker-stats", worker_stats("w", at=now_ms(), refused=["v9: " + "x" * 300]))
    wait(browser, lambda: "running" in text(browser, "workers"))
    for width in (1400, 420):
        resize(browser, width)
        time.sleep(0.5)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    browser.find_element("tag name", "body").send_keys(keys.TAB)
    assert browser.switch_to.active_element.get_attribute("data-range") == "120"
    browser.switch_to.active_element.send_keys(keys.ENTER)
    pressed = [
        button.get_attribute("data-range")
        for button in browser.find_elements("css selector", "[aria-pressed=true]")
    ]
    assert pressed == ["120"]


def test_a_monitor_that_ends_is_noticed(monitor: Monitor, browser: Any) -> None:
    monitor.start()
    browser.get(monitor.url)
    wait(browser, lambda: text(browser, "status") == "No data yet")
    monitor.stop()
    wait(browser, lambda: text(browser, "status") == "Monitor unreachable")
    assert "last answer" in text(browser, "problem")
