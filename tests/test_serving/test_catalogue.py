"""The catalogue's masks follow every change, the clock and the item table."""

from __future__ import annotations

import numpy as np

from online_models.item_table import ItemTable
from serving.catalogue import MAX_CATEGORY_MASKS, MAX_TITLE_CHARS, Catalogue, CatalogueEntry

NEWS = frozenset({"news"})


def test_an_item_comes_and_goes_by_the_clock() -> None:
    items = ItemTable(["a", "b"])
    catalogue = Catalogue(items)
    catalogue.put("a", CatalogueEntry(published_ms=10, expires_ms=20), now_ms=0)
    seen = [catalogue.mask(now).tolist() for now in (0, 9, 10, 19, 20, 21)]
    assert [a for a, _ in seen] == [False, False, True, True, False, False]
    assert all(b for _, b in seen)
    assert [catalogue.is_servable("a", now) for now in (9, 10, 19, 20)] == [False, True, True, False]


def test_a_later_entry_outdates_the_times_of_the_one_before() -> None:
    catalogue = Catalogue(ItemTable(["a"]))
    catalogue.put("a", CatalogueEntry(expires_ms=20), now_ms=0)
    catalogue.put("a", CatalogueEntry(expires_ms=40), now_ms=0)
    assert [bool(catalogue.mask(now)[0]) for now in (19, 20, 39, 40)] == [True, True, True, False]


def test_removed_is_out_until_put_again() -> None:
    catalogue = Catalogue(ItemTable(["a"]))
    assert catalogue.mask(0).tolist() == [True]
    catalogue.remove("a", 0)
    assert catalogue.mask(0).tolist() == [False]
    assert "a" not in catalogue
    catalogue.put("a", CatalogueEntry(), 0)
    assert catalogue.mask(0).tolist() == [True]
    assert "a" in catalogue
    assert len(catalogue) == 1


def test_masks_grow_with_the_item_table() -> None:
    items = ItemTable(["a"])
    catalogue = Catalogue(items)
    catalogue.put("b", CatalogueEntry(is_hidden=True, categories=("news",)), 0)
    assert catalogue.mask(0).tolist() == [True]
    assert catalogue.category_mask(NEWS).tolist() == [False]
    items.ensure(["b", "c"])
    assert catalogue.mask(0).tolist() == [True, False, True]
    assert catalogue.category_mask(NEWS).tolist() == [False, True, False]


def test_kept_category_masks_follow_every_change() -> None:
    catalogue = Catalogue(ItemTable(["a", "b"]))
    assert catalogue.category_mask(NEWS).tolist() == [False, False]
    catalogue.put("b", CatalogueEntry(categories=("sport", "news")), 0)
    assert catalogue.category_mask(NEWS).tolist() == [False, True]
    catalogue.put("b", CatalogueEntry(categories=("sport",)), 0)
    assert catalogue.category_mask(NEWS).tolist() == [False, False]
    catalogue.put("a", CatalogueEntry(categories=("news",)), 0)
    catalogue.remove("a", 0)
    assert catalogue.category_mask(NEWS).tolist() == [False, False]


def test_dropped_category_masks_are_made_again() -> None:
    catalogue = Catalogue(ItemTable(["a"]))
    catalogue.put("a", CatalogueEntry(categories=("news",)), 0)
    for number in range(2 * MAX_CATEGORY_MASKS):
        assert catalogue.category_mask(frozenset({f"other {number}"})).tolist() == [False]
    assert catalogue.category_mask(NEWS).tolist() == [True]


def test_another_item_table_after_a_snapshot() -> None:
    catalogue = Catalogue(ItemTable(["a", "b"]))
    catalogue.put("a", CatalogueEntry(is_hidden=True, categories=("news",)), 0)
    assert catalogue.mask(0).tolist() == [False, True]
    assert catalogue.category_mask(NEWS).tolist() == [
        True,
        False,
    ]
    catalogue.bind(ItemTable(["b", "a"]), 0)
    assert catalogue.mask(0).tolist() == [True, False]
    assert catalogue.category_mask(NEWS).tolist() == [
        False,
        True,
    ]


def test_rows_that_change_hands_are_looked_at_anew() -> None:
    items = ItemTable(["a", "b"])
    catalogue = Catalogue(items)
    told: list[list[int] | None] = []
    catalogue.watch(lambda rows: told.append(None if rows is None else rows.tolist()))
    catalogue.put("b", CatalogueEntry(categories=("news",)), 0)
    catalogue.put("hidden", CatalogueEntry(is_hidden=True), 0)
    assert catalogue.mask(0).tolist() == [True, True]
    assert catalogue.category_mask(NEWS).tolist() == [False, True]
    items.ids[0], items.ids[1] = "hidden", ""  # as eviction does
    catalogue.rows_changed(np.array([0, 1, 5], dtype=np.int32), 0)
    assert catalogue.mask(0).tolist() == [False, False]
    assert catalogue.category_mask(NEWS).tolist() == [False, False]
    catalogue.bind(ItemTable(["b"]), 0)
    assert catalogue.mask(0).tolist() == [True]
    assert told == [[1], [0, 1, 5], None]


def test_a_freed_row_is_never_served() -> None:
    items = ItemTable(["a"])
    items.ids[0] = ""
    assert Catalogue(items).mask(0).tolist() == [False]


def test_titles_fall_back_to_the_id_and_are_cut() -> None:
    catalogue = Catalogue(ItemTable())
    catalogue.put("long", CatalogueEntry(title="x" * 1000), 0)
    catalogue.put("none", CatalogueEntry(title=""), 0)
    assert catalogue.title("long") == "x" * MAX_TITLE_CHARS
    assert (catalogue.title("none"), catalogue.title("unknown")) == ("none", "unknown")
