"""`freshet doctor`: what stands in the way, if anything."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]  # not marked as exported

from serving.ranker.errors import RankerError, RegistryError
from serving.ranker.providers import Wish
from serving.ranker.session import available_providers
from serving.registry.swap import load_verified
from streams.clients import admin, wait_for_broker
from streams.errors import FreshetError
from streams.model_records import live_record, model_records, open_registry
from streams.settings import Settings
from streams.topic_admin import check_layout

__all__ = ["Finding", "diagnose"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check: `ok`, `note` (nothing is wrong, but know it) or `failed`, with what to do."""

    check: str
    status: str
    detail: str


def diagnose(settings: Settings) -> list[Finding]:
    """All checks; without a broker only those that need none."""
    findings = [_check("broker", lambda: _broker(settings))]
    if findings[0].status == "ok":
        findings += [
            _check("topics", lambda: _topics(settings)),
            _check("worker group", lambda: _group(settings)),
            _check("live ranker", lambda: _ranker(settings)),
        ]
    return [*findings, _check("providers", _providers), _check("trainer", _torch)]


def _check(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    try:
        status, detail = check()
    except (FreshetError, RankerError, RegistryError) as error:
        status, detail = "failed", str(error)
    except KafkaException as error:
        status, detail = "failed", f"{error.args[0].str()} ({error.args[0].name()})"
    return Finding(check=name, status=status, detail=detail)


def _broker(settings: Settings) -> tuple[str, str]:
    wait_for_broker(settings, 5.0)
    client = admin(settings)
    cluster = client.describe_cluster(include_authorized_operations=True, request_timeout=10.0).result()
    allowed = cluster.authorized_operations
    if (
        allowed is not None
        and AclOperation.IDEMPOTENT_WRITE not in allowed
        and AclOperation.ALL not in allowed
    ):
        detail = (
            "no IDEMPOTENT_WRITE on the cluster: needed before Kafka 3.0, else Write on the topics is enough"
        )
        return "note", detail
    return "ok", f"{settings.bootstrap_servers}, cluster {cluster.cluster_id}, {len(cluster.nodes)} node(s)"


def _topics(settings: Settings) -> tuple[str, str]:
    counts = check_layout(settings)
    return "ok", f"{len(counts)} topics, {counts['events']} partitions of events"


def _group(settings: Settings) -> tuple[str, str]:
    client, name = admin(settings), settings.worker_group
    group = client.describe_consumer_groups([name], request_timeout=10.0)[name].result()
    members = len(group.members)
    if not members:
        return "note", f"{name} has no members: start `freshet worker`"
    return "ok", f"{name}: {group.state.name.lower()}, {members} worker(s)"


def _ranker(settings: Settings) -> tuple[str, str]:
    live = live_record(model_records(settings), settings.registry.model_name)
    if live is None or live.digest is None:
        return "note", "none yet: lists come from the online models until `freshet trainer` has published one"
    registry = open_registry(settings)
    keys = settings.ranker.context_keys
    ranker = load_verified(
        registry, live.version, live.digest, wish=Wish.of(settings.ranker), context_keys=keys
    )
    return "ok", f"{live.version} loads and passes its probe; in force: {ranker.session.in_force}"


def _providers() -> tuple[str, str]:
    listed = available_providers()
    gpu = [name for name in listed if name != "CPUExecutionProvider"]
    if not gpu:
        return "note", "CPU only"
    return "ok", f"built with {', '.join(gpu)}; what a ranker runs on is known when one is loaded"


def _torch() -> tuple[str, str]:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return "note", "torch is not installed here: only the trainer needs it (extra `train`)"
    return "ok", "torch is installed"
