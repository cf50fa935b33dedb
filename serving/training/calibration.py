"""Calls as serving makes them, of users of the training part: what activations' ranges are taken from."""

from __future__ import annotations

import numpy as np

from serving.ranker.inputs import CONTEXT, FEATURES, OWN_CONTEXT, RankerInputs
from serving.training.dataset import Float32, Int64, LogSplit, Sequences
from serving.training.settings import TrainerSettings

__all__ = ["training_calls"]


def training_calls(
    split: LogSplit, settings: TrainerSettings, users: int, *, size: int = 16, candidates: int = 200
) -> list[RankerInputs]:
    """Calls of `size` users as serving makes them: the newest history of users of the training part, drawn
    with the settings' seed, with candidates drawn evenly and the context of their newest event;
    the rest of the context and features are zeros."""
    rng = np.random.default_rng(settings.seed)
    train, length = split.train, settings.history_length
    drawn = rng.permutation(len(train))[:users]
    history, types = np.zeros((len(drawn), length), np.int64), np.zeros((len(drawn), length), np.int64)
    gaps_s = np.zeros((len(drawn), length), np.float32)
    context = np.zeros((len(drawn), len(CONTEXT)), np.float32)
    for row, user in enumerate(drawn.tolist()):
        begin, end = int(train.starts[user]), int(train.starts[user + 1])
        at = np.arange(max(begin, end - length), end)
        kept = slice(length - len(at), None)
        history[row, kept], types[row, kept] = train.items[at], train.types[at]
        gaps_s[row, kept] = _gaps_s(train, at)
        if train.contexts is not None and train.context is not None:
            context[row, len(OWN_CONTEXT) :] = train.contexts[train.context[end - 1]]
    return [
        RankerInputs(
            history[at : at + size], types[at : at + size], gaps_s[at : at + size],
            context[at : at + size],
            rng.integers(1, len(split.vocabulary) + 1, (min(size, len(drawn) - at), candidates)),
            np.zeros((min(size, len(drawn) - at), candidates, len(FEATURES)), np.float32), split.contents,
        )
        for at in range(0, len(drawn), size)
    ]  # fmt: skip


def _gaps_s(train: Sequences, at: Int64) -> Float32:
    gaps_ms = np.diff(train.times_ms[at], prepend=train.times_ms[at[:1]])
    return np.asarray(np.maximum(gaps_ms, 0) / 1000.0, dtype=np.float32)
