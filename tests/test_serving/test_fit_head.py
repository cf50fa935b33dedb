"""The head on a stream whose new items sweep through groups of users before any network has heard of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from serving.ranker.inputs import CONTEXT, FEATURES
from serving.settings import ServingSettings
from serving.training import fit_head as fitting
from serving.training.dataset import LogSplit, split_by_time
from serving.training.examples import Examples
from serving.training.fit_head import FittedHead, fit_head, unfitted
from serving.training.fused import FusionHead
from serving.training.networks.base import SequenceNetwork
from serving.training.settings import TrainerSettings
from serving.training.train import train
from streams.events import Event
from streams.settings import Settings, load_settings
from streams.trainer_dataset import LocalWorker
from streams.trainer_log import TrainingLog, made_replay

EVENTS, GROUPS, RELEASED = 2400, 4, 60
SETTINGS: dict[str, dict[str, object]] = {
    "trainer": {
        "dim": 8, "blocks": 1, "max_epochs": 1, "history_length": 8, "validation_fraction": 0.25,
        "slice_fraction": 0.15, "min_interactions": 500, "window_stride": 8, "batch_windows": 64,
    },
    "models": {"factors": {"dimension": 4, "negatives": 1}, "popularity": {"half_life_s": 20_000.0}},
    "serving": {"covisitation_candidates": 40, "popularity_candidates": 40, "factor_candidates": 10},
}  # fmt: skip


def stream(seed: int) -> list[Event]:
    """Users of a group use its items, and more often than not one of its three newest."""
    rng = random.Random(seed)
    newest: list[list[str]] = [[] for _ in range(GROUPS)]
    had: dict[int, set[str]] = {}
    events = []
    for at in range(EVENTS):
        if at % RELEASED == 0:
            group = rng.randrange(GROUPS)
            newest[group] = [*newest[group], f"new-{at}"][-3:]
        user = rng.randrange(400) + (at // 600) * 120
        group = user % GROUPS if rng.random() < 0.9 else rng.randrange(GROUPS)
        pool = newest[group] if rng.random() < 0.6 else [f"old-{group}-{k}" for k in range(12)]
        left = [item for item in pool if item not in had.setdefault(user, set())]
        if left:
            item = rng.choice(left)
            had[user].add(item)
            time_ms = 1_700_000_000_000 + at * 60_000
            events.append(
                Event(
                    event_id=f"e{at}", user_id=f"u{user}", item_id=item, event_type="click", timestamp=time_ms
                )
            )
    return events


class Case(NamedTuple):
    network: SequenceNetwork
    split: LogSplit
    examples: Examples
    settings: TrainerSettings


@pytest.fixture(scope="module")
def case() -> Case:
    settings: Settings = load_settings(environ={}, overrides=SETTINGS)
    log = TrainingLog(10**6, made_replay(settings))
    for offset, record in enumerate(LocalWorker(settings).records(stream(0))):
        log.add(record, offset, "stream")
    interactions = log.interactions()
    examples = log.examples(interactions)
    assert examples is not None
    split = split_by_time(interactions, settings.trainer)
    return Case(train(split, settings.trainer).network.eval(), split, examples, settings.trainer)


@pytest.fixture(scope="module")
def fitted(case: Case) -> FittedHead:
    found = fit_head(*case)
    assert found is not None
    return found


def gates_lists(case: Case) -> tuple[fitting._Lists, npt.NDArray[np.bool_]]:
    """The lists before the gate's events, and whose item the export has never seen."""
    newest = case.split.newest
    mine = case.examples.slice(np.isin(case.examples.rows, newest.rows[newest.positions]))
    known = set(case.split.vocabulary)
    unseen = np.array([mine.item_ids[item] not in known for item in mine.target_items.tolist()])
    return fitting._lists(case.network, case.split, mine, None), unseen


def plain_ndcg(scores: Tensor, lists: fitting._Lists) -> npt.NDArray[np.float64]:
    """NDCG@10 list by list, the definition."""
    gains = []
    for n in range(len(lists)):
        served = scores[n][lists.served[n]].numpy()
        if not bool(lists.found[n]):
            gains.append(0.0)
            continue
        mine = served[int(lists.targets[n])]
        rank = (served > mine).sum() + 0.5 * ((served == mine).sum() - 1)
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    return np.array(gains)


def test_the_head_beats_each_of_its_parts_and_popularity_on_what_is_new(
    case: Case, fitted: FittedHead
) -> None:
    lists, unseen = gates_lists(case)
    with torch.no_grad():
        head = plain_ndcg(fitting._scores(fitted.head, lists), lists)
        network, online = plain_ndcg(lists.scores, lists), plain_ndcg(lists.online, lists)
        blend = plain_ndcg(fitting._scores(FusionHead.blending(ServingSettings()), lists), lists)
        popularity = plain_ndcg(lists.features[:, :, FEATURES.index("popularity")], lists)
    assert len(head) > 200
    assert head.mean() > max(network.mean(), online.mean(), blend.mean(), popularity.mean()) + 0.03
    assert unseen.sum() > 30
    assert head[unseen].mean() > popularity[unseen].mean() + 0.03
    assert head[unseen].mean() > network[unseen].mean() + 0.03


def test_what_it_says_of_itself_is_measured_on_lists_that_did_not_fit_it(
    case: Case, fitted: FittedHead
) -> None:
    part = unfitted(case.split, case.examples, case.settings)
    assert fitted.examples == len(part)
    newest = part.slice(slice(len(part) - len(part) // 3, None))
    lists = fitting._lists(case.network, case.split, newest, None)
    with torch.no_grad():
        scores = fitting._scores(fitted.head, lists)
        blend = fitting._scores(FusionHead.blending(ServingSettings()), lists)
    assert fitted.ndcg_at_10 == pytest.approx(plain_ndcg(scores, lists).mean(), abs=1e-6)
    assert fitted.blend_ndcg_at_10 == pytest.approx(plain_ndcg(blend, lists).mean(), abs=1e-6)
    assert fitted.online_ndcg_at_10 == pytest.approx(plain_ndcg(lists.online, lists).mean(), abs=1e-6)
    assert fitted.ndcg_at_10 > fitted.blend_ndcg_at_10


def test_it_learns_from_nothing_that_the_network_or_the_gate_has(case: Case) -> None:
    newest, part = case.split.newest, unfitted(case.split, case.examples, case.settings)
    held_out = newest.times_ms[newest.positions]
    assert 0 < len(part) < len(case.examples)
    assert part.times_ms.max() < held_out.min()
    train_ms = np.sort(case.split.train.times_ms[case.split.train.targets])
    fitted_on = train_ms[: len(train_ms) - int(len(train_ms) * case.settings.validation_fraction)]
    assert part.times_ms.min() > fitted_on.max()


def test_fitting_leaves_the_network_alone_and_gives_the_same_again(case: Case, fitted: FittedHead) -> None:
    before = {name: value.clone() for name, value in case.network.state_dict().items()}
    again = fit_head(*case)
    assert again is not None
    assert all(torch.equal(value, before[name]) for name, value in case.network.state_dict().items())
    for name, value in fitted.head.state_dict().items():
        assert torch.equal(value, again.head.state_dict()[name]), name


def test_too_few_lists_give_none(case: Case) -> None:
    enough = len(unfitted(case.split, case.examples, case.settings))
    asked = msgspec.structs.replace(case.settings, head_min_examples=enough + 1)
    assert fit_head(case.network, case.split, case.examples, asked) is None


def test_features_that_say_nothing_give_none(case: Case) -> None:
    """Targets drawn at random: whatever the head finds does not hold on the newest lists."""
    rng, examples = np.random.default_rng(0), case.examples
    drawn = rng.integers(0, np.maximum(examples.length, 1)).astype(np.int32)
    assert fit_head(case.network, case.split, replace(examples, targets=drawn), case.settings) is None


def test_it_starts_as_the_blend_that_is_served_without_it(case: Case) -> None:
    """Of users with experience h / (h + 5), what `serving.scoring` gives up to a constant a list."""
    lists, _ = gates_lists(case)
    head = FusionHead.blending(ServingSettings(ranker_weight=0.0))
    with torch.no_grad():
        scores = head(lists.scores, lists.served, lists.context, lists.features)
    for n in range(40):
        served = lists.served[n]
        apart = (scores[n] - lists.online[n])[served]
        assert float(apart.max() - apart.min()) < 1e-4


def test_scores_of_padding_are_finite() -> None:
    head = FusionHead.blending(ServingSettings())
    present = torch.tensor([[True, True, False], [False, False, False]])
    scores = head(torch.randn(2, 3), present, torch.zeros(2, len(CONTEXT)), torch.zeros(2, 3, len(FEATURES)))
    assert torch.isfinite(scores).all()
