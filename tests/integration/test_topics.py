"""`freshet topics create|describe` against a real broker."""

from __future__ import annotations

import time

import msgspec
import pytest
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from streams.clients import admin, make_producer, producer_config, wait_for_broker
from streams.errors import BrokerUnavailableError, TopicLayoutError
from streams.settings import Settings
from streams.topic_admin import check_layout, create_topics, describe_topics
from streams.topics import TOPICS
from tests.conftest import settings_for


def test_created_topics_are_what_the_table_says(settings: Settings) -> None:
    described = {entry["topic"]: entry for entry in describe_topics(settings)}
    assert list(described) == list(TOPICS)
    for topic, spec in TOPICS.items():
        entry = described[topic]
        assert entry["exists"]
        assert entry["name"] == settings.topics.prefix + topic
        assert entry["partitions"] == spec.partitions(settings.topics.partitions)
        assert {key: ",".join(sorted(entry["config"][key].split(","))) for key in spec.config} == {
            key: ",".join(sorted(value.split(","))) for key, value in spec.config.items()
        }
    assert len({entry["topic_id"] for entry in described.values()}) == len(TOPICS)


def test_creating_again_changes_nothing_and_says_what_differs(settings: Settings) -> None:
    assert {report.status for report in create_topics(settings)} == {"exists"}
    more = msgspec.structs.replace(
        settings, topics=msgspec.structs.replace(settings.topics, partitions=settings.topics.partitions + 1)
    )
    reports = {report.topic: report for report in create_topics(more)}
    assert reports["events"].status == "differs"
    assert "4 partitions, settings say 5" in reports["events"].differences
    assert reports["interactions"].status == "exists"
    assert check_layout(settings)["events"] == settings.topics.partitions


def test_a_new_prefix_creates_all_topics(kafka: Settings, settings: Settings) -> None:
    other = msgspec.structs.replace(
        settings, topics=msgspec.structs.replace(settings.topics, prefix=settings.topics.prefix + "b.")
    )
    assert {report.status for report in create_topics(other)} == {"created"}


def test_missing_topics_are_named_with_the_remedy(kafka: Settings) -> None:
    nowhere = settings_for(kafka.bootstrap_servers, topics={"prefix": "never-created."})
    with pytest.raises(TopicLayoutError, match=r"never-created\.events.*freshet topics create"):
        check_layout(nowhere)
    assert not any(entry["exists"] for entry in describe_topics(nowhere))


def test_topics_that_are_not_co_partitioned_are_refused(settings: Settings) -> None:
    name = settings.names["requests"]
    client = admin(settings)
    client.create_partitions([NewPartitions(name, 6)], request_timeout=10)[name].result()
    deadline_s = time.monotonic() + 60
    while len(client.list_topics(name, timeout=5).topics[name].partitions) < 6:
        assert time.monotonic() < deadline_s, "the broker does not show the added partitions"
        time.sleep(0.02)
    with pytest.raises(TopicLayoutError, match=r"events has 4.*requests has 6"):
        check_layout(settings)


def test_watermarks_are_summed_over_partitions(settings: Settings) -> None:
    producer = make_producer(producer_config(settings))
    for number in range(30):
        producer.produce(settings.names["events"], key=str(number), value=b"{}")
    assert producer.flush(10) == 0
    events = next(entry for entry in describe_topics(settings) if entry["topic"] == "events")
    assert (events["low_watermarks"], events["high_watermarks"]) == (0, 30)


def test_no_broker_is_said_with_its_address() -> None:
    nobody = settings_for("127.0.0.1:1")
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1 .*FRESHET_KAFKA__BOOTSTRAP_SERVERS"):
        wait_for_broker(nobody, 0.5)
