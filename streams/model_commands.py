"""`freshet models`: what the registry holds, what is live, and changing it by hand."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from streams.errors import FreshetError
from streams.events import ModelRecord
from streams.model_records import announce, live_record, model_records, open_registry
from streams.settings import Settings

__all__ = ["list_models", "promote", "rollback"]


def list_models(settings: Settings) -> list[dict[str, Any]]:
    """One row for each version in the registry and each refusal on `models`, oldest first."""
    registry = open_registry(settings)
    records = model_records(settings)
    live = live_record(records, settings.registry.model_name)
    rows = []
    for version in registry.list():
        manifest, digest = registry.manifest(version)
        rows.append(
            {
                "version": version,
                "status": "live" if live is not None and live.version == version else "stored",
                "ndcg_at_10": round(manifest.metrics.get("ndcg_at_10", float("nan")), 4),
                "hr_at_10": round(manifest.metrics.get("hr_at_10", float("nan")), 4),
                "trained_on": manifest.trained_on.interactions,
                "digest": digest,
                "reason": "",
            }
        )
    for record in records:
        if record.status == "refused":
            rows.append(
                {
                    "version": record.version,
                    "status": "refused",
                    "ndcg_at_10": round(record.metrics.get("challenger_ndcg_at_10", float("nan")), 4),
                    "hr_at_10": round(record.metrics.get("challenger_hr_at_10", float("nan")), 4),
                    "trained_on": "",
                    "digest": "",
                    "reason": record.reason or "",
                }
            )
    return sorted(rows, key=lambda row: str(row["version"]))


def promote(settings: Settings, version: str) -> ModelRecord:
    """Announce a stored version as the live one.

    Raises:
        RegistryError: the registry has no such version.
    """
    registry = open_registry(settings)
    manifest, digest = registry.manifest(version)
    record = ModelRecord(
        model=settings.registry.model_name,
        version=version,
        status="live",
        digest=digest,
        uri=registry.uri(version),
        metrics=manifest.metrics,
        trained_on=msgspec.structs.asdict(manifest.trained_on),
        published_at=int(time.time() * 1000),
    )
    announce(settings, record)
    return record


def rollback(settings: Settings) -> ModelRecord:
    """Promote the newest stored version that is older than the live one.

    Raises:
        FreshetError: nothing is live, or nothing older is stored.
    """
    live = live_record(model_records(settings), settings.registry.model_name)
    if live is None:
        raise FreshetError("no version is live, so there is nothing to roll back. See `freshet models list`.")
    registry = open_registry(settings)
    older = [version for version in registry.list() if version < live.version]
    if not older:
        raise FreshetError(f"{live.version} is live and the registry holds no older version to go back to.")
    return promote(settings, older[-1])
