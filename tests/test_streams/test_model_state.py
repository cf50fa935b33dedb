"""Records of `models`, read in their order: what serves, what is on trial, and what counts for nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.events import ModelRecord
from streams.model_state import ModelState, Trial


def record(version: str, status: str = "live", **changes: Any) -> ModelRecord:
    made = ModelRecord(
        model="ranker", version=version, status=status, digest=f"d-{version}", uri="", published_at=1
    )
    return msgspec.structs.replace(made, **changes)


def state(*records: ModelRecord) -> ModelState:
    made = ModelState("ranker")
    for one in records:
        made.take(one)
    return made


def on_probation(version: str, against: str) -> ModelRecord:
    return record(version, against=against, against_digest=f"d-{against}")


def test_without_records_nothing_is_on_trial() -> None:
    assert state().trial is None
    assert state(record("v1")).trial is None
    assert state(record("v1", "shadow")).trial is None, "there is nothing to compare it with"
    assert not ModelState("other").take(record("v1")), "another model's"


def test_a_shadow_is_compared_with_what_is_live() -> None:
    made = state(record("v1"), record("v2", "shadow"))
    assert made.trial == Trial("shadow", "v1", "d-v1", "v2", "d-v2")
    made.take(record("v3"))
    assert made.trial == Trial("shadow", "v3", "d-v3", "v2", "d-v2"), "another live version, another trial"
    made.take(record("v2", "dropped"))
    assert made.trial is None


def test_compaction_may_put_the_live_record_behind_or_before_its_shadow() -> None:
    assert state(record("v2", "shadow"), record("v2")).trial is None
    assert state(record("v2"), record("v2", "shadow")).trial is None


def test_probation_goes_before_a_shadow_s_turn() -> None:
    made = state(record("v1"), on_probation("v2", "v1"), record("v3", "shadow"))
    assert made.trial == Trial("probation", "v2", "d-v2", "v1", "d-v1")
    made.take(record("v2", reason="kept", replaces="v2"))
    assert made.trial == Trial("shadow", "v2", "d-v2", "v3", "d-v3")


def test_a_second_shadow_supersedes_the_first_until_that_is_told() -> None:
    made = state(record("v1"), record("v2", "shadow"), record("v3", "shadow"))
    assert [one.version for one in made.superseded] == ["v2"]
    assert made.trial == Trial("shadow", "v1", "d-v1", "v3", "d-v3")
    made.take(record("v2", "dropped"))
    assert made.superseded == []


def test_the_version_before_is_remembered() -> None:
    made = state(record("v1"), record("v2"), record("v2", reason="again"))
    assert made.before is not None
    assert made.before.version == "v1"


def test_a_verdict_that_another_live_version_overtook_counts_for_nothing() -> None:
    made = state(record("v1"), on_probation("v2", "v1"), record("v3"), record("v1", replaces="v2"))
    assert made.live is not None
    assert made.live.version == "v3"
    assert made.overtaken
    made.take(record("v3", replaces="v3"))
    assert not made.overtaken, "the topic's last word is right again"
    made.take(record("v4"))
    made.take(record("v3", replaces="v3"))
    assert made.live.version == "v4", "also where that comes too late"
    assert made.overtaken
    made.take(record("v3"))
    made.take(record("v1", replaces="v3"))
    assert made.live.version == "v1"
    fresh = state(record("v1", replaces="v2"))
    assert fresh.live is not None, "after compaction it is all that a reader has"


def test_a_record_without_a_digest_can_t_be_served() -> None:
    assert state(record("v1", digest=None)).live is None
