"""Why an item stands in a list, in the user's own items where there are any."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.catalogue import Catalogue
from serving.query import RankedItem
from serving.retrieval import SOURCES, Candidates, Context
from serving.scoring import Scores

__all__ = ["explain"]

BECAUSE = 2
"""Recent items named in a reason at most."""


def explain(
    user: int,
    columns: npt.NDArray[np.intp],
    context: Context,
    candidates: Candidates,
    scores: Scores,
    items: ItemState,
    catalogue: Catalogue,
) -> list[RankedItem]:
    """The chosen `columns` of one user's candidates as ranked items, each with its strongest reason."""
    rows = candidates.rows[user, columns]
    recent = context.recent[user]
    shares = _contributions(recent, rows, items)
    ranked = []
    for position, column in enumerate(columns.tolist()):
        bits = int(candidates.sources[user, column])
        sources = [name for bit, name in enumerate(SOURCES) if bits >> bit & 1]
        logits = scores.ranker
        if logits is not None and not np.isnan(logits[user, column]):
            sources.append("ranker")
        because_rows = _strongest(recent, shares[:, position])
        because = [items.items.ids[row] for row in because_rows]
        kind = "covisitation" if because else _kind_without_neighbours(sources)
        if kind == "ranker":
            because = list(context.queries[user].recent[-1:])
        text = _text(kind, [catalogue.title(item_id) for item_id in because])
        item_id = items.items.ids[int(rows[position])]
        ranked.append(RankedItem(item_id, float(scores.blended[user, column]), sources, kind, because, text))
    return ranked


def _contributions(
    recent: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], items: ItemState
) -> npt.NDArray[np.float32]:
    """float32[L, K]: what each recent item adds to each chosen row's co-visitation score."""
    alone = np.full((len(recent), len(recent)), -1, dtype=np.int32)
    np.fill_diagonal(alone, recent)
    return items.covisitation.score(alone, np.broadcast_to(rows, (len(recent), len(rows))))


def _strongest(recent: npt.NDArray[np.int32], shares: npt.NDArray[np.float32]) -> list[int]:
    """The recent rows that added most, best first; an item that is among them twice counts once."""
    found: list[int] = []
    for index in np.argsort(-shares, kind="stable")[: 2 * BECAUSE].tolist():
        if shares[index] > 0 and (row := int(recent[index])) not in found:
            found.append(row)
    return found[:BECAUSE]


def _kind_without_neighbours(sources: list[str]) -> str:
    for kind in ("request", "ranker", "factors"):
        if kind in sources:
            return kind
    return "popularity"


def _text(kind: str, titles: list[str]) -> str:
    quoted = " and ".join(f"“{title}”" for title in titles)
    match kind:
        case "covisitation":
            return f"People who chose {quoted} also chose this"
        case "ranker" if titles:
            return f"Often comes after {quoted}"
        case "ranker" | "factors":
            return "Close to your taste"
        case "request":
            return "Among the items you asked about"
        case _:
            return "Popular now"
