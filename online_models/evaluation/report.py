"""A run as one HTML page that needs nothing else: tables, and plots as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from online_models.evaluation import charts
from online_models.evaluation.results import Evaluation, ModelFigures

__all__ = ["COLUMNS", "cell", "html_page", "html_report", "html_table"]

COLUMNS = {
    "hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "hr_at_50": "HR@50", "mrr": "MRR",
    "coverage_at_10": "coverage@10", "gini": "Gini", "novelty": "novelty, bits", "diversity": "diversity",
    "rmse": "RMSE", "score_us": "score, µs", "learn_us": "learn, µs",
}  # fmt: skip
"""Field of `ModelFigures` to title, as tables show them."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1060px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { padding: .25em .5em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
td.best { font-weight: 600 }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif }
.legend span { margin-right: 1.2em; white-space: nowrap }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
"""


def html_report(result: Evaluation) -> str:
    """The whole page."""
    title = f"{result.dataset}, {result.protocol}"
    facts = (
        f"{result.events:,} events, {result.users:,} users, {result.items:,} items; {result.judged:,} events"
        f" judged, {result.repeats:,} not, because their users had had the item. Full ranking; ties count"
        " half."
    )
    body = [
        f"<h1>{escape(title)}</h1><p>{facts}</p>",
        _models_table(result.models),
        *_plots(result),
        "<h2>Parts of the stream, HR@10</h2>",
        *(_slice_section(result.models, kind) for kind in (result.models[0].slices if result.models else ())),
        "<h2>Model against model</h2>",
        "<p>p by McNemar's test on hits within the first ten; the interval is that of the difference in"
        " NDCG@10, by a bootstrap over users. Many pairs are tested: expect one in twenty below 0.05 by"
        " chance.</p>",
        _comparisons_table(result),
    ]
    return html_page(title, body)


def html_page(title: str, body: Sequence[str]) -> str:
    """A page of those parts, which are HTML already, in the style of all reports."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def cell(value: float | None, field: str) -> str:
    """A figure as tables show it.

    >>> cell(0.20061, "hr_at_10"), cell(None, "rmse"), cell(31.26, "score_us")
    ('0.2006', '', '31.3')
    """
    if value is None:
        return ""
    return f"{value:.1f}" if field.endswith("_us") else f"{value:.4f}"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML already, with their <td>."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def _models_table(models: Sequence[ModelFigures]) -> str:
    best = {field: max(getattr(model, field) for model in models) for field in ("hr_at_10", "ndcg_at_10")}
    rows = []
    for model in models:
        row = [f"<td>{escape(model.model)}</td>"]
        for field in COLUMNS:
            value = getattr(model, field)
            mark = ' class="best"' if field in best and value == best[field] else ""
            row.append(f"<td{mark}>{cell(value, field)}</td>")
        rows.append(row)
    return html_table(["model", *COLUMNS.values()], rows)


def _plots(result: Evaluation) -> list[str]:
    if not any(model.windows for model in result.models):
        return []
    found = [f"<h2>Over time</h2><p>Means over the last {result.window:,} judged events.</p>"]
    for field, title in (("hr_at_10", "HR@10"), ("ndcg_at_10", "NDCG@10")):
        series = {
            model.model: [(float(point.judged), getattr(point, field)) for point in model.windows]
            for model in result.models
        }
        found.append(charts.lines(series, "judged events", title))
    return found


def _slice_section(models: Sequence[ModelFigures], kind: str) -> str:
    names = list(models[0].slices[kind])
    series = {model.model: [model.slices[kind][name].hr_at_10 for name in names] for model in models}
    judged = [models[0].slices[kind][name].judged for name in names]
    rows = [
        [f"<td>{escape(name)}</td>", *(f"<td>{value:.4f}</td>" for value in values)]
        for name, values in series.items()
    ]
    head = ["model", *(f"{name} (n = {n:,})" for name, n in zip(names, judged, strict=True))]
    titles = {
        "history": "By events of the user before", "item_exposures": "By events of the item before",
        "user_events": "The first events of each user", "item_popularity": "By the item's popularity then",
        "stream": "By place in the stream", "user_event": "First and last judged event of each user",
        "search": "The events on which parameters were searched, and those after",
    }  # fmt: skip
    plot = charts.bars(names, series, "HR@10")
    return f"<h3>{titles.get(kind, escape(kind))}</h3>{plot}{html_table(head, rows)}"


def _comparisons_table(result: Evaluation) -> str:
    head = ["model", "against", "hits only it", "only the other", "p", "NDCG@10 difference", "95% interval"]
    rows = [
        [
            f"<td>{escape(pair.model)}</td><td>{escape(pair.against)}</td>",
            f"<td>{pair.hits_only_model:,}</td><td>{pair.hits_only_against:,}</td><td>{pair.p_value:.3g}</td>",
            f"<td>{pair.ndcg_difference:.4f}</td>",
            f"<td>{pair.interval_95[0]:.4f} to {pair.interval_95[1]:.4f}</td>",
        ]
        for pair in result.comparisons
    ]
    return html_table(head, rows) if rows else "<p>One model alone.</p>"
