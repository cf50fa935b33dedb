from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import (
    ISGD,
    CoVisitation,
    DecayedPopularity,
    ItemTable,
    OnlineRanker,
    SocialMF,
    StagePopularity,
    checks,
)
from online_models.evaluation import metrics
from online_models.evaluation.protocols import temporal
from online_models.fusion import Fusion
from online_models.fusion_kernels import FusionState, bucket_of, fusion_draw
from online_models.learning_batch import LearningBatch
from online_models.prequential import Interaction

FACTORS = {"dimension": 3, "negatives": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "with factors": {"parts": "covisitation,popularity,isgd", "candidates": 4, "ring_size": 8},
    "two factor models": {
        "parts": {"near": ISGD(**FACTORS), "co": CoVisitation(window=3), "far": ISGD(dimension=2, seed=5)},
        "candidates": 6,
    },
    "decay, negative weights allowed": {
        "parts": {"p": DecayedPopularity(half_life_s=60.0), "c": CoVisitation(half_life_s=600.0)},
        "lowest_weight": -2.0,
        "learning_rate": 1.0,
    },
    "one part": {"parts": "popularity", "floor": 0.1},
}


@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_keep_the_contract(variant: str, check: Any) -> None:
    check(lambda: Fusion(**VARIANTS[variant]))


def random_stream(n: int, users: int, items: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, items, size=users)
    found = []
    for _ in range(n):
        user = int(rng.integers(0, users))
        item = (
            int(taste[user] + rng.geometric(0.3)) % items
            if rng.random() < 0.7
            else int(rng.zipf(1.6)) % items
        )
        found.append((f"u{user}", f"i{item}"))
    return found


class Reference:
    """The docstring's equations, step by step, over the whole catalogue, with models of its own."""

    def __init__(self, rate: float, shrink: float) -> None:
        self.parts = [CoVisitation(), DecayedPopularity()]
        self.shared, self.own = np.full(2, 0.5), np.zeros((4, 2))
        self.squares, self.squares_own = np.zeros(2), np.zeros((4, 2))
        self.means: dict[Any, np.ndarray] = defaultdict(lambda: np.zeros(2))
        self.scaled: dict[Any, int] = defaultdict(int)
        self.had: dict[str, list[str]] = defaultdict(list)
        self.rate, self.shrink = rate, shrink
        self.loss = 0.0

    def bucket(self, user: str) -> int:
        return [n <= len(self.had[user]) for n in (1, 5, 10)].count(True)

    def features(self, scores: np.ndarray, bucket: int) -> np.ndarray:
        means = self.means[bucket if self.scaled[bucket] >= 20 else "all"]
        found = np.zeros_like(scores)
        for part in range(2):
            if means[part] > 0.0:
                found[part] = np.log1p(np.maximum(scores[part], 0.0) / means[part])
        return found

    def learn(self, user: str, item: str) -> None:
        if item in self.parts[0].items.ids:
            others = [o for o in self.parts[0].items.ids if o != item and o not in self.had[user][:50]]
            self.step(self.bucket(user), user, [item, *others])
        for part in self.parts:
            part.learn_one(user, item)
        self.had[user].insert(0, item)

    def step(self, bucket: int, user: str, items: list[str]) -> None:
        scores = np.array([[part.predict_one(user, item) for item in items] for part in self.parts])
        features = self.features(scores, bucket)
        p = np.exp(np.clip(self.shared + self.own[bucket], 0.0, 8.0) @ features)
        p /= p.sum()
        self.loss -= math.log(p[0])
        gradient = features @ p - features[:, 0]
        self.squares += gradient**2
        shared = np.clip(self.shared - self.rate * gradient / np.sqrt(self.squares + 1e-9), 0.0, 8.0)
        own_gradient = gradient + self.shrink * self.own[bucket]
        self.squares_own[bucket] += own_gradient**2
        own = self.own[bucket] - self.rate * own_gradient / np.sqrt(self.squares_own[bucket] + 1e-9)
        self.shared, self.own[bucket] = shared, np.clip(own, -shared, 8.0 - shared)
        if len(items) > 1:
            for row in (bucket, "all"):
                self.scaled[row] += 1
                self.means[row] += max(1.0 / self.scaled[row], 0.005) * (
                    scores[:, 1:].mean(axis=1) - self.means[row]
                )


def test_weights_and_scores_are_the_equations() -> None:
    model, reference = (
        Fusion("covisitation,popularity", learning_rate=0.2, shrinkage=0.05),
        Reference(0.2, 0.05),
    )
    for user, item in random_stream(400, users=12, items=20):
        model.learn_one(user, item)
        reference.learn(user, item)
    assert model.regret()["fusion"] * model.regret()["events"] == pytest.approx(reference.loss, rel=1e-4)
    weights = model.weights()
    assert list(weights["shared"].values()) == pytest.approx(reference.shared.tolist(), rel=1e-3, abs=1e-4)
    for bucket, name in enumerate(list(weights)[:4]):
        expected = np.clip(reference.shared + reference.own[bucket], 0.0, 8.0)
        assert list(weights[name].values()) == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
    assert len({tuple(found.values()) for found in weights.values()}) == 5
    ids = model.items.ids
    scores = np.array([[part.predict_one("u3", item) for item in ids] for part in reference.parts])
    bucket = reference.bucket("u3")
    expected = np.clip(reference.shared + reference.own[bucket], 0, 8) @ reference.features(scores, bucket)
    assert [model.predict_one("u3", item) for item in ids] == pytest.approx(expected.tolist(), rel=1e-3)


def test_buckets() -> None:
    assert [bucket_of(n) for n in (0, 1, 4, 5, 9, 10, 50)] == [0, 1, 1, 2, 2, 3, 3]


def drawing_state(ring: list[int]) -> FusionState:
    one = np.zeros((5, 1))
    return FusionState(
        one, one, one, one, np.zeros(5, dtype=np.int64), one[:2], one[:2, 0],
        np.array([0, 0, len(ring)], dtype=np.int64), np.array(ring, dtype=np.int32),
    )  # fmt: skip


def test_draws_stand_for_the_whole_catalogue() -> None:
    """Weighted by their shares, draws estimate a sum over all rows that may stand, popular or not."""
    rows, ring = 50, [3] * 20 + [7] * 10 + [11, 40]
    state, count = drawing_state(ring), np.bincount(ring, minlength=rows).astype(np.int32)
    given = np.zeros(rows, dtype=np.int64)
    given[[9, 40]] = np.iinfo(np.int64).max  # freed
    recent, value = np.array([5, 3, -1], dtype=np.int32), np.sqrt(np.arange(rows) + 1.0)
    stand = sorted(set(range(rows)) - {1, 3, 5, 9, 40})
    out, share = np.empty(9, dtype=np.int32), np.empty(9)
    sums, met = [], set()
    for event in range(4000):
        state.counters[0] = event
        n = fusion_draw(7, 1, recent, given, rows, count, state, out, share)
        assert (out[0], share[0]) == (1, 0.0)
        met |= set(out[1:n].tolist())
        sums.append(float((np.exp(share[1:n]) * value[out[1:n]]).sum()))
    assert met == set(stand)
    error = np.std(sums) / math.sqrt(len(sums))
    assert np.mean(sums) == pytest.approx(value[stand].sum(), abs=4 * error)
    assert error < 0.03 * value[stand].sum()
    wide = np.empty(100, dtype=np.int32), np.empty(100)
    n = fusion_draw(7, 1, recent, given, rows, count, state, *wide)
    assert wide[0][:n].tolist() == [1, *stand]
    assert not wide[1][:n].any()


def test_what_is_not_wanted_moves_no_weight_and_reaches_the_parts() -> None:
    model = Fusion("covisitation,popularity")
    for user, item in random_stream(100, users=8, items=15):
        model.learn_one(user, item)
    before, popularity = model.item_arrays(), model._parts[1].model
    count = popularity.predict_one("u1", "i3")
    model.learn_one("u1", "i3", -2.0)
    after = model.item_arrays()
    moved = [n for n in before if n.startswith("fusion.") and before[n].tobytes() != after[n].tobytes()]
    assert moved == ["fusion.counters"]
    assert after["fusion.counters"].tolist() == [101, *before["fusion.counters"][1:].tolist()]
    assert popularity.predict_one("u1", "i3") == pytest.approx(count - 2.0)


def chain_stream(n: int, seed: int) -> list[Interaction]:
    """Users walk along a ring of items: the item before tells the next one, popularity nothing."""
    rng = np.random.default_rng(seed)
    place = rng.integers(0, 100, size=n // 10 + 1)
    return [Interaction(f"u{k // 10}", f"i{(place[k // 10] + k % 10) % 100}") for k in range(n)]


def popular_stream(n: int, seed: int) -> list[Interaction]:
    """Users draw from one skewed distribution: popularity tells all that there is to know."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, 101) ** 1.2
    drawn = rng.choice(100, size=n, p=share / share.sum())
    return [Interaction(f"u{k // 10}", f"i{drawn[k]}") for k in range(n)]


@pytest.mark.parametrize("stream", [chain_stream, popular_stream], ids=["chain", "popular"])
def test_regret_against_the_best_part_is_within_a_hundredth(stream: Any) -> None:
    """On streams where one part alone is right: over 2,000 events, and so over 10,000, since what it costs to
    find out is paid at the beginning, the fusion's log loss, hit rate and gain are at most 1% worse than the
    best part's."""
    fusion = Fusion("covisitation,popularity")
    models: dict[str, OnlineRanker] = {
        "fusion": fusion, "covisitation": CoVisitation(), "popularity": DecayedPopularity(),
    }  # fmt: skip
    run = temporal(models, stream(2000, seed=3), train_share=0.4)
    for measure in (lambda ranks: metrics.hits(ranks, 10), metrics.gains):
        mean = {entrant.name: np.mean(measure(run.ranks(entrant))) for entrant in run.entrants}
        assert mean["fusion"] >= 0.99 * max(mean["covisitation"], mean["popularity"])
    regret = fusion.regret()
    assert regret["fusion"] <= 1.01 * min(regret["alone"].values())
    assert max(regret["alone"].values()) > 1.05 * min(regret["alone"].values())  # it had to choose


def test_weights_follow_the_users_experience() -> None:
    """Newcomers take what is popular, and the experienced follow a chain: each bucket learns its own."""
    rng, events = np.random.default_rng(0), []
    for user in range(150):
        popular = [int(k) for k in rng.zipf(1.5, size=3) % 20]
        start = int(rng.integers(0, 100))
        chain = [20 + (start + step) % 100 for step in range(12)]
        events += [(f"u{user}", f"i{item}") for item in popular + chain]
    model = Fusion("covisitation,popularity")
    for user, item in events:
        model.learn_one(user, item)
    weights = model.weights()
    new, old = weights["history 0"], weights["history 10 or more"]
    assert new["popularity"] > 3 * old["popularity"]
    assert old["covisitation"] > 0.5


def evicting_log(n: int, kwargs: dict[str, Any]) -> list[LearningBatch]:
    model, rng, log = Fusion(**kwargs), np.random.default_rng(4), []
    model.items = ItemTable(limit=40)
    for k in range(n):
        user, item = f"u{rng.integers(0, 5)}", f"i{(k // 2 + rng.integers(0, 30)) % 90}"
        log.append(model.learn_user([(user, item, 1.0, {"timestamp": k * 1000})]))
        model.apply(log[-1], model.items.resolve(log[-1]))
    assert model.items.evictions > 50
    return log


LOG = evicting_log(250, VARIANTS["with factors"])


@given(cuts=st.lists(st.integers(0, 250), max_size=6))
@settings(max_examples=6, deadline=None)
def test_batches_split_freely_while_items_lose_their_rows(cuts: list[int]) -> None:
    width = max(record.recent.shape[1] for record in LOG)
    drawn = max(record.negatives.shape[1] for record in LOG)
    for record in LOG:
        record.recent = np.pad(
            record.recent, ((0, 0), (0, width - record.recent.shape[1])), constant_values=-1
        )
        record.negatives = np.pad(
            record.negatives, ((0, 0), (0, drawn - record.negatives.shape[1])), constant_values=-1
        )
    whole = LearningBatch.concat(LOG)
    digests = set()
    for edges in ([0, 250], [0, *sorted(cuts), 250]):
        model = Fusion(**VARIANTS["with factors"])
        model.items = ItemTable(limit=40)
        for start, stop in pairwise(edges):
            batch = whole.slice(start, stop)
            model.apply(batch, model.items.resolve(batch))
        digests.add(model.digest())
    assert len(digests) == 1


class Logged(Fusion):
    """A fusion that writes down which records it corrects by."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log: list[LearningBatch] = []

    def correct(self, batch: LearningBatch, rows: Any) -> None:
        self.log.append(batch)
        super().correct(batch, rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replica_corrects_by_the_record_alone(variant: str) -> None:
    owner, replica = Logged(**VARIANTS[variant]), Fusion(**VARIANTS[variant])
    for k, (user, item) in enumerate(random_stream(80, users=5, items=12)):
        owner.learn_one(user, item, 1.0, {"timestamp": k * 1000, "event_id": str(k)})
    replica.from_arrays(owner.to_arrays())
    before = replica.digest()
    assert owner.retract("u1", owner._past["u1"][3].event_id)
    assert owner.log
    for record in owner.log:
        replica.replicate(record)
    ours, theirs = owner.item_arrays(), replica.item_arrays()
    assert replica.digest() != before
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []


def test_counts_are_taken_back_from_the_parts_and_weights_stay() -> None:
    events = [
        (user, item, 1.0, {"timestamp": 1000 * k, "event_id": str(k)})
        for k, (user, item) in enumerate(random_stream(150, users=6, items=15))
    ]
    gone = next(k for k in range(149, 0, -1) if events[k][0] == "u2")
    model, without = Fusion("covisitation,stage_popularity,isgd"), [CoVisitation(), StagePopularity()]
    for k, event in enumerate(events):
        model.learn_one(*event)
        for part in without:
            if k != gone:
                part.learn_one(*event)
    weights = model.weights()
    assert model.retract("u2", str(gone))
    assert model.weights() == weights
    for part, expected in zip(model._parts[:2], without, strict=True):
        for user in ("u2", "u3", "stranger"):
            for item in model.items.ids:
                assert part.model.predict_one(user, item) == pytest.approx(
                    expected.predict_one(user, item), rel=1e-5, abs=1e-6
                )
    for part in model._parts:
        assert [past.event_id for past in part.model._past["u2"]] == [
            event[3]["event_id"] for event in events[::-1] if event[0] == "u2" and event != events[gone]
        ]


def test_a_forgotten_item_leaves_ring_and_parts() -> None:
    model = Fusion("covisitation,popularity,isgd", ring_size=16)
    for user, item in random_stream(60, users=5, items=10):
        model.learn_one(user, item)
    row = model.items.row("i1")
    assert row in model._state.ring.tolist()
    model.forget(item="i1")
    assert row not in model._state.ring.tolist()
    assert model._ring_counts()[row] == 0
    assert model._part_items.ids == model.items.ids
    assert "i1" not in model.items.ids
    assert all("i1" not in recent for part in model._parts for recent in part.model._recent.values())
    for user, item in random_stream(40, users=5, items=10, seed=1):
        model.learn_one(user, item)
    assert model._part_items.ids == model.items.ids
    counts = np.bincount(model._state.ring[model._state.ring >= 0], minlength=len(model.items))
    assert (model._ring_counts()[: len(counts)] == counts).all()


def test_a_rankers_scores_are_one_more_source() -> None:
    model = Fusion("covisitation,popularity", external_weight=0.5)
    for user, item in random_stream(200, users=8, items=10):
        model.learn_one(user, item)
    rows = np.arange(10, dtype=np.int32)
    scores = model.score_rows("u1", rows)
    opinion = np.linspace(-3.0, 5.0, 10, dtype=np.float32)
    blended = model.score_rows("u1", rows, opinion)
    standard = (opinion - opinion.mean()) / opinion.std()
    assert blended == pytest.approx(scores + 0.5 * standard, rel=1e-4, abs=1e-5)
    opinion[4] = np.nan  # unknown to the ranker: it stands there as it stands among the parts
    known = np.arange(10) != 4
    standing = (scores[4] - scores[known].mean()) / scores[known].std()
    blended = model.score_rows("u1", rows, opinion)
    assert blended[4] == pytest.approx(scores[4] + 0.5 * standing, rel=1e-4)
    assert (model.score_rows("u1", rows, np.full(10, np.nan, dtype=np.float32)) == scores).all()
    opinion[3] = np.inf
    with pytest.raises(ValueError, match="external has infinite scores"):
        model.score_rows("u1", rows, opinion)


def test_parts_by_names_of_their_own() -> None:
    model = Fusion("short_term,long_term,popular_now,isgd", seed=3)
    parts = {part.name: part.model for part in model._parts}
    assert [type(part) for part in parts.values()] == [CoVisitation, CoVisitation, DecayedPopularity, ISGD]
    assert (parts["short_term"].window, parts["long_term"].window) == (2, 30)
    assert {part.seed for part in parts.values()} == {3}
    own = ["short_term", "long_term", "session_knn", "stage_popularity"]
    assert [part.name for part in Fusion()._parts] == own


def test_learned_models_given_as_parts_start_afresh() -> None:
    taught = DecayedPopularity()
    taught.learn_one("u", "i", 5.0)
    model = Fusion(parts={"popularity": taught})
    model.learn_one("v", "j")
    assert model.clone().items.ids == []
    assert model.items.ids == ["j"]
    assert taught.items.ids == ["i"]
    assert model.predict_one("v", "i") == 0.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"parts": "covisitation,nothing"}, "no model 'nothing'"),
        ({"parts": "isgd,isgd"}, "each must be named once"),
        ({"parts": "fusion"}, "fusion not at all"),
        ({"parts": {}}, "at least one"),
        ({"parts": {"a/b": DecayedPopularity()}}, "named without '/'"),
        ({"candidates": 1}, "candidates is 1, but 2 to 4096"),
        ({"learning_rate": 2.0}, r"learning_rate is 2.0"),
        ({"floor": 0.0}, "floor is 0.0"),
        ({"highest_weight": float("nan")}, "highest_weight is nan"),
        ({"ring_size": 0}, "ring_size is 0"),
    ],
)
def test_parameters_are_refused_by_name(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fusion(**kwargs)


def test_a_model_that_a_record_cannot_ask_is_refused_by_name() -> None:
    class Silent(DecayedPopularity):
        score = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"part 'quiet': a record of the log can't ask Silent"):
        Fusion(parts={"quiet": Silent()})

    class Asked(Silent):
        def score_record(self, record: Any, rows: Any, asked: np.ndarray) -> np.ndarray:
            return DecayedPopularity.score(self, asked)

        def score_rows(self, user: str, rows: np.ndarray) -> np.ndarray:
            return DecayedPopularity.score(self, rows)

    checks.check_owner_and_replicas_are_one_process(lambda: Fusion(parts={"quiet": Asked()}))


def test_a_record_of_other_parts_is_refused() -> None:
    model = Fusion(parts="isgd,popularity")
    batch = Fusion(parts={"isgd": ISGD(dimension=6)}).learn_user([("u", "i", 1.0, None)])
    with pytest.raises(ValueError, match="6 dimensions, but these parts make 32"):
        model.apply(batch, model.items.resolve(batch))


def test_whom_a_user_follows_is_for_the_parts_that_ask() -> None:
    """A follow is no use of an item; the parts that are not social never hear of it."""
    model = Fusion("social_mf,isgd,popularity")
    model.learn_many(["ann", "bob"], ["tea", "cup"])
    before = model.digest()
    follow = {"event_type": "follow", "target_user": "bob", "event_id": "f"}
    model.learn_one("ann", "nails", 1.0, follow)
    social = model._parts[0].model
    assert isinstance(social, SocialMF)
    assert social.trust("ann", "bob") == 1.0
    assert model.items.ids == ["tea", "cup"]
    model.learn_one("ann", "cup")
    assert model.retract("ann", "f")
    assert social.trust("ann", "bob") == 0.0
    assert not model.retract("ann", "f")
    again = Fusion("social_mf,isgd,popularity")
    again.learn_many(["ann", "bob"], ["tea", "cup"])
    again.learn_one("ann", "nails", 1.0, follow)
    again.retract("ann", "f")
    assert again.digest() == before
