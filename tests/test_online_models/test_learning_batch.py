from __future__ import annotations

import numpy as np
import pytest

from online_models import ItemTable, LearningBatch


def make_batch(n: int = 3) -> LearningBatch:
    return LearningBatch(
        item_ids=["a", "b", "c", "d"],
        item=np.array([0, 1, 2, 3, 0][:n], dtype=np.int32),
        recent=np.array([[-1, -1], [0, -1], [3, 1], [1, 2], [2, 0]][:n], dtype=np.int32),
        time_ms=np.arange(n, dtype=np.int64),
        weight=np.ones(n, dtype=np.float32),
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=np.zeros((n, 2), dtype=np.float32),
        user_after=np.zeros((n, 2), dtype=np.float32),
        negatives=np.array([[1], [0], [-1], [0], [3]][:n], dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item", np.array([0, 4, 1], dtype=np.int32), r"item\[1\] is 4, outside 0 to 3 \(1 of 3"),
        ("item", np.array([0, -1, 1], dtype=np.int32), r"item\[1\] is -1"),
        ("item", np.array([0, 1, 1], dtype=np.int64), r"item: int64\[3\], but int32\[3\]"),
        ("recent", np.full((3, 1), 9, dtype=np.int32), r"recent\[0, 0\] is 9, outside -1 to 3 \(3 of 3"),
        ("recent", np.full(3, -1, dtype=np.int32), r"recent: int32\[3\], but int32\[3, any\]"),
        ("negatives", np.full((2, 1), -1, dtype=np.int32), r"negatives: int32\[2, 1\]"),
        ("time_ms", np.array([0, 1, -5], dtype=np.int64), r"time_ms\[2\] is -5"),
        ("weight", np.array([1, np.nan, 1], dtype=np.float32), r"weight\[1\] is nan"),
        ("weight", np.array([1, 1, 2e6], dtype=np.float32), r"weight\[2\] is 2000000"),
        (
            "user_before",
            np.full((3, 2), np.inf, dtype=np.float32),
            r"user_before\[0, 0\] is not finite \(6 of 6",
        ),
        (
            "user_after",
            np.zeros((3, 1), dtype=np.float32),
            r"user_after: float32\[3, 1\], but float32\[3, 2\]",
        ),
        ("recent", np.full((3, 1), -2, dtype=np.int32), r"recent\[0, 0\] is -2, outside -1 to 3"),
        ("table_epoch", np.zeros(2, dtype=np.int64), r"table_epoch: int64\[2\], but int64\[3\]"),
        ("item_ids", ["a", "a", "c", "d"], "4 ids, but only 3 of them distinct"),
    ],
)
def test_validate_names_the_column_and_the_numbers(column: str, value: object, message: str) -> None:
    batch = make_batch()
    batch.validate()
    setattr(batch, column, value)
    with pytest.raises(ValueError, match=message):
        batch.validate()


def test_slices_concatenate_to_the_whole() -> None:
    whole = make_batch(5)
    again = LearningBatch.concat([whole.slice(0, 2), whole.slice(2, 2), whole.slice(2, 5)])
    again.validate()

    def ids(batch: LearningBatch, column: np.ndarray) -> list[str | None]:
        return [None if index < 0 else batch.item_ids[index] for index in column.ravel().tolist()]

    for name in ("item", "recent", "negatives"):
        assert ids(again, getattr(again, name)) == ids(whole, getattr(whole, name))
    assert whole.slice(0, 1).item_ids == ["a", "b"]


def test_concat_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch, got 0"):
        LearningBatch.concat([])


def test_rows_are_given_in_event_order_and_what_comes_later_is_unknown() -> None:
    table = ItemTable()
    rows = table.resolve(make_batch(5))
    assert table.ids == ["a", "b", "c", "d"]
    assert rows.item.tolist() == [0, 1, 2, 3, 0]
    # event 2's recent "d" and event 0's negative "b" get their rows later in the batch
    assert rows.recent.tolist() == [[-1, -1], [0, -1], [-1, 1], [1, 2], [2, 0]]
    assert rows.negatives.tolist() == [[-1], [0], [-1], [0], [3]]


def test_looking_up_never_inserts() -> None:
    table = ItemTable(["a"])
    assert table.row("b") == -1
    assert table.rows(["a", "b"]).tolist() == [0, -1]
    assert len(table) == 1


def test_ids_of_any_script_round_trip() -> None:
    table = ItemTable(["a", "東京", "naïve", "🙂" * 50])
    assert ItemTable.from_arrays(table.to_arrays()).ids == table.ids
    assert ItemTable.from_arrays(ItemTable().to_arrays()).ids == []


def test_items_named_by_row_are_those_the_writer_knew() -> None:
    table = ItemTable(["x", "y"])
    batch = make_batch(3)
    batch.recent = np.array([[-2, -3], [-4, 0], [-5, 1]], dtype=np.int32)  # rows 0, 1; 2, "a"; 3, "b"
    batch.table_epoch = np.array([2, 4, 2], dtype=np.int64)
    with pytest.raises(ValueError, match="table_epoch is 4 at event 1, but only 2 rows had been given"):
        table.resolve(batch)
    assert table.ids == ["x", "y"]
    batch.table_epoch = 2
    with pytest.raises(ValueError, match=r"recent\[1, 0\] is -4, outside -3 to 3"):
        batch.validate()
    batch.recent[1:, 0] = -3
    batch.validate()
    rows = table.resolve(batch)
    assert rows.item.tolist() == [2, 3, 4]
    assert rows.recent.tolist() == [[0, 1], [1, 2], [1, 3]]


def test_a_row_given_after_the_writers_epoch_is_unknown() -> None:
    table = ItemTable(["x"])
    batch = make_batch(2)
    batch.recent = np.array([[-2, -1], [-3, -1]], dtype=np.int32)  # rows 0 and 1; "a" has 1 by then
    batch.table_epoch = 1
    assert table.resolve(batch).recent.tolist() == [[0, -1], [-1, -1]]


def test_batches_of_other_epochs_concatenate_and_slice() -> None:
    parts = [make_batch(2), make_batch(3)]
    for part, epoch in zip(parts, (2, 3), strict=True):
        part.recent[0, 0] = -epoch  # a row
        part.table_epoch = epoch
    whole = LearningBatch.concat(parts)
    whole.validate()
    assert whole.epochs().tolist() == [2, 2, 3, 3, 3]
    assert whole.recent[[0, 2], 0].tolist() == [-2, -3]
    tables = ItemTable(["x", "y", "z"]), ItemTable(["x", "y", "z"])
    together = tables[0].resolve(whole)
    apart = [tables[1].resolve(whole.slice(start, stop)) for start, stop in ((0, 1), (1, 4), (4, 5))]
    assert together.recent.tolist() == [row for part in apart for row in part.recent.tolist()]
    assert LearningBatch.concat([parts[0], parts[0]]).table_epoch == 2
