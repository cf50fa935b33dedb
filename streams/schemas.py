"""JSON Schemas (draft 7) of the records and an AsyncAPI 3 document of the topics, generated from the code.

`python -m streams.schemas docs` writes `docs/schemas/*.json` and `docs/asyncapi.json`. Types come from
`streams.events`, limits from `streams.field_checks`. What a schema can't say (bytes instead of characters,
the key, times against Kafka's, duplicate keys) is in docs/events.md, and `streams.validation` decides.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from streams import __version__, events
from streams import field_checks as limits
from streams.dead_letters import HEADER_PREFIX, MESSAGE_BYTES
from streams.rejects import Reason
from streams.topics import TOPICS, TopicSpec
from streams.validation import NEEDED_FIELD

__all__ = ["RECORDS", "asyncapi", "dead_letter_headers", "record_schema", "write"]

Schema = dict[str, Any]

RECORDS: dict[str, type[msgspec.Struct]] = {
    "events": events.Event,
    "items": events.Item,
    "users": events.User,
    "requests": events.Request,
    "recommendations": events.Recommendation,
    "models": events.ModelRecord,
    "worker-stats": events.WorkerStats,
}
"""The JSON topics and the type of their records; `events-dlq` holds anything, the other two are binary."""

_PRODUCED = ("events", "items", "users", "requests")
_CONTROL: Schema = {"pattern": "[\\u0000-\\u001f\\u007f-\\u009f]"}
_TEXT_CONTROL: Schema = {"pattern": "[\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f]"}
_ID: Schema = {"minLength": 1, "maxLength": limits.ID_BYTES, "not": _CONTROL}
_NUMBER: Schema = {"minimum": -limits.NUMBER_LIMIT, "maximum": limits.NUMBER_LIMIT}
_TIME: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": limits.YEAR_9999_MS},
        {"type": "string", "format": "date-time"},
    ]
}


def _text(max_bytes: int, min_bytes: int = 0) -> Schema:
    return {"minLength": min_bytes, "maxLength": max_bytes, "not": _TEXT_CONTROL}


def _ids(count: int) -> Schema:
    return {"maxItems": count, "items": {"type": "string", **_ID}}


_MAP: Schema = {
    "maxProperties": limits.MAP_ENTRIES,
    "propertyNames": _ID,
    "additionalProperties": {
        "anyOf": [
            {"type": "string", **_text(limits.MAP_TEXT_BYTES)},
            {"type": "number", **_NUMBER},
            {"type": "boolean"},
        ]
    },
}
_EMBEDDINGS: Schema = {
    "maxProperties": limits.EMBEDDINGS,
    "propertyNames": _ID,
    "additionalProperties": {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.EMBEDDING_FLOATS,
        "items": {
            "type": "number",
            "minimum": -limits.EMBEDDING_LIMIT,
            "maximum": limits.EMBEDDING_LIMIT,
        },
    },
}
_LIMITS: dict[str, Schema] = {
    **dict.fromkeys(
        (
            *("event_id", "user_id", "item_id", "session_id", "request_id", "domain", "target_user_id"),
            *("retracts", "provider_id"),
        ),
        _ID,
    ),
    **dict.fromkeys(("timestamp", "published_at", "expires_at"), _TIME),
    **dict.fromkeys(("value", "price"), _NUMBER),
    **dict.fromkeys(("context", "labels"), _MAP),
    "query": _text(limits.QUERY_BYTES, 1),
    "title": _text(limits.TITLE_BYTES),
    "description": _text(limits.DESCRIPTION_BYTES),
    "categories": _ids(limits.CATEGORIES),
    "session_items": _ids(limits.SESSION_ITEMS),
    "exclude": _ids(limits.REQUEST_LIST),
    "candidates": _ids(limits.REQUEST_LIST),
    "count": {"minimum": 1, "maximum": limits.REQUEST_COUNT},
    "embeddings": _EMBEDDINGS,
}
"""What the produced records' fields must keep to, by name: a name means the same in every record."""


def _present(*names: str) -> Schema:
    """The fields are there and not null."""
    return {"required": list(names), "properties": {name: {"not": {"type": "null"}} for name in names}}


def _is(*kinds: str) -> Schema:
    return {"required": ["event_type"], "properties": {"event_type": {"enum": list(kinds)}}}


_EVENT_RULES: list[Schema] = [
    *({"if": _is(kind), "then": _present(needed)} for kind, needed in NEEDED_FIELD.items()),
    {"if": {"not": _is(*NEEDED_FIELD)}, "then": _present("item_id")},
]
_REQUEST_RULES: list[Schema] = [{"oneOf": [_present("user_id"), _present("session_items")]}]
_RULES = {"events": _EVENT_RULES, "requests": _REQUEST_RULES}


def _refined(name: str, field: Schema, required: bool) -> Schema:
    """The field's schema within its limits; optional fields of produced records may also be null."""
    branches = [branch for branch in field.get("anyOf", [field]) if branch.get("type") != "null"]
    more = _LIMITS.get(name, {})
    if "anyOf" in more:
        branches = list(more["anyOf"])
    else:
        branches = [{**branch, **more} for branch in branches]
    for branch in branches:
        branch.pop("default", None)
    if not required:
        branches.append({"type": "null"})
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def record_schema(topic: str) -> Schema:
    """The JSON Schema of the records of `topic`, one of `RECORDS`, complete in itself."""
    kind = RECORDS[topic]
    _, components = msgspec.json.schema_components([kind], ref_template="#/definitions/{name}")
    body = components.pop(kind.__name__)
    if topic in _PRODUCED:
        required = body["required"]
        body["properties"] = {
            name: _refined(name, field, name in required) for name, field in body["properties"].items()
        }
    if topic in _RULES:
        body["allOf"] = _RULES[topic]
    if components:
        body["definitions"] = dict(sorted(components.items()))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": f"urn:freshet:schema:{topic}",
        **body,
    }


def dead_letter_headers() -> Schema:
    """The headers that a dead letter has beside those it came with, as text."""
    number = {"type": "string", "pattern": "^-?[0-9]+$"}
    own: dict[str, Schema] = {
        "reason": {"type": "string", "enum": [reason.value for reason in Reason]},
        "message": {"type": "string", "maxLength": MESSAGE_BYTES},
        "topic": {"type": "string"},
        "partition": number,
        "offset": number,
        "timestamp": number,
        "version": {"type": "string"},
    }
    rare = {"headers_dropped": {"type": "string", "pattern": "^([0-9]+|all)$"}, "value_bytes": number}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "urn:freshet:schema:dead-letter-headers",
        "title": "DeadLetterHeaders",
        "description": "Why a record was rejected and where it stood.",
        "type": "object",
        "properties": {HEADER_PREFIX + name: schema for name, schema in {**own, **rare}.items()},
        "required": [HEADER_PREFIX + name for name in own],
    }


def asyncapi() -> Schema:
    """All topics as an AsyncAPI 3.0 document; operations are named from Freshet's side."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Freshet",
            "version": __version__,
            "description": "User events in, ranked and explained recommendations out.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(spec) for name, spec in TOPICS.items()},
        "operations": dict(_operation(name) for name in TOPICS),
        "components": {"messages": {name: _message(spec) for name, spec in TOPICS.items()}},
    }


def _channel(spec: TopicSpec) -> Schema:
    config: Schema = {"cleanup.policy": spec.config["cleanup.policy"].split(",")}
    for key in ("retention.ms", "delete.retention.ms", "max.message.bytes"):
        if key in spec.config:
            config[key] = int(spec.config[key])
    kafka = {"topic": spec.name, "topicConfiguration": config, "bindingVersion": "0.5.0"}
    return {
        "address": spec.name,
        "description": f"{spec.holds}; key: {spec.key}; written by: {spec.written_by}",
        "messages": {"record": {"$ref": f"#/components/messages/{spec.name}"}},
        "bindings": {"kafka": kafka},
    }


def _operation(topic: str) -> tuple[str, Schema]:
    action = "receive" if topic in _PRODUCED else "send"
    return f"{action}-{topic}", {"action": action, "channel": {"$ref": f"#/channels/{topic}"}}


def _message(spec: TopicSpec) -> Schema:
    message: Schema = {
        "name": spec.name,
        "summary": spec.holds,
        "bindings": {"kafka": {"bindingVersion": "0.5.0"}},
    }
    if spec.key != "none":
        message["bindings"]["kafka"]["key"] = {"type": "string", "description": spec.key}
    if spec.name in RECORDS:
        message["payload"] = {"$ref": f"schemas/{spec.name}.json"}
    elif spec.name == "events-dlq":
        message["headers"] = {"$ref": "schemas/dead-letter-headers.json"}
        message |= {"contentType": "application/octet-stream", "payload": {"description": "as it came"}}
    else:
        message |= {"contentType": "application/msgpack", "payload": {"description": "internal, versioned"}}
    return message


def _pretty(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write(folder: Path) -> list[Path]:
    """Write all documents under `folder`, say which."""
    documents = {f"schemas/{topic}.json": record_schema(topic) for topic in RECORDS}
    documents["schemas/dead-letter-headers.json"] = dead_letter_headers()
    documents["asyncapi.json"] = asyncapi()
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (folder / name).write_bytes(_pretty(document))
    return [folder / name for name in documents]


if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(path)
