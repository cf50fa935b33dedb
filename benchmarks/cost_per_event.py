"""Cost per event of every model: to score the whole catalogue, and to learn, alone and in batches.

    python -m benchmarks.cost_per_event [--models covisitation,fusion] [--events 20000] [--json PATH]

One core, processor time of this thread, microseconds, best of five rounds; one process, so that models are
compared with each other. The stream: 943 users with tastes over 1,682 items, popularity 1 / rank**0.8, about
as dense as MovieLens-100K. `growth` is the cost of learning in batches when the table holds 100,000 items,
over that when it holds 1,000, with events spread over all of them. For co-visitation, `kernels` is what its
compiled part takes, without Python's calls: a thousand users scored, a thousand events learned, at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from online_models.base import OnlineRanker
from online_models.covisitation import CoVisitation
from online_models.registry import MODEL_NAMES, make_model

ITEMS = 1682
USERS = 943
ROUNDS = 5
BATCH = 1000
ALONE = 200
SIZES = (1_000, 100_000)

Event = tuple[str, str, float, dict[str, Any]]


def stream(n: int, items: int, seed: int = 0) -> list[Event]:
    """n events of USERS users: half of them near the user's own taste, half by popularity."""
    rng = np.random.default_rng(seed)
    mass = np.cumsum(np.arange(1, items + 1, dtype=np.float64) ** -0.8)
    popular = np.searchsorted(mass / mass[-1], rng.random(n))
    user, taste = rng.integers(0, USERS, size=n), rng.integers(0, items, size=USERS)
    near = (taste[user] + rng.geometric(0.02, size=n)) % items
    item = np.where(rng.random(n) < 0.5, near, popular)
    return [
        (f"u{user[k]}", f"i{item[k]}", 1.0, {"timestamp": 1_700_000_000_000 + 60_000 * k}) for k in range(n)
    ]


def best_us(work: Callable[[Sequence[Event]], None], events: Sequence[Event], size: int) -> float:
    """Least processor time of an event, over rounds of `size` new events each."""
    found = []
    for start in range(0, ROUNDS * size, size):
        part = events[start : start + size]
        began = time.thread_time()
        work(part)
        found.append((time.thread_time() - began) / len(part))
    return round(1e6 * min(found), 2)


def learn_together(model: OnlineRanker, events: Sequence[Event]) -> None:
    users, items, rewards, contexts = zip(*events, strict=True)
    model.learn_many(users, items, rewards, contexts)


def learn_alone(model: OnlineRanker, events: Sequence[Event]) -> None:
    for event in events:
        model.learn_one(*event)


def costs(name: str, events: int) -> dict[str, Any]:
    """Figures of one model after so many events."""
    model, each = make_model(name), stream(events + ROUNDS * (BATCH + 2 * ALONE), ITEMS)
    learn_together(model, each[:events])
    rows = np.arange(len(model.items), dtype=np.int32)
    rest = each[events:]

    def score(part: Sequence[Event]) -> None:
        for user, *_ in part:
            model.score_rows(user, rows)

    score(rest[:20])  # compiled, and scratch memory taken
    found: dict[str, Any] = {
        "score_all_us": best_us(score, rest, ALONE),
        "learn_one_us": best_us(lambda part: learn_alone(model, part), rest, ALONE),
        "learn_many_us": best_us(lambda part: learn_together(model, part), rest[ROUNDS * ALONE :], BATCH),
        "growth": round(learning_us(name, SIZES[1]) / learning_us(name, SIZES[0]), 2),
    }
    if isinstance(model, CoVisitation):
        found["kernels"] = kernel_costs(model, rest[-BATCH:])
    return found


def learning_us(name: str, items: int) -> float:
    """Learning in batches where the table holds so many items."""
    model, events = make_model(name), stream(BATCH * (ROUNDS + 1), items, seed=1)
    model.items.ensure(f"i{k}" for k in range(items))
    learn_together(model, events[:BATCH])
    return best_us(lambda part: learn_together(model, part), events[BATCH:], BATCH)


def kernel_costs(model: CoVisitation, events: Sequence[Event]) -> dict[str, float]:
    """Score all and learn, a thousand at once: mostly the kernels' time."""
    recent = np.concatenate([model.recent_rows(user, model.query_length) for user, *_ in events])
    catalogue = np.arange(len(model.items), dtype=np.int32)
    candidates = np.ascontiguousarray(np.broadcast_to(catalogue, (len(events), len(catalogue))))
    score, learn = [], []
    for _ in range(ROUNDS):
        began = time.thread_time()
        model.score(recent, candidates)
        score.append(time.thread_time() - began)
        batch = model.learn_user(events)
        rows = model.items.resolve(batch)
        began = time.thread_time()
        model.apply(batch, rows)
        learn.append(time.thread_time() - began)
    each = 1e6 / len(events)
    return {"score_all_us": round(each * min(score), 2), "learn_us": round(each * min(learn), 2)}


@click.command(help=__doc__)
@click.option("--models", default=",".join(MODEL_NAMES), help="names, separated by commas")
@click.option("--events", default=20_000, help="events learned before anything is timed")
@click.option("--json", "path", type=click.Path(path_type=Path), help="write the figures there too")
def main(models: str, events: int, path: Path | None) -> None:
    found = {}
    for name in models.split(","):
        found[name] = costs(name, events)
        click.echo(f"{name}: {json.dumps(found[name])}")
    if path is not None:
        path.write_text(json.dumps({"items": ITEMS, "events": events, "models": found}, indent=1))


if __name__ == "__main__":
    main()
