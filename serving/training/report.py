"""A training as one HTML page that needs nothing else: curves, metrics, parts of the events, the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import msgspec

from online_models.evaluation import charts
from online_models.evaluation.report import html_page, html_table
from serving.registry.manifest import GateReport, ModelScore
from serving.training.settings import TrainerSettings
from serving.training.slow_path import Outcome

__all__ = ["html_report"]

_CONTESTANTS = {
    "challenger": "this network",
    "champion": "champion",
    "online": "online models alone",
    "popularity": "popularity",
}
_PARTS = {
    "new_users": "new users",
    "new_items": "new items",
    "history_0": "history: 0",
    "history_1_5": "1 to 5",
    "history_6_20": "6 to 20",
    "history_21_50": "21 to 50",
    "history_51_up": "51 and more",
}
"""Names of the gate's parts, in words; another one is shown by its name."""


def html_report(outcome: Outcome, dataset: str) -> str:
    """The whole page."""
    settings = outcome.product.trained.settings
    title = f"{settings.network} on {dataset}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _facts(outcome),
        _verdict(outcome),
        *_curves(outcome),
        "<h2>On the newest events</h2>",
        *_metrics(outcome.report),
        *_parts(outcome.report),
        *_compression(outcome.product.compression),
        "<h2>Time</h2>",
        _pairs({name: f"{seconds:.1f} s" for name, seconds in outcome.seconds.items()}, "stage", "took"),
        "<h2>Settings</h2><p>In bold: not the default.</p>",
        _settings(settings),
    ]
    return html_page(title, body)


def _facts(outcome: Outcome) -> str:
    split, trained = outcome.split, outcome.product.trained
    resumed = f" ({trained.resumed_from} of them by a former process)" if trained.resumed_from else ""
    parity, latency = outcome.report.parity, outcome.report.latency_ms
    more = [
        f" Largest difference between ONNX Runtime and PyTorch: {parity:.1e}." if parity is not None else "",
        f" 16 users × 200 candidates take {latency:.1f} ms." if latency is not None else "",
    ]
    return (
        f"<p>{split.interactions:,} interactions, {len(split.train):,} users and {len(split.vocabulary):,}"
        f" items in the training part; {outcome.report.events:,} newest events held out. {len(trained.curve)}"
        f" epochs{resumed} in {trained.seconds:.1f} s.{''.join(more)}</p>"
    )


def _verdict(outcome: Outcome) -> str:
    report = outcome.report
    if outcome.published is not None:
        said = f"<p><b>Published</b> as {escape(outcome.published.manifest.version)}.</p>"
    else:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
        said = f"<p><b>Not published</b>: the gate refused.</p><ul>{reasons}</ul>"
    notes = [note for note in (outcome.champion_problem, *outcome.notes, *report.notes) if note]
    return said + "".join(f"<p>{escape(note)}</p>" for note in notes)


def _curves(outcome: Outcome) -> list[str]:
    curve = outcome.product.trained.curve
    if not curve:
        return []
    return [
        "<h2>Training</h2><p>Each epoch's mean loss, and NDCG@10 on the newest training events, by which the"
        " epoch that is kept was chosen.</p>",
        charts.lines({"loss": [(float(p.epoch), p.loss) for p in curve]}, "epoch", "loss"),
        charts.lines({"NDCG@10": [(float(p.epoch), p.ndcg_at_10) for p in curve]}, "epoch", "NDCG@10"),
    ]


def _metrics(report: GateReport) -> list[str]:
    found: dict[str, ModelScore] = {
        name: score for name in _CONTESTANTS if (score := getattr(report, name)) is not None
    }
    gains = {pair.against: pair for pair in report.comparisons}
    rows = []
    for name, score in found.items():
        gain = gains.get(name)
        rows.append(
            [
                f"<td>{_CONTESTANTS[name]}</td>",
                _best(score.hr_at_10, [one.hr_at_10 for one in found.values()]),
                _best(score.ndcg_at_10, [one.ndcg_at_10 for one in found.values()]),
                f"<td>{report.coverage.get(name, '')}</td>",
                f"<td>{gain.ndcg_gain:+.4f}</td><td>{gain.low:+.4f} to {gain.high:+.4f}</td>"
                if gain is not None
                else "<td></td><td></td>",
            ]
        )
    ranked = (
        "what retrieval gave for each event, as served; an item that it did not give is a miss"
        if report.judged_on == "lists"
        else f"all {report.catalogue:,} items, less what the user had; an unknown item is a miss"
    )
    head = ["", "HR@10", "NDCG@10", "items in lists", "gain of this network", "95% interval"]
    return [
        f"<p>{report.events:,} events. Ranked is {ranked}; ties count half. Intervals by a bootstrap over"
        " users.</p>",
        html_table(head, rows),
    ]


def _parts(report: GateReport) -> list[str]:
    parts = [part for part in report.slices if part.events]
    if not parts:
        return []
    names = [name for name in _CONTESTANTS if any(getattr(part, name) is not None for part in parts)]
    titles = [_PARTS.get(part.name, part.name) for part in parts]
    series = {_CONTESTANTS[name]: [getattr(part, name) or 0.0 for part in parts] for name in names}
    rows = [
        [f"<td>{escape(name)}</td>", *(f"<td>{value:.4f}</td>" for value in values)]
        for name, values in series.items()
    ]
    head = ["NDCG@10", *(f"{title} (n = {p.events:,})" for title, p in zip(titles, parts, strict=True))]
    return [
        "<h2>Parts of them</h2><p>New users had at most five events before, new items at most a few in the"
        " training part; then by how many items the user had had.</p>",
        charts.bars(titles, series, "NDCG@10"),
        html_table(head, rows),
    ]


def _compression(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not table:
        return []
    columns = list(dict.fromkeys(name for figures in table.values() for name in figures))
    rows = [
        [f"<td>{escape(kind)}</td>", *(f"<td>{_number(figures.get(name))}</td>" for name in columns)]
        for kind, figures in table.items()
    ]
    return ["<h2>Smaller graphs</h2>", html_table(["", *(c.replace("_", " ") for c in columns)], rows)]


def _settings(settings: TrainerSettings) -> str:
    default = _flat(msgspec.to_builtins(TrainerSettings()))
    found = _flat(msgspec.to_builtins(settings))
    shown = {
        name: escape(str(value)) if value == default.get(name) else f"<b>{escape(str(value))}</b>"
        for name, value in found.items()
    }
    return _pairs(shown, "trainer.", "value")


def _flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def _pairs(values: Mapping[str, str], left: str, right: str) -> str:
    rows = [[f"<td>{escape(name)}</td><td>{value}</td>"] for name, value in values.items()]
    return html_table([left, right], rows)


def _best(value: float, all_values: Sequence[float]) -> str:
    mark = ' class="best"' if value == max(all_values) else ""
    return f"<td{mark}>{value:.4f}</td>"


def _number(value: float | None) -> str:
    """A figure of a table: whole where it is.

    >>> _number(1234.0), _number(0.01234), _number(None)
    ('1,234', '0.0123', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if value == round(value) else f"{value:.4f}"
