"""Lag: the status words by rule, sums that never hide what is unknown, and Kafka's own tool as the judge."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streams.broker_java import find_java
from streams.clients import admin, consumer_config, make_consumer, make_producer, producer_config
from streams.errors import BrokerUnavailableError
from streams.lag import LagReader, LagSummary, PartitionLag, lag_of, summarize
from streams.lag_status import STATUSES, StatusWindow
from streams.settings import Settings, default_state_dir, load_settings


def words(points: list[tuple[int, int]], size: int = 4) -> str:
    window = StatusWindow(size)
    return [window.add(committed, lag, lost=0, owned=True) for committed, lag in points][-1]


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([(10, 5)], "OK"),  # too little seen
        ([(10, 5), (20, 6), (30, 0), (40, 9)], "OK"),  # at the end once
        ([(10, 5), (20, 9), (30, 8), (40, 9)], "OK"),  # lag fell once
        ([(10, 5), (20, 6), (30, 7), (40, 7)], "WARN"),  # advancing, lag never falls
        ([(10, 5), (10, 6), (10, 7), (10, 8)], "STALL"),
        ([(10, 5), (20, 6), (15, 7), (18, 8)], "REWIND"),
        ([(10, 5), (20, 6), (15, 7), (21, 8)], "WARN"),  # the rewind was made good
        ([(10, 5), (10, 6), (10, 7), (10, 8), (20, 2), (30, 3)], "OK"),  # the stall left the window's start
    ],
)
def test_status_by_rule(points: list[tuple[int, int]], word: str) -> None:
    assert words(points) == word


def test_status_of_what_no_window_decides() -> None:
    window = StatusWindow(3)
    assert window.add(None, None, lost=0, owned=True) == "UNKNOWN"
    assert window.add(None, 0, lost=0, owned=True) == "OK"  # an empty partition that has an owner
    assert window.add(None, None, lost=0, owned=False) == "UNOWNED"
    assert window.add(5, 3, lost=0, owned=False) == "UNOWNED"
    assert window.add(5, 3, lost=2, owned=True) == "DATA_LOSS"
    with pytest.raises(ValueError, match="1"):
        StatusWindow(1)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=40))
def test_status_is_always_a_known_word_and_zero_lag_in_the_window_is_never_an_alarm(
    points: list[tuple[int, int, bool]],
) -> None:
    window = StatusWindow(5)
    for index, (committed, lag, owned) in enumerate(points):
        word = window.add(committed, lag, lost=0, owned=owned)
        assert word in STATUSES
        if owned and min(lag for _, lag, _ in points[max(0, index - 4) : index + 1]) == 0:
            assert word in ("OK", "REWIND")


def row(lag: int | None, lag_s: float | None, owner: str | None = "w", lost: int = 0) -> PartitionLag:
    return PartitionLag("g", "t", 0, 0, 0, 0, lag, lag_s, lost, owner, "OK")


def test_summary_is_unknown_as_soon_as_one_partition_is() -> None:
    assert summarize([]) == LagSummary(None, None, 0, 0, 0)
    assert summarize([row(3, 1.5), row(4, 9.0, owner=None, lost=7)]) == LagSummary(7, 9.0, 2, 1, 7)
    assert summarize([row(3, 1.5), row(None, None)]) == LagSummary(None, None, 2, 0, 0)
    assert summarize([row(3, None), row(0, 0.0)]) == LagSummary(3, None, 2, 0, 0)


def test_no_broker_is_an_error_that_names_the_address() -> None:
    nowhere = load_settings(environ={}, overrides={"kafka": {"bootstrap.servers": "127.0.0.1:1"}})
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        lag_of(nowhere, "freshet-workers", timeout_s=0.5)


# ---- on a real broker


def joined(settings: Settings, group: str, topics: list[str]) -> Consumer:
    """A member of `group` that owns all partitions of `topics`."""
    consumer = make_consumer({**consumer_config(settings, group=group), "client.id": "reader-1"})
    consumer.subscribe(topics)
    deadline_s = time.monotonic() + 120
    while not consumer.assignment() and time.monotonic() < deadline_s:
        consumer.poll(0.1)
    assert consumer.assignment()
    return consumer


def fill(settings: Settings, topic: str, counts: dict[int, int], timestamp: int | None = None) -> None:
    producer = make_producer(producer_config(settings))
    for partition, count in counts.items():
        for number in range(count):
            extra = {} if timestamp is None else {"timestamp": timestamp}
            producer.produce(topic, value=b"%d" % number, partition=partition, **extra)
    assert producer.flush(10) == 0


def by_partition(rows: list[PartitionLag]) -> dict[int, PartitionLag]:
    return {row.partition: row for row in rows}


def test_lag_in_records_and_seconds_with_owner(settings: Settings) -> None:
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    written_ms = int(time.time() * 1000) - 60_000
    fill(settings, topic, {0: 10, 1: 5, 2: 3}, timestamp=written_ms)
    consumer = joined(settings, group, [topic])
    consumer.commit(offsets=[TopicPartition(topic, 0, 4), TopicPartition(topic, 1, 5)], asynchronous=False)
    with LagReader(settings) as reader:
        rows = by_partition(reader.read([group], [topic]))
        again = by_partition(reader.read([group], [topic]))
        assert reader.groups[group].members == 1
    consumer.close()
    assert (rows[0].lag, rows[0].committed, rows[0].end, rows[0].low) == (6, 4, 10, 0)
    assert rows[0].lag_s == pytest.approx((time.time() * 1000 - written_ms) / 1000, abs=5)
    assert (rows[1].lag, rows[1].lag_s, rows[1].state) == (0, 0.0, "OK")
    assert (rows[2].lag, rows[2].lag_s, rows[2].state) == (None, None, "UNKNOWN")
    assert rows[3].lag == 0, "an empty partition that nobody committed has nothing to read"
    assert {row.owner for row in rows.values()} == {"reader-1"}
    assert again[0].lag_s is not None
    assert again[0].lag_s >= rows[0].lag_s


def test_a_timestamp_is_found_again_when_the_offset_moves(settings: Settings) -> None:
    """A paused partition stays paused after `unassign`: the second reading would get nothing."""
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    fill(settings, topic, {0: 10, 1: 10})
    consumer = joined(settings, group, [topic])
    with LagReader(settings) as reader:
        for offset in range(1, 6):
            offsets = [TopicPartition(topic, number, offset) for number in (0, 1)]
            consumer.commit(offsets=offsets, asynchronous=False)
            rows = by_partition(reader.read([group], [topic]))
            assert rows[0].lag_s is not None
            assert rows[1].lag_s is not None
    consumer.close()


def test_future_timestamps_are_flagged_not_negative(settings: Settings) -> None:
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    fill(settings, topic, {0: 2}, timestamp=int(time.time() * 1000) + 600_000)
    consumer = joined(settings, group, [topic])
    consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    with LagReader(settings) as reader:
        found = by_partition(reader.read([group], [topic]))[0]
    consumer.close()
    assert (found.lag_s, found.clock_ahead) == (0.0, True)


def test_records_that_retention_removed_are_lost_not_lag(settings: Settings) -> None:
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    fill(settings, topic, {0: 10})
    consumer = joined(settings, group, [topic])
    consumer.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=False)
    client = admin(settings)
    for future in client.delete_records([TopicPartition(topic, 0, 6)]).values():
        future.result(timeout=10)
    with LagReader(settings) as reader:
        found = by_partition(reader.read([group], [topic]))[0]
    consumer.close()
    assert (found.low, found.lag, found.lost, found.state) == (6, 4, 4, "DATA_LOSS")


def test_an_open_transaction_is_not_lag(settings: Settings) -> None:
    """A read_committed group can't get past the last stable offset; the high watermark would say lag 5."""
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    producer: Producer = make_producer(producer_config(settings, transactional_id=f"t{uuid.uuid4().hex}"))
    producer.init_transactions(10)
    producer.begin_transaction()
    for number in range(5):
        producer.produce(topic, value=b"%d" % number, partition=0)
    producer.flush(10)
    consumer = joined(settings, group, [topic])
    consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    with LagReader(settings) as reader:
        during = by_partition(reader.read([group], [topic]))[0]
        producer.commit_transaction(10)
        deadline_s = time.monotonic() + 120
        after = during
        while not after.end and time.monotonic() < deadline_s:  # markers are written after the commit returns
            after = by_partition(reader.read([group], [topic]))[0]
    consumer.close()
    assert (during.end, during.lag) == (0, 0)
    assert after.lag == 6  # five records and the commit marker


def test_no_members_means_unowned_and_no_group_means_unknown(settings: Settings) -> None:
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    fill(settings, topic, {0: 3})
    consumer = joined(settings, group, [topic])
    consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
    consumer.close()
    with LagReader(settings) as reader:
        found = by_partition(reader.read([group], [topic]))
        assert (found[0].lag, found[0].owner, found[0].state) == (2, None, "UNOWNED")
        assert reader.groups[group].members == 0
        nobody = reader.read(["nobody-ever"], [topic])
        assert reader.groups["nobody-ever"].members == 0
    assert {row.state for row in nobody} == {"UNOWNED"}
    assert lag_of(settings, group).records == 2
    assert lag_of(settings, "nobody-ever") == LagSummary(None, None, 0, 0, 0)


@pytest.fixture(scope="session")
def kafka_tools(kafka: Settings) -> Path:
    """The folder with the jars of Kafka's own command-line tools, fetched once."""
    pom = Path(__file__).with_name("kafka-tools-pom.xml")
    libs = default_state_dir() / "kafka-tools" / hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    if not libs.is_dir():
        maven = shutil.which("mvn")
        if maven is None:
            if os.environ.get("REQUIRE_KAFKA") == "1":
                pytest.fail("REQUIRE_KAFKA=1, and there is no Maven to fetch Kafka's own tools with")
            pytest.skip("no Maven to fetch Kafka's own tools with")
        libs.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=libs.parent) as work:
            goal = [
                "dependency:copy-dependencies",
                "-DincludeScope=runtime",
                f"-DoutputDirectory={work}/libs",
            ]
            environment = {**os.environ, "JAVA_HOME": str(find_java().home)}
            subprocess.run(
                [maven, "-B", "-q", "-f", str(pom), *goal], env=environment, check=True, timeout=280
            )
            with contextlib.suppress(OSError):  # another run was first
                Path(work, "libs").rename(libs)
    return libs


def ask_kafka(libs: Path, settings: Settings, group: str) -> dict[int, tuple[int, int, int]]:
    """(committed, end, lag) by partition, as Apache Kafka's own kafka-consumer-groups prints them."""
    command = [
        str(find_java().executable), "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", f"{libs}/*",
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        "--bootstrap-server", settings.bootstrap_servers, "--describe", "--group", group,
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = {}
    for line in printed.splitlines():
        cells = line.split()
        if len(cells) > 5 and cells[0] == group and cells[3].isdigit():
            found[int(cells[2])] = (int(cells[3]), int(cells[4]), int(cells[5]))
    return found


def test_lag_is_what_kafkas_own_tool_says(settings: Settings, kafka_tools: Path) -> None:
    topic, group = settings.names["events"], f"g{uuid.uuid4().hex}"
    fill(settings, topic, {0: 100, 1: 20, 2: 7, 3: 1})
    consumer = joined(settings, group, [topic])
    commits = {0: 33, 1: 20, 2: 0, 3: 1}
    consumer.commit(
        offsets=[TopicPartition(topic, number, offset) for number, offset in commits.items()],
        asynchronous=False,
    )
    with LagReader(settings) as reader:
        ours = {
            n: (r.committed, r.end, r.lag) for n, r in by_partition(reader.read([group], [topic])).items()
        }
    theirs = ask_kafka(kafka_tools, settings, group)
    watermarks = {n: consumer.get_watermark_offsets(TopicPartition(topic, n))[1] for n in commits}
    consumer.close()
    assert ours == theirs
    assert {n: end for n, (_, end, _) in ours.items()} == watermarks
    assert lag_of(settings, group).records == 67 + 7
