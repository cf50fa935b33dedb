"""Search of a model's numeric parameters on the first part of a stream, by prequential NDCG@10 there."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_models.evaluation.arena import Evaluated
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.metrics import gains, mean_of
from online_models.evaluation.protocols import prequential
from online_models.registry import make_model, model_class

__all__ = ["SPACES", "Found", "MissingOptunaError", "Span", "search", "spans_of"]

Parameters = dict[str, Any]
Make = Callable[[str, Parameters], Evaluated]


class MissingOptunaError(ImportError):
    """Optuna, which does the searching, can't be loaded."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a parameter is searched in: low to high, both included, by its logarithm where `log`; whole
    numbers where both ends are."""

    low: float
    high: float
    log: bool = False

    def distribution(self, optuna: Any) -> Any:
        """As Optuna states it."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


DAY_S = 86_400.0
_QUERY = {"query_length": Span(3, 30), "query_decay": Span(0.6, 0.98)}
_FACTORS = {
    "dimension": Span(8, 96, log=True),
    "learning_rate": Span(0.01, 0.6, log=True),
    "regularization": Span(1e-4, 0.1, log=True),
}
_ALTERNATING = {
    "dimension": Span(8, 96, log=True),
    "regularization": Span(1e-3, 1.0, log=True),
}

SPACES: dict[str, dict[str, Span]] = {
    "biased_mf": {
        **_FACTORS,
        "bias_learning_rate": Span(0.01, 0.6, log=True),
        "bias_regularization": Span(1e-4, 0.2, log=True),
    },
    "bpr": {
        **_FACTORS,
        "bias_learning_rate": Span(1e-3, 0.1, log=True),
        "negatives": Span(1, 20),
        "popularity_exponent": Span(0.0, 1.0),
    },
    "content": {
        **_QUERY,
        "learning_rate": Span(0.01, 0.6, log=True),
        "linear_learning_rate": Span(5e-4, 0.1, log=True),
        "regularization": Span(1e-5, 0.1, log=True),
    },
    "covisitation": {
        **_QUERY,
        "window": Span(3, 40),
        "gap_decay": Span(0.8, 1.0),
        "backward_weight": Span(0.0, 1.0),
        "source_exponent": Span(0.2, 1.0),
        "target_exponent": Span(0.0, 0.7),
        "shrinkage": Span(0.0, 30.0),
    },
    "cross_domain": {
        **_FACTORS,
        "mapping_learning_rate": Span(1e-3, 0.2, log=True),
        "mapping_regularization": Span(1e-3, 0.5, log=True),
        "negatives": Span(1, 20),
    },
    "eals": {
        **_ALTERNATING,
        "missing_weight": Span(16.0, 4096.0, log=True),
        "popularity_exponent": Span(0.0, 1.0),
        "new_weight": Span(1.0, 32.0, log=True),
    },
    "ease": {
        **_QUERY,
        "regularization": Span(50.0, 2000.0, log=True),
        "window": Span(10, 50),
        "gap_decay": Span(0.85, 1.0),
    },
    "fm": {
        "dimension": Span(8, 96, log=True),
        "learning_rate": Span(0.05, 2.0, log=True),
        "weight_learning_rate": Span(0.01, 0.5, log=True),
        "regularization": Span(1e-4, 0.1, log=True),
        "negatives": Span(1, 16),
        "recent_decay": Span(0.5, 0.98),
    },
    "fusion": {
        "candidates": Span(16, 128, log=True),
        "learning_rate": Span(0.02, 0.5, log=True),
        "floor": Span(0.1, 10.0, log=True),
        "shrinkage": Span(1e-5, 0.1, log=True),
    },
    "graph": {
        **_QUERY,
        "window": Span(3, 40),
        "gap_decay": Span(0.8, 1.0),
        "source_exponent": Span(0.2, 1.0),
        "target_exponent": Span(0.0, 0.7),
        "shrinkage": Span(0.0, 30.0),
        "restart": Span(0.1, 0.95),
    },
    "group_popularity": {
        "half_life_s": Span(0.1 * DAY_S, 365.0 * DAY_S, log=True),
        "strength": Span(10.0, 1e5, log=True),
    },
    "ials": {
        **_ALTERNATING,
        "unobserved_weight": Span(0.01, 1.0, log=True),
        "regularization_exponent": Span(0.0, 1.0),
        "recent_boost": Span(1.0, 100.0, log=True),
        "recent_decay": Span(0.5, 0.95),
    },
    "isgd": {**_FACTORS, "negatives": Span(0, 16)},
    "item_knn": {**_QUERY, "shrinkage": Span(0.0, 50.0), "history_length": Span(5, 50)},
    "popularity": {"half_life_s": Span(0.1 * DAY_S, 365.0 * DAY_S, log=True)},
    "session_knn": {
        **_QUERY,
        "distance_decay": Span(0.7, 1.0),
        "source_exponent": Span(0.0, 1.0),
        "target_exponent": Span(0.0, 0.6),
        "neighbours": Span(50, 500, log=True),
    },
    "social": {
        "recency_half_life_s": Span(1.0 * DAY_S, 365.0 * DAY_S, log=True),
        "gain": Span(0.05, 1.0),
        "decline": Span(1e-3, 0.3, log=True),
    },
    "stage_popularity": {
        "half_life_s": Span(0.1 * DAY_S, 365.0 * DAY_S, log=True),
        "leak": Span(0.0, 1.0),
    },
    "trending": {
        "short_half_life_s": Span(0.05 * DAY_S, 5.0 * DAY_S, log=True),
        "long_half_life_s": Span(5.0 * DAY_S, 365.0 * DAY_S, log=True),
        "shrinkage": Span(0.1, 30.0, log=True),
    },
    "user_knn": {**_QUERY, "neighbours": Span(10, 200, log=True), "sample": Span(100, 2000, log=True)},
}
"""Model to parameter to where it is searched. A model that isn't here has nothing to search."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: `changed` parameters with which NDCG@10 on the searched events was `score`, where
    the start had `start_score`; empty where no trial did better than the start. `failed` trials were refused
    by the model."""

    changed: Parameters
    score: float
    start_score: float
    trials: int
    failed: int


def spans_of(model: str, given: Mapping[str, Any]) -> dict[str, Span]:
    """What is searched of a model: its spans without the parameters that were given.

    >>> sorted(spans_of("popularity", {})), spans_of("popularity", {"half_life_s": 60.0})
    (['half_life_s'], {})
    """
    return {name: span for name, span in SPACES.get(model, {}).items() if name not in given}


def search(
    model: str,
    events: Sequence[Interaction],
    trials: int,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    make: Make = make_model,
) -> Found:
    """Try `trials` sets of parameters on the events, and the start (defaults and what is `given`) before.

    The same seed, events and version of Optuna give the same parameters. What is `given` stays as it is.

    Reference: Akiba et al., Optuna: a next-generation hyperparameter optimization framework, KDD 2019;
    Bergstra et al., Algorithms for hyper-parameter optimization, NeurIPS 2011 (its sampler).

    Raises:
        MissingOptunaError: Optuna is not installed; the message says what to install.
        ValueError: the model has nothing to search.
    """
    fixed, spans = dict(given or {}), spans_of(model, given or {})
    if not spans:
        raise ValueError(
            f"{model} has nothing to search{' beside what was given' if model in SPACES else ''}"
        )
    optuna, start = _optuna(), score_of(make(model, fixed), events)
    spaces = {name: span.distribution(optuna) for name, span in spans.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    if (defaults := _defaults(model, spans)) is not None:  # the sampler learns from the start too
        study.add_trial(optuna.trial.create_trial(params=defaults, distributions=spaces, value=start))
    best, changed, failed = start, Parameters(), 0
    for done in range(trials):
        trial = study.ask(spaces)
        try:
            score = score_of(make(model, {**fixed, **trial.params}), events)
        except ValueError:  # parameters that don't go together, or a score that isn't finite: counted, told
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            failed += 1
        else:
            study.tell(trial, score)
            if score > best:
                best, changed = score, dict(trial.params)
        if progress is not None:
            progress(done + 1)
    return Found(changed, best, start, trials, failed)


def score_of(model: Evaluated, events: Sequence[Interaction]) -> float:
    """Prequential NDCG@10."""
    run = prequential({"model": model}, events)
    return mean_of(gains(run.ranks(run.entrants[0])))


def _defaults(model: str, spans: Mapping[str, Span]) -> Parameters | None:
    """The defaults of what is searched; None where one is outside its span."""
    declared = inspect.signature(model_class(model)).parameters
    defaults = {name: declared[name].default for name in spans}
    return defaults if all(defaults[name] in span for name, span in spans.items()) else None


def _optuna() -> Any:
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise MissingOptunaError(
            f"searching needs Optuna, which can't be loaded ({error}): install the extra `search`"
            " (pip install -e '.[search]' in a checkout), or pip install optuna"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
