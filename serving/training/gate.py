"""Whether a challenger may be published: better than what serves now, without leaving anybody behind, finite,
fast, the same as in PyTorch.

All contestants are ranked on the same newest events, from their ONNX files (`serving.training.gate_ranks`):
among what retrieval gave for each event where such lists are at hand, as served; else in the whole catalogue.
Decision 0018 says why the bars are as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.ranker.errors import RankerError
from serving.ranker.inputs import Contents
from serving.ranker.probe import median_latency_ms
from serving.ranker.ranker import Ranker
from serving.registry.manifest import Comparison, GateReport, SliceScore
from serving.settings import ServingSettings
from serving.training.dataset import EvaluationSlice
from serving.training.examples import Examples
from serving.training.gate_ranks import (
    Catalogue,
    Contest,
    Lists,
    Ranking,
    online_scores,
    popularity_scores,
    ranker_scores,
    ranking_of,
    ranks_of_targets,
)
from serving.training.gate_slices import compared, coverage, parts_of, score_of, slice_scores
from serving.training.settings import GateSettings

__all__ = ["Judged", "gate", "ranks_of_targets"]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the newest events are judged by beside the slice itself.

    `examples`: lists that could have been served, located in the slice's log; None where there are none.
    `event_types`: names of the log's types 1, 2, ...; none are the rankers' own. `contents` gives content
    vectors of item ids. `serving`: its weights hold where a ranker that isn't fused joins the online blend.
    """

    newest: EvaluationSlice
    popularity: Mapping[str, float]
    """Positive interactions per item id before the slice."""
    examples: Examples | None = None
    event_types: Sequence[str] = ()
    contents: Contents | None = None
    serving: ServingSettings = ServingSettings()  # noqa: RUF009 - frozen


@dataclass(slots=True)
class _Measured:
    rankings: dict[str, Ranking] = field(default_factory=dict)
    latency_ms: float | None = None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gate(
    challenger: Ranker,
    champion: Ranker | None,
    judged: Judged,
    settings: GateSettings,
    parity: float,
    *,
    precision: str = "fp32",
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    seed: int = 0,
) -> GateReport:
    """Measure and decide; each reason for a refusal holds its numbers.

    Without lists the catalogue is every item that the challenger or the champion knows. A target outside it,
    or that retrieval did not give, is a miss for all, one that a model doesn't know is a miss for that model.
    `parity` is the largest |ONNX Runtime - PyTorch| on golden inputs, asked for where `precision` is fp32
    (and a number whatever it is); `weights` are the network's, which must be finite.
    """
    contest = _contest(challenger, champion, judged, settings)
    measured = _measure(contest, challenger, champion, judged)
    rankings, users = measured.rankings, contest.newest.starts[contest.events]
    comparisons = tuple(
        compared(rankings["challenger"].ranks, rankings[against].ranks, users, against,
                 settings.bootstrap_samples, seed)
        for against in ("popularity", "online", "champion")
        if against in rankings and "challenger" in rankings
    )  # fmt: skip
    slices = slice_scores(parts_of(contest, judged.popularity), rankings)
    covered = {name: coverage(ranking) for name, ranking in rankings.items()}
    reasons = [
        *_unjudgeable(contest, challenger, champion),
        *measured.reasons,
        *_lost(contest, comparisons, settings),
        *_left_behind(slices, covered, settings),
        *_unfit(parity, precision, weights or {}, measured.latency_ms, settings),
    ]
    scores = {name: score_of(ranking.ranks) for name, ranking in rankings.items()}
    return GateReport(
        accepted=not reasons,
        reasons=tuple(reasons),
        notes=tuple(measured.notes),
        events=len(contest.events),
        catalogue=contest.items_listable(),
        challenger=scores.get("challenger"),
        champion=scores.get("champion"),
        popularity=scores["popularity"],
        online=scores.get("online"),
        comparisons=comparisons,
        parity=float(parity) if np.isfinite(parity) else None,
        latency_ms=measured.latency_ms,
        judged_on="lists" if contest.is_served else "catalogue",
        slices=slices,
        coverage=covered,
    )


def _contest(challenger: Ranker, champion: Ranker | None, judged: Judged, settings: GateSettings) -> Contest:
    """Lists as served where there are any of the newest events, else the catalogue."""
    if judged.examples is not None and len(judged.examples):
        lists = Lists(judged.newest, judged.examples)
        if len(lists.events):
            return lists
    rankers = [challenger] if champion is None else [challenger, champion]
    return Catalogue(judged.newest, rankers, settings.max_scored_pairs)


def _measure(contest: Contest, challenger: Ranker, champion: Ranker | None, judged: Judged) -> _Measured:
    """Rank every contestant. A challenger that can't be ranked is refused; a champion that can't is none."""
    measured = _Measured()
    rankings = measured.rankings
    rankings["popularity"] = ranking_of(contest, popularity_scores(contest, judged.popularity))
    if contest.is_served:
        rankings["online"] = ranking_of(contest, online_scores)

    def ranked(ranker: Ranker) -> Ranking:
        about = (judged.event_types, judged.contents, judged.serving.ranker_weight)
        return ranking_of(contest, ranker_scores(contest, ranker, *about))

    try:
        rankings["challenger"] = ranked(challenger)
        measured.latency_ms = median_latency_ms(challenger)
    except RankerError as error:
        measured.reasons.append(f"scores: {error}")
    if champion is not None:
        try:
            rankings["champion"] = ranked(champion)
        except RankerError as error:
            measured.notes.append(f"the champion is left out: {error}")
    return measured


def _unjudgeable(contest: Contest, challenger: Ranker, champion: Ranker | None) -> list[str]:
    reasons = [] if len(contest.events) else ["no event to judge by in the newest slice"]
    fused = [ranker.version for ranker in (challenger, champion) if ranker is not None and ranker.fused]
    if fused and not contest.is_served:
        reasons.append(
            f"{', '.join(fused)} reads the online models' features, and none of the {len(contest.newest)} "
            "newest events has a list with them: keep more lists (trainer.head_examples)"
        )
    return reasons


def _lost(contest: Contest, comparisons: Sequence[Comparison], settings: GateSettings) -> list[str]:
    """Every opponent that the challenger did not beat, or may have lost to."""
    return [
        f"NDCG@10 is {c.ndcg_gain:+.4f} against {c.against} on {len(contest.events)} events "
        f"(95 % {c.low:+.4f} to {c.high:+.4f}); more than {settings.min_ndcg_gain:+.4f} is asked for, and an "
        f"interval above {-settings.ndcg_tolerance:+.4f}"
        for c in comparisons
        if not (c.ndcg_gain > settings.min_ndcg_gain and c.low > -settings.ndcg_tolerance)
    ]


def _left_behind(
    slices: Sequence[SliceScore], covered: Mapping[str, int], settings: GateSettings
) -> list[str]:
    """Parts of users and items, and coverage, that lose too much to what is served now."""
    against = next((name for name in ("champion", "online", "popularity") if name in covered), "popularity")
    reasons = []
    for part, most in (
        ("new_users", settings.max_loss_new_users), ("new_items", settings.max_loss_new_items),
    ):  # fmt: skip
        found = next(s for s in slices if s.name == part)
        own, theirs = found.challenger, getattr(found, against)
        if own is None or theirs is None or found.events < settings.min_slice_events:
            continue
        if theirs - own > most:
            reasons.append(
                f"NDCG@10 of {part.replace('_', ' ')} falls from {theirs:.4f} ({against}) to {own:.4f} on "
                f"{found.events} events; at most {most:g} may be lost"
            )
    own_items, their_items = covered.get("challenger"), covered[against]
    if own_items is not None and own_items < (1.0 - settings.max_loss_coverage) * their_items:
        reasons.append(
            f"the lists of ten hold {own_items} distinct items, those of {against} {their_items}; at most "
            f"{settings.max_loss_coverage:.0%} may be lost"
        )
    return reasons


def _unfit(
    parity: float,
    precision: str,
    weights: Mapping[str, npt.NDArray[Any]],
    latency_ms: float | None,
    settings: GateSettings,
) -> list[str]:
    """Numbers that are none, that differ from PyTorch's, or that come too late."""
    reasons = [
        f"weights: {int((~np.isfinite(values)).sum())} of {values.size} numbers of {name} are not finite"
        for name, values in weights.items()
        if values.dtype.kind == "f" and not np.isfinite(values).all()
    ]
    if precision == "fp32" and not parity <= settings.parity_tolerance:
        reasons.append(
            f"ONNX Runtime and PyTorch differ by {parity:.3g}, at most {settings.parity_tolerance:g}"
        )
    elif not np.isfinite(parity):
        reasons.append(f"golden scores: ONNX Runtime and PyTorch differ by {parity}")
    if latency_ms is not None and latency_ms > settings.latency_budget_ms:
        reasons.append(
            f"16 users x 200 candidates take {latency_ms:.1f} ms, at most {settings.latency_budget_ms:.1f}"
        )
    return reasons
