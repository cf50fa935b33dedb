"""The item models' kernels: against River, as the catalogue grows, and the memory that an item takes.

    python -m benchmarks.item_models [--quick] [--json PATH]

One core, processor time (so that a busy machine changes little), seeded streams made outside the timed part,
both sides of a ratio in one run, round by round, medians of five rounds. Quote the ratios: the times belong
to the machine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray
from river import reco

from online_models import ItemState, LearningBatch, ModelSettings, kernels
from online_models.item_state import warm_up
from online_models.settings import FactorSettings

ROUNDS = 5
DIMENSION = 32
NEGATIVES = 8
WINDOW = 10
BATCH = 1_000
RIVER_EVENTS = 2_000
"""River is slow: so many of the same stream's events are enough to time it."""
SIZES = (1_000, 10_000, 100_000, 1_000_000)
NEIGHBOURS = 50


def stream(
    n: int,
    items: int,
    seed: int,
    window: int = WINDOW,
    negatives: int = NEGATIVES,
    dimension: int = DIMENSION,
) -> LearningBatch:
    """n events of popularity 1 / rank**0.8 over `items` items, with recent items of the same distribution."""
    rng = np.random.default_rng(seed)
    mass = np.cumsum(np.arange(1, items + 1, dtype=np.float64) ** -0.8)
    drawn = np.searchsorted(mass / mass[-1], rng.random(n * (window + 1))).astype(np.int32)
    return LearningBatch(
        item_ids=[f"item-{k}" for k in range(items)],
        item=drawn[:n],
        recent=drawn[n:].reshape(n, window),
        time_ms=1_700_000_000_000 + 1_000 * np.arange(n, dtype=np.int64),
        weight=np.ones(n, dtype=np.float32),
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=rng.normal(0, 0.1, (n, dimension)).astype(np.float32),
        user_after=rng.normal(0, 0.1, (n, dimension)).astype(np.float32),
        negatives=rng.integers(0, items, (n, negatives)).astype(np.int32),
    )


def by_row(state: ItemState, batch: LearningBatch) -> LearningBatch:
    """The batch with its recent items and negatives named by row, as the learning log names known items."""
    rows = np.append(state.items.rows(batch.item_ids), -1)
    batch.recent = np.where(rows[batch.recent] >= 0, -2 - rows[batch.recent], -1).astype(np.int32)
    batch.negatives = np.where(rows[batch.negatives] >= 0, -2 - rows[batch.negatives], -1).astype(np.int32)
    batch.table_epoch = state.epoch
    return batch.slice(0, len(batch))  # cuts the ids to those of the events


def cpu_us(act: Callable[[], Any], events: int) -> float:
    """Microseconds of processor time per event."""
    started = time.process_time()
    act()
    return (time.process_time() - started) / events * 1e6


def _state(items: int, max_items: int | None = None, dimension: int = DIMENSION) -> ItemState:
    """A state in which each of `items` items has had one event."""
    factors = FactorSettings(dimension=dimension)
    state = ItemState(ModelSettings(factors=factors, max_items=max_items or max(items * 2, 1024)))
    for start in range(0, items, 50_000):
        size = min(50_000, items - start)
        first = stream(size, 1, 0, dimension=dimension)
        first.item_ids = [f"item-{k}" for k in range(start, start + size)]
        first.item, first.recent[:], first.negatives[:] = np.arange(size, dtype=np.int32), -1, -1
        state.apply(first)
    return state


def _batches(state: ItemState, log: LearningBatch, size: int) -> list[LearningBatch]:
    return [by_row(state, log.slice(start, start + size)) for start in range(0, len(log), size)]


def against_river(events: int) -> dict[str, Any]:
    """River's FunkMF.learn_one beside the kernels of the item factors, and beside the whole state.

    FunkMF moves one user and one item an event and draws no negatives: `isgd` is that work (the owner's
    kernel and the replicas'). The whole state learns `NEGATIVES` negatives more with each event, besides
    co-visitation and popularity: it is given by event, and by the pairs that FunkMF would have to learn.
    """
    items, users = 2_000, 1_000
    log = stream(events, items, 1)
    who = [f"user-{k}" for k in np.random.default_rng(2).integers(0, users, RIVER_EVENTS).tolist()]
    what = [log.item_ids[index] for index in log.item[:RIVER_EVENTS].tolist()]
    river_model, state = reco.FunkMF(n_factors=DIMENSION, seed=1), _state(items)
    batches = _batches(state, log, BATCH)
    factors = np.random.default_rng(3).normal(0, 0.1, (items, DIMENSION)).astype(np.float32)
    vectors, moved = factors[log.item], log.user_before.copy()
    hashes = np.arange(events, dtype=np.uint64)

    def learn_river() -> None:
        for user, item in zip(who, what, strict=True):
            river_model.learn_one(user, item, 1.0)

    def learn_factors(negatives: int) -> None:
        drawn = np.empty((events, negatives), dtype=np.int32)
        untried = np.zeros(len(factors), dtype=np.bool_)
        rates = 0.05, 0.01
        kernels.isgd_learn_users(
            log.item, vectors, log.weight, hashes, factors, untried, *rates, moved, drawn
        )
        none = np.empty((0, 4), dtype=np.int32)
        kernels.isgd_apply(
            none, factors[:0], log.item, drawn, log.weight, log.user_before, factors, 0.05, 0.01
        )

    lanes: dict[str, tuple[Callable[[], Any], int]] = {
        "river": (learn_river, RIVER_EVENTS),
        "isgd": (lambda: learn_factors(0), events),
        "isgd_negatives": (lambda: learn_factors(NEGATIVES), events),
        "state": (lambda: [state.apply(batch) for batch in batches], events),
    }
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for _ in range(ROUNDS + 1):  # the first round compiles, and fills what is learned
        for name, (act, n) in lanes.items():
            times[name].append(cpu_us(act, n))
    us = {name: statistics.median(values[1:]) for name, values in times.items()}
    found: dict[str, Any] = {"events": events, **{f"{name}_us": value for name, value in us.items()}}
    for name, pairs in (("isgd", 1), ("isgd_negatives", 1 + NEGATIVES), ("state", 1 + NEGATIVES)):
        found[f"{name}_ratio"] = us["river"] / us[name]
        found[f"{name}_pair_ratio"] = us["river"] / us[name] * pairs
    return found


def by_batch_size(events: int) -> dict[str, float]:
    """Microseconds per interaction of the whole state, by the size of the batches."""
    state = _state(2_000)
    found = {}
    for size in (1, 10, 100, 1_000, 10_000):
        log = stream(min(events, size * 1_000), 2_000, 3)
        batches = _batches(state, log, size)
        rounds = []
        for _ in range(ROUNDS + 1):
            rounds.append(cpu_us(lambda todo=batches: [state.apply(batch) for batch in todo], len(log)))
        found[str(size)] = statistics.median(rounds[1:])
    return found


def growth(events: int, sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """Microseconds per event as the catalogue grows: events on known items; new items; new items in a full
    table, each in the place of an idle one."""
    found = []
    for items in sizes:
        state = _state(items)
        same_reach = stream(
            events * (ROUNDS + 1), min(items, 1_000), 5
        )  # the same rows however many there are
        stride = items // min(items, 1_000)
        same_reach.item_ids = [f"item-{k * stride}" for k in range(min(items, 1_000))]
        parts = [
            _batches(state, same_reach.slice(k * events, (k + 1) * events), BATCH) for k in range(ROUNDS + 1)
        ]
        known = _rounds(state, parts)
        fresh = _rounds(state, [_new_items(state, events, f"new{k}", items) for k in range(ROUNDS + 1)])
        del state
        full = _state(items, max_items=items)
        turnover = _rounds(full, [_new_items(full, events, f"late{k}", items) for k in range(ROUNDS + 1)])
        found.append(
            {
                "items": items,
                "known_item_us": statistics.median(known),
                "new_item_us": statistics.median(fresh),
                "new_item_in_full_table_us": statistics.median(turnover),
                "evictions": full.evictions,
            }
        )
    return found


def _new_items(state: ItemState, events: int, name: str, items: int) -> list[LearningBatch]:
    """Events each on an item never seen, with recent items out of all the catalogue."""
    log = stream(events, items, 7)
    rows = np.append(state.items.rows(log.item_ids), -1)[log.recent]
    log.recent = np.where(rows >= 0, -2 - rows, -1).astype(np.int32)
    log.table_epoch, log.negatives[:] = state.epoch, -1
    log.item_ids, log.item = [f"{name}-{k}" for k in range(events)], np.arange(events, dtype=np.int32)
    return [log.slice(start, start + BATCH) for start in range(0, events, BATCH)]


def _rounds(state: ItemState, parts: list[list[LearningBatch]]) -> list[float]:
    rounds = []
    for batches in parts:
        n = sum(len(batch) for batch in batches)
        rounds.append(cpu_us(lambda todo=batches: [state.apply(batch) for batch in todo], n))
    return rounds[1:]


def memory(items: int, dimension: int = 64) -> dict[str, float]:
    """Bytes per item with `NEIGHBOURS` co-visited neighbours, beside the raw arrays: the factor (4 d), a key
    and a weight for each neighbour (8 each), the count and both norms (16), both popularity counts (16).
    Resident memory is what `items` more of them take when as many are there already: then scratch memory and
    the allocator have had their share."""
    factors = FactorSettings(dimension=dimension)
    warm_up(ModelSettings(factors=factors))
    state = ItemState(ModelSettings(factors=factors, max_items=max(1_000_000, 2 * items)))
    process, rss = psutil.Process(), [psutil.Process().memory_info().rss]
    for ids in ([f"item-{k}" for k in range(items)], [f"more-{k}" for k in range(items)]):
        _meet_neighbours(state, ids, dimension)
        rss.append(process.memory_info().rss)
    resident = (rss[2] - rss[1]) / items
    used = state.nbytes()
    raw = 4 * dimension + 8 * NEIGHBOURS + 16 + 16
    entries = int(state.to_arrays()["covisitation.lengths"].sum()) / (2 * items)
    per_item = {f"{name}_bytes": value / (2 * items) for name, value in used.items()}
    total = sum(used.values()) / (2 * items)
    return {
        "items": items, "neighbours": entries, "raw_bytes": raw, **per_item, "arrays_bytes": total,
        "arrays_ratio": total / raw, "resident_bytes": resident, "resident_ratio": resident / raw,
        "first_items_bytes_each": (rss[1] - rss[0]) / items,
    }  # fmt: skip


def _meet_neighbours(state: ItemState, ids: list[str], dimension: int) -> None:
    """Each of `ids` meets `NEIGHBOURS` of them."""
    items = len(ids)
    order = np.random.default_rng(11).permutation(items).astype(np.int32)
    place = np.empty(items, dtype=np.int32)
    place[order] = np.arange(items, dtype=np.int32)
    for lap in range(-1, NEIGHBOURS // 2 // 5):  # an item meets the five that are 5 lap + 1 to 5 behind it
        for start in range(0, items, 20_000):
            state.apply(_ring(ids, order[start : start + 20_000], place, order, lap, dimension))


def _ring(
    ids: list[str], items: NDArray[np.int32], place: NDArray[np.int32], order: NDArray[np.int32], lap: int,
    dimension: int,
) -> LearningBatch:  # fmt: skip
    batch = stream(len(items), 1, 0, window=5, negatives=0, dimension=dimension)
    behind = order[(place[items][:, None] - 5 * lap - np.arange(1, 6)) % len(order)]
    batch.item_ids, batch.item = ids, items
    batch.recent = behind if lap >= 0 else np.full_like(behind, -1)
    return batch.slice(0, len(batch))


def measure(quick: bool = False) -> dict[str, Any]:
    """All of it, as a dictionary that JSON can hold.

    river: events; microseconds per event: river_us, isgd_us (kernels of the user's and the item's step),
    isgd_negatives_us (8 negatives as well), state_us (the replica's whole state: 8 negatives, window 10);
    *_ratio = river_us / that, by event, and *_pair_ratio, by (user, item) pair learned (9 an event).
    batch_us: microseconds per interaction of the whole state by batch size ("1" to "10000").
    growth: for each number of items, microseconds per event on known items, on new ones, and on new ones in a
    full table (each with an eviction), and how many evictions there were.
    memory: bytes per item by model, arrays_bytes in all, raw_bytes, arrays_ratio = arrays / raw; resident_*
    is the process's growth, ids, dictionary and allocator included.
    """
    warm_up(ModelSettings(factors=FactorSettings(dimension=DIMENSION)))
    events = 5_000 if quick else 50_000
    return {
        "memory": memory(20_000 if quick else 200_000),
        "river": against_river(events),
        "batch_us": by_batch_size(events),
        "growth": growth(2_000 if quick else 10_000, SIZES[:2] if quick else SIZES),
        "settings": msgspec.to_builtins(ModelSettings()),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes: to see that it runs, not to quote.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result to this file too.")
def main(quick: bool, path: Path | None) -> None:
    """Measure the item models' kernels; prints JSON."""
    result = json.dumps(measure(quick), indent=1)
    if path is not None:
        path.write_text(result + "\n")
    click.echo(result)


if __name__ == "__main__":
    main()
