"""Events of one time stand in a fresh order in each epoch, and nothing else moves; rows named for judging are
held out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from serving.ranker.inputs import gap_buckets
from serving.ranker.layout import lay_out
from serving.training.dataset import EvaluationSlice, Sequences
from serving.training.settings import TrainerSettings
from serving.training.windows import fill, hold_out, training_batches, with_ties_shuffled


def _sequences(times: list[list[int]]) -> Sequences:
    flat = np.concatenate([np.array(user, dtype=np.int64) for user in times])
    starts = np.concatenate([[0], np.cumsum([len(user) for user in times])]).astype(np.int64)
    n = len(flat)
    return Sequences(starts, np.arange(1, n + 1), np.arange(n) % 3 + 1, flat, np.arange(n) % 2 == 0)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5), st.integers(0, 9)
)
def test_only_neighbours_of_one_user_and_time_change_places(times: list[list[int]], seed: int) -> None:
    before = _sequences(times)
    after = with_ties_shuffled(before, np.random.default_rng(seed))
    assert np.array_equal(after.times_ms, before.times_ms)
    assert np.array_equal(after.starts, before.starts)
    origin = after.items - 1
    assert np.array_equal(after.types, before.types[origin])
    assert np.array_equal(after.targets, before.targets[origin])
    run = np.cumsum(np.diff(before.times_ms, prepend=-1) != 0)
    user = np.searchsorted(before.starts, np.arange(len(origin)), side="right")
    assert np.array_equal(run[origin], run)
    assert np.array_equal(user[origin], user)


def test_every_order_of_a_tie_is_as_likely() -> None:
    rng = np.random.default_rng(1)
    sequences = _sequences([[5, 7, 7, 7, 9]])
    found = [tuple(with_ties_shuffled(sequences, rng).items.tolist()) for _ in range(1200)]
    orders = {order: found.count(order) for order in set(found)}
    assert len(orders) == 6
    assert min(orders.values()) > 140
    assert all(order[0] == 1 and order[-1] == 5 for order in orders)


def test_epochs_differ_by_their_ties_only_where_the_setting_says_so() -> None:
    sequences = _sequences([[3] * 6, [4, 5, 6]])
    for is_shuffled in (True, False):
        settings = TrainerSettings(history_length=16, shuffle_ties=is_shuffled)
        rng = np.random.default_rng(2)
        epochs = [
            {
                tuple(row.tolist())
                for batch in training_batches(sequences, settings, rng)
                for row in batch.inputs
            }
            for _ in range(4)
        ]
        assert any(epoch != epochs[0] for epoch in epochs) == is_shuffled


def test_rows_named_for_judging_are_held_out_with_all_that_their_user_had_before() -> None:
    sequences = _sequences([[1, 2, 3, 4], [5, 6, 7]])  # items 1 to 7; those at odd places are targets
    held = np.array([False, False, True, True, False, False, True])
    fit, [judged] = hold_out(sequences, held, TrainerSettings(history_length=16))
    assert fit.items.tolist() == [1, 2, 5, 6]
    assert fit.starts.tolist() == [0, 2, 4]
    targets = judged.batch.targets[judged.batch.targets > 0]
    assert targets.tolist() == [3, 7]
    seen = {n: sorted(judged.seen_item[judged.seen_target == n].tolist()) for n in (0, 1)}
    assert seen == {0: [1, 2], 1: [5, 6]}


def test_a_window_has_the_gaps_that_service_gives_also_where_it_begins_amid_a_history() -> None:
    """Service is the worker's: it gathers so many recent items as the ranker reads, and lays them out."""
    sequences = _sequences([[1000, 3000, 3000, 90_000, 95_000], [7000, 8000]])
    asked = EvaluationSlice(
        item_ids=tuple("0abcdefg"), items=sequences.items, types=sequences.types, times_ms=sequences.times_ms,
        rows=np.arange(7), starts=np.array([0, 0, 5]), positions=np.array([4, 2, 6]),
    )  # fmt: skip
    served = np.stack([_served_gaps_s(sequences, rows, 2) for rows in ([2, 3], [0, 1], [5])])
    np.testing.assert_array_equal(asked.history_gaps_s(2), served)
    assert served.tolist() == [[0.0, 87.0], [0.0, 2.0], [0.0, 0.0]]
    windows = np.array([[2, 4, 5], [0, 2, 3], [5, 6, 7]])  # inputs: rows 2 and 3, 0 and 1, 5
    batch = fill(sequences, windows, sequences.targets)
    assert batch.gaps[:2, 1:].tolist() == gap_buckets(served[:2]).tolist() == [[0, 4], [0, 1]]
    assert batch.gaps[2].tolist() == [0, 0, 0]
    later = fill(sequences, np.array([[3, 4, 5]]), sequences.targets)
    assert later.gaps[0, 1] == gap_buckets(asked.history_gaps_s(1))[0, 0] == 0


def _served_gaps_s(sequences: Sequences, rows: list[int], length: int) -> npt.NDArray[np.float32]:
    """float32[length] of a user whose events up to now are `rows`, oldest first."""
    newest_first = np.array([rows[::-1]])
    recent = np.pad(newest_first, ((0, 0), (0, length - len(rows))), constant_values=-1).astype(np.int32)
    times_ms = np.where(recent >= 0, sequences.times_ms[recent], -1)
    history, types = np.empty((1, length), np.int64), np.empty((1, length), np.int64)
    gaps_s, nothing = np.empty((1, length), np.float32), np.zeros((1, 1), np.int32)
    places = np.arange(1, len(sequences.items) + 1, dtype=np.int32)
    lay_out(
        recent, np.zeros_like(recent), times_ms, nothing, places, np.ones(1, np.int64), history, types,
        gaps_s, nothing.astype(np.int64),
    )  # fmt: skip
    found: npt.NDArray[np.float32] = gaps_s[0]
    return found


def test_what_a_held_out_target_is_not_ranked_among_is_bounded() -> None:
    """One user with 30,000 events; of the newest 300 every other is a target."""
    sequences = _sequences([list(range(30_000))])
    held = np.zeros(30_000, dtype=np.bool_)
    held[-300:] = True
    _, batches = hold_out(sequences, held, TrainerSettings(history_length=10))
    pairs = np.concatenate([batch.seen_target for batch in batches])
    assert sum(int((batch.batch.targets > 0).sum()) for batch in batches) == 150
    assert len(pairs) == 150 * 2000
