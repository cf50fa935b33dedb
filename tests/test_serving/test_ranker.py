"""A ranker gives PyTorch's scores, whatever the padding, the batch or the thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ranker.errors import RankerError
from serving.ranker.inputs import RankerInputs
from serving.ranker.probe import median_latency_ms
from serving.ranker.ranker import Asked, Ranker
from serving.ranker.session import RankerSession
from serving.registry.manifest import MODEL_FILE, WEIGHTS_FILE
from serving.training.networks import build_network
from serving.training.networks.base import SequenceNetwork, Shape, Tokens
from tests.test_serving.ranker_cases import ITEMS, SETTINGS, edited, item_name, markov_ranker, markov_version

histories = st.lists(st.lists(st.integers(1, ITEMS + 1), min_size=0, max_size=20), min_size=1, max_size=5)


def network_of_the_ranker() -> SequenceNetwork:
    network = build_network(Shape(ITEMS, 1, 1), SETTINGS)
    weights = safetensors.numpy.load(markov_version().files[WEIGHTS_FILE])
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network.eval()


@settings(deadline=None, max_examples=20)
@given(histories, st.integers(0, 99))
def test_scores_equal_pytorch_on_the_known_items(rows: list[list[int]], seed: int) -> None:
    """By names, so that types and gaps are unknown; places beyond the vocabulary are one unseen item."""
    ranker = markov_ranker()
    network = network_of_the_ranker()
    names = [*ranker.vocabulary, "never-seen"]
    candidates = np.random.default_rng(seed).integers(1, ITEMS + 2, (len(rows), 7))
    scores = ranker.score(
        [[names[place - 1] for place in row] for row in rows],
        [[names[place - 1] for place in row] for row in candidates.tolist()],
    )
    tokens = np.zeros((3, len(rows), 13), dtype=np.int64)
    newest = np.array([min(len(row), 12) for row in rows])
    for number, row in enumerate(rows):
        tokens[0, number, 1 : 1 + newest[number]] = row[-12:]
    contents = torch.zeros(ITEMS + 2, 1)
    with torch.no_grad():
        states = network.states(Tokens(*torch.from_numpy(tokens)), contents)
        whole = network.logits(states[torch.arange(len(rows)), torch.from_numpy(newest)], contents)
        expected = whole.gather(1, torch.from_numpy(candidates)).numpy()
    known = candidates <= ITEMS
    np.testing.assert_array_equal(np.isnan(scores), ~known)
    np.testing.assert_allclose(scores[known], expected[known], atol=1e-4)


def test_names_and_places_agree_and_unknown_is_nan() -> None:
    ranker = markov_ranker()
    scores = ranker.score([["item-1", "item-2"], []], [["item-3", "unknown"], ["item-4"]])
    assert scores.shape == (2, 2)
    np.testing.assert_array_equal(np.isnan(scores), [[False, True], [False, True]])
    history = np.zeros((1, 12), dtype=np.int64)
    history[0, -2:] = ranker.places_of(["item-1", "item-2"])
    alone = ranker.score_inputs(ranker.plain_inputs(history, ranker.places_of(["item-3"])[None, :]))
    assert scores[0, 0] == pytest.approx(alone[0, 0], abs=1e-5)
    assert ranker.places_of(["unknown"]).tolist() == [ranker.unseen] == [ITEMS + 1]


def test_rows_of_the_item_table_are_laid_out_with_types_and_gaps() -> None:
    """Newest first in the worker, oldest first in the graph; an unknown time or type is 0."""
    ranker = Ranker(
        Recorder(), ["a", "b", "c"], version="v", history_length=3, event_types=("view", "purchase")
    )
    asked = Asked(
        recent=np.array([[2, 0, 1, 2], [3, -1, -1, -1]], dtype=np.int32),
        kinds=np.array([[1, 0, 0, 0], [9, -1, -1, -1]], dtype=np.int32),
        times_ms=np.array([[90_000, 30_000, 29_500, 0], [-1, -1, -1, -1]]),
        context=np.zeros((2, 6), dtype=np.float32),
        rows=np.array([[0, 1], [3, -1]], dtype=np.int32),
        features=np.zeros((2, 2, 6), dtype=np.float32),
    )
    places = ranker.places_of(["b", "a", "c", "new"]).astype(np.int32)
    scores = ranker.score_rows(asked, places, ranker.types_of(["purchase", "view"]))
    inputs = ranker.session.seen  # type: ignore[attr-defined]
    assert inputs.history.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert inputs.history_types.tolist() == [[2, 2, 1], [0, 0, 0]]
    assert inputs.history_gaps_s.tolist() == [[0.0, 0.5, 60.0], [0.0, 0.0, 0.0]]
    assert inputs.candidates.tolist() == [[2, 1], [4, 0]]
    np.testing.assert_array_equal(np.isnan(scores), [[False, False], [True, True]])


class Recorder:
    """A scorer that keeps what it was asked and finds all alike."""

    providers_in_force: ClassVar[list[str]] = []
    seen: RankerInputs

    def score(self, inputs: RankerInputs) -> npt.NDArray[np.float32]:
        self.seen = inputs
        return np.zeros(inputs.candidates.shape, dtype=np.float32)


def test_no_users_and_no_candidates_are_no_error() -> None:
    ranker = markov_ranker()
    assert ranker.score([], []).shape == (0, 0)
    assert ranker.score([["item-1"]], [[]]).shape == (1, 0)


def test_what_does_not_fit_is_an_error_with_numbers() -> None:
    ranker = markov_ranker()
    history = np.zeros((2, 12), dtype=np.int64)
    with pytest.raises(RankerError, match=r"\(2, 12\).*\(3, 4\)"):
        ranker.score_inputs(ranker.plain_inputs(history, np.ones((3, 4), dtype=np.int64)))
    with pytest.raises(RankerError, match=rf"candidates: places 1..{ITEMS + 2} outside 0..{ITEMS + 1}"):
        ranker.score_inputs(ranker.plain_inputs(history, np.array([[1], [ITEMS + 2]])))
    with pytest.raises(RankerError, match="more than once"):
        Ranker(ranker.session, ["a", "b", "a"], version="v", history_length=12)


def test_scores_that_are_no_numbers_are_an_error() -> None:
    model = edited(markov_version().files[MODEL_FILE], lambda table: table * np.float32(np.nan))
    with pytest.raises(RankerError, match="1 of 1 scores are not finite"):
        markov_ranker(model).score([["item-1"]], [["item-2", "unknown"]])


def test_the_provider_in_force_is_reported_not_the_one_asked_for() -> None:
    model = markov_version().files[MODEL_FILE]
    cpu = RankerSession(model, "cpu")
    assert cpu.providers_in_force == ["CPUExecutionProvider"]
    assert not cpu.fell_back
    cuda = RankerSession(model, "cuda")
    assert cuda.wish.provider == "cuda"
    assert cuda.fell_back == (cuda.providers_in_force[0] != "CUDAExecutionProvider")
    assert "CPUExecutionProvider" in cuda.providers_in_force
    assert RankerSession(model, "auto").providers_in_force


def test_bound_inputs_and_outputs_give_the_same() -> None:
    model = markov_version().files[MODEL_FILE]
    history, candidates = np.arange(1, 25).reshape(2, 12), np.arange(1, 9).reshape(2, 4)
    inputs = markov_ranker().plain_inputs(history, candidates)
    plain, bound = RankerSession(model, "cpu", io_binding=False), RankerSession(model, "cpu", io_binding=True)
    np.testing.assert_array_equal(plain.score(inputs), bound.score(inputs))


def test_a_file_with_another_signature_is_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [value("x", onnx.TensorProto.FLOAT, ["n"])],
        [value("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    with pytest.raises(RankerError, match="signature: the file has inputs"):
        RankerSession(path, "cpu")
    with pytest.raises(RankerError, match="can't load the model"):
        RankerSession(b"no model", "cpu")


def test_threads_share_one_session() -> None:
    ranker = markov_ranker()
    rng = np.random.default_rng(0)
    calls = [
        ranker.plain_inputs(rng.integers(1, ITEMS, (3, 12)), rng.integers(1, ITEMS, (3, 20)))
        for _ in range(40)
    ]
    alone = [ranker.score_inputs(call) for call in calls]
    together: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for number in range(first, len(calls), 4):
            together[number] = ranker.score_inputs(calls[number])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == len(calls)
    for number, scores in enumerate(alone):
        np.testing.assert_array_equal(scores, together[number])


def test_latency_is_measured() -> None:
    assert 0.0 < median_latency_ms(markov_ranker(), calls=3) < 10_000.0


def test_vocabulary_is_the_catalogue() -> None:
    assert set(markov_ranker().vocabulary) == {item_name(index) for index in range(ITEMS)}
