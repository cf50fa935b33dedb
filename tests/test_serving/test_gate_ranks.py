"""Ranks as served and in the whole catalogue, worked out by hand and by plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.training.gate_ranks import (
    Catalogue,
    Contest,
    Lists,
    Ranking,
    online_scores,
    popularity_scores,
    ranker_scores,
    ranking_of,
    ranks_of_targets,
)
from tests.test_serving.gate_cases import examples_of, feature_ranker, log_shares, slice_of
from tests.test_serving.version_cases import successor_table, table_ranker

IDS = [f"i{n}" for n in range(6)]
NEWEST = slice_of([[0, 1], [2, 3, 4], [5, 0]], 6)
"""Items used: 1 after 0, 4 after 2 and 3, 0 after 5."""
EXAMPLES = examples_of(
    NEWEST,
    lists=[[1, 2, 3], [0, 1], [0, 1, 2, 3]],
    online=[[0.5, 0.9, 0.1], [0.2, 0.1], [0.3, 0.3, 0.9, 0.0]],
    feature=[[3.0, 1.0, 2.0], [1.0, 2.0, 99.0], [0.0, 5.0, 4.0, 0.0]],
)
"""The second list lacks the item used, 4, whatever feature it has."""


def test_the_online_blend_is_ranked_among_what_retrieval_gave() -> None:
    found = ranking_of(Lists(NEWEST, EXAMPLES), online_scores)
    assert found.ranks.tolist() == [1.0, np.inf, 1.5]
    assert found.top[:, :4].tolist() == [[2, 1, 3, -1], [0, 1, -1, -1], [2, 0, 1, 3]]


def test_a_fused_ranker_is_ranked_by_its_own_scores_and_never_finds_what_was_not_retrieved() -> None:
    lists = Lists(NEWEST, EXAMPLES)
    found = ranking_of(lists, ranker_scores(lists, feature_ranker(IDS), (), None, 0.3))
    assert found.ranks.tolist() == [0.0, np.inf, 2.5]
    assert 4 not in found.top[1]


def test_popularity_is_ranked_in_the_same_lists() -> None:
    lists = Lists(NEWEST, EXAMPLES)
    found = ranking_of(lists, popularity_scores(lists, {"i1": 5.0, "i3": 7.0, "i4": 100.0}))
    assert found.ranks.tolist() == [1.0, np.inf, 2.5]


def test_another_ranker_joins_the_online_blend_as_it_is_served() -> None:
    """Its log shares of the candidates count with the weight; item 3 follows 0 for it, nothing else."""
    lists, weight = Lists(NEWEST, EXAMPLES), 0.4
    ranker = table_ranker(IDS, successor_table(6, 3, strength=2.0), fused=False)
    scores = ranker_scores(lists, ranker, (), None, weight)
    got = scores(np.array([0]), lists.block(np.array([0])))[0]
    expected = np.array([0.5, 0.9, 0.1]) + weight * log_shares([0.0, 0.0, 2.0])
    np.testing.assert_allclose(got[:3], expected, atol=1e-6)
    assert got[3] == -np.inf


def test_events_without_a_list_are_left_out() -> None:
    lists = Lists(NEWEST, EXAMPLES.slice(np.array([2, 0])))
    assert lists.events.tolist() == [0, 2]
    assert ranking_of(lists, online_scores).ranks.tolist() == [1.0, 1.5]


def test_lists_may_hold_items_that_the_log_lacks() -> None:
    more = examples_of(NEWEST, lists=[[1, 2], [0], [0]], online=[[0.0, 1.0], [0.0], [0.0]])
    renamed = replace(more, item_ids=["i0", "i1", "new", "i3", "i4", "i5"])
    lists = Lists(NEWEST, renamed)
    found = ranking_of(lists, online_scores)
    assert [lists.ids[n] for n in found.top[0, :2].tolist()] == ["new", "i1"]


def test_the_catalogue_hides_what_the_user_had() -> None:
    """Step 1: after 0 comes 1, after 3 comes 4, and after 5 comes 0."""
    ranker = table_ranker(IDS, successor_table(6, 1), fused=False)
    catalogue = Catalogue(NEWEST, [ranker], 10**6)
    found = ranking_of(catalogue, ranker_scores(catalogue, ranker, (), None, 0.3))
    assert found.ranks.tolist() == [0.0, 0.0, 0.0]
    assert set(found.top[1].tolist()) == {0, 1, 4, 5, -1}


def test_online_scores_are_known_of_lists_only() -> None:
    catalogue = Catalogue(NEWEST, [table_ranker(IDS, successor_table(6, 1))], 10**6)
    with pytest.raises(ValueError, match="served lists only"):
        ranking_of(catalogue, online_scores)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_lists_of_the_whole_catalogue_rank_as_the_catalogue_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, table = 6, rng.integers(0, 3, (8, 8)).astype(np.float32)
    histories = [rng.permutation(items)[: rng.integers(1, items)].tolist() for _ in range(5)]
    newest = slice_of(histories, items)
    ranker = table_ranker(IDS, table)
    unseen = [[n for n in range(items) if n not in history[:-1]] for history in histories]
    lists = Lists(newest, examples_of(newest, unseen, [[0.0] * len(given) for given in unseen]))
    whole = Catalogue(newest, [ranker], 10**6)

    def ranked(contest: Contest) -> Ranking:
        return ranking_of(contest, ranker_scores(contest, ranker, (), None, 0.3))

    np.testing.assert_array_equal(ranked(lists).ranks, ranked(whole).ranks)
    np.testing.assert_array_equal(ranked(lists).top, ranked(whole).top)


@given(st.integers(0, 10_000))
def test_ranks_equal_the_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (5, 9)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    targets, masked = rng.integers(-1, 9, 5), rng.random((5, 9)) < 0.3
    got = ranks_of_targets(scores, targets, masked)
    for row, target in enumerate(targets):
        if target < 0 or np.isnan(scores[row, target]):
            assert got[row] == np.inf
            continue
        rivals = [
            s for c, s in enumerate(scores[row]) if c != target and not masked[row, c] and not np.isnan(s)
        ]
        own = scores[row, target]
        assert got[row] == sum(s > own for s in rivals) + 0.5 * sum(s == own for s in rivals)


@given(st.integers(0, 10_000), st.floats(-5.0, 5.0), st.floats(0.125, 8.0))
def test_ranks_depend_on_the_order_of_scores_alone(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 50, (4, 12)).astype(np.float32)
    targets, none = rng.integers(0, 12, 4), np.zeros((4, 12), dtype=np.bool_)
    moved = (np.float32(scale) * scores + np.float32(shift)).astype(np.float32)
    order = rng.permutation(12)
    shuffled = ranks_of_targets(scores[:, order], np.argsort(order)[targets], none)
    np.testing.assert_array_equal(ranks_of_targets(scores, targets, none), shuffled)
    np.testing.assert_array_equal(
        ranks_of_targets(scores, targets, none), ranks_of_targets(moved, targets, none)
    )
