"""What stands beside events and requests: hashed at intake, in the log, in lists, and nowhere as text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_models.learning_batch import LEARN, LearningBatch
from serving.ranker.hashing import ContextHash
from serving.ranker.inputs import HASHED
from streams.errors import LearningLogError
from streams.events import Request
from streams.learning_log import LogRecord, decode_record, learning_batches
from streams.log_columns import DIGEST_BYTES, packed_contexts, unpacked_contexts
from streams.trainer_log import TrainingLog, append_record
from streams.validation import AcceptedRequest
from tests.test_streams.user_model import T0, Ev, Worker, settings_of

KEYS = ("device", "volume")
Said = dict[str, str | float | bool] | None
SAID: tuple[Said, ...] = ({"device": "phone", "volume": 3}, {"device": "tv"}, {"page": "home"}, None)
DIGEST = ContextHash(KEYS).digest

halves = st.integers(-4, 4).map(lambda n: n / 2)
tables = st.lists(st.lists(halves, min_size=HASHED, max_size=HASHED), min_size=1, max_size=4)


@given(tables, st.lists(st.integers(0, 9), max_size=30))
def test_packed_rows_come_back(table: list[list[float]], which: list[int]) -> None:
    rows = np.array(table, np.float32)[np.array(which, np.int64) % len(table)].reshape(-1, HASHED)
    packed = packed_contexts(rows, DIGEST)
    found = unpacked_contexts(packed, len(rows))
    if not rows.any():
        assert packed == b""
        assert found is None
        return
    assert found is not None
    assert found.dtype == np.float32
    assert np.array_equal(found, rows)
    distinct = len(np.unique(rows[rows.any(axis=1)], axis=0))
    assert len(packed) == DIGEST_BYTES + 2 + 2 * HASHED * distinct + 2 * len(rows)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 20))
def test_other_bytes_are_an_error_or_rows(packed: bytes, n: int) -> None:
    try:
        found = unpacked_contexts(packed, n)
    except LearningLogError:
        return
    assert found is not None
    assert found.shape == (n, HASHED)
    assert np.isfinite(found).all()


def worker_of(keys: tuple[str, ...] = KEYS) -> Worker:
    return Worker(settings_of(ranker={"context_keys": list(keys)}))


def events() -> list[Ev]:
    said: list[Said] = [*SAID, {"device": "tablet"}]
    return [Ev(f"u{n}", f"e{n}", n, f"i{n}", context=one) for n, one in enumerate(said)]


def logged(worker: Worker, made: list[Ev]) -> list[bytes]:
    _, rows = worker.take(made)
    assert rows is not None
    return list(worker.learner.log.pack(rows))


def test_the_log_carries_the_hashed_context_of_accepted_events() -> None:
    worker = worker_of()
    bad = Ev("u9", "e9", 9, "", context={"device": "rejected"})
    made = [*events()[:2], bad, *events()[2:]]
    [value] = logged(worker, made)
    record = decode_record(value, "here")
    expected = ContextHash(KEYS).rows([one.context for one in events()])
    assert record.contexts is not None
    assert np.array_equal(record.contexts, expected)
    assert record.context[:DIGEST_BYTES] == DIGEST
    for text in (b"phone", b"tablet", b"home", b"device"):
        assert text not in value
    [batch] = learning_batches(record, worker.items.settings_digest, "here")
    assert batch.context is not None
    assert np.array_equal(batch.context, expected)
    assert np.array_equal(batch.slice(1, 3).context, expected[1:3])  # type: ignore[arg-type]
    assert np.array_equal(batch.take(np.array([4, 0])).context, expected[[4, 0]])  # type: ignore[arg-type]
    silent = batch.slice(0, 2)
    silent.context = None
    assert np.array_equal(LearningBatch.concat([silent, batch]).context, [*0 * expected[:2], *expected])  # type: ignore[arg-type]
    assert LearningBatch.concat([silent, silent]).context is None
    batch.context = expected.astype(np.float64)
    with pytest.raises(ValueError, match="context: float64"):
        batch.validate()


def test_without_keys_or_words_the_record_is_as_before() -> None:
    for worker, made in ((worker_of(()), events()), (worker_of(), [Ev("u", "e", 0, "i")])):
        [value] = logged(worker, made)
        record = decode_record(value, "here")
        assert record.context == b""
        assert record.contexts is None


def test_a_record_of_before_has_no_context() -> None:
    import msgspec

    [value] = logged(worker_of(), events())
    old = msgspec.msgpack.encode(msgspec.msgpack.decode(value)[:-1])
    record = decode_record(old, "here")
    assert record.contexts is None
    assert record.kinds.tolist() == [LEARN] * 5


def test_events_that_withdraw_others_have_none_and_change_no_other_s() -> None:
    worker = worker_of()
    worker.apply(worker.take(events())[1])
    after = [Ev("u0", "e10", 10, retracts="e0"), Ev("u1", "e11", 11, "i3", context={"device": "tv"})]
    record = decode_record(logged(worker, after)[0], "here")
    assert record.contexts is not None
    named = np.flatnonzero(record.contexts.any(axis=1))
    assert record.kinds[named].tolist() == [LEARN]
    assert [record.event_ids[n] for n in named.tolist()] == ["e11"]


def test_the_reader_takes_the_context_as_the_validator_does() -> None:
    """Escapes, other fields of that name, and records that the compiled reader leaves to the validator."""
    worker = worker_of()
    plain: dict[str, Any] = {"user_id": "u", "event_type": "good", "item_id": "i", "timestamp": T0}
    said: Said = {"device": 'phöne "x"', "volume": -0.5}
    texts = [
        json.dumps({**plain, "event_id": "a", "context": said}),
        json.dumps({**plain, "event_id": "b", "context": said}, ensure_ascii=False),
        json.dumps({**plain, "event_id": "c", "context": said}).replace('"context"', '"\\u0063ontext"'),
        json.dumps({**plain, "event_id": "d", "query": '"context": {"device": "tv"}'}),
        json.dumps({**plain, "event_id": "e", "context": None}),
    ]
    from tests.test_streams.user_model import record

    messages = [record(text.encode(), b"u", 0, n) for n, text in enumerate(texts)]
    batch = worker.intake.admit(messages, worker.shards)
    assert len(batch.accepted) == 5
    whole, none = ContextHash(KEYS).rows([said, None])
    assert np.array_equal(batch.contexts, [whole, whole, whole, none, none])


def test_lists_upon_events_and_requests_have_their_own_context() -> None:
    from tests.test_streams.test_feature_replay import Serving

    worker = Serving(settings_of(ranker={"context_keys": list(KEYS)}))
    worker.learn([Ev(f"w{n}", f"x{n}", n, f"i{n}") for n in range(6)])
    worker.pipeline.served.clear()  # type: ignore[attr-defined]
    asked: list[tuple[str | None, list[str] | None, Said]] = [
        ("u0", None, {"device": "phone"}),
        (None, ["i0", "i1"], {"device": "tv", "volume": 2}),
        ("u1", None, None),
    ]
    requests = [
        AcceptedRequest(Request(request_id=f"r{n}", user_id=u, session_items=s, context=c), 0, n, T0, 0)
        for n, (u, s, c) in enumerate(asked)
    ]
    worker.answer(events(), requests)
    found = [np.frombuffer(one.context, np.float32)[-HASHED:] for one in worker.pipeline.served]  # type: ignore[attr-defined]
    said = [one.context for one in events()] + [c for *_, c in asked]
    assert np.array_equal(found, ContextHash(KEYS).rows(said))


def test_contexts_hashed_of_other_keys_are_not_trained_on() -> None:
    record = decode_record(logged(worker_of(), events())[0], "here")
    for keys, is_read in ((KEYS, True), (("device",), False), ((), False)):
        training = TrainingLog(10_000, context_keys=keys)
        training.add(record, 0, "here")
        data = training.interactions()
        assert data.context_keys == keys
        assert bool(data.column("context").any()) is is_read
    assert record.context


def test_the_trainer_keeps_each_row_s_context_whatever_is_cut() -> None:
    data = TrainingLog(10_000, context_keys=KEYS)._data
    record: LogRecord = decode_record(logged(worker_of(), events())[0], "here")
    append_record(data, record, 0)
    append_record(data, record, 1)
    expected = np.tile(ContextHash(KEYS).rows([one.context for one in events()]), (2, 1))
    assert np.array_equal(data.contexts.rows[data.column("context")], expected)
    kept = data.chosen(np.array([7, 4, 1])).newest(2)
    assert kept.context_keys == KEYS
    assert np.array_equal(kept.contexts.rows[kept.column("context")], expected[[4, 1]])
    assert len(kept.contexts) == 3, "of rows that are left out nothing is kept"
    assert kept.column("context").tolist() == [1, 2], "the digest of a training needs one order"
    silent = data.chosen(np.flatnonzero(data.column("context") == 0))
    assert not silent.column("context").any()


def test_a_context_of_another_width_is_refused() -> None:
    data = TrainingLog(10)._data
    with pytest.raises(ValueError, match=r"context: shape \(1, 3\), expected \(1, 16\)"):
        data.append(
            user=[1], item_ids=["a"], item=[0], time_ms=[1], event_type=[0], weight=[1.0], offset=0,
            context=np.zeros((1, 3), np.float32),
        )  # fmt: skip
    assert not len(data)
