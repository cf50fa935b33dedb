"""The rows of the table of quality: what was to be reached, and what was, from the runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_models.evaluation import metrics
from online_models.evaluation.arena import Entrant
from online_models.evaluation.comparison import paired
from online_models.evaluation.protocols import Run
from online_models.evaluation.significance import paired_bootstrap

__all__ = ["QualityRow", "all_rows", "quality_table", "regret_row", "rmse_row", "split_rows"]

BLENDED = "fusion"
PEER_ALS = "implicit.ALS"
ANCHOR = "popularity, halved every 2,000 events"
PLAIN = "plain popularity"
NOT_SINGLE = (BLENDED, "part ", ANCHOR, PLAIN, "river.", "implicit.", "rectools.", "gorse")
REGRET_EVERY = 10_000
FAST_ENOUGH_TO_RANK = 0.2
Flags = NDArray[np.bool_]


class QualityRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the issue's table. `reached` is None where it was not measured, and `details` say why."""

    name: str
    what: str
    anchor: str
    figure: str
    to_reach: float
    better: Literal["higher", "lower"]
    reached: float | None
    by: str
    details: dict[str, Any] = {}

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= self.to_reach if self.better == "higher" else self.reached <= self.to_reach


def all_rows(run: Run, ratings_of_5: Run | None) -> Iterator[QualityRow]:
    """Rows of the prequential runs: all ratings, and those of 5 only."""
    every, rest = np.ones(len(run.event), dtype=np.bool_), run.event >= 0.2 * run.events
    single, blend = best(run, every, singles(run)), named(run, BLENDED)
    about = "prequential, all ratings, whole stream"
    yield from _pair(f"{about}: best single model", "co-visitation tuned by hand on it: 0.2006 / 0.1046",
                     "single", run, single, {"whole": every, "last 80%": rest}, 0.205, 0.106)  # fmt: skip
    if blend is not None:
        yield from _pair(f"{about}: fusion of online models", "a linear one: 0.2001 / 0.1047; stretch 0.22",
                         "fusion", run, blend, {"whole": every, "last 80%": rest}, 0.208, 0.109)  # fmt: skip
    if ratings_of_5 is not None:
        yield from _fives(ratings_of_5)
    for entrant in (blend, best(run, run.history == 0, singles(run))):
        if entrant is not None and named(run, ANCHOR) is not None:
            yield _first_event_row(run, entrant)
    yield _cost_row(run)


def _fives(run: Run) -> Iterator[QualityRow]:
    late = run.event >= 0.3 * run.events
    whole = np.ones(len(late), dtype=np.bool_)
    found = best(run, late, [entrant for entrant in run.entrants if _is_ours(entrant)])
    yield from _pair("ratings of 5, last 70%: best",
                     "published: popularity 0.105; co-visitation 0.182 / 0.097", "fives", run,
                     found, {"last 70%": late, "whole": whole}, 0.19, 0.10)  # fmt: skip


def _pair(
    what: str, anchor: str, name: str, run: Run, entrant: Entrant, parts: Mapping[str, Flags], hr: float,
    ndcg: float,
) -> Iterator[QualityRow]:  # fmt: skip
    """The two rows of a model: HR@10 and NDCG@10 of the first part, all parts in the details."""
    ranks = run.ranks(entrant)
    for figure, bar, values in (
        ("HR@10", hr, (ranks < 10).astype(np.float64)), ("NDCG@10", ndcg, metrics.gains(ranks)),
    ):  # fmt: skip
        means = {part: metrics.mean_of(values[chosen]) for part, chosen in parts.items()}
        yield QualityRow(
            name=f"{name}_{figure.partition('@')[0].lower()}", what=what, anchor=anchor, figure=figure,
            to_reach=bar, better="higher", reached=next(iter(means.values())), by=entrant.name,
            details={part: round(mean, 4) for part, mean in means.items()},
        )  # fmt: skip


def _first_event_row(run: Run, entrant: Entrant) -> QualityRow:
    """HR@10 on users' first events less that of the anchor, paired: 0 or more is reached."""
    first = run.history == 0
    anchor, plain = named(run, ANCHOR), named(run, PLAIN)
    assert anchor is not None
    hit, other = (run.ranks(found)[first] < 10 for found in (entrant, anchor))
    pair = paired(hit, other)
    difference = hit.astype(np.float64) - other
    details = {
        "HR@10": round(float(hit.mean()), 4), "anchor": round(float(other.mean()), 4), "n": pair.judged,
        "p": round(pair.p_value, 4), "interval_95": paired_bootstrap(difference, run.user[first]),
    }  # fmt: skip
    if plain is not None:
        details["plain popularity"] = round(float((run.ranks(plain)[first] < 10).mean()), 4)
    return QualityRow(
        name=f"first_event_{'fusion' if entrant.name == BLENDED else 'single'}",
        what="users' first events, all ratings: above decayed popularity",
        anchor="0.318 halved every 2,000 events, plain 0.221 (standard error 0.015)",
        figure="HR@10, paired difference", to_reach=0.0, better="higher", reached=pair.hr_difference,
        by=entrant.name, details=details,
    )  # fmt: skip


def _cost_row(run: Run) -> QualityRow:
    """Microseconds to score all and to learn, of the cheapest model that ranks well."""
    costs = {
        entrant.name: 1e6 * (entrant.score_s / max(len(run.event), 1) + entrant.learn_s / max(run.events, 1))
        for entrant in run.entrants
        if _is_ours(entrant)
    }
    hits = {entrant.name: metrics.mean_of(run.ranks(entrant) < 10) for entrant in run.entrants}
    good = [name for name in costs if hits[name] >= FAST_ENOUGH_TO_RANK] or list(costs)
    by = min(good, key=costs.__getitem__)
    return QualityRow(
        name="cost", what="cost per event, score all items and learn, Python's share included",
        anchor="co-visitation prototype, dense: 24 + 8 µs", figure="µs", to_reach=10.0, better="lower",
        reached=costs[by], by=by, details={name: round(cost, 1) for name, cost in costs.items()},
    )  # fmt: skip


def regret_row(run: Run, log_loss: Mapping[str, Any]) -> QualityRow | None:
    """How many hits the fusion lacks of its best part's, at every 10,000th judged event, at worst.

    The best part is the one with most hits in all. `log_loss` is the fusion's own account of its regret.
    """
    blend = named(run, BLENDED)
    parts = [entrant for entrant in run.entrants if entrant.name.startswith("part ")]
    if blend is None or not parts:
        return None
    part = best(run, np.ones(len(run.event), dtype=np.bool_), parts, metrics.hits)
    ours, theirs = (np.cumsum(run.ranks(entrant) < 10) for entrant in (blend, part))
    ends = [*range(REGRET_EVERY, len(ours), REGRET_EVERY), len(ours)]
    lacking = {end: float(theirs[end - 1] - ours[end - 1]) / max(float(theirs[end - 1]), 1.0) for end in ends}
    return QualityRow(
        name="regret", what="fusion: hits it lacks of its best part's, worst of every 10,000 events",
        anchor="its best part alone", figure="share of the part's hits", to_reach=0.01, better="lower",
        reached=max(lacking.values()), by=f"against {part.name}",
        details={"at": {str(end): round(share, 4) for end, share in lacking.items()}, "log_loss": log_loss},
    )  # fmt: skip


def split_rows(run: Run, seeds: Sequence[str]) -> Iterator[QualityRow]:
    """Split A: the best online model after one pass against the mean of implicit's ALS over its seeds."""
    found = best(run, np.ones(len(run.event), dtype=np.bool_), [e for e in run.entrants if _is_ours(e)])
    peers = [metrics.mean_of(run.ranks(entrant) < 10) for entrant in run.entrants if entrant.name in seeds]
    bar = float(np.mean(peers)) if peers else 0.1955
    ranks = run.ranks(found)
    details: dict[str, Any] = {"NDCG@10": round(metrics.mean_of(metrics.gains(ranks)), 4), "n": len(ranks)}
    if peers:
        details["ALS, by seed"] = [round(value, 4) for value in peers]
    else:
        details["ALS"] = "implicit is not installed: the bar is the middle of 0.189 to 0.202"
    yield QualityRow(
        name="split_a", what="split A, one pass: best online model", figure="HR@10", to_reach=round(bar, 4),
        anchor="implicit ALS, many passes: mean of the seeds", better="higher", by=found.name,
        reached=metrics.mean_of(ranks < 10), details=details,
    )  # fmt: skip


def rmse_row(errors: Mapping[str, float]) -> QualityRow:
    """biased_mf's prequential error against the best of River's in the same pass."""
    theirs = {name: value for name, value in errors.items() if name != "biased_mf"}
    return QualityRow(
        name="rmse", what="biased_mf, prequential RMSE, all ratings", figure="RMSE",
        anchor="River's BiasedMF in the same pass (0.947 once)", to_reach=round(min(theirs.values()), 4),
        better="lower", reached=errors["biased_mf"], by="biased_mf",
        details={name: round(value, 4) for name, value in theirs.items()},
    )  # fmt: skip


def named(run: Run, name: str) -> Entrant | None:
    return next((entrant for entrant in run.entrants if entrant.name == name), None)


def singles(run: Run) -> list[Entrant]:
    """Our models but the fusion."""
    return [entrant for entrant in run.entrants if not entrant.name.startswith(NOT_SINGLE)]


def _is_ours(entrant: Entrant) -> bool:
    return entrant.name == BLENDED or not entrant.name.startswith(NOT_SINGLE)


def best(run: Run, chosen: Flags, entrants: Sequence[Entrant], by: Any = metrics.gains) -> Entrant:
    """The one with the highest NDCG@10 (or hits) on the chosen judged events."""
    return max(entrants, key=lambda entrant: float(by(run.ranks(entrant)[chosen], 10).sum()))


def quality_table(rows: Sequence[QualityRow]) -> str:
    """The rows as a Markdown table."""
    head = ("what", "anchor", "figure", "to reach", "reached", "by", "met")
    lines = [head]
    for row in rows:
        bar = f"{'≤ ' if row.better == 'lower' else ''}{row.to_reach:.4g}"
        reached = "not measured" if row.reached is None else f"{row.reached:.4f}"
        met = {True: "yes", False: "NO", None: ""}[row.met]
        lines.append((row.what, row.anchor, row.figure, bar, reached, row.by, met))
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + " --- |" * len(head))
    return "\n".join(text)
