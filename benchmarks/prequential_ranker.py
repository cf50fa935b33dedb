"""The deep ranker beside the online models along a whole stream, judged event by event before it is learned.

    python -m benchmarks.prequential_ranker [--small] [--network transformer] [--cpu-s 60] [--cuts 10]

The network is retrained at every tenth of the stream on all that came before, exported, and asked by ONNX
Runtime; in between only its inputs change. It is judged twice, on the same events:

1. Beside the default `Fusion`, in the whole catalogue: both opinions are pooled by weights that are learned
   event by event too (`benchmarks.prequential_pool`). Candidates are all items met so far less those that the
   user has had; an event on an item not met yet is a miss; ties count half.
2. As a worker serves it (`benchmarks.prequential_served`): joined with the online features by the head that
   was fitted at the last cut, in lists that serving's own retrieval made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.prequential_network import Retrained, Stream, log_of, prefix_settings
from benchmarks.prequential_pool import Pool
from benchmarks.prequential_served import Served
from benchmarks.quality import data_of, events_of
from benchmarks.report import environment
from online_models import Fusion
from online_models.evaluation import metrics
from online_models.evaluation.comparison import paired
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import prequential
from online_models.evaluation.significance import paired_bootstrap
from online_models.item_table import ItemTable
from serving.training.dataset import split_by_time
from serving.training.settings import TrainerSettings
from serving.training.train import Progress, train
from streams.datasets import Dataset

__all__ = ["Fused", "OnlineAlone", "figures", "main", "seconds_to_best"]

RESULTS = Path(__file__).parent / "results"
SMALL_EVENTS = 3000
TRAINING_CPU_S = 360.0
"""Of the training that is timed: three minutes on two cores; it ends earlier, when nothing is gained."""
ONLINE, FUSED = "online models alone", "with the network"
Ranks = NDArray[np.float64]
GOALS = {"whole": (0.215, 0.112), "last 70%": (0.225, 0.118)}


class Fused:
    """Online models and a network as one model of the evaluator's. Events must be learned in the order in
    which `stream` has them."""

    def __init__(
        self, online: Fusion, network: Retrained, cuts: int, before: Callable[[int], None] | None = None
    ) -> None:
        """`before` is told how many events were learned just before each training."""
        self.online, self.network, self.before = online, network, before
        self.pool = Pool(2)
        self.cuts = [len(network.stream) * cut // cuts for cut in range(1, cuts)]
        self.learned = 0
        self.online_scores: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        """Of the online models alone, as last asked."""
        self._asked: NDArray[np.float64] | None = None
        self._rows: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._logits: NDArray[np.float32] | None = None
        self._first = 0
        self._columns: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._numbers = {item_id: number for number, item_id in enumerate(network.stream.item_ids)}
        self._column_of_row: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._seen: dict[str, list[int]] = {}

    @property
    def items(self) -> ItemTable:
        return self.online.items

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32[n]: the pool of both, of the event to be learned next."""
        self.online_scores = self.online.score_rows(user, rows)
        if self._logits is None:
            return self.online_scores
        logits = self._logits[self.learned - self._first, self._columns_of(rows)]
        self._rows, self._asked = rows.copy(), np.stack((self.online_scores, logits), dtype=np.float64)
        return self.pool.scores(self._asked, len(self._seen.get(user, ()))).astype(np.float32)

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, Any] | None = None) -> None:
        """Learn the event: the pool's weights first, from what was said of it, then the online models."""
        seen = self._seen.setdefault(user, [])
        target = np.flatnonzero(self._rows == self.items.row(item))
        if self._asked is not None and len(target):
            hidden = np.isin(self._rows, seen)
            if not hidden[target[0]]:
                self.pool.learn(self._asked, hidden, int(target[0]), len(seen))
        self._asked = None
        self.online.learn_one(user, item, y, x)
        seen.append(self.items.row(item))
        self.learned += 1
        if self.learned in self.cuts:
            self._retrain()

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = None) -> float:
        raise NotImplementedError("it ranks items, and predicts no ratings")

    def _retrain(self) -> None:
        later = [cut for cut in self.cuts if cut > self.learned]
        until = later[0] if later else len(self.network.stream)
        if self.before is not None:
            self.before(self.learned)
        self._logits, self._columns = self.network.retrain(self.learned, until)
        self._first = self.learned
        self._column_of_row = np.zeros(0, dtype=np.int64)
        last = self.network.trainings[-1]
        click.echo(f"{self.learned} events: {last}, weights {self.pool.weights(10).round(2)}", err=True)

    def _columns_of(self, rows: NDArray[np.int32]) -> NDArray[np.int64]:
        ids, known = self.items.ids, len(self._column_of_row)
        if known < len(ids):
            new = [self._columns[self._numbers[item_id]] for item_id in ids[known:]]
            self._column_of_row = np.concatenate((self._column_of_row, np.array(new, dtype=np.int64)))
        return self._column_of_row[rows]


class OnlineAlone:
    """The online models within a `Fused` that was asked just before, as a model of its own."""

    def __init__(self, fused: Fused) -> None:
        self._fused = fused

    @property
    def items(self) -> ItemTable:
        return self._fused.items

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        return self._fused.online_scores

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, Any] | None = None) -> None:
        """Learned by the other."""

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = None) -> float:
        raise NotImplementedError("it ranks items, and predicts no ratings")


def figures(
    own: Ranks,
    other: Ranks,
    names: tuple[str, str],
    place: NDArray[np.float64],
    user: NDArray[np.integer[Any]],
) -> dict[str, Any]:
    """HR@10 and NDCG@10 of two rankings of the same events by part of the stream, and how sure the difference
    is; `place` float64[n] is each event's in the stream, from 0 to 1."""
    found: dict[str, Any] = {}
    for part, chosen in {"whole": place >= 0.0, "last 70%": place >= 0.3}.items():
        gains = metrics.gains(own[chosen]) - metrics.gains(other[chosen])
        low, high = paired_bootstrap(gains, user[chosen])
        pair = paired(own[chosen] < 10, other[chosen] < 10)
        found[part] = {
            "judged": int(chosen.sum()), names[0]: _both(own[chosen]), names[1]: _both(other[chosen]),
            "ndcg_gain": round(float(gains.mean()), 5), "ndcg_gain_95": [round(low, 5), round(high, 5)],
            "hits_only_first": pair.hits_only_model, "hits_only_second": pair.hits_only_against,
            "mcnemar_p": pair.p_value,
        }  # fmt: skip
    tenths = np.minimum((10 * place).astype(np.int64), 9)
    found["tenths"] = [
        {name: _both(ranks[tenths == tenth]) for name, ranks in zip(names, (own, other), strict=True)}
        for tenth in range(10)
    ]
    return found


def _both(ranks: NDArray[np.float64]) -> dict[str, float]:
    return {
        "hr_at_10": round(metrics.mean_of(metrics.hits(ranks, 10).astype(np.float64)), 5),
        "ndcg_at_10": round(metrics.mean_of(metrics.gains(ranks)), 5),
    }


def seconds_to_best(stream: Stream, settings: TrainerSettings, share: float = 0.99) -> dict[str, Any]:
    """CPU seconds of one training on the whole stream until `share` of the best NDCG@10 of its curve, judged
    on the newest part of the training data."""
    split = split_by_time(log_of(stream, len(stream)), prefix_settings(settings, len(stream)))
    started = time.process_time()
    curve: list[tuple[float, float]] = []

    def note(point: Progress) -> None:
        curve.append((time.process_time() - started, point.ndcg_at_10))

    trained = train(split, settings, progress=note)
    best = max(ndcg for _, ndcg in curve)
    return {
        "cpu_s": round(next(cpu_s for cpu_s, ndcg in curve if ndcg >= share * best), 1),
        "best_ndcg_at_10": round(best, 4), "epochs": len(trained.curve), "all_cpu_s": round(curve[-1][0], 1),
        "curve": [(round(cpu_s, 1), round(ndcg, 4)) for cpu_s, ndcg in curve],
    }  # fmt: skip


def measure(
    data: Dataset, events: Sequence[Interaction], settings: TrainerSettings, cuts: int, *, warm: bool
) -> dict[str, Any]:
    """The whole run: figures, trainings, and what the pool learned."""
    stream = Stream.of(events)
    network = Retrained(stream, settings, is_warm=warm)
    served = Served(data.events[: len(events)], stream, 2 * -(-len(events) // cuts))
    fused = Fused(Fusion(), network, cuts, lambda count: served.judge(network, count))
    run = prequential({FUSED: fused, ONLINE: OnlineAlone(fused)}, events, progress=_progress(len(events)))
    served.judge(network, len(events))
    place = run.event / max(run.events, 1)
    by_name = {entrant.name: run.ranks(entrant) for entrant in run.entrants}
    pooled = figures(by_name[FUSED], by_name[ONLINE], (FUSED, ONLINE), place, run.user)
    for part, (hr, ndcg) in GOALS.items():
        reached = pooled[part][FUSED]
        is_met = reached["hr_at_10"] >= hr and reached["ndcg_at_10"] >= ndcg
        pooled[part]["goal"] = {"hr_at_10": hr, "ndcg_at_10": ndcg}
        pooled[part]["met"] = is_met and pooled[part]["ndcg_gain_95"][0] > 0.0
    ranks = {name: found[run.event] for name, found in served.ranks.items()}
    return {
        "pooled": pooled,
        "served": figures(ranks["fused"], ranks["online"], (FUSED, ONLINE), place, run.user),
        "served_fixed_blend": figures(
            ranks["fused"], ranks["fixed_blend"], (FUSED, "at a fixed weight"), place, run.user
        ),
        "trainings": network.trainings,
        "heads": served.heads,
        "weights_by_history": {
            str(history): fused.pool.weights(history).round(3).tolist() for history in (0, 1, 5, 10, 50)
        },
    }


def _progress(events: int) -> Any:
    def report(done: int) -> None:
        if done % 5000 == 0:
            click.echo(f"{done} of {events} events, {time.process_time():.0f} s of processor time", err=True)

    return report


def summary(found: Mapping[str, Any]) -> str:
    """The figures as lines."""
    lines = []
    for way in ("pooled", "served", "served_fixed_blend"):
        for part in GOALS:
            about = found[way][part]
            names = [name for name, value in about.items() if isinstance(value, dict) and name != "goal"]
            means = ", ".join(
                f"{name} {about[name]['hr_at_10']:.4f} / {about[name]['ndcg_at_10']:.4f}" for name in names
            )
            low, high = about["ndcg_gain_95"]
            lines.append(
                f"{way}, {part}: {means}; NDCG@10 {about['ndcg_gain']:+.4f} ({low:+.4f} to {high:+.4f}), "
                f"McNemar p {about['mcnemar_p']:.2g}{', goal met' if about.get('met') else ''}"
            )
    lines.append(f"training on all: {found['training']['cpu_s']} s of processor time to 99% of its best")
    return "\n".join(lines)


@click.command()
@click.option("--dataset", default="ml-100k", show_default=True, help="As of `freshet evaluate`.")
@click.option("--network", default="transformer", show_default=True, help="A name of the networks.")
@click.option("--cpu-s", default=60.0, show_default=True, help="Seconds of processor time of one training.")
@click.option("--cuts", default=10, show_default=True, help="Parts of the stream, with a training between.")
@click.option(
    "--warm/--cold", default=False, show_default=True, help="Whether a training starts from the last."
)
@click.option("--small", is_flag=True, help="The first 3,000 events, short trainings: does it run?")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
def main(dataset: str, network: str, cpu_s: float, cuts: int, warm: bool, small: bool, results: Path) -> None:
    """Measure, write prequential_ranker.json, print the figures."""
    started, started_cpu_s = time.monotonic(), time.process_time()
    data = data_of(dataset, small)
    events = events_of(data, None, SMALL_EVENTS if small else None)
    settings = TrainerSettings(
        network=network, max_cpu_seconds=2.0 if small else cpu_s, max_seconds=3600.0, min_interactions=100,
        slice_max_events=1500,
    )  # fmt: skip
    found: dict[str, Any] = {
        "dataset": data.name,
        "events": len(events),
        "network": network,
        "warm": warm,
        "cuts": cuts,
    }
    found["max_cpu_s"] = settings.max_cpu_seconds
    found |= measure(data, events, settings, min(cuts, 4) if small else cuts, warm=warm)
    _write(results, found, started, started_cpu_s)  # what comes next takes minutes too
    unbounded = msgspec.structs.replace(settings, max_cpu_seconds=2.0 if small else TRAINING_CPU_S)
    found["training"] = seconds_to_best(Stream.of(events), unbounded)
    _write(results, found, started, started_cpu_s)
    click.echo(summary(found))


def _write(folder: Path, found: dict[str, Any], started: float, started_cpu_s: float) -> None:
    found["seconds"] = round(time.monotonic() - started, 1)
    found["cpu_s"] = round(time.process_time() - started_cpu_s, 1)
    found["environment"] = {**environment(1, False), "command": "python -m benchmarks.prequential_ranker"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prequential_ranker.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
