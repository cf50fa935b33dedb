"""The split by time and the windows, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.training.dataset import InteractionLog, NotEnoughDataError, split_by_time
from serving.training.settings import TrainerSettings
from serving.training.windows import cut_windows, fill, hold_out_newest, training_batches
from tests.test_serving.ranker_cases import markov_log

SETTINGS = TrainerSettings(
    min_interactions=1, min_count=1, slice_fraction=0.2, validation_fraction=0.2, history_length=4
)

rows = st.lists(
    st.tuples(
        st.integers(0, 4), st.integers(0, 9), st.integers(0, 30), st.sampled_from([1.0, 1.0, 0.5, -1.0, 0.0])
    ),
    min_size=20,
    max_size=80,
)
Rows = list[tuple[int, int, int, float]]


def log_of(events: Rows) -> InteractionLog:
    log = InteractionLog()
    for offset, (user, item, time_ms, weight) in enumerate(events):
        log.append(
            user=[user],
            item_ids=[f"i{item}"],
            item=[0],
            time_ms=[time_ms],
            event_type=[0],
            weight=[weight],
            offset=offset,
        )
    return log


def held_out_rows(events: Rows) -> list[int]:
    """Log rows of the newest fifth of the positive interactions, by (time, row)."""
    positive = sorted((e[2], row) for row, e in enumerate(events) if e[3] > 0)
    return [row for _, row in positive[len(positive) - int(len(positive) * SETTINGS.slice_fraction) :]]


@given(rows)
def test_split_equals_the_plain_loop(events: Rows) -> None:
    held = held_out_rows(events)
    if not held:
        return
    try:
        split = split_by_time(log_of(events), SETTINGS)
    except NotEnoughDataError:
        return
    oldest = min((events[row][2], row) for row in held)
    train = [e for row, e in enumerate(events) if e[3] != 0 and (e[2], row) < oldest]
    assert set(split.vocabulary) == {f"i{e[1]}" for e in train if e[3] > 0}
    expected = []
    for row in held:
        user, item, _, _ = events[row]
        seen = [f"i{e[1]}" for e in events[:row] if e[0] == user and e[3] != 0]
        if f"i{item}" not in seen:
            expected.append((seen, f"i{item}"))
    ids = split.newest.item_ids
    got = [
        ([ids[k] for k in split.newest.seen(e)], ids[split.newest.targets[e]])
        for e in range(len(split.newest))
    ]
    assert got == expected
    by_user: dict[int, list[str]] = {}
    for e in train:
        by_user.setdefault(e[0], []).append(f"i{e[1]}" if f"i{e[1]}" in split.vocabulary else "rare")
    names = [*split.vocabulary, "rare"]
    sequences = [
        [names[k - 1] for k in split.train.items[a:b]]
        for a, b in zip(split.train.starts[:-1], split.train.starts[1:], strict=True)
    ]
    assert sequences == [by_user[user] for user in sorted(by_user)]


@given(rows, st.integers(0, 9))
def test_nothing_that_came_after_is_learned(events: Rows, other: int) -> None:
    """Whatever the held-out events were, the training batches are the same."""
    held = set(held_out_rows(events))
    if not held:
        return
    changed = [(u, other, t, w) if row in held else (u, i, t, w) for row, (u, i, t, w) in enumerate(events)]
    try:
        splits = [split_by_time(log_of(each), SETTINGS) for each in (events, changed)]
    except NotEnoughDataError:
        return
    assert splits[0].vocabulary == splits[1].vocabulary
    batches = [list(training_batches(split.train, SETTINGS, np.random.default_rng(3))) for split in splits]
    assert len(batches[0]) == len(batches[1])
    for one, two in zip(*batches, strict=True):
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.targets, two.targets)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(2, 9),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_windows_learn_every_row_once_from_its_predecessors(
    sizes: list[int], length: int, stride: int, seed: int
) -> None:
    starts = np.concatenate([[0], np.cumsum(sizes)])
    items = np.arange(1, starts[-1] + 1)
    split_like = _sequences(starts, items)
    windows = cut_windows(starts, length, min(stride, length), np.random.default_rng(seed))
    batch = fill(split_like, windows, split_like.targets)
    assert batch.inputs.shape[1] <= length + 1
    learned = batch.targets[batch.targets > 0]
    np.testing.assert_array_equal(np.sort(learned), items)
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        assert inputs[0] == 0
        for column in np.flatnonzero(targets):
            first_of_user = targets[column] - 1 in starts
            assert inputs[column] == (0 if first_of_user else targets[column] - 1)


def _sequences(starts: np.ndarray, items: np.ndarray):  # type: ignore[no-untyped-def]
    from serving.training.dataset import Sequences

    ones = np.ones(len(items), dtype=np.int64)
    return Sequences(starts, items, ones, np.arange(len(items)), ones.astype(np.bool_))


def test_early_stopping_looks_at_the_newest_part_only() -> None:
    split = split_by_time(markov_log(users=50), TrainerSettings(min_count=1, min_interactions=100))
    settings = TrainerSettings(validation_fraction=0.1)
    fit, held_out = hold_out_newest(split.train, settings)
    held = np.concatenate([part.batch.rows[part.batch.targets > 0] for part in held_out])
    assert len(held) == int(len(split.train.items) * 0.1)
    assert len(fit.items) + len(held) == len(split.train.items)
    assert split.train.times_ms[held].min() >= fit.times_ms.max()
    for part in held_out:
        targets = part.batch.rows[part.batch.targets > 0]
        for number, row in enumerate(targets):
            user = np.searchsorted(split.train.starts, row, side="right") - 1
            before = split.train.items[split.train.starts[user] : row]
            np.testing.assert_array_equal(part.seen_item[part.seen_target == number], before)


def test_append_refuses_what_does_not_fit() -> None:
    log = InteractionLog()
    good = {
        "user": [1],
        "item_ids": ["a"],
        "item": [0],
        "time_ms": [1],
        "event_type": [0],
        "weight": [1.0],
        "offset": 0,
    }
    for column, value, message in (
        ("item", [1], "outside the 1 item ids"),
        ("weight", [float("nan")], "not finite"),
        ("time_ms", [1, 2], r"shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            log.append(**{**good, column: value})  # type: ignore[arg-type]
    assert len(log) == 0


def test_too_little_data_says_how_much() -> None:
    with pytest.raises(NotEnoughDataError, match=r"20 interactions.*5000 asked for"):
        split_by_time(markov_log(users=4, steps=5), TrainerSettings(min_interactions=5000))
