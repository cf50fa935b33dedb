"""Create, describe and check the topics of `streams.topics` (`freshet topics create|describe`)."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its re-exports are not marked
    AdminClient,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    TopicDescription,
)

from streams.clients import admin
from streams.errors import BrokerUnavailableError, TopicLayoutError
from streams.settings import Settings
from streams.topics import CO_PARTITIONED, TOPICS

__all__ = ["TopicReport", "check_layout", "create_topics", "describe_topics", "topic_ids"]

TIMEOUT_S = 30.0
_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
"""What a broker says of a partition that exists, until it has taken up its leadership."""

_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class TopicReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `create_topics` found or did: `status` is `created`, `exists` or `differs`, `differences` say in
    what."""

    topic: str
    name: str
    status: str
    partitions: int
    differences: list[str] = []


def _unavailable(settings: Settings, error: KafkaException) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"the broker at {settings.bootstrap_servers} did not carry out a topic request:"
        f" {error.args[0].str()}. Check that it runs and that this user may create and describe topics"
        " (`freshet doctor`)."
    )


def _describe(client: AdminClient, settings: Settings) -> dict[str, TopicDescription]:
    """Descriptions of the topics of the table that exist, by table name."""
    names = {settings.names[topic]: topic for topic in TOPICS}
    futures = client.describe_topics(TopicCollection(list(names)), request_timeout=TIMEOUT_S)
    found: dict[str, TopicDescription] = {}
    for name, future in futures.items():
        try:
            found[names[name]] = future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _unavailable(settings, error) from error
    return found


def _configs(client: AdminClient, settings: Settings, topics: list[str]) -> dict[str, dict[str, str]]:
    """What is set on each topic itself, not inherited from the broker; by table name."""
    resources = {ConfigResource(ConfigResource.Type.TOPIC, settings.names[topic]): topic for topic in topics}
    own: dict[str, dict[str, str]] = {}
    for resource, future in client.describe_configs(list(resources), request_timeout=TIMEOUT_S).items():
        try:
            entries = future.result()
        except KafkaException as error:
            raise _unavailable(settings, error) from error
        dynamic = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        own[resources[resource]] = {key: e.value for key, e in sorted(entries.items()) if e.source == dynamic}
    return own


def _order(policy: str) -> str:
    """`cleanup.policy` is a set: brokers give `compact,delete` back in either order."""
    return ",".join(sorted(policy.split(",")))


def _differences(topic: str, partitions: int, wanted: int, config: dict[str, str]) -> list[str]:
    found = [] if partitions == wanted else [f"{partitions} partitions, settings say {wanted}"]
    for key, value in TOPICS[topic].config.items():
        actual = config.get(key)
        if actual is None or _order(actual) != _order(value):
            found.append(f"{key} is {actual if actual is not None else 'not set'}, Freshet's is {value}")
    return found


def _create(client: AdminClient, settings: Settings, missing: list[str]) -> set[str]:
    """Create topics; returns those that this call made (another process may be first)."""
    new = [
        NewTopic(
            settings.names[topic],
            num_partitions=TOPICS[topic].partitions(settings.topics.partitions),
            replication_factor=settings.topics.replication_factor,
            config=TOPICS[topic].config,
        )
        for topic in missing
    ]
    made: set[str] = set()
    if not new:
        return made
    futures = client.create_topics(new, operation_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S)
    for topic in missing:
        try:
            futures[settings.names[topic]].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _unavailable(settings, error) from error
        else:
            made.add(topic)
    return made


def _await_leaders(client: AdminClient, settings: Settings) -> dict[str, TopicDescription]:
    """Descriptions of all topics, once every partition has a leader: the controller answers a creation before
    the brokers know of it, and whoever produces or lists offsets in between is refused."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        found = _describe(client, settings)
        if len(found) == len(TOPICS) and all(p.leader for d in found.values() for p in d.partitions):
            return found
        if time.monotonic() > deadline_s:
            late = [settings.names[topic] for topic in TOPICS if topic not in found]
            raise BrokerUnavailableError(
                f"created topics have no leader at {settings.bootstrap_servers} after {TIMEOUT_S:g} s:"
                f" {', '.join(late) or 'some partitions'}. Look into the broker's log."
            )
        time.sleep(0.02)


def create_topics(settings: Settings) -> list[TopicReport]:
    """Make the topics that are missing and leave the others as they are; one report per topic of the table.

    Raises:
        BrokerUnavailableError: the broker does not answer, or refuses.
    """
    client = admin(settings)
    before = _describe(client, settings)
    made = _create(client, settings, [topic for topic in TOPICS if topic not in before])
    others = [topic for topic in TOPICS if topic not in made]
    descriptions = _await_leaders(client, settings)
    configs = _configs(client, settings, others) if others else {}
    reports = []
    for topic, spec in TOPICS.items():
        wanted = spec.partitions(settings.topics.partitions)
        count, differences = wanted, []
        if topic not in made:
            count = len(descriptions[topic].partitions)
            differences = _differences(topic, count, wanted, configs[topic])
        status = "created" if topic in made else "differs" if differences else "exists"
        reports.append(
            TopicReport(
                topic=topic,
                name=settings.names[topic],
                status=status,
                partitions=count,
                differences=differences,
            )
        )
    return reports


def _offsets(
    client: AdminClient, settings: Settings, counts: dict[str, int], spec: OffsetSpec
) -> dict[str, int]:
    """Sum over partitions of the earliest or latest offset, by table name; a leader in the making is waited
    for."""
    names = {settings.names[topic]: topic for topic in counts}
    left = {TopicPartition(name, p) for name, topic in names.items() for p in range(counts[topic])}
    sums = dict.fromkeys(counts, 0)
    deadline_s = time.monotonic() + TIMEOUT_S
    while left:
        futures = client.list_offsets(dict.fromkeys(left, spec), request_timeout=TIMEOUT_S)
        for partition, future in futures.items():
            try:
                sums[names[partition.topic]] += future.result().offset
            except KafkaException as error:
                if error.args[0].code() not in _PASSING or time.monotonic() > deadline_s:
                    raise _unavailable(settings, error) from error
            else:
                left.discard(partition)
        time.sleep(0.02 if left else 0)
    return sums


def describe_topics(settings: Settings) -> list[dict[str, Any]]:
    """Every topic of the table as it stands: `exists`, partitions, own configuration, id, watermarks summed.

    Raises:
        BrokerUnavailableError: the broker does not answer, or refuses.
    """
    client = admin(settings)
    found = _describe(client, settings)
    counts = {topic: len(description.partitions) for topic, description in found.items()}
    configs = _configs(client, settings, list(found)) if found else {}
    low = _offsets(client, settings, counts, _EARLIEST) if found else {}
    high = _offsets(client, settings, counts, _LATEST) if found else {}
    return [
        {
            "topic": topic,
            "name": settings.names[topic],
            "exists": topic in found,
            "partitions": counts.get(topic, 0),
            "topic_id": str(found[topic].topic_id) if topic in found else None,
            "config": configs.get(topic, {}),
            "low_watermarks": low.get(topic, 0),
            "high_watermarks": high.get(topic, 0),
            "key": spec.key,
            "written_by": spec.written_by,
            "holds": spec.holds,
        }
        for topic, spec in TOPICS.items()
    ]


def check_layout(settings: Settings) -> dict[str, int]:
    """Partition counts by table name, when all topics exist and the co-partitioned ones agree.

    Raises:
        TopicLayoutError: topics are missing, or co-partitioned topics differ; says which, and what to do.
        BrokerUnavailableError: the broker does not answer, or refuses.
    """
    found = _describe(admin(settings), settings)
    counts = {topic: len(description.partitions) for topic, description in found.items()}
    missing = [settings.names[topic] for topic in TOPICS if topic not in counts]
    if missing:
        raise TopicLayoutError(
            f"topics missing at {settings.bootstrap_servers}: {', '.join(missing)}. Make them with `freshet"
            f" topics create` (settings [topics] partitions = {settings.topics.partitions})."
        )
    if len({counts[topic] for topic in CO_PARTITIONED}) > 1:
        listed = ", ".join(f"{settings.names[topic]} has {counts[topic]}" for topic in CO_PARTITIONED)
        raise TopicLayoutError(
            f"co-partitioned topics differ in their partition counts: {listed}. A user must be the same"
            " partition number in each: stop the workers, create topics of one count under a new [topics]"
            " prefix, copy the records there by key with a murmur2 producer, and start the workers on the"
            " new prefix."
        )
    learning = TOPICS["interactions"].partitions(settings.topics.partitions)
    if counts["interactions"] != learning:
        raise TopicLayoutError(
            f"{settings.names['interactions']} has {counts['interactions']} partitions and must have"
            f" {learning}: the learning log is one total order. Use a new [topics] prefix, or delete the"
            " topic and create it again before first use."
        )
    return counts


def topic_ids(settings: Settings, names: list[str]) -> dict[str, str]:
    """The id that Kafka gave each of these very topics (full names); one re-created under a name has another.

    Ids are base64, in which `/` may stand: here it is `_`, as in URL-safe base64, so that an id can name a
    folder.

    Raises:
        TopicLayoutError: a topic is not there.
    """
    client = admin(settings)
    futures = client.describe_topics(TopicCollection(names), request_timeout=TIMEOUT_S)
    ids = {}
    for name, future in futures.items():
        try:
            ids[name] = str(future.result().topic_id).replace("/", "_").replace("+", "-")
        except KafkaException as error:
            raise TopicLayoutError(
                f"{name}: can't be described ({error.args[0].str()}). Create the topics: `freshet topics "
                "create`."
            ) from error
    return ids
