"""The runs behind the table of quality: each model alone on the same events, joined to one run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from online_models import Fusion, ItemTable
from online_models.evaluation.arena import Evaluated
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import Run, run_protocol
from online_models.registry import make_model

__all__ = ["EventPopularity", "Made", "joined_run", "parts_of_fusion", "registry_models", "rmse_of"]

Made = Callable[[], Evaluated]
"""Makes a fresh model; it may raise ImportError where a library is missing."""


class EventPopularity:
    """Popularity that halves with every `half_life` events, the anchor for users' first events; inf = plain
    counts. In plain numpy: it shares no code with the models that are held against it."""

    def __init__(self, half_life: float = 2000.0) -> None:
        self.items = ItemTable()
        self._decay = 0.5 ** (1.0 / half_life)
        self._counts = np.zeros(0)

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, Any] | None = None) -> None:
        row = int(self.items.ensure([item])[0])
        if row >= len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(row + 64 - len(self._counts))])
        self._counts *= self._decay
        self._counts[row] += 1.0

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = None) -> float:
        return float(self.score_rows(user, self.items.rows([item]))[0])

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[Any]:
        if not len(self._counts):
            return np.zeros(len(rows))
        return np.where(rows >= 0, self._counts[np.maximum(rows, 0)], 0.0)


def registry_models(names: Sequence[str]) -> dict[str, Made]:
    """Models of the registry with their defaults."""
    return {name: lambda name=name: make_model(name) for name in names}  # type: ignore[misc]


def parts_of_fusion() -> dict[str, Made]:
    """The default fusion's parts, each alone."""
    fusion = Fusion()
    return {
        f"part {part.name}": lambda part=part: part.model.clone()  # type: ignore[misc]
        for part in fusion._parts
    }


def joined_run(
    title: str,
    protocol: str,
    made: Mapping[str, Made],
    events: Sequence[Interaction],
    failed: list[str],
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> Run:
    """Each model alone past the events, one after another, as one run of them all; what fails is named in
    `failed` and left out. `known` are catalogue entries, told to models before the first event."""
    runs: list[Run] = []
    for name, make in made.items():
        started = time.monotonic()
        try:
            model = make()
            for item, entry in (known or {}).items():
                if hasattr(model, "learn_item"):
                    model.learn_item(item, entry)
            runs.append(run_protocol(protocol, {name: model}, events))
        except (ImportError, ValueError, RuntimeError) as error:
            failed.append(f"{title}, {name}: {type(error).__name__}: {error}")
            click.echo(failed[-1], err=True)
            continue
        hits = float((runs[-1].ranks(runs[-1].entrants[0]) < 10).mean()) if len(runs[-1].event) else 0.0
        click.echo(f"{title}, {name}: HR@10 {hits:.4f} ({time.monotonic() - started:.0f} s)", err=True)
    if not runs:
        raise ValueError(f"{title}: none of {', '.join(made)} could be run")
    entrants = [entrant for run in runs for entrant in run.entrants]
    return dataclasses.replace(runs[0], entrants=entrants)


def rmse_of(models: Mapping[str, Evaluated], events: Sequence[Interaction]) -> dict[str, float]:
    """Root mean squared error of the ratings, each predicted before it is learned, in one pass."""
    squared = dict.fromkeys(models, 0.0)
    rated = 0
    for user, item, y, x, rating in events:
        for name, model in models.items():
            if rating is not None:
                squared[name] += (model.predict_one(user, item, x) - rating) ** 2
            model.learn_one(user, item, y, x)
        rated += rating is not None
    return {name: math.sqrt(value / max(rated, 1)) for name, value in squared.items()}
