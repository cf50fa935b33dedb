"""Kinds of rows of the learning log beside those of `online_models.learning_batch`: what they say of users
and items, and what every replica does with those that say it of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from online_models.learning_batch import UNCOUNT
from streams.errors import LearningLogError

__all__ = ["DISMISS", "FORGET_ITEM", "FORGET_USER", "INTRODUCE", "ChangesItems", "change_items"]

FORGET_USER, FORGET_ITEM = UNCOUNT + 1, UNCOUNT + 2
"""Whatever is kept of the row's user, or of its item, is dropped."""
INTRODUCE, DISMISS = UNCOUNT + 3, UNCOUNT + 4
"""The row's item gets a row in the item table before anybody has used it; that is taken back."""


class ChangesItems(Protocol):
    """See `ItemState`."""

    def forget_item(self, item_id: str) -> bool: ...
    def introduce(self, item_ids: Sequence[str]) -> int: ...
    def dismiss(self, item_id: str) -> bool: ...


def change_items(items: ChangesItems, kind: int, item_ids: Sequence[str], where: str) -> None:
    """Do what rows of one kind say of items, in their order.

    Raises:
        LearningLogError: a kind of a later version; `where` is the record's topic[partition]@offset.
    """
    if kind == INTRODUCE:
        items.introduce(item_ids)
    elif kind in (FORGET_ITEM, DISMISS):
        for item_id in item_ids:
            (items.forget_item if kind == FORGET_ITEM else items.dismiss)(item_id)
    else:
        raise LearningLogError(
            f"{where}: rows of kind {kind}, this version knows 0 to {DISMISS}. Upgrade every worker first."
        )
