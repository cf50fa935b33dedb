"""Alerts and dashboard ask only for what the monitor serves; promtool agrees where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from streams.monitor.metric_specs import METRICS

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "freshet.json"


def served() -> dict[str, set[str]]:
    """Series names with their labels."""
    names: dict[str, set[str]] = {"up": {"job", "instance"}}
    for spec in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
        for suffix in suffixes:
            names[spec.name + suffix] = {
                *spec.labels,
                "job",
                "instance",
                *({"le"} if suffix == "_bucket" else ()),
            }
    return names


def expressions() -> list[str]:
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    board = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return rules + panels + [note["expr"] for note in board["annotations"]["list"]]


def test_every_expression_asks_for_what_is_served() -> None:
    known = served()
    found = expressions()
    assert len(found) > 30
    for expression in found:
        names = re.findall(r"\b(?:kafka|freshet)_\w+|\bup\b", expression)
        assert names, expression
        for name in names:
            assert name in known, f"{name} in {expression}"
        labels = {name for group in re.findall(r"by \(([^)]*)\)", expression) for name in group.split(", ")}
        labels |= set(re.findall(r"(\w+)=~?\"", expression))
        assert labels <= set().union(*(known[name] for name in names)), expression


def test_every_alert_says_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is not installed")
def test_promtool_accepts_and_runs_the_rules() -> None:
    for command in (
        ["check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")],
        ["check", "rules", str(RULES)],
        ["test", "rules", str(DEPLOY / "prometheus" / "alerts.test.yml")],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
