"""The figures of an evaluation as tables on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from online_models.evaluation.results import Evaluation

__all__ = ["print_tables"]

WIDE = 140
"""Characters in a line that hold every column of the table."""
ONLY_WHERE_WIDE = frozenset({"mrr", "gini", "novelty", "diversity"})


def print_tables(result: Evaluation) -> None:
    """The figures as tables."""
    from rich.console import Console
    from rich.table import Table

    from online_models.evaluation.report import COLUMNS, cell

    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    fields = [field for field in COLUMNS if console.width >= WIDE or field not in ONLY_WHERE_WIDE]
    table = Table(
        title=f"{result.dataset}, {result.protocol}: {result.judged:,} of {result.events:,} events judged"
    )
    for title in ("model", *(COLUMNS[field] for field in fields)):
        table.add_column(title, justify="left" if title == "model" else "right")
    for model in sorted(result.models, key=lambda model: -model.ndcg_at_10):
        table.add_row(model.model, *(cell(getattr(model, field), field) for field in fields))
    console.print(table)
    if result.searched_on_events is not None:
        console.print(_searched_table(result))
    best = max(result.models, key=lambda model: model.ndcg_at_10).model
    found = [pair for pair in result.comparisons if best in (pair.model, pair.against)]
    pairs = Table(title="NDCG@10 of one model less another's, with its 95% interval")
    for title in ("model", "against", "difference", "interval", "p (McNemar)"):
        pairs.add_column(title, justify="right" if title in ("difference", "p (McNemar)") else "left")
    for pair in found:
        low, high = pair.interval_95
        pairs.add_row(
            pair.model, pair.against, f"{pair.ndcg_difference:.4f}", f"{low:.4f} to {high:.4f}",
            f"{pair.p_value:.3g}",
        )  # fmt: skip
    if found:
        console.print(pairs)


def _searched_table(result: Evaluation) -> Table:
    """What was found, and how it does on the events that were searched and on those after."""
    from rich.table import Table

    table = Table(
        title=f"Searched on the first {result.searched_on_events:,} events; NDCG@10 there and after"
    )
    for title in ("model", "there", "after", "parameters"):
        table.add_column(title, justify="right" if title in ("there", "after") else "left")
    for model in result.models:
        parts = model.slices["search"]
        found = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in model.parameters.items()
        )
        table.add_row(
            model.model, *(f"{parts[part].ndcg_at_10:.4f}" for part in ("searched on", "after it")), found
        )
    return table
