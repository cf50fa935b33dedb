"""Lists on their way out: what fits into a record."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.answers import MAX_LIST_BYTES, bounded_record
from streams.events import Reason, Recommendation, RecommendedItem


def recommendation(count: int, id_bytes: int) -> Recommendation:
    items = [
        RecommendedItem(
            item_id=f"{k:06d}" + '"' * id_bytes,
            score=-float(k),
            sources=["popularity"],
            reason=Reason(kind="popularity", because=[], text="Popular now"),
        )
        for k in range(count)
    ]
    return Recommendation(
        user_id="ann",
        request_id="r",
        event_id=None,
        items=items,
        ranker=None,
        online_offset=0,
        generated_at=0,
        latency_ms=0.0,
    )


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 1000), id_bytes=st.integers(0, 1500))
def test_a_record_never_outgrows_its_topic_and_keeps_the_head_of_the_list(count: int, id_bytes: int) -> None:
    whole = recommendation(count, id_bytes)
    wanted = [item.item_id for item in whole.items]
    value = bounded_record(whole)
    answer = json.loads(value)
    kept = [item["item_id"] for item in answer["items"]]
    assert len(value) <= MAX_LIST_BYTES
    assert kept == wanted[: len(kept)]
    assert answer["degraded"] == (len(kept) < count)
    if answer["degraded"]:
        assert answer["degraded_reason"] == f"{len(kept)} of {count} items fit into a record"


def test_a_list_that_fits_is_left_alone() -> None:
    answer = json.loads(bounded_record(recommendation(1000, 200)))
    assert len(answer["items"]) == 1000
    assert not answer["degraded"]
