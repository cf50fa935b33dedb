"""What Kafka's error codes mean to Freshet: passing, not allowed, fenced, or wrong for good."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from streams.errors import BrokerUnavailableError, FreshetError, SettingsError, TopicLayoutError

__all__ = ["DENIED", "FENCED", "GONE", "PASSING", "cause_of", "fatal_error", "is_passing", "named"]

PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError._WAIT_CACHE,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.CONCURRENT_TRANSACTIONS,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
    }
)
"""A broker that starts, stops, moves a leader or aborts a transaction says these: the same call, made again a
little later, goes well."""

DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "a topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "the transactional id",
}
"""No right to something."""

FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
    }
)
"""Another one has this one's place."""

GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_ID})
"""The topic is not there."""


def cause_of(error: KafkaException | SystemError) -> KafkaError:
    """librdkafka's own error. A fatal one that is raised while log lines wait for Python's logger comes out
    of the client as a SystemError, with the real one as its cause or with none; that is `_FAIL` then."""
    inner = error if isinstance(error, KafkaException) else error.__cause__
    if not isinstance(inner, KafkaException):
        return KafkaError(KafkaError._FAIL, str(error))
    cause: KafkaError = inner.args[0]
    return cause


def is_passing(error: KafkaError) -> bool:
    """Whether the same call may go well a little later."""
    return not error.fatal() and (error.retriable() or error.code() in PASSING)


def named(error: KafkaError) -> str:
    """What it says, and its name in Kafka's documentation.

    >>> named(KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)).endswith("(UNSTABLE_OFFSET_COMMIT)")
    True
    """
    return f"{error.str()} ({error.name()})"


def fatal_error(error: KafkaError, what: str) -> FreshetError:
    """What an operator is told of an `error` that waiting does not mend, met while doing `what`."""
    said = f"{what}: {named(error)}."
    if error.code() in DENIED:
        return FreshetError(
            f"{said} This user has no right to {DENIED[error.code()]}. docs/operations.md lists the"
            " permissions that each process needs; `freshet doctor`, run as this user, says what is missing."
        )
    if error.code() in GONE:
        return TopicLayoutError(
            f"{said} A topic is missing, or was deleted while it was in use. Create the topics (`freshet"
            " topics create`); if its state should go with it, use a new [topics] prefix."
        )
    if error.code() == KafkaError._AUTHENTICATION:
        return BrokerUnavailableError(f"{said} Check sasl.* and ssl.* in [kafka].")
    if error.code() in (KafkaError.INCONSISTENT_GROUP_PROTOCOL, KafkaError.UNSUPPORTED_ASSIGNOR):
        return SettingsError(
            f"{said} All members of the group must have the same group.protocol and assignor in [kafka], and"
            " nothing but Freshet's workers may consume in their group."
        )
    if error.code() in FENCED or error.code() == KafkaError.UNRELEASED_INSTANCE_ID or "fenced" in error.str():
        return FreshetError(
            f"{said} Another process runs under this worker's --id, and has taken its place. Give each worker"
            " an --id of its own."
        )
    return FreshetError(f"{said} `freshet doctor` checks broker, topics and permissions.")
