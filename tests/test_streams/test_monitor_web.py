"""What the monitor shows and to whom: metrics equal to the docs, strict pages, connection settings."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.errors import SettingsError
from streams.events import PartitionStats
from streams.lag import GroupInfo
from streams.monitor.app import STATS_TAIL, Positions
from streams.monitor.exposition import make_registry, render
from streams.monitor.kafka import broker_options
from streams.monitor.metric_specs import METRICS, metrics_table
from streams.monitor.state import MonitorState
from streams.monitor.views import host_allowed, page
from tests.test_streams.monitor_records import model_record, worker_stats
from tests.test_streams.test_monitor_state import Clock, lag_row

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def full_state() -> MonitorState:
    """A state in which every metric has something to say."""
    clock = Clock()
    state = MonitorState(10, now=clock, clock=clock)
    state.take_stats(worker_stats(at=1_000_000))
    state.take_lag(
        [lag_row(), lag_row(1, owner=None, state="UNOWNED")], {"freshet-workers": GroupInfo("STABLE", 1)}
    )
    state.take_model(model_record())
    state.take_dead_letter("invalid_json", 1000.0)
    state.take_bad_record("models")
    clock.s += 3
    state.tick()
    return state


def scrape(state: MonitorState) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(render(make_registry(state)).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_metrics_page_is_the_code() -> None:
    assert metrics_table() in DOCS.read_text("utf-8"), (
        "docs/metrics.md differs from streams/monitor/metric_specs.py: put this table there:\n"
        + metrics_table()
    )


def test_every_metric_is_scraped_with_its_labels_and_type() -> None:
    text = render(make_registry(full_state())).decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for spec in METRICS:
        family = families[spec.name.removesuffix("_total") if spec.kind == "counter" else spec.name]
        assert family.type == spec.kind, spec.name
        assert family.documentation == spec.help
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == set(spec.labels), spec.name
    assert len(families) == len(METRICS)


def test_scraped_values() -> None:
    samples = scrape(full_state())
    where = {"consumergroup": "freshet-workers", "topic": "events"}
    assert value(samples, "kafka_consumergroup_lag", partition="0", **where) == 5
    assert value(samples, "kafka_consumergroup_lag_sum", **where) == 10
    assert value(samples, "kafka_consumergroup_group_lag_seconds", partition="0", **where) == 1.5
    assert value(samples, "kafka_consumergroup_members", consumergroup="freshet-workers") == 1
    assert value(samples, "kafka_topic_partition_current_offset", topic="events", partition="0") == 15
    assert value(samples, "freshet_partition_unowned", partition="1", **where) == 1
    assert value(samples, "freshet_events_total", outcome="accepted") == 1000
    assert value(samples, "freshet_hit_rate_at_10") == pytest.approx(0.2)
    assert value(samples, "freshet_dead_letters_total", reason="invalid_json") == 1
    assert (
        value(samples, "freshet_ranker_info", worker="w1", version="v1", provider="CPUExecutionProvider") == 1
    )
    assert value(samples, "freshet_broker_up") == 1
    assert value(samples, "freshet_ranker_refused_total", worker="w1") == 3
    assert value(samples, "freshet_model_refused_total", worker="w1", kind="digest") == 2
    assert value(samples, "freshet_model_rollbacks_total") == 0
    assert value(samples, "freshet_model_trial_events", trial="shadow", live="v1", other="v2") == 400
    rates = {
        (version, role): value(
            samples, "freshet_model_trial_hit_rate_at_10", trial="shadow", version=version, role=role
        )
        for version, role in (("v1", "live"), ("v2", "beside"))
    }
    assert rates == {("v1", "live"): 0.2, ("v2", "beside"): 0.25}


def test_latency_histogram_is_cumulative_and_in_seconds() -> None:
    samples = scrape(full_state())
    name = "freshet_recommendation_latency_seconds"
    buckets = sorted(
        (float(dict(labels)["le"]), count) for (n, labels), count in samples.items() if n == f"{name}_bucket"
    )
    assert dict(buckets)[0.01] == 70
    assert dict(buckets)[0.02] == 79
    assert buckets[-1] == (math.inf, 80)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert value(samples, f"{name}_count") == 80
    exact_s = 70 * 0.009 + 9 * 0.018 + 1 * 0.9  # middles of the buckets 8-10, 16-20 and 800-1000 ms
    assert value(samples, f"{name}_sum") == pytest.approx(exact_s)


def test_nothing_known_scrapes_as_absent_and_never_as_zero() -> None:
    clock = Clock()
    state = MonitorState(10, now=clock, clock=clock)
    assert {name for name, _ in scrape(state)} == {"freshet_model_versions"}
    state.take_lag([lag_row()], {})
    state.take_broker_error("gone")
    samples = scrape(state)
    assert value(samples, "freshet_broker_up") == 0
    assert not [name for name, _ in samples if name.startswith("kafka_")]


def test_a_refused_record_leaves_no_part_of_itself() -> None:
    clock = Clock()
    state = MonitorState(10, now=clock, clock=clock)
    with pytest.raises(ValueError, match="77"):
        state.take_stats(worker_stats(at=1_000_000, latency_ms_buckets={"77": 1}))
    with pytest.raises(ValueError, match="x7"):
        state.take_stats(worker_stats(at=1_000_000, partitions={"x7": PartitionStats()}))
    assert state.latency.count == 0
    assert state.workers == {}
    assert state.partition_totals() == {}


def test_labels_are_escaped() -> None:
    clock = Clock()
    state = MonitorState(10, now=clock, clock=clock)
    state.take_dead_letter('a"b\\c\nd', 0.0)
    clock.s += 3
    state.tick()
    assert value(scrape(state), "freshet_dead_letters_total", reason='a"b\\c\nd') == 1


# ---- the page


@pytest.mark.parametrize(
    ("bound_to", "header", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:6066", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST:6066", True),
        ("::1", "[::1]:6066", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "localhost.evil.example:6066", False),
        ("127.0.0.1", "localhost@evil.example", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", None, False),
        ("0.0.0.0", "monitor.internal:6066", True),
        ("0.0.0.0", None, False),
    ],
)
def test_host_header(bound_to: str, header: str | None, allowed: bool) -> None:
    assert host_allowed(bound_to, header) is allowed


def test_page_is_self_contained_and_its_policy_admits_just_its_own_script() -> None:
    html, policy = page()
    text = html.decode()
    assert policy.count("'sha256-") == 2
    assert "unsafe" not in policy
    assert text.count("<script>") == text.count("<script") == 1
    assert not re.search(r"\son\w+\s*=\s*[\"']", text), "inline event handlers are blocked by the policy"
    assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", text)
    assert "innerHTML" not in text
    assert not re.search(r"\sstyle=", text), "style attributes are blocked by the policy"


# ---- reading positions


def test_positions_rebuild_state_and_go_on_behind_what_was_taken() -> None:
    positions = Positions("worker-stats")
    assert positions.start("worker-stats", 0, 100, 10_000) == 10_000 - STATS_TAIL
    assert positions.start("worker-stats", 0, 9_900, 10_000) == 9_900
    assert positions.start("events-dlq", 3, 7, 10_000) == 7
    assert positions.take("events-dlq", 3, 7)
    assert not positions.take("events-dlq", 3, 7)
    assert positions.take("events-dlq", 3, 9), "offsets have gaps where transactions end"
    assert positions.take("events-dlq", 2, 0)
    assert positions.start("events-dlq", 3, 7, 10_000) == 10
    assert positions.start("events-dlq", 3, 5_000, 10_000) == 5_000, "retention went further"


# ---- [kafka] under aiokafka


def test_plaintext_and_several_servers() -> None:
    options = broker_options({"bootstrap.servers": "a:1, PLAINTEXT://b:2,c:3", "linger.ms": 5})
    assert options == {"broker": ["kafka://a:1", "kafka://b:2", "kafka://c:3"]}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_sasl_logins(mechanism: str) -> None:
    options = broker_options(
        {
            "bootstrap.servers": "a:1",
            "security.protocol": "SASL_SSL",
            "sasl.mechanisms": mechanism,
            "sasl.username": "u",
            "sasl.password": "secret",
        }
    )
    login = options["broker_credentials"]
    assert (login.protocol.value, login.mechanism.value) == ("SASL_SSL", mechanism)
    assert (login.username, login.password) == ("u", "secret")
    assert login.ssl_context.check_hostname
    assert "secret" not in repr(login)


def test_sasl_without_tls_has_no_context() -> None:
    options = broker_options(
        {
            "bootstrap.servers": "a:1",
            "security.protocol": "sasl_plaintext",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "u",
            "sasl.password": "p",
        }
    )
    assert options["broker_credentials"].ssl_context is None


def test_tls_without_host_check() -> None:
    options = broker_options(
        {
            "bootstrap.servers": "a:1",
            "security.protocol": "ssl",
            "ssl.endpoint.identification.algorithm": "none",
        }
    )
    context = options["broker_credentials"].context
    assert not context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    ("kafka", "named"),
    [
        ({"security.protocol": "tls"}, "security.protocol"),
        ({"security.protocol": "sasl_ssl"}, "sasl.mechanism"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"}, "OAUTHBEARER"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN"}, "sasl.username"),
        ({"ssl.key.pem": "x"}, "ssl.key.pem"),
        ({"ssl_ca": "x"}, "ssl_ca"),
        ({"sasl.oauthbearer.config": "x"}, "sasl.oauthbearer.config"),
        ({"security.protocol": "ssl", "ssl.ca.location": "/nowhere.pem"}, "ssl.ca.location"),
    ],
)
def test_what_aiokafka_cannot_do_is_named(kafka: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(named)):
        broker_options({"bootstrap.servers": "a:1", **kafka})
