"""Why an item stands in a list, in the user's own items where there are any."""

from __future__ import annotations

from collections.abc import Sequence

from serving.catalogue import Catalogue
from serving.query import RankedItem
from serving.retrieval import SOURCES

__all__ = ["BECAUSE", "explained"]

BECAUSE = 2
"""Recent items named in a reason at most."""

SOURCES_OF = [
    [name for bit, name in enumerate(SOURCES) if bits >> bit & 1] for bits in range(1 << len(SOURCES))
]
"""Names of the sources for every value of the bits."""


def explained(
    item_id: str,
    score: float,
    source_bits: int,
    because: list[str],
    newest: Sequence[str],
    catalogue: Catalogue,
) -> RankedItem:
    """A ranked item with its strongest reason.

    `because` holds the user's recent items that speak for it, the strongest first; `newest` the newest item
    alone, or nothing, for the ranker, which reads the whole history and gives no parts.
    """
    sources = list(SOURCES_OF[source_bits])
    kind = "covisitation" if because else _kind_without_neighbours(sources)
    if kind == "ranker":
        because = list(newest)
    return RankedItem(item_id, score, sources, kind, because, _text(kind, because, catalogue))


def _kind_without_neighbours(sources: list[str]) -> str:
    for kind in ("request", "ranker", "factors"):
        if kind in sources:
            return kind
    return "popularity"


def _text(kind: str, because: list[str], catalogue: Catalogue) -> str:
    quoted = " and ".join([f"“{catalogue.title(item_id)}”" for item_id in because])
    match kind:
        case "covisitation":
            return f"People who chose {quoted} also chose this"
        case "ranker" if because:
            return f"Often comes after {quoted}"
        case "ranker" | "factors":
            return "Close to your taste"
        case "request":
            return "Among the items you asked about"
        case _:
            return "Popular now"
