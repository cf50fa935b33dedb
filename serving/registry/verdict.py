"""Which of two versions is better on the same live events, asked again and again with one bound on error.

Two versions make lists of the same users at the same moments, and the user's next event judges both. Events
that both or neither had among their ten say nothing; of the others, W were in the one's list alone and L in
the other's. If an event is no likelier to be the first's alone than the second's, then

    M = 2 ∫ over p in [1/2, 1] of p^W (1 - p)^L dp · 2^(W+L)

the likelihood of the N = W + L against fair coins, mixed over all p that favour the first, is a non-negative
supermartingale that begins at 1, and exceeds 1/α at any time ever with probability α at most (Ville 1939;
Robbins, Annals of Mathematical Statistics 1970; Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics
2021). So it may be looked at every second without the error adding up. The integral is a beta function times
a binomial tail:

    M = 2^(N+1) · B(W + 1, L + 1) · P(Binomial(N + 1, 1/2) <= W)
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np

from serving.ranker.settings import RankerSettings

__all__ = ["PairedCounts", "Verdict", "log_evidence", "probation_verdict", "shadow_verdict"]


class PairedCounts(msgspec.Struct, kw_only=True):
    """Judged events of two versions on the same queries: `live` is the one whose lists were served."""

    events: int = 0
    live_hits: int = 0
    other_hits: int = 0
    live_only: int = 0
    """Hits of the live version's list that were not in the other's."""
    other_only: int = 0
    live_ndcg_sum: float = 0.0
    other_ndcg_sum: float = 0.0

    def plus(self, more: PairedCounts) -> PairedCounts:
        """Both together."""
        return PairedCounts(
            **{name: getattr(self, name) + getattr(more, name) for name in PairedCounts.__struct_fields__}
        )

    def metrics(self, other: str) -> dict[str, float]:
        """Numbers for a record of `models`; `other` is `shadow` or `former`."""
        n = max(1, self.events)
        return {
            "trial_events": float(self.events),
            "live_hr_at_10": self.live_hits / n,
            f"{other}_hr_at_10": self.other_hits / n,
            "live_ndcg_at_10": self.live_ndcg_sum / n,
            f"{other}_ndcg_at_10": self.other_ndcg_sum / n,
        }


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial ended, and why, with its numbers."""

    outcome: Literal["promoted", "dropped", "kept", "rolled_back"]
    reason: str


def log_evidence(wins: int, losses: int) -> float:
    """log M of the module's docstring: the evidence that a win is likelier than a loss.

    >>> round(math.exp(log_evidence(10, 0)), 1)
    186.1
    >>> log_evidence(0, 0)
    0.0
    """
    n = wins + losses
    log_beta = math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(n + 2)
    k = np.arange(1, wins + 1, dtype=np.float64)
    log_choose = np.concatenate((np.zeros(1), np.cumsum(np.log((n + 2 - k) / k))))
    highest = float(log_choose.max())
    log_tail = highest + math.log(float(np.exp(log_choose - highest).sum())) - (n + 1) * math.log(2.0)
    return (n + 1) * math.log(2.0) + log_beta + min(0.0, log_tail)


def shadow_verdict(counts: PairedCounts, settings: RankerSettings) -> Verdict | None:
    """`promoted` or `dropped`; None while neither is shown and events are left to come.

    A version that reaches `shadow_max_events` with no difference shown is promoted when it has hit at least
    as often: the gate has found it better on the newest events of the log, and live traffic does not speak
    against it, though it speaks for what is shown.
    """
    if counts.events < settings.shadow_min_events:
        return None
    numbers = _numbers(counts, "shadow")
    needed = -math.log(settings.rollback_alpha)
    if log_evidence(counts.other_only, counts.live_only) >= needed:
        return Verdict(outcome="promoted", reason=f"better than the live version: {numbers}")
    if log_evidence(counts.live_only, counts.other_only) >= needed:
        return Verdict(outcome="dropped", reason=f"worse than the live version: {numbers}")
    if counts.events < settings.shadow_max_events:
        return None
    if counts.other_hits >= counts.live_hits:
        return Verdict(outcome="promoted", reason=f"no worse than the live version: {numbers}")
    return Verdict(outcome="dropped", reason=f"not shown to be better than the live version: {numbers}")


def probation_verdict(counts: PairedCounts, settings: RankerSettings) -> Verdict | None:
    """`rolled_back` when the former version is shown to be better, `kept` after `probation_events`."""
    if counts.events < min(settings.shadow_min_events, settings.probation_events):
        return None
    numbers = _numbers(counts, "former")
    if log_evidence(counts.other_only, counts.live_only) >= -math.log(settings.rollback_alpha):
        return Verdict(outcome="rolled_back", reason=f"worse than the version before it: {numbers}")
    if counts.events >= settings.probation_events:
        return Verdict(outcome="kept", reason=f"not worse than the version before it: {numbers}")
    return None


def _numbers(counts: PairedCounts, other: str) -> str:
    n = max(1, counts.events)
    return (
        f"HR@10 {counts.live_hits / n:.4f} live, {counts.other_hits / n:.4f} {other} over {counts.events} "
        f"events; {counts.live_only} hits were live's alone, {counts.other_only} {other}'s"
    )
