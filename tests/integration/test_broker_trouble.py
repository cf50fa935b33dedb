"""A broker that is gone, full, or says no: what passes is waited for and counted, what does not ends the
process with a remedy; nothing is lost and nothing learned twice either way. docs/failures.md lists it all."""

from __future__ import annotations

import itertools
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its re-exports are not marked
    AclBinding,
    AclOperation,
    AclPermissionType,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from streams.broker import process_start
from streams.clients import (
    admin,
    consumer_config,
    make_consumer,
    make_producer,
    producer_config,
    wait_for_broker,
)
from streams.errors import BrokerUnavailableError, FreshetError, TransactionLostError, WorkerFencedError
from streams.guard import Guard
from streams.kafka_errors import DENIED, GONE, PASSING, cause_of, fatal_error, is_passing
from streams.reading import PartitionReader, watermarks
from streams.retries import RETRIES
from streams.settings import Settings
from streams.stopping import Stop
from streams.topic_admin import create_topics
from streams.transaction import OutputRecord, Transactions, fence
from tests.conftest import settings_for
from tests.integration.auditor import assert_exactly_once
from tests.integration.tuned_broker import TunedBroker, deployed, tuned_broker
from tests.integration.worker_process import PATIENCE_S, Deployment, stream_of

SMALL = {"WORKER__MAX_BATCH": "20"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- gone


def test_no_broker_at_the_start_ends_the_worker(fleet: Deployment) -> None:
    started = time.monotonic()
    gone = fleet.worker("w1", KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1", WORKER__RPC_TIMEOUT_S="2")
    assert gone.wait() == 1
    assert time.monotonic() - started > 2.0
    assert "no Kafka broker answered at 127.0.0.1:1 within 2 s" in gone.log
    assert "Start one (`freshet kafka start`), or correct [kafka] bootstrap.servers" in gone.log


@pytest.mark.kafka
@pytest.mark.slow
def test_an_outage_is_ridden_out(tmp_path: Path) -> None:
    """The broker is killed amid transactions and stays away for longer than any of the worker's time-outs:
    the same process goes on afterwards, and nothing is lost or learned twice. SIGTERM ends it cleanly in an
    outage too."""
    with tuned_broker() as broker, deployed(broker, tmp_path) as fleet:
        worker = fleet.worker("w1", **SMALL, WORKER__RPC_TIMEOUT_S="2")
        fleet.produce("events", stream_of(300, seed=71))
        fleet.wait_for(fleet.tail("recommendations"), 60)
        with broker.killed():
            time.sleep(14.0)
            assert worker.exited() is None, worker.log
        fleet.produce("events", stream_of(300, seed=72, name="after"))
        fleet.wait_handled()
        assert worker.exited() is None
        assert "tried again (retry" in worker.log, "an outage is told while it lasts"
        assert len(assert_exactly_once(fleet.settings).rows) == 600
        with broker.killed():
            time.sleep(0.5)
            started = time.monotonic()
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0, worker.log
            assert time.monotonic() - started < 10.0


def test_passing_errors_are_repeated_with_growing_pauses_and_counted() -> None:
    """For as long as allowed; any other error comes out at once."""
    calls: list[float] = []

    def busy(_: float) -> None:
        calls.append(time.monotonic())
        raise KafkaException(KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS))

    before = RETRIES.counts().get("transaction", 0)
    with pytest.raises(KafkaException):
        Stop().patiently(busy, 1.0)
    assert 4 <= len(calls) <= 7
    assert RETRIES.counts()["transaction"] - before == len(calls) - 1
    pauses = [after - one for one, after in itertools.pairwise(calls)]
    assert pauses == sorted(pauses)
    calls.clear()

    def denied(_: float) -> None:
        calls.append(0.0)
        raise KafkaException(KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))

    with pytest.raises(KafkaException):
        Stop().patiently(denied, 5.0)
    assert len(calls) == 1


def test_a_call_that_never_returns_is_left_behind() -> None:
    """What it raises and what it returns in time comes through; the rest is a lost transaction, and a signal
    to stop is not kept waiting by it."""
    guard, done = Guard(Stop()), threading.Event()
    made: list[int] = []
    guard.call(lambda: made.append(1), 5.0, "this")
    with pytest.raises(KeyError):
        guard.call(lambda: {}["no"], 5.0, "this")
    assert made == [1]
    assert not guard.hung
    started = time.monotonic()
    with pytest.raises(TransactionLostError, match="this did not return within 2 s"):
        guard.call(done.wait, 2.0, "this")
    assert guard.hung
    assert time.monotonic() - started < 4.0
    done.set()
    stop = Stop()
    stop.set()
    stop.finish()
    started = time.monotonic()
    with pytest.raises(TransactionLostError):
        Guard(stop).call(threading.Event().wait, 60.0, "this")
    assert time.monotonic() - started < 8.0


@pytest.mark.kafka
@pytest.mark.slow
def test_a_client_whose_call_never_returns_is_replaced() -> None:
    """librdkafka's `send_offsets_to_transaction` stands for good after some restarts of the broker (its
    issues 5456 and 5511; about half of these clients, four times out of four): all commit again soon."""
    with tuned_broker() as broker:
        settings = settings_for(
            broker.bootstrap_servers,
            topics={"partitions": 1},
            worker={"transaction_timeout_s": 2.0, "rpc_timeout_s": 5.0},
        )
        create_topics(settings)
        ended, commits = threading.Event(), [0] * 6
        threads = [
            threading.Thread(target=_commit_on, args=(settings, n, commits, ended), daemon=True)
            for n in range(len(commits))
        ]
        for thread in threads:
            thread.start()
        for _ in range(3):
            _await_commits(commits, 5, PATIENCE_S)
            with broker.killed():
                time.sleep(0.5)
        _await_commits(commits, 5, PATIENCE_S)
        ended.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)


def _commit_on(settings: Settings, number: int, commits: list[int], ended: threading.Event) -> None:
    """One transaction after the other, each lost one with a new producer, as the worker does."""
    consumer = make_consumer(consumer_config(settings, group=f"g{number}"))
    _join(consumer, settings)
    transactions = Transactions(settings, f"tx{number}")
    while not ended.is_set():
        consumer.poll(0.02)
        try:
            place = TopicPartition(settings.names["events"], 0, commits[number] % 50)
            transactions.commit([_record(settings, b"x")], consumer, [place])
            commits[number] += 1
        except (TransactionLostError, WorkerFencedError):
            transactions.close()
            transactions = Transactions(settings, f"tx{number}")
    transactions.close()
    consumer.close()


def _await_commits(commits: list[int], more: int, timeout_s: float) -> None:
    """Until each has committed so many more."""
    before, deadline = list(commits), time.monotonic() + timeout_s
    while any(now < was + more for now, was in zip(commits, before, strict=True)):
        assert time.monotonic() < deadline, f"stands still: {before} {commits}"
        time.sleep(0.1)


# ---- says no


def test_a_topic_deleted_under_a_worker_ends_it(fleet: Deployment) -> None:
    worker = fleet.worker("w1", KAFKA__TOPIC_METADATA_REFRESH_INTERVAL_MS="500")
    fleet.produce("events", stream_of(40, seed=73))
    fleet.wait_handled()
    client, name = admin(fleet.settings), fleet.settings.names["events"]
    client.delete_topics([name], operation_timeout=10)[name].result()
    assert worker.wait() == 1, worker.log
    assert "freshet topics create" in worker.log
    assert "Traceback" not in worker.log


def test_a_record_that_the_broker_never_takes_ends_the_worker(fleet: Deployment) -> None:
    """It is told what and where; after the topic was mended everything is handled."""
    settings = fleet.settings
    resource_of = ConfigResource(
        ConfigResource.Type.TOPIC,
        settings.names["interactions"],
        incremental_configs=[
            ConfigEntry("max.message.bytes", "200", incremental_operation=AlterConfigOpType.SET)
        ],
    )
    client = admin(settings)
    client.incremental_alter_configs([resource_of])[resource_of].result(10)
    fleet.produce("events", stream_of(100, seed=74))
    worker = fleet.worker("w1")
    assert worker.wait() == 1
    assert f"{settings.names['interactions']}[0]: a record of " in worker.log, worker.log
    assert "state is restored" not in worker.log  # said at once, whatever the abort reported first
    assert "raise max.message.bytes of that topic" in worker.log
    mended = ConfigResource(
        ConfigResource.Type.TOPIC,
        settings.names["interactions"],
        incremental_configs=[
            ConfigEntry("max.message.bytes", None, incremental_operation=AlterConfigOpType.DELETE)
        ],
    )
    client.incremental_alter_configs([mended])[mended].result(10)
    again = fleet.worker("w1")
    fleet.wait_handled()
    again.stop()
    assert len(assert_exactly_once(settings).rows) == 100


PASSWORD = "not a secret: this broker lives for one test"
JAAS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required"
    f' user_worker="{PASSWORD}" user_admin="{PASSWORD}";'
)


def _secured(port: int) -> dict[str, str]:
    """A second listener with a login, behind an authorizer: what comes over the first one may do all."""
    return {
        "listeners": f"{{default}},SASL_PLAINTEXT://127.0.0.1:{port}",
        "advertised.listeners": f"{{default}},SASL_PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "{default},SASL_PLAINTEXT:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": JAAS,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "transactional.id.expiration.ms": "2000",
        "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
        "producer.id.expiration.ms": "2000",
        "producer.id.expiration.check.interval.ms": "500",
    }


@pytest.fixture(scope="module")
def secured() -> Iterator[tuple[TunedBroker, int]]:
    port = _free_port()
    with tuned_broker(_secured(port)) as broker:
        yield broker, port


def _allow(settings: Settings, kind: ResourceType, name: str, *operations: AclOperation) -> None:
    bindings = [
        AclBinding(
            kind, name, ResourcePatternType.PREFIXED, "User:worker", "*", operation, AclPermissionType.ALLOW
        )
        for operation in operations
    ]
    client = admin(settings)
    for future in client.create_acls(bindings).values():
        future.result(10)


@pytest.mark.kafka
@pytest.mark.slow
def test_what_is_not_allowed_is_said_and_granted_right_by_right(
    secured: tuple[TunedBroker, int], tmp_path: Path
) -> None:
    """Each right of docs/operations.md that is missing ends the worker with exit code 1 and names what is
    denied; with the last of them it works."""
    broker, port = secured
    with deployed(broker, tmp_path) as fleet:
        settings, prefix = fleet.settings, fleet.settings.topics.prefix
        login = {
            "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
            "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA__SASL_MECHANISM": "PLAIN",
            "KAFKA__SASL_USERNAME": "worker",
            "KAFKA__SASL_PASSWORD": PASSWORD,
            "WORKER__RPC_TIMEOUT_S": "5",
        }
        stranger = fleet.worker("w1", **{**login, "KAFKA__SASL_PASSWORD": "wrong"})
        fleet.produce("events", stream_of(60, seed=75))
        topics, groups = ResourceType.TOPIC, ResourceType.GROUP
        ids = ResourceType.TRANSACTIONAL_ID
        steps = [
            (topics, f"{prefix}", [AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS], "topic"),
            (topics, f"{prefix}", [AclOperation.READ], "topic"),
            (topics, f"{prefix}worker-stats", [AclOperation.WRITE], "authorization failed"),
            (ids, f"{prefix}freshet-", [AclOperation.WRITE, AclOperation.DESCRIBE], "transactional id"),
            (groups, f"{prefix}freshet-workers", [AclOperation.READ, AclOperation.DESCRIBE], "group"),
            (topics, f"{prefix}", [AclOperation.WRITE], "topic"),
        ]
        assert stranger.wait() == 1
        assert "refuses the login" in stranger.log
        assert PASSWORD not in stranger.log
        for kind, name, operations, missing in steps:
            worker = fleet.worker("w1", **login)
            assert worker.wait() == 1, worker.log
            last = worker.log.splitlines()[-1]
            assert last.startswith("freshet: "), worker.log
            assert missing in last.lower(), f"without {operations} on {name}: {last}"
            assert "Traceback" not in worker.log
            _allow(settings, kind, name, *operations)
        worker = fleet.worker("w1", **login)
        fleet.wait_handled()
        worker.stop()
        assert len(assert_exactly_once(settings).rows) == 60


# ---- transactions


@pytest.fixture
def group(settings: Settings) -> Iterator[Consumer]:
    consumer = make_consumer(consumer_config(settings, group=f"{settings.topics.prefix}g"))
    _join(consumer, settings)
    yield consumer
    consumer.close()


def _join(consumer: Consumer, settings: Settings) -> None:
    consumer.subscribe([settings.names["events"]])
    deadline = time.monotonic() + PATIENCE_S
    while not consumer.assignment():
        assert time.monotonic() < deadline
        consumer.poll(0.05)


def _record(settings: Settings, value: bytes) -> OutputRecord:
    return OutputRecord(settings.names["interactions"], None, value, partition=0)


def test_concurrent_transactions_are_waited_for(
    settings: Settings, group: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    """Back to back, most transactions meet the one before while the broker still completes it: librdkafka
    says so where it is asked, repeats the call 5 ms later, and no error comes out."""
    talkative = msgspec.structs.replace(settings, kafka={**settings.kafka, "debug": "eos,protocol"})
    transactions = Transactions(talkative, f"{settings.topics.prefix}a")
    offsets = group.position(group.assignment())
    for tp in offsets:
        tp.offset = 1
    with caplog.at_level(logging.DEBUG, "freshet.kafka"):
        for number in range(30):
            many = [
                OutputRecord(settings.names["user-state"], b"k", b"v%d" % number, partition=p)
                for p in range(4)
            ]
            transactions.commit([_record(settings, b"x"), *many], group, offsets)
        transactions.close()
    assert transactions.committed == 30
    assert (
        "CONCURRENT_TRANSACTIONS" in caplog.text
        or "operation on a transaction is in progress" in (caplog.text.lower())
        or "concurrent" in caplog.text.lower()
    )


@pytest.mark.slow
def test_a_worker_that_sleeps_through_its_transaction_restores_and_goes_on(fleet: Deployment) -> None:
    """SIGSTOP for longer than transaction.timeout.ms and the session, amid transactions: what was open is
    aborted by the broker, the worker is refused, restores from the log and goes on."""
    worker = fleet.worker(None, **SMALL)
    fleet.produce("events", stream_of(1200, seed=76))
    fleet.wait_for(fleet.tail("recommendations"), 100)
    worker.signal(signal.SIGSTOP)
    time.sleep(9.0)
    worker.signal(signal.SIGCONT)
    fleet.wait_handled()
    assert worker.exited() is None
    worker.stop()
    assert len(assert_exactly_once(fleet.settings).rows) == 1200


SHORT_S = 4.0
"""A transaction's timeout that a slow machine keeps to when it means to."""


def _with_a_pause(settings: Settings) -> Iterator[OutputRecord]:
    """A pause until the broker has aborted the transaction, which it may from its timeout on."""
    yield _record(settings, b"never")
    yield OutputRecord(settings.names["user-state"], b"k", b"never", partition=0)
    time.sleep(SHORT_S)
    key, deadline = (settings.names["interactions"], 0), time.monotonic() + PATIENCE_S
    while (
        watermarks(settings, [key], isolation="read_committed")[key][1]
        < watermarks(settings, [key], isolation="read_uncommitted")[key][1]
    ):
        assert time.monotonic() < deadline, "the transaction is not aborted"
        time.sleep(0.1)
    yield _record(settings, b"too late")


def test_a_timed_out_transaction_is_refused_and_told(settings: Settings, group: Consumer) -> None:
    """The broker aborts what is open for too long, and fences its producer: a new one goes on."""
    short = msgspec.structs.replace(
        settings, worker=msgspec.structs.replace(settings.worker, transaction_timeout_s=SHORT_S)
    )
    name = f"{settings.topics.prefix}slow"
    slow = Transactions(short, name)
    offsets = group.position(group.assignment())
    for tp in offsets:
        tp.offset = 3
    with pytest.raises(WorkerFencedError, match=r"transaction_timeout_s"):
        slow.commit(_with_a_pause(settings), group, offsets)
    slow.close()
    again = Transactions(short, name)
    again.commit([_record(settings, b"anew")], group, offsets)
    assert {tp.offset for tp in group.committed(offsets, 10)} == {3}
    again.close()
    key = (settings.names["interactions"], 0)
    reader, found = PartitionReader(settings, {key: 0}), []
    reader.read_to({key: watermarks(settings, [key])[key][1]}, lambda record: found.append(record.value()))
    reader.close()
    assert found == [b"anew"]


def _commit_when_idle(
    idle: Transactions, record: OutputRecord, consumer: Consumer, offsets: list[TopicPartition]
) -> None:
    """A commit after each of ten pauses, of which the first is long enough for all but a slow broker."""
    for _ in range(10):
        time.sleep(6.0)
        idle.commit([record], consumer, offsets)


@pytest.mark.kafka
def test_a_forgotten_producer_begins_anew(secured: tuple[TunedBroker, int], tmp_path: Path) -> None:
    """The broker forgets a transactional id that was idle for long (7 days by default, 2 s on this one):
    the next commit fails as a lost transaction, and a new producer under the id goes on."""
    broker, _ = secured
    with deployed(broker, tmp_path) as fleet:
        settings = fleet.settings
        consumer = make_consumer(consumer_config(settings, group=f"{settings.topics.prefix}g"))
        _join(consumer, settings)
        name = f"{settings.topics.prefix}idle"
        idle = Transactions(settings, name)
        offsets = consumer.position(consumer.assignment())
        for tp in offsets:
            tp.offset = 2
        idle.commit([_record(settings, b"1")], consumer, offsets)
        with pytest.raises((TransactionLostError, WorkerFencedError)) as caught:
            _commit_when_idle(idle, _record(settings, b"2"), consumer, offsets)
        assert "PRODUCER" in str(caught.value).upper()
        idle.close()
        again = Transactions(settings, name)
        again.commit([_record(settings, b"3")], consumer, offsets)
        again.close()
        consumer.close()


def test_a_twin_under_the_same_id_ends_one_of_the_two(fleet: Deployment) -> None:
    """Never both, and the one that ends says why."""
    first = fleet.worker("w1", **SMALL)
    fleet.wait_shared(1)
    second = fleet.worker("w1", **SMALL)
    fleet.produce("events", stream_of(600, seed=77))
    deadline = time.monotonic() + PATIENCE_S
    while first.exited() is None and second.exited() is None:
        assert time.monotonic() < deadline, fleet.logs()
        time.sleep(0.1)
    ended, other = (first, second) if first.exited() is not None else (second, first)
    assert ended.wait(1) == 1
    assert "--id of its own" in " ".join(ended.log.split())
    fleet.wait_handled()
    other.stop()
    assert len(assert_exactly_once(fleet.settings).rows) == 600


# ---- full


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the broker's files are bounded with prlimit(2)")
def test_a_full_disk_stops_the_broker_and_loses_nothing(tmp_path: Path) -> None:
    """Every write of the broker beyond so many bytes of a file fails, as on a full disk: it takes its log
    folder out of service and, having no other, ends. With room again everything goes on where it was."""
    with tuned_broker() as broker, deployed(broker, tmp_path) as fleet:
        worker = fleet.worker("w1", **SMALL, WORKER__RPC_TIMEOUT_S="2")
        fleet.produce("events", stream_of(200, seed=78))
        fleet.wait_handled()
        resource.prlimit(broker.info.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
        producer = make_producer({**producer_config(fleet.settings), "message.timeout.ms": 3000})
        deadline = time.monotonic() + 60.0
        while _alive(broker) and time.monotonic() < deadline:
            producer.produce(fleet.settings.names["items"], os.urandom(2000), b"k", partition=0)
            producer.flush(1)
        assert not _alive(broker), "a broker whose only disk is full has to end"
        with broker.killed():
            time.sleep(3.0)
        fleet.produce("events", stream_of(200, seed=79, name="after"))
        fleet.wait_handled()
        assert worker.exited() is None, worker.log
        worker.stop()
        assert len(assert_exactly_once(fleet.settings).rows) == 400


def _alive(broker: TunedBroker) -> bool:
    return process_start(broker.info.pid) == broker.info.started


# ---- what the codes mean


def test_every_code_means_one_thing() -> None:
    groups = [PASSING, frozenset(DENIED), GONE]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    for code in PASSING:
        assert is_passing(KafkaError(code)), KafkaError(code).name()
    for code in (*DENIED, *GONE, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError._FENCED):
        assert not is_passing(KafkaError(code))
        said = fatal_error(KafkaError(code), "doing this")
        assert isinstance(said, FreshetError)
        assert KafkaError(code).name() in str(said)
        assert "`freshet" in str(said) or "--id" in str(said)
    inner = KafkaException(KafkaError(KafkaError._FENCED))
    wrapped = SystemError("returned a result with an exception set")
    wrapped.__cause__ = inner
    assert cause_of(wrapped).code() == KafkaError._FENCED
    assert cause_of(SystemError("returned NULL without setting an exception")).code() == KafkaError._FAIL


def test_a_wrong_login_is_told_apart_from_no_broker(secured: tuple[TunedBroker, int]) -> None:
    _, port = secured
    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "nobody",
        "sasl.password": "wrong",
    }
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError, match=r"refuses the login.*sasl\.\*"):
        wait_for_broker(
            settings_for(f"127.0.0.1:{port}", kafka={"bootstrap.servers": f"127.0.0.1:{port}", **login})
        )
    assert time.monotonic() - started < 15.0


def test_fencing_what_may_not_be_fenced_says_so(secured: tuple[TunedBroker, int]) -> None:
    _, port = secured
    login = {
        "bootstrap.servers": f"127.0.0.1:{port}",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "admin",
        "sasl.password": PASSWORD,
    }
    with pytest.raises(FreshetError, match=r"no right to the transactional id.*docs/operations\.md"):
        fence(settings_for("", kafka=login), "somebody-elses")
