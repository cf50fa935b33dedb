"""Candidates against the online models' own retrieval and scores, which keep their own tests."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import kernels
from serving.catalogue import Catalogue
from serving.filters import Filter
from serving.query import Query, QueryBatch
from serving.retrieval import SOURCES, Retriever
from serving.settings import ServingSettings
from tests.test_serving.pipeline_cases import SERVING, World, events, learned, queries, worlds


def gathered(
    world: World, asked: list[Query], serving: ServingSettings = SERVING, retriever: Retriever | None = None
) -> tuple[kernels.Wanted, kernels.Found]:
    allowed = Filter(world.state.items, world.catalogue, int(time.time() * 1000))
    batch = QueryBatch.of(asked, world.state.items, world.state.covisitation.query_length)
    return (retriever or Retriever(world.state, serving)).retrieve(batch, allowed)


def proposed(found: kernels.Found, user: int, source: str) -> set[int]:
    length, bit = int(found.length[user]), 1 << SOURCES.index(source)
    return set(found.rows[user, :length][found.sources[user, :length] & bit > 0].tolist())


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_source_scores_as_its_model_does(world: World, asked: list[Query]) -> None:
    wanted, found = gathered(world, asked)
    for user in range(len(asked)):
        n = int(found.length[user])
        rows, one = found.rows[user : user + 1, :n], slice(user, user + 1)
        scores = found.scores[user, :, :n]
        related = world.state.covisitation.score(wanted.recent[one], rows)[0]
        popular = world.state.popularity.score(rows)[0]
        similar = world.state.factors.score(wanted.users[one], rows)[0]
        np.testing.assert_allclose(scores[0], related, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scores[2], similar, rtol=1e-4, atol=1e-6)
        # popularity comes as it is stored: with one factor, the same for every item
        np.testing.assert_allclose(scores[1] * popular.sum(), popular * scores[1].sum(), rtol=1e-3, atol=1e-3)


@given(world=worlds(), query=queries)
@settings(max_examples=60, deadline=None)
def test_every_source_proposes_its_models_best(world: World, query: Query) -> None:
    query.candidates = None
    (wanted, found), state = gathered(world, [query]), world.state
    may = [row for row, item_id in enumerate(state.items.ids) if world.may_have(query, item_id)]
    barred = np.setdiff1d(np.arange(len(state.items)), may).astype(np.int32)[None, :]
    related, values = state.covisitation.retrieve(wanted.recent, SERVING.covisitation_candidates, barred)
    assert proposed(found, 0, "covisitation") == set(related[values > 0].tolist())
    similar = state.factors.retrieve(wanted.users, SERVING.factor_candidates, barred)[0]
    assert proposed(found, 0, "factors") == set(similar[similar >= 0].tolist())
    popular = [row for row in state.popularity.top(4096).tolist() if row in set(may)]
    quota = max(SERVING.popularity_candidates, query.count)
    assert proposed(found, 0, "popularity") >= set(popular[:quota])


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_scratch_memory_is_left_clean(world: World, asked: list[Query]) -> None:
    retriever = Retriever(world.state, SERVING)
    gathered(world, asked, retriever=retriever)
    scratch = retriever._scratch
    assert not scratch.total.any()
    assert not scratch.blocked.any()
    assert (scratch.place == -1).all()


@st.composite
def sparse_worlds(draw: st.DrawFn) -> World:
    """Few related items among hundreds: their scores are kept in a list, not for every row."""
    alone = [(100 + n, f"alone{n}", 1.0) for n in range(draw(st.sampled_from([0, 200, 700])))]
    state = learned([*alone, *draw(events), *draw(events)])
    return World(state, Catalogue(state.items), {})


@given(world=sparse_worlds(), asked=st.lists(queries, min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_among_many_items_each_user_still_gets_the_best_related(world: World, asked: list[Query]) -> None:
    retriever = Retriever(world.state, SERVING)
    for query in asked:
        query.candidates = query.categories = None
    wanted, found = gathered(world, asked, retriever=retriever)
    for user, query in enumerate(asked):
        n, ids = int(found.length[user]), world.state.items.ids
        barred = [row for row, item_id in enumerate(ids) if not world.may_have(query, item_id)]
        rows, values = world.state.covisitation.retrieve(
            wanted.recent[user : user + 1], len(ids), np.array([barred], dtype=np.int32)
        )
        scores = dict(zip(rows[values > 0].tolist(), values[values > 0].tolist(), strict=True))
        got = proposed(found, user, "covisitation")
        best = sorted(scores.values(), reverse=True)[: SERVING.covisitation_candidates]
        np.testing.assert_allclose(sorted((scores[row] for row in got), reverse=True), best, rtol=1e-5)
        for row, score in zip(found.rows[user, :n].tolist(), found.scores[user, 0, :n].tolist(), strict=True):
            if row in scores:
                assert abs(score - scores[row]) <= 1e-5 * scores[row]
    assert not retriever._scratch.total.any()
    assert (retriever._scratch.place == -1).all()


def test_an_index_gives_the_factors_candidates_of_large_catalogues() -> None:
    state = learned([(n, f"i{n}", 1.0) for n in range(30)])
    asked = Query((), {"i3"}, np.ones(4, dtype=np.float32), 1)
    calls = []

    def nearest(users: np.ndarray, k: int, mask: np.ndarray) -> np.ndarray:
        calls.append((users.shape, k, int(mask.sum())))
        return np.tile(np.array([3, 5, -1, 7, 8, 9, 10, 11], dtype=np.int32), (len(users), 1))

    world = World(state, Catalogue(state.items), {})
    small = ServingSettings(factor_scan_items=29, factor_candidates=4, popularity_candidates=0)
    _, found = gathered(world, [asked, asked], retriever=Retriever(state, small, nearest))
    assert calls == [((2, 4), 8, 30)]
    assert proposed(found, 1, "factors") == {5, 7, 8, 9}  # 3 was seen, and four are enough
    large = ServingSettings(factor_scan_items=30, factor_candidates=4, popularity_candidates=0)
    gathered(world, [asked], retriever=Retriever(state, large, nearest))
    assert len(calls) == 1


@given(
    values=st.lists(st.floats(-4, 4, width=32).map(lambda v: round(v, 1)), max_size=700), k=st.integers(0, 90)
)
@settings(max_examples=150, deadline=None)
def test_the_largest_are_found_however_many_are_equal(values: list[float], k: int) -> None:
    scores = np.array(values, dtype=np.float32) + np.float32(0.0)
    keys, room = np.empty(len(scores), dtype=np.int32), kernels.selection_room(k)
    chosen, narrow = np.empty(room, dtype=np.int32), np.empty(room, dtype=np.int32)
    kernels._to_keys(scores, keys)
    n, cut = kernels._take_largest(keys, k, chosen, narrow)
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    assert chosen[:n].tolist() == sorted(order[:k])
    assert cut == (0 < k < len(scores) and scores[order[k - 1]] == scores[order[k]])


@given(world=worlds(), query=queries)
@settings(max_examples=40, deadline=None)
def test_a_request_for_candidates_gets_those_only(world: World, query: Query) -> None:
    query.candidates = query.candidates or ["i0", "i1", "i0"]
    _, found = gathered(world, [query])
    assert proposed(found, 0, "request") == set(found.rows[0, : found.length[0]].tolist())
    assert {world.state.items.ids[row] for row in proposed(found, 0, "request")} == {
        item_id for item_id in world.may_serve(query) if world.state.items.row(item_id) >= 0
    }
