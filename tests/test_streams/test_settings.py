"""Settings: every key is checked and named, the environment overrides the file, `[kafka]` passes
untouched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from streams.errors import SettingsError
from streams.settings import Settings, load_settings


def _leaves(kind: inspect.Type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], inspect.Type]]:
    """Every key with its type, sections walked through."""
    if isinstance(kind, inspect.StructType):
        for field in kind.fields:
            if path or field.name != "kafka":
                yield from _leaves(field.type, (*path, field.name))
    else:
        yield path, kind


LEAVES = dict(_leaves(inspect.type_info(Settings)))
BOUNDS = [
    (path, value)
    for path, kind in LEAVES.items()
    if isinstance(kind, inspect.IntType | inspect.FloatType)
    for value in (
        None if kind.ge is None else kind.ge - 1,
        kind.gt,
        None if kind.le is None else kind.le + 1,
        kind.lt,
    )
    if value is not None
]


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _load(overrides: dict[str, Any] | None = None, **environ: str) -> Settings:
    return load_settings(environ={f"FRESHET_{k}": v for k, v in environ.items()}, overrides=overrides)


def test_there_are_keys_and_bounds_to_check() -> None:
    assert len(LEAVES) > 60
    assert len(BOUNDS) > 60


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_a_wrong_type_is_refused_by_key(path: tuple[str, ...]) -> None:
    wrong: Any = [["a"], {"b": 1}]
    with pytest.raises(SettingsError, match=rf"setting {'.'.join(path)}: Expected"):
        _load(_nested(path, wrong))


@pytest.mark.parametrize(("path", "value"), BOUNDS, ids=lambda x: ".".join(x) if isinstance(x, tuple) else x)
def test_a_value_out_of_range_is_refused_by_key(path: tuple[str, ...], value: float) -> None:
    env = "FRESHET_" + "__".join(path).upper()
    with pytest.raises(SettingsError, match=rf"setting {'.'.join(path)}: Expected.*{env}"):
        _load(_nested(path, value))


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"wroker": {}}, "wroker"),
        ({"worker": {"max_bach": 5}}, "worker.*max_bach"),
        ({"models": {"covisitation": {"windw": 5}}}, "models.covisitation.*windw"),
        ({"worker": {"delivery": "twice"}}, "worker.delivery"),
        ({"topics": {"prefix": "a b"}}, "topics.prefix"),
        ({"validation": {"event_types": {"quiz": 1e9}}}, "validation.event_types"),
        ({"validation": {"event_types": {"quiz": float("nan")}}}, "validation.event_types"),
        ({"worker": 5}, "worker"),
        ({"kafka": 5}, "kafka"),
        ({"kafka": {"client.id": ["x"]}}, "kafka"),
    ],
)
def test_unknown_and_impossible_keys_are_refused(tree: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=f"(?s)setting .*{key}"):
        _load(tree)


def test_the_environment_overrides_the_file_and_overrides_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[worker]\nmax_batch = 5\npoll_s = 0.5\nstats_s = 3\n[topics]\nprefix = "file."\n', "utf-8"
    )
    environ = {"FRESHET_WORKER__MAX_BATCH": "6", "FRESHET_WORKER__STATS_S": "4", "FRESHET_CONFIG": str(file)}
    found = load_settings(environ=environ, overrides={"worker": {"stats_s": 7.0}})
    assert (found.worker.max_batch, found.worker.poll_s, found.worker.stats_s) == (6, 0.5, 7.0)
    assert found.topics.prefix == "file."
    assert load_settings(file, environ={}).worker.max_batch == 5


def test_environment_values_are_toml_or_plain_text() -> None:
    found = _load(
        None,
        TRIGGER__EVENTS="false",
        WORKER__POLL_S="0.25",
        STATE__DIR="s3://bucket/snapshots",
        TOPICS__PREFIX="shop.",
        MODELS__COVISITATION__WINDOW="7",
        VALIDATION__EVENT_TYPES="{quiz = 2.5}",
        HOME="/not/a/setting",
    )
    assert (found.trigger.events, found.worker.poll_s) == (False, 0.25)
    assert (found.state.dir, found.topics.prefix) == ("s3://bucket/snapshots", "shop.")
    assert found.models.covisitation.window == 7
    assert found.validation.weights()["quiz"] == 2.5
    assert found.validation.weights()["click"] == 1.0


@pytest.mark.parametrize("value", ["2024", "true", "1.5"])
def test_a_key_that_takes_text_takes_text_that_looks_like_a_number(value: str) -> None:
    assert _load(None, TOPICS__PREFIX=value).topics.prefix == value


def test_a_key_below_a_value_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"models\.seed\.deeper"):
        _load(None, MODELS__SEED="1", MODELS__SEED__DEEPER="2")


def test_kafka_keys_pass_through_in_librdkafkas_names(tmp_path: Path) -> None:
    file = tmp_path / "freshet.toml"
    file.write_text(
        '[kafka]\nbootstrap.servers = "a:1"\n"security.protocol" = "SSL"\nsocket.nagle.disable = true\n',
        "utf-8",
    )
    environ = {
        "FRESHET_KAFKA__BOOTSTRAP_SERVERS": "b:2,c:3",
        "FRESHET_KAFKA__SASL_PASSWORD": "12345",
        "FRESHET_KAFKA__SSL_CA": "pem",
        "FRESHET_KAFKA__SSL_CA_LOCATION": "/ca.pem",
    }
    found = load_settings(file, environ=environ)
    assert found.kafka == {
        "bootstrap.servers": "b:2,c:3",
        "security.protocol": "SSL",
        "socket.nagle.disable": True,
        "sasl.password": "12345",
        "ssl_ca": "pem",
        "ssl.ca.location": "/ca.pem",
    }
    assert found.bootstrap_servers == "b:2,c:3"


def test_defaults_lead_to_this_machine() -> None:
    assert _load().bootstrap_servers == "127.0.0.1:9092"
    assert load_settings(environ={}, default_bootstrap="x:1").bootstrap_servers == "x:1"
    assert msgspec.convert({}, Settings).topics.partitions == 8


@pytest.mark.parametrize("content", ["[worker", "\x00", "worker = {max_batch = }"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_text(content, "utf-8")
    with pytest.raises(SettingsError, match=r"broken\.toml: .*Mend the file"):
        load_settings(file, environ={})
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_settings(tmp_path / "absent.toml", environ={})


def test_the_message_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[worker]\nmax_batch = 0\n", "utf-8")
    with pytest.raises(SettingsError, match=r"worker\.max_batch.*mine\.toml or the environment"):
        load_settings(file, environ={})
