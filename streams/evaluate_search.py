"""`freshet evaluate --search`: each model's parameters by a search on the first events of the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from streams.cli_common import progress_bar
from streams.errors import FreshetError

if TYPE_CHECKING:
    from online_models.evaluation.interactions import Interaction

__all__ = ["search_models"]


def search_models(
    names: Sequence[str], given: Mapping[str, Mapping[str, Any]], stream: Sequence[Interaction],
    searched: int, trials: int, seed: int, protocol: str, positive_from: float,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Parameters by model: those given, and those that did best on the first `searched` events. What the
    protocol holds out is not looked at. A model with nothing to search keeps what it has; that is said."""
    from online_models.evaluation.protocols import held_out
    from online_models.evaluation.search import MissingOptunaError, search, spans_of

    hidden = set(held_out(stream, positive_from)) if protocol == "last-positive-out" else set[int]()
    prefix = [event for place, event in enumerate(stream[:searched]) if place not in hidden]
    chosen = {name: dict(given.get(name, {})) for name in names}
    for name in names:
        if not spans_of(name, chosen[name]):
            click.echo(f"{name}: nothing to search", err=True)
            continue
        try:
            with progress_bar(f"searching {name}", trials) as update:
                found = search(name, prefix, trials, seed, chosen[name], _without_words(update))
        except MissingOptunaError as error:
            raise FreshetError(f"--search: {error}.") from error
        chosen[name].update(found.changed)
        click.echo(
            f"{name}: NDCG@10 {found.start_score:.4f} -> {found.score:.4f} on the first {searched:,} events;"
            f" {found.changed or 'no trial did better than the start'}"
            + (f"; {found.failed} trials refused" if found.failed else ""),
            err=True,
        )
    return chosen


def _without_words(update: Callable[[float, str], None]) -> Callable[[int], None]:
    return lambda done: update(done, "")
