"""In which order models learn and are judged: the three protocols of `freshet evaluate`.

All rank in full: sampled candidates give other orders of models (Krichene and Rendle, On sampled metrics for
item recommendation, KDD 2020). What a user has had is never a candidate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from online_models.evaluation.arena import Arena, Entrant, Evaluated
from online_models.evaluation.interactions import Interaction, weight_of

__all__ = ["PROTOCOLS", "Run", "held_out", "last_positive_out", "prequential", "run_protocol", "temporal"]

PROTOCOLS = ("prequential", "last-positive-out", "temporal")
Progress = Callable[[int], None]
Categories = Mapping[str, Sequence[str]]
PROGRESS_EVERY = 250


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a protocol; columns have one entry for each judged event, in the order of judging."""

    protocol: str
    events: int
    users: int
    items: int
    repeats: int
    """Events that would have been judged, but on an item that the user had had."""
    entrants: list[Entrant]
    event: NDArray[np.int64]
    user: NDArray[np.int32]
    history: NDArray[np.int64]
    exposures: NDArray[np.int64]
    popular: NDArray[np.bool_]

    def ranks(self, entrant: Entrant) -> NDArray[np.float64]:
        return np.array(entrant.ranks, dtype=np.float64)


def prequential(
    models: Mapping[str, Evaluated],
    events: Sequence[Interaction],
    categories: Categories | None = None,
    progress: Progress | None = None,
    delay_s: float = 0.0,
) -> Run:
    """Every event is judged, then learned (Gama, Sebastião and Rodrigues 2013).

    Candidates are the items that the model knows so far, less those that the user has had; an event on an
    item that the model doesn't know is a miss. Repeats and weights <= 0 are only learned. With a delay, each
    event is learned only before the first one that is at least delay_s seconds of event time later.
    """
    arena, late = Arena(models, categories), _Late(delay_s)
    for place, event in enumerate(events):
        late.learn_due(arena, event)
        arena.judge(place, event)
        arena.rate(event)
        late.learn(arena, event)
        _report(progress, place + 1)
    return _run("prequential", arena, len(events))


def temporal(
    models: Mapping[str, Evaluated],
    events: Sequence[Interaction],
    categories: Categories | None = None,
    progress: Progress | None = None,
    delay_s: float = 0.0,
    train_share: float = 0.8,
) -> Run:
    """The first `train_share` of the events is learned only; each later one is judged, then learned, as in
    `prequential`."""
    arena, late, cut = Arena(models, categories), _Late(delay_s), int(train_share * len(events))
    for place, event in enumerate(events):
        late.learn_due(arena, event)
        if place >= cut:
            arena.judge(place, event)
            arena.rate(event)
        late.learn(arena, event)
        _report(progress, place + 1)
    return _run("temporal", arena, len(events))


def last_positive_out(
    models: Mapping[str, Evaluated],
    events: Sequence[Interaction],
    categories: Categories | None = None,
    progress: Progress | None = None,
    positive_from: float = 4.0,
) -> Run:
    """Each user's last positive event is held out; all others are learned, in one pass in order of time, and
    then the held-out ones are judged, with nothing learned between them.

    Positive is a rating of at least `positive_from`, or a weight above 0 where no rating is stated.
    Candidates are all items of the data set less those of the user's other events. The user's events after
    the held-out one are learned too: use this to compare with figures that were got so, not for claims.
    """
    arena = Arena(models, categories)
    out = held_out(events, positive_from)
    without = set(out)
    for place, event in enumerate(events):
        if place not in without:
            arena.learn(event)
        _report(progress, place + 1)
    arena.enrol([event.item for event in events])
    for place in out:
        arena.judge(place, events[place], all_items=True)
        arena.rate(events[place])
    return _run("last-positive-out", arena, len(events))


def held_out(events: Sequence[Interaction], positive_from: float = 4.0) -> list[int]:
    """Places of each user's last positive event, ascending: what `last_positive_out` judges.

    >>> held_out([Interaction("ann", "x"), Interaction("ann", "y"), Interaction("bob", "x", -1.0)])
    [1]
    """
    held = {event.user: place for place, event in enumerate(events) if _is_positive(event, positive_from)}
    return sorted(held.values())


def run_protocol(
    protocol: str,
    models: Mapping[str, Evaluated],
    events: Sequence[Interaction],
    categories: Categories | None = None,
    progress: Progress | None = None,
    positive_from: float = 4.0,
    delay_s: float = 0.0,
) -> Run:
    """One of `PROTOCOLS` by name. Raises ValueError for another."""
    if protocol == "prequential":
        return prequential(models, events, categories, progress, delay_s)
    if protocol == "temporal":
        return temporal(models, events, categories, progress, delay_s)
    if protocol == "last-positive-out":
        return last_positive_out(models, events, categories, progress, positive_from)
    raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")


class _Late:
    """Events that have happened and are not learned yet, in their order."""

    def __init__(self, delay_s: float) -> None:
        self._delay_ms = 1000.0 * delay_s
        self._waiting: deque[Interaction] = deque()

    def learn_due(self, arena: Arena, now: Interaction) -> None:
        while self._waiting and _time_ms(now) - _time_ms(self._waiting[0]) >= self._delay_ms:
            arena.teach(self._waiting.popleft())

    def learn(self, arena: Arena, event: Interaction) -> None:
        arena.note(event)
        if self._delay_ms > 0.0:
            self._waiting.append(event)
        else:
            arena.teach(event)


def _time_ms(event: Interaction) -> int:
    return int((event.x or {}).get("timestamp") or 0)


def _is_positive(event: Interaction, positive_from: float) -> bool:
    if weight_of(event) <= 0.0:
        return False
    return event.rating is None or event.rating >= positive_from


def _report(progress: Progress | None, done: int) -> None:
    if progress is not None and done % PROGRESS_EVERY == 0:
        progress(done)


def _run(protocol: str, arena: Arena, events: int) -> Run:
    return Run(
        protocol=protocol,
        events=events,
        users=len(arena.users),
        items=len(arena.catalogue),
        repeats=arena.repeats,
        entrants=arena.entrants,
        event=np.array(arena.event, dtype=np.int64),
        user=np.array(arena.user, dtype=np.int32),
        history=np.array(arena.history, dtype=np.int64),
        exposures=np.array(arena.exposures, dtype=np.int64),
        popular=np.array(arena.popular, dtype=np.bool_),
    )
