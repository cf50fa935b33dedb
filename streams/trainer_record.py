"""What `freshet trainer` says on `models`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec

from serving.training.slow_path import Outcome
from streams.events import ModelRecord

__all__ = ["announcement"]


def announcement(name: str, outcome: Outcome, uri: str, why: str = "") -> ModelRecord:
    """The outcome as a record of `models`: the live version and why it was trained, or a refusal with its
    numbers."""
    report, published = outcome.report, outcome.published
    now_ms = int(time.time() * 1000)
    if published is None:
        return ModelRecord(
            model=name,
            version=f"{datetime.fromtimestamp(now_ms / 1000, tz=UTC):%Y%m%dT%H%M%S}Z-refused",
            status="refused",
            digest=None,
            uri=uri,
            reason="; ".join(report.reasons),
            metrics=report.figures(),
            published_at=now_ms,
        )
    trained_on = published.manifest.trained_on
    return ModelRecord(
        model=name,
        version=published.manifest.version,
        status="live",
        digest=published.digest,
        uri=published.uri,
        reason=f"trained on {why}" if why else None,
        metrics=report.figures(),
        trained_on=msgspec.structs.asdict(trained_on),
        published_at=now_ms,
    )
