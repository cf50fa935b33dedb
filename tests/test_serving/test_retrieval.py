"""Candidates against the online models' own retrieval and scores, which keep their own tests."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import kernels
from serving.filters import Filter
from serving.query import Query, QueryBatch
from serving.retrieval import SOURCES, Retriever
from serving.settings import ServingSettings
from tests.test_serving.pipeline_cases import SERVING, World, queries, worlds


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


@given(world=worlds(), query=queries)
@settings(max_examples=40, deadline=None)
def test_a_request_for_candidates_gets_those_only(world: World, query: Query) -> None:
    query.candidates = query.candidates or ["i0", "i1", "i0"]
    _, found = gathered(world, [query])
    assert proposed(found, 0, "request") == set(found.rows[0, : found.length[0]].tolist())
    assert {world.state.items.ids[row] for row in proposed(found, 0, "request")} == {
        item_id for item_id in world.may_serve(query) if world.state.items.row(item_id) >= 0
    }
