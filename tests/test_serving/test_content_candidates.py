"""New items found by content: known answers, the rule of what may be served, and who says what of whom."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models.item_state import ItemState
from serving.catalogue import Catalogue, CatalogueEntry
from serving.content.vectors import ContentVectors
from serving.filters import Filter
from serving.pipeline import Pipeline
from serving.query import Query, QueryBatch
from serving.retrieval import SOURCES, ContentCandidates, Retriever, kernels_content
from serving.retrieval import content as content_module
from serving.settings import ServingSettings
from tests.test_serving.pipeline_cases import MODELS, World, item_name, learned, queries, worlds

CONTENT = 1 << SOURCES.index("content")
SERVING = ServingSettings(
    covisitation_candidates=3, popularity_candidates=2, factor_candidates=2, content_candidates=4,
    content_new_events=2, content_weight=1.0,
)  # fmt: skip
ASKED = st.lists(queries, min_size=1, max_size=3)
NOBODY = np.zeros(4, dtype=np.float32)


def vectors_of(items: dict[str, dict[str, list[float]]]) -> ContentVectors:
    vectors = ContentVectors(embeddings={"look": 3, "sound": 2})
    for item_id, embeddings in items.items():
        vectors.put(item_id, {"embeddings": embeddings})
    return vectors


def described(seed: int, item_ids: Sequence[str]) -> ContentVectors:
    """Random content; some items lack a modality, some both."""
    rng, items = np.random.default_rng(seed), dict[str, dict[str, list[float]]]()
    for item_id in item_ids:
        parts = {"look": rng.normal(0.3, 1.0, 3).tolist(), "sound": rng.normal(0.3, 1.0, 2).tolist()}
        items[item_id] = {name: part for name, part in parts.items() if rng.random() < 0.8}
    return vectors_of(items)


def reference(
    state: ItemState, vectors: ContentVectors, recent: Sequence[str], may: set[str]
) -> dict[str, float]:
    """Scores above 0 of the new items in `may`, by the equations, in float64."""
    table, starts = vectors.table[1:].astype(np.float64), [0, 3, 5]
    scores: dict[str, float] = dict.fromkeys(may, 0.0)
    rows = {item_id for item_id in state.items.ids if item_id}
    decay = state.covisitation.query_decay ** np.arange(state.covisitation.query_length)
    ids = sorted({*recent, *may})
    of = dict(zip(ids, vectors.of(ids).astype(np.float64), strict=True))
    newest = [(weight, of[one]) for weight, one in zip(decay, recent[::-1], strict=False) if one in rows]
    for block in range(2):
        part, mask = slice(starts[block], starts[block + 1]), 5 + block
        mean = table[:, part].sum(axis=0) / max(table[:, mask].sum(), 1.0)
        known = [(weight, vector) for weight, vector in newest if vector[mask]]
        if known:
            query = sum(weight * (vector[part] - mean) for weight, vector in known)
            query = query / sum(weight for weight, _ in known)
            for item_id in may:
                scores[item_id] += float(of[item_id][mask] * (query @ (of[item_id][part] - mean)))
    plain = state.popularity.score_plain(state.items.rows(list(scores)))
    is_new = dict(zip(scores, plain < SERVING.content_new_events, strict=True))
    has_content = dict(zip(scores, vectors.of(list(scores)).any(axis=1), strict=True))
    return {one: score for one, score in scores.items() if score > 0 and is_new[one] and has_content[one]}


def proposed(world: World, vectors: ContentVectors, asked: list[Query]) -> list[dict[str, float]]:
    """What content proposes to each query, with its scores, best first."""
    content = ContentCandidates(world.state, vectors, SERVING)
    retriever = Retriever(world.state, SERVING, None, content)
    allowed = Filter(world.state.items, world.catalogue, int(time.time() * 1000))
    batch = QueryBatch.of(asked, world.state.items, world.state.covisitation.query_length)
    _, found = retriever.retrieve(batch, allowed)
    made, ids = [], world.state.items.ids
    for user in range(len(asked)):
        columns = range(int(found.length[user]))
        scores = {
            world.state.items.ids[found.rows[user, n]]: float(found.scores[user, 3, n]) for n in columns
        }
        bits = {ids[found.rows[user, n]]: int(found.sources[user, n]) for n in columns}
        mine = {one: score for one, score in scores.items() if bits[one] & CONTENT}
        assert all(score == 0.0 for one, score in scores.items() if one not in mine)
        made.append(dict(sorted(mine.items(), key=lambda pair: -pair[1])))
    return made


@given(
    world=worlds(), asked=st.lists(queries, min_size=1, max_size=3), seed=st.integers(0, 9), data=st.data()
)
@settings(max_examples=80, deadline=None)
def test_the_nearest_new_items_that_may_be_served(
    world: World, asked: list[Query], seed: int, data: st.DataObject
) -> None:
    """Against the equations: what is proposed is the best of what may be, and nothing else ever."""
    names = [item_name(n) for n in range(24)]
    vectors = described(seed, data.draw(st.lists(st.sampled_from(names), unique=True)))
    world.state.introduce(data.draw(st.lists(st.sampled_from(names), max_size=10)))
    world.catalogue.bind(world.state.items, int(time.time() * 1000))
    for query, found in zip(asked, proposed(world, vectors, asked), strict=True):
        if query.candidates is not None:
            assert not found
            continue
        may = {one for one in world.may_serve(query) if one}
        wanted = reference(world.state, vectors, list(query.recent), may)
        assert set(found) <= may
        assert len(found) == min(len([s for s in wanted.values() if s > 1e-6]), 4) or any(
            abs(score) < 1e-5 for score in wanted.values()
        )
        best = sorted(wanted.values(), reverse=True)
        for place, (item_id, score) in enumerate(found.items()):
            assert score == pytest.approx(wanted.get(item_id, 0.0), abs=1e-5)
            assert score == pytest.approx(best[place] if place < len(best) else 0.0, abs=1e-5)


def test_known_answers() -> None:
    """Three items of one kind and three of another; the catalogue's mean stands between them."""
    look = {"a1": [1, 0, 0], "a2": [1, 0.1, 0], "a3": [1, 0, 0.2], "b1": [0, 1, 0], "b2": [0.1, 1, 0]}
    look["b3"] = [0, 1, 0.2]
    vectors = vectors_of({item_id: {"look": [float(x) for x in of]} for item_id, of in look.items()})
    state = learned([(0, "a1", 1.0), (1, "a1", 1.0), (0, "b1", 1.0), (1, "b1", 1.0), (2, "c", 1.0)], MODELS)
    state.introduce(["a2", "b2", "a3"])
    pipeline = Pipeline(state, Catalogue(state.items), SERVING, None, vectors)
    [ranked] = pipeline.recommend([Query(["b1", "a1"], {"a1", "b1"}, NOBODY, 10)])
    of = {item.item_id: item for item in ranked.items}
    assert {"a2", "a3"} <= set(of), "a1 is the newest, and weighs most"
    assert (of["a2"].kind, of["a2"].sources) == ("content", ["content"])
    assert of["a2"].because == ["a1"]
    assert of["a2"].text == "Similar to “a1”"
    assert "b2" not in of, "on the other side of the mean"
    [ranked] = pipeline.recommend([Query(["a1", "b1"], {"a1", "b1"}, NOBODY, 10)])
    assert "b2" in {item.item_id for item in ranked.items}


def test_what_is_only_introduced_comes_from_nowhere_else() -> None:
    vectors = vectors_of({"used": {"look": [1.0, 0.0, 0.0]}, "new": {"look": [-1.0, 0.0, 0.0]}})
    state = learned([(0, "used", 1.0)], MODELS)
    state.introduce(["new", "without"])
    pipeline = Pipeline(state, Catalogue(state.items), SERVING, None, vectors)
    asked = Query(["used"], set(), np.ones(4, dtype=np.float32), 10)
    assert [item.item_id for item in pipeline.recommend([asked])[0].items] == ["used"]
    asked.candidates = ["new", "used", "never heard of"]
    items = pipeline.recommend([asked])[0].items
    assert {item.item_id for item in items} == {"new", "used", "never heard of"}
    assert {item.item_id: item.sources for item in items}["new"] == ["request"]


def test_one_list_in_a_batch_is_the_one_alone() -> None:
    rng = np.random.default_rng(3)
    names = [f"n{k}" for k in range(90)]
    state = learned([(k % 7, f"n{rng.integers(40)}", 1.0) for k in range(200)], MODELS)
    state.introduce(names)
    vectors, catalogue = described(4, names), Catalogue(state.items)
    pipeline = Pipeline(state, catalogue, SERVING, None, vectors)
    asked = []
    for _ in range(40):
        recent = [f"n{k}" for k in rng.integers(0, 40, rng.integers(0, 6))]
        asked.append(Query(recent, set(recent), rng.normal(size=4).astype(np.float32), 12))
    compiled = [kernels_content.nearest_new, kernels_content.content_reasons]
    before = [len(kernel.signatures) for kernel in compiled]  # type: ignore[attr-defined]
    together = pipeline.recommend(asked)
    assert [len(kernel.signatures) for kernel in compiled] == before  # type: ignore[attr-defined]
    assert together == [pipeline.recommend([query])[0] for query in asked]
    assert any("content" in item.sources for ranked in together for item in ranked.items)


def test_rows_and_content_that_change_are_followed() -> None:
    """Rows given to others, content that comes late or goes, items that are used, a catalogue that hides:
    the lists are those of a pipeline that is made anew."""
    rng, state = np.random.default_rng(5), learned([(0, "u0", 1.0), (0, "u1", 1.0)], MODELS)
    vectors, catalogue = described(1, ["u0", "u1"]), Catalogue(state.items)
    pipeline = Pipeline(state, catalogue, SERVING, None, vectors)
    query, found_any = Query(["u0", "u1"], {"u0", "u1"}, NOBODY, 8), 0
    state.take_changes()
    for turn in range(60):
        item_id = f"n{rng.integers(30)}"
        match turn % 6:
            case 0 | 1 | 2:
                vectors.put(item_id, {"embeddings": {"look": rng.normal(size=3).tolist()}})
                state.introduce([item_id, f"n{rng.integers(30)}"])
            case 3:
                vectors.forget(item_id)
            case 4:
                state.dismiss(item_id)
            case _:
                catalogue.put(item_id, CatalogueEntry(is_hidden=bool(rng.integers(2))), 1)
        changed = state.items.rows(sorted(vectors.take_changes()))
        pipeline.rows_changed(np.concatenate((*state.take_changes(), changed[changed >= 0])))
        anew = Catalogue(state.items)
        for name in [f"n{k}" for k in range(30)]:
            if name in catalogue and not catalogue.is_servable(name, 2):
                anew.put(name, CatalogueEntry(is_hidden=True), 1)
        wanted = Pipeline(state, anew, SERVING, None, vectors).recommend([query])[0]
        assert pipeline._content is not None
        pipeline._content._mean_due = 0  # else it may be of a catalogue that was a tenth smaller
        [made] = pipeline.recommend([query])
        assert {i.item_id for i in made.items} == {i.item_id for i in wanted.items}
        found_any += sum("content" in item.sources for item in made.items)
    assert found_any > 30


def test_few_are_compared_those_that_came_last_and_no_used_ones() -> None:
    state = learned([(0, "u", 1.0)], MODELS)
    few = ServingSettings(content_scan_items=5, content_new_events=2)
    vectors = vectors_of({f"n{k}": {"look": [1.0, float(k), 0.0]} for k in range(20)})
    content = ContentCandidates(state, vectors, few)
    state.introduce([f"n{k}" for k in range(20)])
    retriever = Retriever(state, few, None, content)
    allowed = Filter(state.items, Catalogue(state.items), 1)
    batch = QueryBatch.of([Query(["n0"], (), NOBODY, 30)], state.items, state.covisitation.query_length)

    def found() -> set[str]:
        _, made = retriever.retrieve(batch, allowed)
        rows = made.rows[0, : made.length[0]]
        return {
            state.items.ids[row] for row in rows[made.sources[0, : made.length[0]] & CONTENT > 0].tolist()
        }

    assert found() <= {f"n{k}" for k in range(15, 20)}
    assert len(content) == 5


def test_however_many_come_at_once_few_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that starts, or whose old items get other content, has the newest, and copies no others."""
    state = learned([(0, "u", 1.0)], MODELS)
    vectors = vectors_of({f"n{k}": {"look": [1.0, float(k), 0.0]} for k in range(200)})
    content = ContentCandidates(state, vectors, ServingSettings(content_scan_items=5))
    put: list[int] = []
    original = content._put

    def noted(row: int, vector: np.ndarray) -> None:
        put.append(row)
        original(row, vector)

    monkeypatch.setattr(content, "_put", noted)
    state.introduce([f"n{k}" for k in range(100)])
    content._follow()
    newest = state.items.rows([f"n{k}" for k in range(95, 100)])
    assert set(put) == set(content._rows[: len(content)].tolist()) == set(newest.tolist())
    put.clear()
    content.rows_changed(state.items.rows([f"n{k}" for k in range(94, 96)]))
    assert put == [newest[0]], "the one before stays out"
    state.introduce(["n100"])
    content._follow()
    assert set(content._rows[: len(content)].tolist()) == {*newest[1:].tolist(), state.items.row("n100")}
    np.testing.assert_array_equal(
        content._vectors[content._slot[newest[1:]]], vectors.of([f"n{k}" for k in range(96, 100)])
    )


def test_the_mean_of_a_large_catalogue_is_that_of_items_at_even_distances() -> None:
    n = 3 * content_module.MEAN_ROWS
    table, starts = np.zeros((n, 3), dtype=np.float32), np.array([0, 2])
    table[1::2, 0], table[1::2, 1:] = np.arange(1, n, 2), 1.0
    mean = content_module._mean_of(table, starts)
    assert mean[1] == 1.0, "of those that have it"
    chosen = np.arange(0, n, 3)
    np.testing.assert_allclose(mean[0], table[chosen, 0].sum() / (chosen % 2).sum(), rtol=1e-6)
    few = table[: content_module.MEAN_ROWS]
    np.testing.assert_allclose(
        content_module._mean_of(few, starts)[0], few[:, 0].sum() / few[:, 2].sum(), rtol=1e-6
    )
