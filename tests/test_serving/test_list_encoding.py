"""Lists as bytes say what the same lists say as objects, whatever stands in ids and titles."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models.item_table import ItemTable
from serving import list_kernels
from serving.catalogue import Catalogue, CatalogueEntry
from serving.explanations import ranked_list
from serving.kernels import KINDS
from serving.list_encoding import ListEncoder
from serving.query import BECAUSE, Query, QueryBatch, RankedBatch
from tests.test_serving.pipeline_cases import World, queries, worlds

HEAD = b'{"user_id":"u"'
odd = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', "\\", "\n\t\x00\x1f\x7f", "“”", "\u2028", "é漢😀", "</script>"]
)


def expected(batch: RankedBatch, position: int, items: ItemTable, catalogue: Catalogue) -> dict[str, Any]:
    """The record from objects, as msgspec writes it."""
    ranked = ranked_list(batch, position, items, catalogue)
    return {
        "user_id": "u",
        "items": [
            {
                "item_id": item.item_id,
                "score": item.score,
                "sources": item.sources,
                "reason": {"kind": item.kind, "because": item.because, "text": item.text},
            }
            for item in ranked.items
        ],
        "ranker": ranked.ranker,
        "degraded": ranked.degraded is not None,
        "degraded_reason": ranked.degraded,
    }


def assert_same(record: bytes, wanted: dict[str, Any]) -> None:
    got = json.loads(record)
    for item, other in zip(got["items"], wanted["items"], strict=True):
        assert math.isclose(item.pop("score"), other.pop("score"), abs_tol=1e-6, rel_tol=1e-12)
    assert got == wanted


@st.composite
def batches(draw: st.DrawFn) -> tuple[RankedBatch, ItemTable, Catalogue]:
    items = ItemTable(draw(st.lists(odd.filter(bool), min_size=1, max_size=6, unique=True)))
    catalogue = Catalogue(items)
    for item_id in items.ids:
        catalogue.put(item_id, CatalogueEntry(title=draw(st.none() | odd)), 0)
    n, width = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    batch = RankedBatch.empty(n, width)
    batch.ranker, batch.degraded = draw(st.none() | odd), draw(st.none() | odd)
    row = st.integers(0, len(items) - 1)
    for user in range(n):
        batch.length[user] = draw(st.integers(0, width))
        for place in range(int(batch.length[user])):
            kind = draw(st.integers(0, len(KINDS) - 1))
            most = (BECAUSE, 0, 0, 0, 1, BECAUSE)[kind]
            named = draw(st.lists(row, min_size=kind == 0, max_size=most, unique=True))
            batch.rows[user, place] = draw(row)
            batch.scores[user, place] = draw(
                st.floats(-(2.0**50), 2.0**50, width=32) | st.floats(-30, 3, width=32)
            )
            batch.sources[user, place] = draw(st.integers(0, 63))
            batch.kinds[user, place] = kind
            batch.because[user, place, : len(named)] = named
    return batch, items, catalogue


@given(case=batches())
@settings(max_examples=150, deadline=None)
def test_bytes_say_what_objects_say(case: tuple[RankedBatch, ItemTable, Catalogue]) -> None:
    batch, items, catalogue = case
    records = ListEncoder(items, catalogue).encode(batch, [HEAD] * len(batch))
    assert len(records) == len(batch)
    for position, record in enumerate(records):
        assert_same(record, expected(batch, position, items, catalogue))
        assert msgspec.json.encode(msgspec.json.decode(record))


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_what_the_pipeline_makes_is_written(world: World, asked: list[Query]) -> None:
    pipeline = world.pipeline()
    batch = pipeline.recommend_batch(QueryBatch.of(asked, world.state.items, pipeline.history_length))
    heads = [HEAD + b',"n":%d' % position for position in range(len(asked))]
    records = ListEncoder(world.state.items, world.catalogue).encode(batch, heads)
    for position, record in enumerate(records):
        wanted = expected(batch, position, world.state.items, world.catalogue)
        assert_same(record, {**wanted, "n": position})


def one_list(rows: list[int], because: int = -1) -> RankedBatch:
    batch = RankedBatch.empty(1, len(rows))
    batch.rows[0], batch.length[0] = rows, len(rows)
    batch.sources[0], batch.kinds[0] = 1, 0 if because >= 0 else 1
    batch.because[0, :, 0] = because
    return batch


def test_a_new_title_a_reused_row_and_a_new_table_show_in_the_next_list() -> None:
    items = ItemTable(["a", "b"])
    catalogue = Catalogue(items)
    encoder = ListEncoder(items, catalogue)

    def item() -> tuple[str, str]:
        first = json.loads(encoder.encode(one_list([0], because=1), [HEAD])[0])["items"][0]
        return first["item_id"], first["reason"]["text"]

    assert item() == ("a", "People who chose “b” also chose this")
    catalogue.put("b", CatalogueEntry(title="Tea"), 0)
    assert item() == ("a", "People who chose “Tea” also chose this")
    catalogue.remove("b", 0)
    assert item() == ("a", "People who chose “b” also chose this")
    items.ids[0] = "c"
    catalogue.rows_changed(np.array([0], dtype=np.int32), 0)
    assert item() == ("c", "People who chose “b” also chose this")
    catalogue.bind(ItemTable(["x", "y"]), 0)
    assert item() == ("x", "People who chose “y” also chose this")


def test_items_that_came_later_are_written() -> None:
    items = ItemTable(["a"])
    encoder = ListEncoder(items, Catalogue(items))
    encoder.encode(one_list([0]), [HEAD])
    items.ensure(f"later {n}" for n in range(5000))
    record = json.loads(encoder.encode(one_list([0, 5000]), [HEAD])[0])
    assert [item["item_id"] for item in record["items"]] == ["a", "later 4999"]


def test_a_list_too_large_loses_its_tail_and_says_so() -> None:
    items = ItemTable([f"{n:0200}" for n in range(40)])
    encoder = ListEncoder(items, Catalogue(items), max_bytes=5000)
    large, small = encoder.encode(one_list(list(range(40))), [HEAD])[0], one_list([0])
    record = json.loads(large)
    assert len(large) <= 5000
    assert 0 < len(record["items"]) < 40
    assert record["degraded"]
    assert record["degraded_reason"] == f"{len(record['items'])} of 40 items fit into a record"
    assert not json.loads(encoder.encode(small, [HEAD])[0])["degraded"]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e30])
def test_odd_scores_are_still_json(score: float) -> None:
    items = ItemTable(["a"])
    batch = one_list([0])
    batch.scores[0] = score
    written = json.loads(ListEncoder(items, Catalogue(items)).encode(batch, [HEAD])[0])["items"][0]["score"]
    assert written == (pytest.approx(score) if math.isfinite(score) else None)


def test_one_head_a_list() -> None:
    items = ItemTable(["a"])
    encoder = ListEncoder(items, Catalogue(items))
    assert encoder.encode(RankedBatch.empty(0, 0), []) == []
    with pytest.raises(ValueError, match="2 heads for 1 lists"):
        encoder.encode(one_list([0]), [HEAD, HEAD])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.list_encoding.MAX_ARENA_BYTES", 10_000)
    items = ItemTable([f"{n:0100}" for n in range(500)])
    encoder = ListEncoder(items, Catalogue(items))
    for start in range(0, 500, 10):
        rows = list(range(start, start + 10))
        record = json.loads(encoder.encode(one_list(rows), [HEAD])[0])
        assert [item["item_id"] for item in record["items"]] == [items.ids[row] for row in rows]
        assert encoder._used <= 10_000 + 20 * 100


@given(value=st.floats(-1e11, 1e11))
@settings(max_examples=200, deadline=None)
def test_decimals(value: float) -> None:
    out = np.zeros(list_kernels.SCORE_BYTES, dtype=np.uint8)
    end = list_kernels._write_decimal(value, out, 0)
    text = out[:end].tobytes().decode()
    assert abs(json.loads(text) - value) <= 1e-6 + 1e-15 * abs(value)
    assert len(text.partition(".")[2]) == list_kernels.DECIMALS
