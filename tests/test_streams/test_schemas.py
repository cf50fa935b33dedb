"""The published schemas and the AsyncAPI document: current, valid, and of one mind with the validator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given

from streams import __version__
from streams.dead_letters import error_headers
from streams.events import (
    EVENT_TYPES,
    Event,
    Item,
    ModelRecord,
    PartitionStats,
    Reason,
    Recommendation,
    RecommendedItem,
    Request,
    User,
)
from streams.field_checks import ID_BYTES
from streams.rejects import Reason as RejectReason
from streams.schemas import RECORDS, asyncapi, dead_letter_headers, record_schema, write
from streams.topics import TOPICS
from tests.test_streams.hostile_corpus import HOSTILE_KINDS, hostile_records, odd_records
from tests.test_streams.test_dead_letters import Record
from tests.test_streams.test_validation import events

DOCS = Path(__file__).parents[2] / "docs"
Validator = jsonschema.Draft7Validator
SCHEMAS = {topic: Validator(record_schema(topic)) for topic in RECORDS}


def test_the_files_in_docs_are_what_the_code_says(tmp_path: Path) -> None:
    written = {path.relative_to(tmp_path): path.read_bytes() for path in write(tmp_path)}
    there = {path.relative_to(DOCS) for path in (*DOCS.glob("schemas/*"), DOCS / "asyncapi.json")}
    assert there == written.keys()
    stale = [str(path) for path, content in written.items() if (DOCS / path).read_bytes() != content]
    assert stale == [], "run `python -m streams.schemas docs`"


@pytest.mark.parametrize("topic", RECORDS)
def test_every_schema_is_a_schema_and_stands_alone(topic: str) -> None:
    schema = record_schema(topic)
    Validator.check_schema(schema)
    assert set(schema["properties"]) == set(RECORDS[topic].__struct_fields__)
    for reference in _references(schema):
        assert reference.removeprefix("#/definitions/") in schema["definitions"]


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [r for child in node.values() for r in _references(child)]
    return [r for child in node for r in _references(child)] if isinstance(node, list) else []


@given(events())
def test_what_the_validator_takes_the_schema_takes(event: Event) -> None:
    SCHEMAS["events"].validate(msgspec.to_builtins(event))


@pytest.mark.parametrize("kind", odd_records())
def test_the_schema_takes_odd_records(kind: str) -> None:
    SCHEMAS["events"].validate(msgspec.json.decode(odd_records()[kind][1]))


IN_SCHEMA = {
    RejectReason.MISSING_FIELD,
    RejectReason.WRONG_TYPE,
    RejectReason.INVALID_ID,
    RejectReason.INVALID_FIELD,
}
NOT_IN_SCHEMA = {"id of 129 two-byte characters"}
"""JSON Schema counts characters, not bytes."""
STRUCTURAL = [
    r
    for r in hostile_records(len(HOSTILE_KINDS), seed=2)
    if r.reason in IN_SCHEMA and r.kind not in NOT_IN_SCHEMA
]


@pytest.mark.parametrize("record", STRUCTURAL, ids=[r.kind for r in STRUCTURAL])
def test_the_schema_refuses_what_is_structurally_wrong(record: Any) -> None:
    assert not SCHEMAS["events"].is_valid(json.loads(record.value))


@pytest.mark.parametrize(
    ("topic", "good", "bad"),
    [
        (
            "items",
            Item(item_id="i", price=1.5, embeddings={"t": [0.5]}, published_at=0),
            {"item_id": "i", "price": "1"},
        ),
        ("items", Item(item_id="i" * ID_BYTES), {"item_id": "i", "embeddings": {"t": []}}),
        (
            "users",
            User(user_id="u", labels={"a": True, "b": 1.5, "c": ""}),
            {"user_id": "u", "labels": {"a": []}},
        ),
        ("requests", Request(request_id="r", user_id="u", count=5), {"request_id": "r"}),
        (
            "requests",
            Request(request_id="r", session_items=["a"]),
            {"request_id": "r", "user_id": "u", "count": 0},
        ),
        (
            "models",
            ModelRecord(model="m", version="1", status="live", digest="d", uri="x", published_at=1),
            {},
        ),
    ],
)
def test_other_records(topic: str, good: msgspec.Struct, bad: dict[str, Any]) -> None:
    SCHEMAS[topic].validate(json.loads(msgspec.json.encode(good)))
    assert not SCHEMAS[topic].is_valid(bad)


def test_recommendations_and_their_parts() -> None:
    reason = Reason(kind="item_knn", because=["a"], text="because you saw a")
    record = Recommendation(
        user_id="u",
        request_id=None,
        event_id="e",
        items=[RecommendedItem(item_id="i", score=0.5, sources=["item_knn"], reason=reason)],
        ranker=None,
        online_offset=3,
        generated_at=1,
        latency_ms=1.5,
    )
    built = json.loads(msgspec.json.encode(record))
    SCHEMAS["recommendations"].validate(built)
    del built["items"][0]["reason"]
    assert not SCHEMAS["recommendations"].is_valid(built)
    assert "PartitionStats" in record_schema("worker-stats")["definitions"]
    assert set(record_schema("worker-stats")["definitions"]["PartitionStats"]["properties"]) == set(
        PartitionStats.__struct_fields__
    )


def test_dead_letter_headers_are_as_published() -> None:
    schema = Validator(dead_letter_headers())
    headers = {
        name: (content or b"").decode() for name, content in error_headers(Record(), RejectReason.LATE, "m")
    }
    schema.validate(headers)
    assert not schema.is_valid({**headers, "freshet.errors.reason": "bad luck"})


def test_asyncapi_names_every_topic_and_every_reference_leads_somewhere() -> None:
    document = asyncapi()
    assert document["asyncapi"].startswith("3.")
    assert document["info"]["version"] == __version__
    assert set(document["channels"]) == set(document["components"]["messages"]) == set(TOPICS)
    assert len(document["operations"]) == len(TOPICS)
    for reference in _references(document):
        if reference.startswith("#/"):
            node: Any = document
            for part in reference[2:].split("/"):
                node = node[part]
        else:
            assert (DOCS / reference).is_file(), reference


def test_the_page_names_every_field_reason_header_and_type() -> None:
    page = (DOCS / "events.md").read_text("utf-8")
    for topic in ("events", "items", "users", "requests"):
        missing = [name for name in RECORDS[topic].__struct_fields__ if f"`{name}`" not in page]
        assert missing == [], topic
    for reason in RejectReason:
        assert f"| `{reason.value}` | {reason.meaning} |" in page, reason
    assert [name for name in EVENT_TYPES if f"`{name}`" not in page] == []
    assert [name for name in dead_letter_headers()["properties"] if f"`{name}`" not in page] == []
