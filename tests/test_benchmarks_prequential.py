"""The benchmark along the stream: its pool's steps, what it may know of an event, and its figures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.prequential_network import Retrained, Stream, logits_of
from benchmarks.prequential_pool import Pool
from benchmarks.prequential_ranker import FUSED, ONLINE, Fused, OnlineAlone, figures
from online_models import Fusion
from online_models.evaluation.interactions import Interaction
from online_models.evaluation.protocols import prequential
from serving.training.settings import TrainerSettings

SETTINGS = TrainerSettings(
    dim=8, blocks=1, heads=1, history_length=8, window_stride=8, max_epochs=1, min_interactions=10
)


def events(n: int, seed: int = 0) -> list[Interaction]:
    """Users of 20 events each, three at a time, walking a ring of 30 items with some leaps."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(n):
        user = 3 * (number // 60) + number % 3
        item = (7 * user + number // 3 + int(rng.integers(0, 3))) % 30
        made.append(Interaction(f"u{user}", f"i{item}", 1.0, {"timestamp": 1000 * number, "weight": 1.0}))
    return made


def log_loss(
    pool: Pool, scores: npt.NDArray[np.float64], hidden: npt.NDArray[np.bool_], target: int
) -> float:
    shown = np.exp(pool.scores(scores, 7)[~hidden])
    return -float(np.log(np.exp(pool.scores(scores, 7)[target]) / shown.sum()))


def test_the_first_step_of_the_pool_goes_down_the_gradient_of_the_log_loss() -> None:
    """Adagrad's first step is the rate times the gradient's sign, for the shared weights and the bucket's."""
    rng = np.random.default_rng(1)
    scores, hidden = rng.normal(size=(3, 9)), rng.random(9) < 0.3
    target = int(np.flatnonzero(~hidden)[0])
    pool, slopes = Pool(3, rate=0.1), []
    for source in range(3):
        moved = [Pool(3, rate=0.1) for _ in range(2)]
        for one, by in zip(moved, (1e-5, -1e-5), strict=True):
            one._weights[-1, source] += by
        losses = [log_loss(one, scores, hidden, target) for one in moved]
        slopes.append((losses[0] - losses[1]) / 2e-5)
    before = pool.weights(7)
    pool.learn(scores, hidden, target, 7)
    np.testing.assert_allclose(pool.weights(7) - before, -0.2 * np.sign(slopes), rtol=1e-4)
    np.testing.assert_allclose(pool._squares[-1], np.square(slopes), rtol=1e-4)
    np.testing.assert_allclose(pool.weights(0) - before, -0.1 * np.sign(slopes), rtol=1e-4)


def test_what_is_hidden_teaches_the_pool_nothing() -> None:
    rng = np.random.default_rng(2)
    scores, hidden = rng.normal(size=(2, 6)), np.array([False, True, False, False, True, False])
    pools = Pool(2), Pool(2)
    pools[0].learn(scores, hidden, 0, 3)
    pools[1].learn(np.where(hidden, 1e3, scores), hidden, 0, 3)
    np.testing.assert_array_equal(pools[0].weights(3), pools[1].weights(3))


def test_an_event_is_asked_of_with_what_its_user_did_before() -> None:
    stream = Stream.of([Interaction(user, item) for user, item in zip("abaab", "vwxyz", strict=True)])
    asked = stream.asked(1, 5)
    assert asked.histories(np.arange(1, 6), 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 3], [0, 0, 2]]
    assert asked.targets.tolist() == [1, 2, 3, 4]
    assert asked.rows[asked.positions].tolist() == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_network_says_of_an_event_what_it_would_say_without_the_later_ones() -> None:
    whole = Stream.of(events(300))
    later = np.arange(300) >= 250
    other = Stream.of(
        [event._replace(item="i0") if late else event for event, late in zip(events(300), later, strict=True)]
    )
    assert whole.item_ids == other.item_ids
    network = Retrained(whole, SETTINGS)
    logits, columns = network.retrain(200, 300)
    assert logits.shape == (100, 31)
    assert network.newest is not None
    split = network.newest.split
    assert split.to_offset == 199
    changed = logits_of(network.newest.session, other.asked(200, 300), columns + 1, split.contents, SETTINGS)
    np.testing.assert_array_equal(logits[:51], changed[:51])
    assert not np.array_equal(logits[51:], changed[51:])


def test_without_a_network_both_are_the_online_models() -> None:
    stream = events(240)
    fused = Fused(Fusion("short_term,popularity"), Retrained(Stream.of(stream), SETTINGS), 1)
    run = prequential({FUSED: fused, ONLINE: OnlineAlone(fused)}, stream)
    alone = prequential({"plain": Fusion("short_term,popularity")}, stream)
    plain = alone.ranks(alone.entrants[0])
    for entrant in run.entrants:
        np.testing.assert_array_equal(run.ranks(entrant), plain)
    assert np.isfinite(plain).any()


def test_figures_of_two_rankings() -> None:
    own, other = np.array([0.0, 0.0, 2.0, np.inf]), np.array([0.0, np.inf, 0.0, np.inf])
    found = figures(own, other, ("a", "b"), np.array([0.0, 0.3, 0.5, 0.9]), np.arange(4))
    whole, rest = found["whole"], found["last 70%"]
    assert whole["a"] == {"hr_at_10": 0.75, "ndcg_at_10": pytest.approx(2.5 / 4)}
    assert whole["b"] == {"hr_at_10": 0.5, "ndcg_at_10": 0.5}
    assert (whole["hits_only_first"], whole["hits_only_second"], whole["mcnemar_p"]) == (1, 0, 1.0)
    assert rest["judged"] == 3
    assert rest["ndcg_gain"] == pytest.approx((1.0 - 0.5) / 3, abs=1e-5)
    assert found["tenths"][3]["a"]["hr_at_10"] == 1.0
