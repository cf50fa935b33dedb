"""A ranker gives PyTorch's scores, whatever the padding, the batch or the thread."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ranker.errors import RankerError
from serving.ranker.probe import median_latency_ms
from serving.ranker.ranker import Ranker
from serving.ranker.session import RankerSession
from serving.registry.manifest import MODEL_FILE, WEIGHTS_FILE
from serving.training.networks import build_network
from tests.test_serving.ranker_cases import ITEMS, SETTINGS, edited, item_name, markov_ranker, markov_version

histories = st.lists(st.lists(st.integers(-1, ITEMS), min_size=0, max_size=20), min_size=1, max_size=5)


def left_padded(rows: list[list[int]], width: int) -> np.ndarray:
    padded = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        if row:
            padded[number, width - len(row) :] = row
    return padded


@settings(deadline=None, max_examples=20)
@given(histories, st.integers(0, 99))
def test_scores_equal_pytorch_on_the_known_items(rows: list[list[int]], seed: int) -> None:
    ranker = markov_ranker()
    network = build_network(ITEMS, SETTINGS)
    weights = safetensors.numpy.load(markov_version().files[WEIGHTS_FILE])
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    network.eval()
    candidates = np.random.default_rng(seed).integers(-1, ITEMS + 1, (len(rows), 7))
    scores = ranker.score_indices(left_padded(rows, 20), candidates)
    length = SETTINGS.history_length
    clean = left_padded([[i for i in row[-length:] if i > 0] for row in rows], length)
    with torch.no_grad():
        expected = network(torch.from_numpy(clean), torch.from_numpy(np.maximum(candidates, 0))).numpy()
    np.testing.assert_array_equal(np.isnan(scores), candidates <= 0)
    np.testing.assert_allclose(scores[candidates > 0], expected[candidates > 0], atol=1e-4)


def test_names_and_indices_agree_and_unknown_is_nan() -> None:
    ranker = markov_ranker()
    scores = ranker.score([["item-1", "never-seen", "item-2"], []], [["item-3", "unknown"], ["item-4"]])
    assert scores.shape == (2, 2)
    np.testing.assert_array_equal(np.isnan(scores), [[False, True], [False, True]])
    history = np.zeros((1, 12), dtype=np.int64)
    history[0, -2:] = ranker.index_of(["item-1", "item-2"])
    alone = ranker.score_indices(history, ranker.index_of(["item-3"])[None, :])
    assert scores[0, 0] == pytest.approx(alone[0, 0], abs=1e-5)
    assert ranker.index_of(["unknown", "item-0"]).tolist()[0] == -1


def test_no_users_and_no_candidates_are_no_error() -> None:
    ranker = markov_ranker()
    assert ranker.score([], []).shape == (0, 0)
    assert ranker.score([["item-1"]], [[]]).shape == (1, 0)


def test_what_does_not_fit_is_an_error_with_numbers() -> None:
    ranker = markov_ranker()
    history = np.zeros((2, 12), dtype=np.int64)
    with pytest.raises(RankerError, match=r"\(2, 12\).*\(3, 4\)"):
        ranker.score_indices(history, np.ones((3, 4), dtype=np.int64))
    with pytest.raises(RankerError, match=rf"candidates: indices 1..{ITEMS + 1} outside -1..{ITEMS}"):
        ranker.score_indices(history, np.array([[1], [ITEMS + 1]]))
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
    assert cuda.provider_asked == "cuda"
    assert cuda.fell_back == (cuda.providers_in_force[0] != "CUDAExecutionProvider")
    assert "CPUExecutionProvider" in cuda.providers_in_force
    assert RankerSession(model, "auto").providers_in_force


def test_bound_inputs_and_outputs_give_the_same() -> None:
    model = markov_version().files[MODEL_FILE]
    history, candidates = np.arange(1, 25).reshape(2, 12), np.arange(1, 9).reshape(2, 4)
    plain, bound = RankerSession(model, "cpu", io_binding=False), RankerSession(model, "cpu", io_binding=True)
    np.testing.assert_array_equal(plain.score(history, candidates), bound.score(history, candidates))


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
    calls = [(rng.integers(0, ITEMS, (3, 12)), rng.integers(1, ITEMS, (3, 20))) for _ in range(40)]
    alone = [ranker.score_indices(*call) for call in calls]
    together: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for number in range(first, len(calls), 4):
            together[number] = ranker.score_indices(*calls[number])

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
