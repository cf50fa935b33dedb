"""`freshet models`: what the registry holds, what is live or on trial, and changing it by hand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from serving.ranker.errors import RegistryError
from streams.errors import FreshetError
from streams.events import ModelRecord
from streams.model_records import announce, live_announcement, live_record, model_records, open_registry
from streams.model_state import ModelState
from streams.settings import Settings

__all__ = ["list_models", "promote", "rollback", "show_model"]


def list_models(settings: Settings) -> list[dict[str, Any]]:
    """One row for each version in the registry, and for each that was refused before it came there, oldest
    first."""
    registry = open_registry(settings)
    said = _statuses(model_records(settings), settings.registry.model_name)
    stored = registry.list()
    rows = [_stored_row(settings, version, said.get(version)) for version in stored]
    rows += [
        _row(version, status, record, record.metrics, "", "")
        for version, (status, record) in said.items()
        if version not in stored
    ]
    return sorted(rows, key=lambda row: str(row["version"]))


def show_model(settings: Settings, version: str) -> dict[str, Any]:
    """All that is known of a version: its manifest with the gate's numbers, its digest, and what `models`
    says of it.

    Raises:
        RegistryError: the registry has no such version.
    """
    registry = open_registry(settings)
    manifest, digest = registry.manifest(version)
    records = model_records(settings)
    status, record = _statuses(records, settings.registry.model_name).get(version, ("stored", None))
    return {
        "version": version,
        "status": status,
        "reason": "" if record is None else record.reason or "",
        "against": None if record is None or status != "live" else record.against,
        "digest": digest,
        "uri": registry.uri(version),
        "manifest": msgspec.to_builtins(manifest),
        "records": [msgspec.to_builtins(one) for one in records if one.version == version],
    }


def promote(settings: Settings, version: str, *, shadow: bool = False) -> ModelRecord:
    """Announce a stored version as the live one, or, as `shadow`, for scoring beside the live one until
    workers promote or drop it.

    Raises:
        RegistryError: the registry has no such version.
        FreshetError: it is to be scored beside itself.
    """
    records = model_records(settings)
    live = live_record(records, settings.registry.model_name)
    record = _record_of(settings, version)
    if not shadow:
        record = live_announcement(record, live, settings)
    elif live is not None and (live.version, live.digest) == (version, record.digest):
        raise FreshetError(f"{version} is live: it can't be scored beside itself.")
    else:
        record = msgspec.structs.replace(record, status="shadow")
    announce(settings, record)
    on_trial = _statuses(records, settings.registry.model_name).get(version)
    if not shadow and on_trial is not None and on_trial[0] == "shadow":
        ended = msgspec.structs.replace(
            record, status="promoted", reason="promoted by hand", against=None, against_digest=None
        )
        announce(settings, ended)
    return record


def rollback(settings: Settings) -> ModelRecord:
    """Make the newest stored version live that is older than the live one and was neither refused nor
    dropped; it is not on probation.

    Raises:
        FreshetError: nothing is live, or no such version is stored.
    """
    records = model_records(settings)
    live = live_record(records, settings.registry.model_name)
    if live is None:
        raise FreshetError("no version is live, so there is nothing to roll back. See `freshet models list`.")
    said = _statuses(records, settings.registry.model_name)
    older = [
        version
        for version in open_registry(settings).list()
        if version < live.version and said.get(version, ("", None))[0] not in ("refused", "dropped")
    ]
    if not older:
        raise FreshetError(f"{live.version} is live and the registry holds no older version to go back to.")
    record = _record_of(settings, older[-1])
    record = msgspec.structs.replace(record, reason=f"{live.version} was rolled back by hand")
    announce(settings, record)
    return record


def _record_of(settings: Settings, version: str) -> ModelRecord:
    registry = open_registry(settings)
    manifest, digest = registry.manifest(version)
    return ModelRecord(
        model=settings.registry.model_name,
        version=version,
        status="live",
        digest=digest,
        uri=registry.uri(version),
        metrics=manifest.metrics,
        trained_on=msgspec.structs.asdict(manifest.trained_on),
        published_at=int(time.time() * 1000),
    )


def _statuses(records: Iterable[ModelRecord], model: str) -> dict[str, tuple[str, ModelRecord]]:
    """What became of each version, and the record that says so."""
    state = ModelState(model)
    newest: dict[str, ModelRecord] = {}
    for record in records:
        if state.take(record):
            newest[record.version] = record
    said = {
        version: ("superseded" if record.status in ("live", "shadow", "promoted") else record.status, record)
        for version, record in newest.items()
    }
    for status, current in (("shadow", state.shadow), ("live", state.live)):
        if current is not None:
            said[current.version] = status, current
    return said


def _stored_row(settings: Settings, version: str, said: tuple[str, ModelRecord] | None) -> dict[str, Any]:
    status, record = said or ("stored", None)
    try:
        manifest, digest = open_registry(settings).manifest(version)
    except RegistryError as error:
        return {**_row(version, status, record, {}, "", ""), "reason": str(error)}
    return _row(version, status, record, manifest.metrics, manifest.trained_on.interactions, digest) | {
        "precision": manifest.precision
    }


def _row(
    version: str,
    status: str,
    record: ModelRecord | None,
    metrics: dict[str, float],
    trained_on: int | str,
    digest: str,
) -> dict[str, Any]:
    def metric(name: str) -> float | None:
        value = metrics.get(name, metrics.get(f"challenger_{name}"))
        return None if value is None else round(value, 4)

    against = record.against if record is not None and status == "live" else None
    return {
        "version": version,
        "status": status,
        "against": against,
        "ndcg_at_10": metric("ndcg_at_10"),
        "hr_at_10": metric("hr_at_10"),
        "precision": "",
        "trained_on": trained_on,
        "digest": digest,
        "reason": "" if record is None else record.reason or "",
    }
