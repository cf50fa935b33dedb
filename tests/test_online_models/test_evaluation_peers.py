"""Other libraries beside ours: what is there is really run, what is not says what to install."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from river import reco

from online_models.evaluation.interactions import Interaction
from online_models.evaluation.peers import BatchPeer, MissingPeerError, make_peers
from online_models.evaluation.protocols import last_positive_out, prequential
from online_models.evaluation.results import summarise
from online_models.river_adapter import RiverRecommender


def ratings(n: int = 200, users: int = 15, items: int = 12, seed: int = 0) -> list[Interaction]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        user, item = int(rng.integers(users)), int(rng.integers(items))
        rating = 5.0 if (user + item) % 3 == 0 else float(rng.integers(1, 5))
        found.append(Interaction(f"u{user}", f"i{item}", rating, {"weight": 1.0}, rating))
    return found


def test_rivers_recommenders_are_judged_as_they_predict() -> None:
    events = ratings()
    run = prequential({"b": RiverRecommender(reco.Baseline())}, events)
    model, squared, had, expected = reco.Baseline(), 0.0, {}, []
    known: list[str] = []
    for event in events:
        seen = had.setdefault(event.user, set())
        scores = {item: np.float32(model.predict_one(event.user, item)) for item in known}
        predicted = {item: score for item, score in scores.items() if item not in seen}
        if event.item not in seen:
            mine = predicted.get(event.item, np.nan)
            others = [score for item, score in predicted.items() if item != event.item]
            ties = sum(score == mine for score in others) / 2
            expected.append(sum(s > mine for s in others) + ties if event.item in predicted else np.inf)
        squared += (model.predict_one(event.user, event.item) - event.y) ** 2
        model.learn_one(event.user, event.item, event.y)
        seen.add(event.item)
        known += [event.item] if event.item not in known else []
    assert run.ranks(run.entrants[0]).tolist() == expected
    assert summarise(run, "tiny").models[0].rmse == pytest.approx((squared / len(events)) ** 0.5)


def test_the_river_peers_run() -> None:
    peers = make_peers("river", "prequential")
    assert set(peers) == {"river.BiasedMF", "river.FunkMF", "river.Baseline"}
    result = summarise(prequential(peers, ratings(120)), "tiny")
    assert all(model.rmse is not None and 0 < model.rmse < 5 for model in result.models)
    assert len(result.comparisons) == 3


def test_a_batch_peer_is_fitted_once_to_what_was_learned() -> None:
    fitted = []

    def fit(matrix: Any, positive_from: float) -> Callable[[int], np.ndarray]:
        fitted.append((matrix.toarray().tolist(), positive_from))
        return lambda user: np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel() + user

    peer = BatchPeer(fit, 4.0)
    for user, item, y in (("ann", "x", 5.0), ("bob", "y", 2.0), ("bob", "x", 3.0), ("ann", "y", -1.0)):
        peer.learn_one(user, item, y)
    rows = np.array([1, -1, 0], dtype=np.int32)
    assert peer.score_rows("bob", rows).tolist() == [3.0, 0.0, 9.0]
    assert peer.score_rows("stranger", rows).tolist() == [0.0, 0.0, 0.0]
    peer.learn_one("cem", "z", 5.0)
    assert peer.predict_one("ann", "x") == 8.0
    assert fitted == [([[5.0, 0.0], [3.0, 2.0]], 4.0)]


@pytest.mark.parametrize(
    ("library", "needed"), [("implicit", "implicit.als"), ("rectools", "rectools.models")]
)
def test_what_is_not_installed_is_named(library: str, needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, needed, None)
    with pytest.raises(MissingPeerError, match=f"the peer {library} needs .*pip install {library}"):
        make_peers(library, "last-positive-out")


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"implicit fits in batch.*last-positive-out or temporal"):
        make_peers("implicit", "prequential")
    with pytest.raises(ValueError, match="no peer 'spark'; there are river, implicit, rectools, gorse"):
        make_peers("spark", "temporal")


@pytest.mark.parametrize("library", ["implicit", "rectools"])
def test_batch_libraries_find_what_is_planted(library: str) -> None:
    pytest.importorskip(library)
    events = []
    for user in range(40):  # two tastes of eight items each; everyone has six of their own taste
        for k in range(6):
            item = (user % 2) * 8 + (user // 2 + k) % 8
            events.append(Interaction(f"u{user}", f"i{item}", 5.0, {"weight": 1.0}, 5.0))
    for peer, model in make_peers(library, "last-positive-out").items():
        figures = summarise(last_positive_out({peer: model}, events), "planted").models[0]
        assert figures.judged == 40
        assert figures.mrr > 0.3, (
            f"{peer}: chance is about 0.2 of one's own taste's three items and ten others"
        )
