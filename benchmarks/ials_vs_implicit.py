"""IALS beside the package implicit: the same factors, weights, regularization and start, on one split.

    python -m benchmarks.ials_vs_implicit --dataset ml-100k

Each user's last rating of 4 or more is held out, all others are learned; then all items are ranked, less
those that the user has rated (tied scores by half). IALS learns the events one by one, in their order, and
is judged after that pass and after each of some sweeps; implicit's `AlternatingLeastSquares` takes its start
from the same vectors and runs its passes over the whole matrix. Install implicit to run this; it is no
dependency.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models import IALS
from online_models.evaluation.comparison import paired
from online_models.factor_table import start_vectors
from streams.datasets import load_dataset

START_SCALE = 0.1


class Split:
    """Users' last positive ratings held out; the rest as a matrix of ones, in the order of time."""

    def __init__(self, dataset: str, most: int) -> None:
        events = [event for event in load_dataset(dataset).events if event.item_id is not None][:most]
        last = {event.user_id: k for k, event in enumerate(events) if (event.value or 0.0) >= 4.0}
        left_out = set(last.values())
        self.train = [
            (event.user_id, str(event.item_id)) for k, event in enumerate(events) if k not in left_out
        ]
        self.users = sorted({event.user_id for event in events})
        self.items = sorted({str(event.item_id) for event in events})
        user_of, item_of = _places(self.users), _places(self.items)
        self.seen = np.zeros((len(self.users), len(self.items)), dtype=np.float32)
        for user, item in self.train:
            self.seen[user_of[user], item_of[item]] = 1.0
        self.judged = sorted((user_of[user], item_of[str(events[k].item_id)]) for user, k in last.items())

    def hits(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Whether each held-out item is among its user's ten best, bool[n]; scores [users, items]."""
        found = []
        for user, item in self.judged:
            line = np.where(self.seen[user] > 0.0, -np.inf, scores[user])
            above, equal = int((line > line[item]).sum()), int((line == line[item]).sum()) - 1
            found.append(above + equal // 2 < 10)
        return np.array(found)


def peer_scores(
    split: Split, factors: int, regularization: float, alpha: float, passes: int, seed: int
) -> Any:
    """Scores [users, items] of implicit's exact solver, scaled as IALS scales them."""
    from implicit.als import AlternatingLeastSquares  # type: ignore[import-not-found]  # no dependency
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]  # ships no types

    scale = np.sqrt((alpha - 1.0) / alpha)  # its scores are 1 / scale**2 times ours
    peer = AlternatingLeastSquares(
        factors=factors, regularization=regularization, alpha=alpha, iterations=passes, use_cg=False,
        use_gpu=False, num_threads=1, random_state=seed,
    )  # fmt: skip
    peer.user_factors = np.zeros((len(split.users), factors), dtype=np.float32)
    peer.item_factors = (start_vectors(seed, split.items, factors, START_SCALE) / scale).astype(np.float32)
    peer.fit(csr_matrix(split.seen), show_progress=False)
    return np.asarray(peer.user_factors) @ np.asarray(peer.item_factors).T * scale**2


def our_scores(model: IALS, split: Split) -> NDArray[np.float32]:
    """Scores [users, items] of what IALS has learned."""
    rows = model.items.rows(split.items)
    return np.array([model.score_rows(user, rows) for user in split.users])


def compare(split: Split, arguments: argparse.Namespace) -> dict[str, Any]:
    """Hit rates after one pass and each sweep, beside implicit's; differences are paired by user."""
    alpha, regularization = arguments.alpha, arguments.regularization
    peer = peer_scores(split, arguments.factors, regularization, alpha, arguments.passes, arguments.seed)
    model = IALS(
        dimension=arguments.factors, unobserved_weight=1.0 / (alpha - 1.0), seed=arguments.seed,
        regularization=regularization / alpha, regularization_exponent=0.0, recent_boost=0.0, refresh=0,
        start_scale=START_SCALE, history=4096, users_per_item=4096,
    )  # fmt: skip
    users, items = zip(*dict.fromkeys(split.train), strict=True)
    model.learn_many(users, items)
    hit, found = split.hits(peer), []
    for sweeps in range(arguments.sweeps + 1):
        if sweeps:
            model.sweep()
        scores = our_scores(model, split)
        ours = split.hits(scores)
        found.append(
            {
                "sweeps": sweeps,
                "hr_at_10": round(float(ours.mean()), 4),
                "difference": round(paired(ours, hit).hr_difference, 4),
                "p_value": round(paired(ours, hit).p_value, 3),
                "scores_differ_by": round(float(np.linalg.norm(scores - peer) / np.linalg.norm(peer)), 4),
            }
        )
    return {
        "users": len(split.judged),
        "factors": arguments.factors,
        "implicit": {"passes": arguments.passes, "hr_at_10": round(float(hit.mean()), 4)},
        "ials": found,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="IALS beside implicit, from the same start")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--events", type=int, default=10**9, help="the first so many events only")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--regularization", type=float, default=0.05, help="implicit's")
    parser.add_argument("--alpha", type=float, default=10.0, help="implicit's")
    parser.add_argument("--passes", type=int, default=15, help="implicit's iterations")
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("implicit") is None:
        sys.stderr.write("implicit is not installed: pip install implicit, and run this again\n")
        return 1
    split = Split(arguments.dataset, arguments.events)
    sys.stdout.write(json.dumps(compare(split, arguments), indent=2) + "\n")
    return 0


def _places(ids: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(ids)}


if __name__ == "__main__":
    sys.exit(main())
