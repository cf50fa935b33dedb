"""Windows of user sequences: all positions of a window are trained at once, never prefix by prefix.

A window is (begin, first, end), rows of `Sequences`: its inputs are the begin mark and items `begin .. end -
2`, and it learns rows `first .. end - 1` as the next item, each from what stands before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.ranker.inputs import gap_buckets
from serving.training.dataset import Bool, Float32, Int64, Sequences
from serving.training.settings import TrainerSettings

_LENGTH_NOISE = 4.0
"""Columns of noise on a window's length when batches are cut by length, so that an epoch's batches are not
the last's."""

_MOST_SEEN = 2000
"""Newest events of a user whose items a held-out target is not ranked among: workers keep as many out of a
list, and one robot's million must not be held once for each target."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens int64[B, T] (column 0 the begin mark, 0 on the right) by item, event type and gap bucket;
    targets int64[B, T] with 0 where nothing is learned, and their event types and values (NaN: none)."""

    inputs: Int64
    types: Int64
    gaps: Int64
    targets: Int64
    target_types: Int64
    rows: Int64  # [B, T] row of each target in the sequences
    target_values: Float32
    context: Float32 | None = None
    """float32[B, T, H]: hashed, of the list before each target, where the log has any."""

    def part(self, number: int, of: int) -> Batch:
        """Every `of`-th window from `number` on, at the same width: one process's share."""
        if of == 1:
            return self
        parts: dict[str, Any] = {
            name: part[number::of] for name in Batch.__slots__ if (part := getattr(self, name)) is not None
        }
        return Batch(**parts)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One batch of held-out targets, with the pairs (target's number, item) that its user had before."""

    batch: Batch
    seen_target: Int64
    seen_item: Int64


def hold_out_newest(train: Sequences, settings: TrainerSettings) -> tuple[Sequences, list[HeldOut]]:
    """Split off the newest targets by time: what is left to fit on, and the held-out batches for early
    stopping."""
    order = np.argsort(train.times_ms, kind="stable")
    target_rows = order[train.targets[order]]
    wanted = min(settings.slice_max_events, int(len(target_rows) * settings.validation_fraction))
    if wanted < 1:
        return train, []
    cut_row = target_rows[-wanted]
    newer = np.zeros(len(order), dtype=np.bool_)
    newer[order[np.flatnonzero(order == cut_row)[0] :]] = True
    return hold_out(train, newer, settings)


def hold_out(train: Sequences, held: Bool, settings: TrainerSettings) -> tuple[Sequences, list[HeldOut]]:
    """Split off the rows `held` bool[N]: what is left to fit on, and those that are targets, in batches."""
    keep = ~held
    lengths = np.add.reduceat(keep.astype(np.int64), train.starts[:-1])
    starts = np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)
    fit = train.chosen(keep, starts)
    return fit, list(_held_out(train, held & train.targets, settings))


def training_batches(
    sequences: Sequences, settings: TrainerSettings, rng: np.random.Generator
) -> Iterator[Batch]:
    """One epoch: windows cut at a fresh random phase a user, batched by like length, batches in random
    order. With `settings.shuffle_ties`, what a user did at one time stands in a fresh random order."""
    if settings.shuffle_ties:
        sequences = with_ties_shuffled(sequences, rng)
    windows = cut_windows(
        sequences.starts, settings.history_length, min(settings.window_stride, settings.history_length), rng
    )
    lengths = windows[:, 2] - windows[:, 0]
    by_length = np.argsort(lengths + rng.uniform(0.0, _LENGTH_NOISE, len(lengths)), kind="stable")
    size = settings.batch_windows
    for number in rng.permutation(-(-len(windows) // size)):
        chosen = windows[by_length[number * size : (number + 1) * size]]
        batch = fill(sequences, chosen, sequences.targets)
        if batch.targets.any():
            yield batch


def with_ties_shuffled(sequences: Sequences, rng: np.random.Generator) -> Sequences:
    """The same events, those of one user and one time that follow each other in random order.

    Their order in the log says nothing, so an epoch that repeats it learns it by heart: half of
    MovieLens-100K's events share their time with another of their user.
    """
    new = np.ones(len(sequences.items), dtype=np.bool_)
    new[1:] = sequences.times_ms[1:] != sequences.times_ms[:-1]
    new[sequences.starts[:-1]] = True
    order = np.lexsort((rng.random(len(new)), np.cumsum(new)))
    return sequences.chosen(order, sequences.starts)


def cut_windows(starts: Int64, length: int, stride: int, rng: np.random.Generator) -> Int64:
    """int64[n, 3] windows that learn every row once, `stride` rows each, with inputs of `length` items at
    most."""
    sizes = np.diff(starts)
    phases = rng.integers(1, stride + 1, len(sizes))
    phases = np.where(sizes <= length + 1, sizes, phases)
    counts = 1 + np.maximum(0, -(-(sizes - phases) // stride))
    user = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    end = starts[user] + np.minimum(phases[user] + number * stride, sizes[user])
    first = np.where(number == 0, starts[user], starts[user] + phases[user] + (number - 1) * stride)
    begin = np.maximum(starts[user], end - 1 - length)
    return np.stack([begin, first, end], axis=1).astype(np.int64)


def fill(sequences: Sequences, windows: Int64, learn: Bool) -> Batch:
    """The inputs and targets of some windows; `learn` says which rows count as targets."""
    begin, first, end = windows[:, 0:1], windows[:, 1:2], windows[:, 2:3]
    rows = begin + np.arange(int((end - begin).max()))[None, :]
    inside = rows < end
    rows = np.where(inside, rows, 0)
    before = np.maximum(rows - 1, 0)
    token = inside.copy()
    token[:, 0] = False
    inputs = np.where(token, sequences.items[before], 0)
    types = np.where(token, sequences.types[before], 0)
    gaps_ms = sequences.times_ms[before] - sequences.times_ms[np.maximum(before - 1, 0)]
    gaps = np.where(token, gap_buckets((gaps_ms / 1000.0).astype(np.float32)), 0)
    gaps[:, 1:2] = 0  # of the oldest, as in service, where nothing is known of what was before it
    learned = inside & (rows >= first) & learn[rows]
    targets = np.where(learned, sequences.items[rows], 0)
    target_types = np.where(learned, sequences.types[rows], 0)
    values = np.full(rows.shape, np.nan, dtype=np.float32)
    if sequences.values is not None:
        values = np.where(learned, sequences.values[rows], values)
    context = None if sequences.contexts is None else _context(sequences, rows, token)
    return Batch(inputs, types, gaps, targets, target_types, rows, values, context)


def _context(sequences: Sequences, rows: Int64, token: Bool) -> Float32:
    """float32[B, T, H] of the lists before the rows int64[B, T]: the event's own before it, or, where the
    list was made upon it, that behind which the row stands; `token` bool[B, T] says where there is one."""
    assert sequences.context is not None
    assert sequences.contexts is not None
    if sequences.upon_event is not None:
        rows = rows - (token & sequences.upon_event[rows])
    found: Float32 = sequences.contexts[sequences.context[rows]]
    return found


def _held_out(train: Sequences, held: Bool, settings: TrainerSettings) -> Iterator[HeldOut]:
    windows = cut_windows(
        train.starts, settings.history_length, max(1, settings.history_length // 2), np.random.default_rng(0)
    )
    running = np.concatenate([[0], np.cumsum(held)])
    windows = windows[running[windows[:, 2]] > running[windows[:, 1]]]
    for at in range(0, len(windows), settings.batch_windows):
        batch = fill(train, windows[at : at + settings.batch_windows], held)
        rows = batch.rows[batch.targets > 0]
        user = train.starts[np.searchsorted(train.starts, rows, side="right") - 1]
        first = np.maximum(user, rows - _MOST_SEEN)
        seen = [train.items[s:r] for s, r in zip(first.tolist(), rows.tolist(), strict=True)]
        sizes = np.array([len(s) for s in seen], dtype=np.int64)
        yield HeldOut(batch, np.repeat(np.arange(len(rows)), sizes), np.concatenate([*seen, rows[:0]]))
