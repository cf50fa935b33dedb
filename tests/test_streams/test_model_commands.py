"""`freshet models` on a real `models` topic and a folder of versions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner

from serving.ranker.errors import RegistryError
from serving.registry.manifest import digest_of
from streams.cli_models import models
from streams.errors import FreshetError
from streams.events import ModelRecord
from streams.model_commands import list_models, promote, rollback, show_model
from streams.model_records import announce, introduced, key_of, live_announcement, model_records
from streams.settings import Settings
from tests.test_serving.version_cases import publish_table, successor_table

ITEMS = [f"item-{n}" for n in range(20)]


def store(settings: Settings, *versions: str) -> None:
    for number, version in enumerate(versions):
        publish_table(Path(settings.registry.url), version, ITEMS, successor_table(20, number + 1))


def run(settings: Settings, *arguments: str) -> str:
    done = CliRunner().invoke(models, list(arguments), obj=SimpleNamespace(settings=lambda: settings))
    assert done.exit_code == 0, done.output
    return done.output


def status(settings: Settings) -> dict[str, str]:
    return {row["version"]: row["status"] for row in list_models(settings)}


def test_versions_are_stored_live_superseded_and_rolled_back(settings: Settings) -> None:
    store(settings, "v1", "v2", "v3")
    assert status(settings) == {"v1": "stored", "v2": "stored", "v3": "stored"}
    assert promote(settings, "v1").against is None, "nothing was live before it"
    second = promote(settings, "v2")
    assert (second.against, second.against_digest) == ("v1", list_models(settings)[0]["digest"])
    assert status(settings) == {"v1": "superseded", "v2": "live", "v3": "stored"}
    assert "v2 is live, beside v1 for a while" not in run(settings, "promote", "v2"), "already live"
    assert run(settings, "promote", "v3").strip() == "ranker v3 is live, beside v2 for a while"
    bad = msgspec.structs.replace(second, status="dropped", reason="worse")
    announce(settings, bad)
    back = rollback(settings)
    assert (back.version, back.against) == ("v1", None), "v2 was dropped; nothing is on probation"
    assert status(settings) == {"v1": "live", "v2": "dropped", "v3": "superseded"}
    with pytest.raises(FreshetError, match="no older version"):
        rollback(settings)


def test_a_version_is_scored_beside_the_live_one_first(settings: Settings) -> None:
    store(settings, "v1", "v2")
    promote(settings, "v1")
    assert promote(settings, "v2", shadow=True).status == "shadow"
    assert status(settings) == {"v1": "live", "v2": "shadow"}
    with pytest.raises(FreshetError, match="v1 is live"):
        promote(settings, "v1", shadow=True)
    promote(settings, "v2")
    assert status(settings) == {"v1": "superseded", "v2": "live"}
    assert [(r.version, r.status) for r in model_records(settings)] == [
        ("v1", "live"), ("v2", "shadow"), ("v2", "live"), ("v2", "promoted"),
    ]  # fmt: skip
    assert {key_of(record) for record in model_records(settings)} == {b"ranker", b"ranker#v2"}


def test_show_says_all_of_a_version(settings: Settings) -> None:
    store(settings, "v1")
    registry_file = Path(settings.registry.url) / "ranker" / "v1" / "manifest.json"
    promote(settings, "v1")
    shown = json.loads(run(settings, "show", "v1", "--json"))
    assert shown["digest"] == digest_of(registry_file.read_bytes())
    assert shown["manifest"]["gate"]["challenger"] == {"hr_at_10": 0.2, "ndcg_at_10": 0.1}
    assert [record["status"] for record in shown["records"]] == ["live"]
    text = run(settings, "show", "v1")
    for part in ("status      live", "network     table, fp32", "gate: accepted on 100 events", "model.onnx"):
        assert part in text
    assert "compression" not in text
    with pytest.raises(RegistryError, match="v9"):
        show_model(settings, "v9")


def test_a_manifest_that_is_no_longer_readable_is_a_row_with_its_reason(settings: Settings) -> None:
    store(settings, "v1", "v2")
    (Path(settings.registry.url) / "ranker" / "v1" / "manifest.json").write_text("{")
    rows = {row["version"]: row for row in list_models(settings)}
    assert "manifest.json" in rows["v1"]["reason"]
    assert rows["v2"]["ndcg_at_10"] == 0.1
    assert run(settings, "list").splitlines()[0].split() == [
        "version", "status", "against", "ndcg_at_10", "precision", "trained_on", "reason",
    ]  # fmt: skip


def test_the_trainer_s_versions_go_live_or_are_scored_first(settings: Settings) -> None:
    new = ModelRecord(model="ranker", version="v1", status="live", digest="d1", uri="u", published_at=1)
    ranker = msgspec.structs.replace(settings.ranker, shadow_first=True)
    careful = msgspec.structs.replace(settings, ranker=ranker)
    first = introduced(new, careful)
    assert (first.status, first.against) == ("live", None), "nothing is live to compare it with"
    announce(settings, first)
    second = msgspec.structs.replace(new, version="v2", digest="d2")
    assert introduced(second, careful).status == "shadow"
    assert (introduced(second, settings).status, introduced(second, settings).against) == ("live", "v1")
    refused = msgspec.structs.replace(second, status="refused")
    assert introduced(refused, careful) is refused


def test_probation_is_a_setting(settings: Settings) -> None:
    record = ModelRecord(model="ranker", version="v2", status="x", digest="d2", uri="u", published_at=2)
    live = msgspec.structs.replace(record, version="v1", digest="d1")
    watched = live_announcement(record, live, settings)
    assert (watched.status, watched.against, watched.against_digest) == ("live", "v1", "d1")
    ranker = msgspec.structs.replace(settings.ranker, probation_events=0)
    off = msgspec.structs.replace(settings, ranker=ranker)
    assert live_announcement(record, live, off).against is None
    assert live_announcement(record, live, settings, probation=False).against is None
    assert live_announcement(record, record, settings).against is None
