"""Why an item stands in a list, in the user's own items where there are any: lists as objects and words.

`serving.list_encoding` writes the same words as bytes, from the same `WORDS`.
"""

from __future__ import annotations

from online_models.item_table import ItemTable
from serving.catalogue import Catalogue
from serving.kernels import KINDS, REQUEST
from serving.query import RankedBatch, RankedItem, RankedList
from serving.retrieval import SOURCES

__all__ = ["QUOTES", "SOURCES_OF", "WORDS", "ranked_list"]

SOURCES_OF = [
    [name for bit, name in enumerate(SOURCES) if bits >> bit & 1] for bits in range(1 << len(SOURCES))
]
"""Names of the sources for every value of the bits."""

WORDS: dict[tuple[str, bool], tuple[str, str]] = {
    ("covisitation", True): ("People who chose ", " also chose this"),
    ("content", True): ("Similar to ", ""),
    ("content", False): ("Similar to what you had", ""),
    ("ranker", True): ("Often comes after ", ""),
    ("ranker", False): ("Close to your taste", ""),
    ("factors", False): ("Close to your taste", ""),
    ("request", False): ("Among the items you asked about", ""),
    ("popularity", False): ("Popular now", ""),
}
"""What is said before and after the titles that a reason of a kind names; or, without any, instead."""
QUOTES = ("“", "” and “", "”")
"""What stands before, between and behind the titles."""


def ranked_list(batch: RankedBatch, position: int, items: ItemTable, catalogue: Catalogue) -> RankedList:
    """One list of the batch as objects, with the strongest reason of each item in words."""
    ids, length = items.ids, int(batch.length[position])
    columns = (batch.rows, batch.scores, batch.sources, batch.kinds, batch.because)
    ranked = []
    for row, score, bits, kind, because in zip(
        *(column[position, :length].tolist() for column in columns), strict=True
    ):
        named = [ids[reason] for reason in because if reason >= 0]
        ranked.append(_item(ids[row], score, bits, KINDS[kind], named, catalogue))
    for item_id, score in batch.unknown.get(position, ()):
        ranked.append(_item(item_id, score, REQUEST, "request", [], catalogue))
    return RankedList(ranked, batch.ranker, batch.degraded)


def _item(
    item_id: str, score: float, bits: int, kind: str, because: list[str], catalogue: Catalogue
) -> RankedItem:
    before, after = WORDS[kind, bool(because)]
    opening, between, closing = QUOTES
    titles = between.join([catalogue.title(named) for named in because])
    quoted = f"{opening}{titles}{closing}" if because else ""
    return RankedItem(item_id, score, list(SOURCES_OF[bits]), kind, because, f"{before}{quoted}{after}")
