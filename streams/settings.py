"""Settings: `freshet.toml`, overridden by `FRESHET_*`, checked whole at start.

A key is written `[worker] max_batch = 5000` in the file and `FRESHET_WORKER__MAX_BATCH=5000` in the
environment (two underscores part the levels; values are TOML, or plain text). What stands under `[kafka]`
goes to librdkafka untouched, in its own names: `[kafka] "security.protocol" = "SASL_SSL"`,
`FRESHET_KAFKA__SECURITY_PROTOCOL=SASL_SSL`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from online_models.settings import ModelSettings
from serving.content.settings import ContentSettings
from serving.ranker.settings import RankerSettings
from serving.registry.settings import RegistrySettings
from serving.settings import ServingSettings
from serving.training.settings import TrainerSettings
from streams.errors import SettingsError
from streams.events import EVENT_TYPES
from streams.topics import TopicNames

__all__ = [
    "MonitorSettings",
    "ScheduleSettings",
    "Settings",
    "StateSettings",
    "TopicSettings",
    "TriggerSettings",
    "UserStateSettings",
    "ValidationSettings",
    "WorkerSettings",
    "default_state_dir",
    "load_settings",
]

DEFAULT_BOOTSTRAP = "127.0.0.1:9092"
_UNDERSCORED = {"ssl_key", "ssl_certificate", "ssl_ca"}
"""librdkafka's only names with underscores; all others use dots."""

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]
"""What a learning record may hold: one beyond it would be written once and then stop every replica."""


def default_state_dir() -> Path:
    """Where snapshots, models and the embedded broker live unless set: XDG's state folder."""
    base = os.environ.get("FRESHET_HOME")
    if base:
        return Path(base)
    xdg = os.environ.get("XDG_STATE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".local" / "state") / "freshet"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TopicSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]*$", max_length=100)] = ""
    partitions: Positive = 8
    replication_factor: Positive = 1


class ValidationSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    event_types: dict[str, Weight] = {}
    """Added to, or changing the weights of, the built-in types."""
    max_bytes: Annotated[int, Meta(ge=1, le=16_777_216)] = 262_144
    """Largest value of one record, in bytes."""
    max_depth: Annotated[int, Meta(ge=1, le=256)] = 64
    lateness_s: Seconds = 30 * 86_400.0
    """An event older than this against its partition's newest event time is `late`."""
    future_s: Seconds = 86_400.0
    """How far an event time may lie after its Kafka record's timestamp."""
    partitioning: Annotated[str, Meta(pattern="^(lenient|strict)$")] = "lenient"
    """`strict` rejects a record in another partition than its key's; `lenient` serves and counts it."""
    reject_window: Positive = 1000
    reject_limit: Share = 0.5
    """The worker stops when more than this share of the last `reject_window` records was rejected; 1 never
    stops."""

    def weights(self) -> dict[str, float]:
        """By type; a `retract` teaches nothing of itself."""
        return {**EVENT_TYPES, **self.event_types, "retract": 0.0}


class UserStateSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    recent: Annotated[int, Meta(ge=1, le=1000)] = 50
    seen: Annotated[int, Meta(ge=1, le=4000)] = 2000
    dedupe_entries: Annotated[int, Meta(ge=1, le=10_000)] = 256
    dedupe_window_s: Seconds = 86_400.0
    max_users: Positive = 1_000_000
    """Users held of one partition; with more, the idlest expire."""
    idle_s: Seconds = 0.0
    """A user whose last event is older than this, by event time, expires; 0 never."""


class WorkerSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    delivery: Annotated[str, Meta(pattern="^(exactly_once|at_least_once)$")] = "exactly_once"
    max_batch: Annotated[int, Meta(ge=1, le=100_000)] = 500
    """Records in one transaction at most, when behind."""
    poll_s: Annotated[float, Meta(gt=0, le=1)] = 0.005
    """Longest wait for a first record before the learning log and the models topic are looked at again."""
    session_timeout_s: Annotated[float, Meta(ge=1, le=300)] = 10.0
    transaction_timeout_s: Annotated[float, Meta(ge=1, le=900)] = 10.0
    stats_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    snapshot_interactions: Positive = 20_000
    """Interactions between two snapshots of the item state, at least."""
    snapshot_s: Seconds = 10.0
    """Seconds between two snapshots, at least: at full speed so many interactions come in an instant."""
    snapshots_kept: Positive = 3
    on_data_loss: Annotated[str, Meta(pattern="^(fail|continue)$")] = "continue"
    """What to do when retention removed records that were never read: they are counted as lost either way."""
    rpc_timeout_s: Annotated[float, Meta(gt=0)] = 30.0


class TriggerSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    events: bool = True
    """A recommendation follows every accepted event with an item."""
    requests: bool = True
    """Every record of `requests` is answered."""
    count: Annotated[int, Meta(ge=1, le=1000)] = 10
    """Items in a list, unless a request says otherwise."""
    coalesce_lag: Annotated[int, Meta(ge=0)] = 20_000
    """Only while more records than this wait may several events of one user share one list; 0 never."""


class ScheduleSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When `freshet trainer` trains."""

    every_interactions: Positive = 10_000
    """Train again once this many interactions have come since the last training began."""
    every_s: Seconds = 3600.0
    """Or once this much time has passed and anything new has come; 0 turns the clock off."""
    on_drift: bool = False
    """Or once the online models' hits on new interactions have fallen: an alarm of `drift_detector`."""
    drift_detector: Literal["adwin", "page_hinkley"] = "adwin"
    from_offset: Annotated[int, Meta(ge=0)] = 0
    """Read `interactions` from here on."""
    from_time: str = ""
    """Or from the first record at or after this time: ms since the epoch, or RFC 3339."""
    niceness: Annotated[int, Meta(ge=0, le=19)] = 19
    """Scheduling priority given up, so that training beside a worker does not slow it."""


class StateSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dir: str = ""
    """Folder or fsspec URL of the snapshots; default: the user's state folder."""

    def url(self) -> str:
        return self.dir or str(default_state_dir() / "snapshots")


class MonitorSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 6066
    poll_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    history_s: Annotated[int, Meta(ge=60, le=86_400)] = 1800


class Settings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of `freshet.toml`; `[kafka]` is librdkafka's."""

    kafka: dict[str, str | int | float | bool] = {}
    topics: TopicSettings = TopicSettings()
    validation: ValidationSettings = ValidationSettings()
    user_state: UserStateSettings = UserStateSettings()
    worker: WorkerSettings = WorkerSettings()
    trigger: TriggerSettings = TriggerSettings()
    models: ModelSettings = ModelSettings()
    serving: ServingSettings = ServingSettings()
    content: ContentSettings = ContentSettings()
    ranker: RankerSettings = RankerSettings()
    registry: RegistrySettings = RegistrySettings()
    trainer: TrainerSettings = TrainerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    state: StateSettings = StateSettings()
    monitor: MonitorSettings = MonitorSettings()

    @property
    def names(self) -> TopicNames:
        return TopicNames(self.topics.prefix)

    @property
    def worker_group(self) -> str:
        """The workers' consumer group: `freshet-workers`, behind the topics' prefix where there is one."""
        return f"{self.topics.prefix}freshet-workers"

    @property
    def monitor_group(self) -> str:
        return f"{self.topics.prefix}freshet-monitor"

    @property
    def bootstrap_servers(self) -> str:
        return str(self.kafka["bootstrap.servers"])

    @property
    def registry_url(self) -> str:
        return self.registry.url or str(default_state_dir() / "models")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _takes_text(path: Sequence[str]) -> bool:
    """Whether the key's type is text: a topic prefix of `2024` is no number."""
    kind: Any = Settings
    for part in path:
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return False
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}.get(part)
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) is str


def _overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    """`FRESHET_A__B=v` as nested tables; single-level names (FRESHET_HOME) belong to others."""
    tree: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith("FRESHET_") or "__" not in name:
            continue
        section, *rest = name.removeprefix("FRESHET_").lower().split("__")
        if section == "kafka":
            key = "__".join(rest)
            tree.setdefault("kafka", {})[key if key in _UNDERSCORED else key.replace("_", ".")] = text
            continue
        node = tree.setdefault(section, {})
        for part in rest[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                above = name.rpartition("__")[0]
                raise SettingsError(
                    f"setting {'.'.join([section, *rest])}: {above} gives {part} a value already."
                )
        value = _toml_value(text)
        node[rest[-1]] = text if _takes_text([section, *rest]) and not isinstance(value, str) else value
    return tree


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _flatten_kafka(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """TOML reads `bootstrap.servers = …` without quotes as nested tables: join them again."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            flat.update(_flatten_kafka(value, name))
        else:
            flat[name] = value
    return flat


def load_settings(
    path: str | Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    default_bootstrap: str = DEFAULT_BOOTSTRAP,
) -> Settings:
    """Read `path` (default: `$FRESHET_CONFIG`, else `freshet.toml` if it is there), then the environment,
    then `overrides`.

    Raises:
        SettingsError: the file can't be read, or a key is unknown, of the wrong type or out of range; the
            message names the key as it stands in the file.
    """
    environ = os.environ if environ is None else environ
    named = path or environ.get("FRESHET_CONFIG")
    file = Path(named) if named else Path("freshet.toml")
    tree: dict[str, Any] = {}
    if named or file.exists():
        try:
            tree = tomllib.loads(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{file}: {error}. Mend the file or name another with --config.") from error
    tree = _merge(_merge(tree, _overrides(environ)), overrides or {})
    kafka = tree.get("kafka", {})
    if isinstance(kafka, Mapping):
        tree["kafka"] = {"bootstrap.servers": default_bootstrap, **_flatten_kafka(kafka)}
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), file if named or file.exists() else None)) from error


def _explain(message: str, file: Path | None) -> str:
    """msgspec's `… - at `$.worker.max_batch`` as a sentence that names the key and where it can stand."""
    what, _, where = message.partition(" - at `$")
    key = re.sub(r"\[[^\]]*\]", "", where).rstrip("`").strip(".") or "(top level)"  # without places in lists
    env = "FRESHET_" + key.upper().replace(".", "__")
    source = f"{file} or " if file else ""
    remedy = f"Correct it in {source}the environment ({env}); freshet.example.toml lists all keys."
    return f"setting {key}: {what}. {remedy}"
