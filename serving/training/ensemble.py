"""Several networks trained on one log, and one student that learns their mean opinion and is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import torch

from serving.training.dataset import LogSplit
from serving.training.device import Place
from serving.training.distillation import Ensemble
from serving.training.settings import TrainerSettings
from serving.training.train import Progress, TrainedNetwork, WarmStart, evaluate, train
from serving.training.windows import hold_out_newest

__all__ = ["distil", "train_networks"]


def train_networks(
    split: LogSplit,
    settings: TrainerSettings,
    warm_start: WarmStart | None = None,
    progress: Callable[[Progress], None] | None = None,
    place: Place | None = None,
) -> TrainedNetwork:
    """`train` where `settings.ensemble` is empty; else train each of its networks, and teach
    `settings.network` what they agree on.

    The warm start is the student's, and of the teacher that has its architecture. The budgets of CPU and wall
    time are those of each network. `TrainedNetwork.metrics` says what every teacher, their mean and the
    student reach. Raises ValueError for an unknown network, and what `train` raises.
    """
    if not settings.ensemble:
        return train(split, settings, warm_start, progress, place)
    where = place or Place.of(settings)
    teachers: dict[str, TrainedNetwork] = {}
    for number, name in enumerate(settings.ensemble):
        own = msgspec.structs.replace(settings, network=name, ensemble=(), seed=settings.seed + number)
        start = warm_start if name == settings.network else None
        teachers[f"{number}_{name}"] = train(split, own, start, progress, where)
    return distil(teachers, split, settings, warm_start, progress, where)


def distil(
    teachers: Mapping[str, TrainedNetwork],
    split: LogSplit,
    settings: TrainerSettings,
    warm_start: WarmStart | None = None,
    progress: Callable[[Progress], None] | None = None,
    place: Place | None = None,
) -> TrainedNetwork:
    """Train `settings.network` on the log and on the teachers' mean opinion of the same split.

    Raises ValueError for no teachers, or for one of another vocabulary.
    """
    for name, taught in teachers.items():
        if taught.vocabulary != split.vocabulary:
            raise ValueError(f"teacher {name} knows other items than this split: train it on the same one")
    ensemble = Ensemble([taught.network for taught in teachers.values()])
    student = train(split, settings, warm_start, progress, place, ensemble)
    ensemble.to("cpu")
    _, held_out = hold_out_newest(split.train, settings)
    student.metrics |= {
        "student_ndcg_at_10": student.ndcg_at_10,
        "ensemble_ndcg_at_10": evaluate(ensemble, held_out, torch.from_numpy(split.contents)),
        **{f"teacher_{name}_ndcg_at_10": taught.ndcg_at_10 for name, taught in teachers.items()},
    }
    ensemble.eval()
    return student
