"""Other libraries' recommenders on the same events by the same protocol, where they are installed.

Each is wrapped to the few methods that the arena asks for; settings are those with which they did best in a
small search of ours, or their defaults. They are compared, not served: nothing here is replicated state.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.evaluation.arena import Evaluated
from online_models.item_table import ItemTable
from online_models.river_adapter import RiverRecommender

__all__ = ["LIBRARIES", "BatchPeer", "MissingPeerError", "make_peers"]

Doubles = NDArray[np.float64]


class MissingPeerError(ImportError):
    """A library that was asked for is not installed, or not in a version that goes with the others."""


Fit = Callable[[Any, float], Callable[[int], Doubles]]
"""From (users x items as a scipy matrix, ratings inside; positives start from) to a user's scores."""


class BatchPeer:
    """A recommender that is fitted once, to all that was learned before it is first asked; then it stays so.

    A user it was not fitted to gets the same score for every item.
    """

    def __init__(self, fit: Fit, positive_from: float) -> None:
        self.items = ItemTable()
        self._fit = fit
        self._positive_from = positive_from
        self._users: dict[str, int] = {}
        self._cells: dict[tuple[int, int], float] = {}
        self._scores_of: Callable[[int], Doubles] | None = None

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, Any] | None = None) -> None:
        if self._scores_of is None and float((x or {}).get("weight", y)) > 0.0:
            row = int(self.items.ensure([item])[0])
            self._cells[self._users.setdefault(user, len(self._users)), row] = y

    def predict_one(self, user: str, item: str, x: Mapping[str, Any] | None = None) -> float:
        return float(self.score_rows(user, self.items.rows([item]))[0])

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[Any]:
        if self._scores_of is None:
            self._scores_of = self._fit(self._matrix(), self._positive_from)
        scores, number = np.zeros(len(rows)), self._users.get(user, -1)
        if number >= 0:
            known = rows >= 0
            scores[known] = self._scores_of(number)[rows[known]]
        return scores

    def _matrix(self) -> Any:
        sparse = importlib.import_module("scipy.sparse")
        places = np.array(list(self._cells), dtype=np.int64).reshape(-1, 2)
        values = np.array(list(self._cells.values()), dtype=np.float32)
        shape = (len(self._users), len(self.items))
        return sparse.csr_matrix((values, (places[:, 0], places[:, 1])), shape=shape)


def _river(seed: int) -> Iterable[tuple[str, Evaluated]]:
    from river import optim, reco

    def normal() -> Any:
        return optim.initializers.Normal(mu=0.0, sigma=0.1, seed=seed)

    biased = reco.BiasedMF(
        n_factors=32, bias_optimizer=optim.SGD(0.025), latent_optimizer=optim.SGD(0.05), l2_bias=0.01,
        l2_latent=0.01, latent_initializer=normal(),
    )  # fmt: skip
    plain = reco.FunkMF(n_factors=32, optimizer=optim.SGD(0.05), l2=0.01, initializer=normal())
    yield "river.BiasedMF", RiverRecommender(biased)
    yield "river.FunkMF", RiverRecommender(plain)
    yield "river.Baseline", RiverRecommender(reco.Baseline(optimizer=optim.SGD(0.025), l2=0.01))


def _implicit(positive_from: float, seed: int) -> Iterable[tuple[str, Evaluated]]:
    als = importlib.import_module("implicit.als").AlternatingLeastSquares
    bpr = importlib.import_module("implicit.bpr").BayesianPersonalizedRanking
    bm25 = importlib.import_module("implicit.nearest_neighbours").BM25Recommender

    def factors(model: Any) -> Fit:
        def fit(ratings: Any, _: float) -> Callable[[int], Doubles]:
            model.fit(_ones(ratings), show_progress=False)
            users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
            return lambda user: np.asarray(items @ users[user], dtype=np.float64)

        return fit

    def neighbours(ratings: Any, start: float) -> Callable[[int], Doubles]:
        model, used = bm25(100, num_threads=1), _positives(ratings, start)
        model.fit(used, show_progress=False)
        return lambda user: np.asarray((used[user] @ model.similarity).todense(), dtype=np.float64).ravel()

    fits = {
        "implicit.ALS": factors(als(64, regularization=0.05, alpha=10, iterations=15, random_state=seed)),
        "implicit.BPR": factors(bpr(64, iterations=100, num_threads=1, random_state=seed)),
        "implicit.BM25": neighbours,
    }
    return [(name, BatchPeer(fit, positive_from)) for name, fit in fits.items()]


def _rectools(positive_from: float, _: int) -> Iterable[tuple[str, Evaluated]]:
    models, pandas = importlib.import_module("rectools.models"), importlib.import_module("pandas")
    data = importlib.import_module("rectools.dataset").Dataset

    def ease(ratings: Any, start: float) -> Callable[[int], Doubles]:
        used = _positives(ratings, start).tocoo()
        frame = pandas.DataFrame({"user_id": used.row, "item_id": used.col, "weight": 1.0})
        frame["datetime"] = pandas.Timestamp(0)
        dataset, model = data.construct(frame), models.EASEModel(regularization=500)
        model.fit(dataset)
        scores = np.zeros(ratings.shape)
        known, items = np.unique(used.row), np.unique(used.col)
        listed = model.recommend(known, dataset, k=len(items), filter_viewed=False)
        scores[listed["user_id"].to_numpy(), listed["item_id"].to_numpy()] = listed["score"].to_numpy()
        return lambda user: np.asarray(scores[user], dtype=np.float64)

    return [("rectools.EASE", BatchPeer(ease, positive_from))]


def _gorse(positive_from: float, _: int) -> Iterable[tuple[str, Evaluated]]:
    from online_models.evaluation.peer_gorse import PROGRAM, PROGRAM_VARIABLE, GorsePeer, find_program

    program = find_program()
    if program is None:
        raise MissingPeerError(
            f"the peer gorse needs the program {PROGRAM} on PATH, or its path in {PROGRAM_VARIABLE}: build it"
            " with Go as docs/evaluation.md says"
        )
    return [("gorse", GorsePeer(program, positive_from))]


def _ones(ratings: Any) -> Any:
    used = ratings.copy()
    used.data[:] = 1.0
    return used


def _positives(ratings: Any, start: float) -> Any:
    """1 where a rating is at least `start`; where none is, as of data without ratings, 1 everywhere."""
    used = _ones(ratings)
    used.data[:] = ratings.data >= start
    if not used.data.any():
        return _ones(ratings)
    used.eliminate_zeros()
    return used


LIBRARIES: dict[str, Callable[[float, int], Iterable[tuple[str, Evaluated]]]] = {
    "river": lambda _, seed: _river(seed),
    "implicit": _implicit,
    "rectools": _rectools,
    "gorse": _gorse,
}


def make_peers(
    library: str, protocol: str, positive_from: float = 4.0, seed: int = 0
) -> dict[str, Evaluated]:
    """The recommenders of one of `LIBRARIES`, by name; those that start at random do so from the seed.

    Raises:
        ValueError: no such library, or one that is fitted in batch and can't be judged prequentially.
        MissingPeerError: it is not installed; the message says what to install.
    """
    if library not in LIBRARIES:
        raise ValueError(f"no peer {library!r}; there are {', '.join(LIBRARIES)}")
    if library != "river" and protocol == "prequential":
        raise ValueError(
            f"{library} fits in batch, so it can't learn between two events: choose the protocol"
            " last-positive-out or temporal"
        )
    try:
        return dict(LIBRARIES[library](positive_from, seed))
    except MissingPeerError:
        raise
    except ModuleNotFoundError as error:
        raise MissingPeerError(
            f"the peer {library} needs {error.name}, which is not installed: pip install {library}"
        ) from error
    except ImportError as error:
        raise MissingPeerError(f"the peer {library} is installed but can't be loaded: {error}") from error
