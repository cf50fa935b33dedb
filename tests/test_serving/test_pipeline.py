"""What every list promises, on random states, catalogues and queries; and the ranker's part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models.settings import CoVisitationSettings, FactorSettings, ModelSettings
from serving import blend_kernels, kernels, list_kernels
from serving.blend_kernels import blend
from serving.catalogue import Catalogue, CatalogueEntry
from serving.content.vectors import ContentVectors
from serving.explain_kernels import explain
from serving.explanations import ranked_list
from serving.list_encoding import ListEncoder
from serving.pipeline import Pipeline
from serving.query import Query, QueryBatch, RankedList
from serving.ranker import layout
from serving.scoring import RankerView
from serving.settings import ServingSettings
from tests.test_serving.pipeline_cases import ITEMS, SERVING, World, learned, queries, worlds
from tests.test_serving.ranker_cases import edited, item_name, markov_ranker, markov_version, successor
from tests.test_serving.version_cases import successor_table, table_ranker

FEW = settings(max_examples=60, deadline=None)
NOBODY = np.zeros(4, dtype=np.float32)

MODELS_OF_TEN = ModelSettings(
    covisitation=CoVisitationSettings(query_length=10), factors=FactorSettings(dimension=4)
)


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=4))
@FEW
def test_lists_hold_all_that_may_be_served_and_nothing_else(world: World, asked: list[Query]) -> None:
    for query, ranked in zip(asked, world.pipeline().recommend(asked), strict=True):
        ids = [item.item_id for item in ranked.items]
        assert len(ids) == len(set(ids))
        assert set(ids) <= world.may_serve(query)
        assert len(ids) == min(query.count, len(world.may_serve(query)))


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=3))
@FEW
def test_items_fall_by_score_and_equals_go_by_id(world: World, asked: list[Query]) -> None:
    for ranked in world.pipeline().recommend(asked):
        order = [(-item.score, item.item_id) for item in ranked.items]
        assert order == sorted(order)
        assert all(np.isfinite(item.score) for item in ranked.items)


@given(world=worlds(), asked=st.lists(queries, min_size=2, max_size=5))
@FEW
def test_a_batch_gives_exactly_what_one_by_one_gives(world: World, asked: list[Query]) -> None:
    pipeline = world.pipeline()
    assert pipeline.recommend(asked) == [pipeline.recommend([query])[0] for query in asked]


@given(world=worlds(), asked=st.lists(queries, min_size=1, max_size=3))
@FEW
def test_reading_changes_no_byte_of_the_state(world: World, asked: list[Query]) -> None:
    before, rows = world.state.digest(), len(world.state.items)
    pipeline = world.pipeline()
    first = pipeline.recommend(asked)
    assert world.state.digest() == before
    assert len(world.state.items) == rows
    assert pipeline.recommend(asked) == first


@given(world=worlds(), query=queries)
@FEW
def test_explanations_name_only_the_users_own_items(world: World, query: Query) -> None:
    for item in world.pipeline().recommend([query])[0].items:
        assert set(item.because) <= set(query.recent)
        assert item.item_id not in item.because
        assert item.sources
        assert item.text
        assert item.kind in item.sources or item.kind == "covisitation"


@given(world=worlds(), query=queries)
@FEW
def test_no_factor_scan_leaves_lists_as_long(world: World, query: Query) -> None:
    scanned = world.pipeline().recommend([query])[0]
    unscanned = world.pipeline(ServingSettings(factor_scan_items=0)).recommend([query])[0]
    assert len(scanned.items) == len(unscanned.items)
    assert all("factors" not in item.sources for item in unscanned.items)


@given(world=worlds(), asked=st.lists(queries, min_size=2, max_size=6), cells=st.integers(1, 300))
@FEW
def test_parts_give_what_the_whole_gives(world: World, asked: list[Query], cells: int) -> None:
    pipeline = world.pipeline()
    whole = pipeline.recommend(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.pipeline.MAX_CELLS", cells)
        assert pipeline.recommend(asked) == whole


@given(world=worlds(), query=queries, later=st.integers(0, ITEMS - 1))
@FEW
def test_a_request_adds_to_its_users_columns(world: World, query: Query, later: int) -> None:
    """Columns of the user, and what the request says as strings: the same list as from one query."""
    pipeline, items = world.pipeline(), world.state.items
    query = replace(query, count=2 * ITEMS)
    batch = QueryBatch.of([query], items, pipeline.history_length)
    special = Query((), (), NOBODY, 0, query.categories, query.exclude, query.candidates)
    from_both = replace(batch, requests={0: special})
    assert ranked_lists(pipeline, from_both) == pipeline.recommend([query])
    session = Query([f"i{later}"], {f"i{later}"}, NOBODY, 0, query.categories)
    seen_too = replace(
        query, recent=[f"i{later}"], seen={*query.seen, f"i{later}"}, exclude=(), candidates=None
    )
    got = ranked_lists(pipeline, replace(batch, requests={0: session}))[0]
    wanted = pipeline.recommend([seen_too])[0]
    assert {item.item_id for item in got.items} == {item.item_id for item in wanted.items}
    assert [item.because for item in got.items if item.kind == "covisitation"] == [
        item.because for item in wanted.items if item.kind == "covisitation"
    ]


def ranked_lists(pipeline: Pipeline, batch: QueryBatch) -> list[RankedList]:
    ranked = pipeline.recommend_batch(batch)
    return [ranked_list(ranked, n, pipeline.items.items, pipeline.catalogue) for n in range(len(batch))]


def test_no_queries_no_lists() -> None:
    state = learned([])
    assert Pipeline(state, Catalogue(state.items), SERVING).recommend([]) == []


def test_a_state_that_grew_after_the_first_list_is_served() -> None:
    small, large = learned([(0, "i0", 1.0)]), learned([(n % 4, f"i{n % 24}", 1.0) for n in range(96)])
    pipeline = Pipeline(small, Catalogue(small.items), SERVING)
    query = Query((), (), NOBODY, 24)
    assert len(pipeline.recommend([query])[0].items) == 1
    small.from_arrays(large.to_arrays())
    pipeline.catalogue.bind(small.items, 0)
    assert len(pipeline.recommend([query])[0].items) == 24


def test_hidden_items_crowd_nothing_out() -> None:
    """Of 19 related items the 12 strongest are hidden; with room for three, three related ones come."""
    follows = [(user, item, 1.0) for n in range(1, 20) for user in range(20 - n) for item in ("i0", f"i{n}")]
    state = learned(sorted(follows, key=lambda event: event[0]), ModelSettings())
    catalogue = Catalogue(state.items)
    related = ServingSettings(covisitation_candidates=3, popularity_candidates=0, factor_candidates=0)
    pipeline = Pipeline(state, catalogue, related)
    query = Query(["i0"], {"i0"}, np.zeros(32, dtype=np.float32), 3)
    strongest = [item.item_id for item in pipeline.recommend([replace(query, count=12)])[0].items]
    for item_id in strongest:
        catalogue.put(item_id, CatalogueEntry(is_hidden=True), 0)
    items = pipeline.recommend([query])[0].items
    assert [item.kind for item in items] == ["covisitation"] * 3
    assert not {item.item_id for item in items} & set(strongest)


def test_no_kernel_is_compiled_once_lists_are_made() -> None:
    """A compilation takes seconds, and would come in the middle of a micro-batch."""
    compiled = [kernels.gather, kernels.best, kernels.pick, blend, explain, layout.lay_out]
    compiled += [layout.hide, blend_kernels.describe, list_kernels.missing_rows, list_kernels.write_lists]
    pipeline = TestRanker.pipeline(0.3)
    encoder = ListEncoder(pipeline.items.items, pipeline.catalogue)
    before = [len(kernel.signatures) for kernel in compiled]  # type: ignore[attr-defined]
    fused = markov_ranker()
    fused.fused = True
    for ranker in (None, markov_ranker(), fused):
        pipeline.use(ranker)
        for n in (1, 3):
            plain = Query(["item-3"], {"item-3"}, NOBODY, 5)
            asked = [*[plain] * n, replace(plain, candidates=["item-5", "x"], categories=["news"], count=300)]
            batch = QueryBatch.of(asked, pipeline.items.items, 2 * pipeline.history_length)
            batch.recent = batch.recent[:, : pipeline.history_length]  # another layout
            encoder.encode(pipeline.recommend_batch(batch), [b'{"n":1'] * len(asked))
    assert [len(kernel.signatures) for kernel in compiled] == before  # type: ignore[attr-defined]


class TestRanker:
    """With the small network that knows which of 200 items follows which (real ONNX Runtime)."""

    @staticmethod
    def pipeline(ranker_weight: float, more: Sequence[tuple[int, str, float]] = ()) -> Pipeline:
        """All 200 items and one that the ranker never saw, each used once by another user: none related."""
        once = [(user, item_name(user), 1.0) for user in range(200)]
        state = learned([*once, (200, "new", 1.0), *more], MODELS_OF_TEN)
        serving = ServingSettings(ranker_weight=ranker_weight, popularity_candidates=300, factor_weight=0.0)
        return Pipeline(state, Catalogue(state.items), serving)

    def test_what_comes_next_is_first_and_says_so(self) -> None:
        pipeline = self.pipeline(1.0)
        pipeline.use(markov_ranker())
        history = [item_name(n * 37) for n in range(5)]
        ranked = pipeline.recommend([Query(history, set(history), NOBODY, 5)])[0]
        assert ranked.items[0].item_id == successor(history[-1])
        assert (ranked.ranker, ranked.degraded) == ("case", None)
        assert ranked.items[0].kind == "ranker"
        assert ranked.items[0].because == history[-1:]

    def test_an_item_that_it_never_saw_is_ranked_and_can_win(self) -> None:
        query = Query([item_name(3)], {item_name(3)}, NOBODY, 201)
        pipeline = self.pipeline(0.3)
        pipeline.use(markov_ranker())
        places = [item.item_id for item in pipeline.recommend([query])[0].items]
        assert 0 < places.index("new") < len(places) - 1
        followed = [(300 + n // 2, ("new" if n % 2 else item_name(3)), 1.0) for n in range(40)]
        pipeline = self.pipeline(0.3, followed)
        pipeline.use(markov_ranker())
        first = pipeline.recommend([query])[0].items[0]
        assert first.item_id == "new"
        assert "ranker" not in first.sources

    def test_one_that_fails_leaves_the_online_list_degraded(self) -> None:
        model = markov_version().files["model.onnx"]
        pipeline = self.pipeline(1.0)
        query = Query([item_name(3)], {item_name(3)}, NOBODY, 10)
        online = pipeline.recommend([query])[0]
        pipeline.use(markov_ranker(edited(model, lambda table: np.full_like(table, np.nan))))
        ranked = pipeline.recommend([query])[0]
        assert ranked.degraded is not None
        assert "not finite" in ranked.degraded
        assert ranked.ranker is None
        assert ranked.items == online.items
        pipeline.use(None)
        assert pipeline.recommend([query])[0] == online

    def test_one_that_should_serve_and_is_not_there_is_said(self) -> None:
        pipeline = self.pipeline(1.0)
        query = Query([item_name(3)], {item_name(3)}, NOBODY, 10)
        online = pipeline.recommend([query])[0]
        assert online.degraded is None
        pipeline.lacking = "ranker v1 can't be loaded"
        said = pipeline.recommend([query])[0]
        assert (said.items, said.ranker) == (online.items, None)
        assert said.degraded == "ranker v1 can't be loaded"
        pipeline.use(markov_ranker())
        assert pipeline.recommend([query])[0].degraded is None

    def test_rows_that_change_hands_change_its_index(self) -> None:
        pipeline = self.pipeline(1.0)
        pipeline.use(markov_ranker())
        query = Query([item_name(3)], {item_name(3)}, NOBODY, 1)
        assert pipeline.recommend([query])[0].items[0].item_id == successor(item_name(3))
        items = pipeline.items.items
        row, other = items.row(successor(item_name(3))), items.row("new")
        items.ids[row], items.ids[other] = "never seen", successor(item_name(3))
        pipeline.rows_changed(np.array([row, other], dtype=np.int32))
        assert pipeline.recommend([query])[0].items[0].item_id == successor(item_name(3))
        assert pipeline.recommend_batch(QueryBatch.of([query], items, 50)).rows[0, 0] == other

    def test_places_of_items_that_went_are_given_to_others(self) -> None:
        vectors = ContentVectors(embeddings={"image": 2})
        ranker = table_ranker(["known"], successor_table(1, 0))
        ranker.contents, ranker.content = np.zeros((3, vectors.width), np.float32), vectors.spec
        view, ids, rows = RankerView(ranker, vectors), [""] * 40, np.arange(40, dtype=np.int32)
        view.places(ids)
        for turn in range(30):
            ids = ids[3:] + ids[:3]  # some go to other rows, some are new, and one has no content any more
            for row in range(turn % 2, 40, 2):
                vectors.forget(ids[row])
                ids[row] = f"{turn}-{row}"
                vectors.put(ids[row], {"embeddings": {"image": [1.0, float(turn)]}})
            vectors.forget(ids[turn % 2])
            view.rows_changed(ids, rows)
            places = view.places(ids)
            np.testing.assert_array_equal(view.vectors()[places], vectors.of(ids))
        assert len(view.vectors()) < 200, "600 items had a row, 40 at a time"

    def test_its_history_is_as_long_as_it_asks(self) -> None:
        pipeline = self.pipeline(1.0)
        assert pipeline.history_length == pipeline.items.covisitation.query_length
        pipeline.use(markov_ranker())
        assert pipeline.history_length == markov_ranker().history_length > 10

    def test_large_batches_are_scored_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = self.pipeline(1.0)
        pipeline.use(markov_ranker())
        asked = [Query([item_name(n)], {item_name(n)}, NOBODY, 5) for n in range(9)]
        whole = pipeline.recommend(asked)
        monkeypatch.setattr("serving.ranker.ranker.MAX_CELLS", 500)
        for one, other in zip(pipeline.recommend(asked), whole, strict=True):
            assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
            scores = [item.score for item in one.items]
            np.testing.assert_allclose(scores, [item.score for item in other.items], rtol=1e-4)

    @pytest.mark.parametrize("weight", [0.0, 0.3])
    def test_its_weight_counts(self, weight: float) -> None:
        pipeline = self.pipeline(weight)
        query = Query([item_name(3)], {item_name(3)}, NOBODY, 200)
        online = [item.item_id for item in pipeline.recommend([query])[0].items]
        pipeline.use(markov_ranker())
        ranked = [item.item_id for item in pipeline.recommend([query])[0].items]
        assert (ranked == online) == (weight == 0.0)
