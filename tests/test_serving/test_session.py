"""What a session is asked for is in force: providers, threads, optimisation, bound items, padding."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ranker.bucketing import Buckets
from serving.ranker.errors import RankerError
from serving.ranker.inputs import RankerInputs
from serving.ranker.providers import CPU, CUDA, InForce, Kernel, Wish
from serving.ranker.session import RankerSession, available_providers
from serving.ranker.settings import GraphOptimization, Padding, RankerSettings
from tests.test_serving.graph_cases import CONTENT, ITEMS, SETTINGS, call, exported, ranker

FUSED_OPERATORS = {"FusedMatMul", "SkipLayerNormalization", "FastGelu", "BiasGelu", "QuickGelu"}
"""What the optimiser puts in the place of several operators; no exporter writes them."""


def session(profile: Path | None = None, **wish: object) -> RankerSession:
    asked = Wish(**{"provider": "cpu", **wish})  # type: ignore[arg-type]
    return RankerSession(exported()[0], wish=asked, profile=profile)


def torch_scores(inputs: RankerInputs) -> np.ndarray:
    with torch.no_grad():
        tensors = [torch.from_numpy(np.array(array)) for array in inputs.feeds().values()]
        return ranker()(*tensors).numpy()


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_what_is_in_force_is_read_back() -> None:
    asked = RankerSettings(provider="cpu", threads=2, graph_optimization="basic", padding="on")
    found = RankerSession(exported()[0], wish=Wish.of(asked)).in_force
    assert found == InForce((CPU,), 2, "basic", padding=True, cuda_graph=False)
    assert str(found) == "CPUExecutionProvider; 2 thread(s); optimisation basic; padded"
    assert session().in_force == InForce((CPU,), 1, "all", padding=False, cuda_graph=False)


def test_cuda_graphs_are_not_reported_where_there_is_no_cuda() -> None:
    recording = session(cuda_graph=True)
    assert not recording.in_force.cuda_graph
    assert recording.in_force.padding


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_threads_asked_for_are_there() -> None:
    before = threads_of_this_process()
    alone = session(threads=1)
    assert threads_of_this_process() == before
    four = session(threads=4)
    assert threads_of_this_process() == before + 3  # the calling thread is the fourth
    np.testing.assert_allclose(four.score(call(2, 9)), alone.score(call(2, 9)), atol=1e-5)


@pytest.mark.parametrize(("level", "fuses"), [("disabled", False), ("all", True)])
def test_the_optimisation_asked_for_runs(tmp_path: Path, level: GraphOptimization, fuses: bool) -> None:
    one = session(profile=tmp_path / "profile", graph_optimization=level)
    one.score(call(2, 9))
    kernels = one.kernels()
    assert bool(FUSED_OPERATORS & {kernel.operator for kernel in kernels}) is fuses
    assert {kernel.provider for kernel in kernels} == {CPU}
    with pytest.raises(RankerError, match="without `profile`"):
        one.kernels()


def test_optimisation_and_binding_change_no_score() -> None:
    inputs = call(5, 40)
    expected = torch_scores(inputs)
    variants = [session(graph_optimization="disabled"), session(padding="on"), session(cuda_graph=True)]
    variants.append(RankerSession(exported()[0], "cpu", io_binding=True))
    for variant in variants:
        variant.bind_items(inputs.item_vectors)
        for _ in range(2):
            np.testing.assert_allclose(variant.score(inputs), expected, atol=1e-4)


@settings(max_examples=25)
@given(users=st.integers(1, 9), candidates=st.integers(1, 90), seed=st.integers(0, 99))
def test_padding_to_a_bucket_changes_no_score(users: int, candidates: int, seed: int) -> None:
    inputs = call(users, candidates, seed=seed)
    padded = Buckets().pad(inputs)
    rows, wide = Buckets().sizes(users, candidates)
    assert padded.candidates.shape == (rows, wide)
    assert (rows >= users, wide >= candidates) == (True, True)
    assert padded.item_vectors is inputs.item_vectors
    plain, on = kept("off").score(inputs), kept("on").score(inputs)
    assert on.shape == (users, candidates)
    np.testing.assert_allclose(on, plain, atol=1e-5)


@functools.cache
def kept(padding: Padding) -> RankerSession:
    return session(padding=padding)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_buckets_are_few(users: int, candidates: int) -> None:
    rows, wide = Buckets().sizes(users, candidates)
    assert rows < 2 * users
    assert wide < max(candidates + 64, 2 * candidates)
    assert Buckets().sizes(rows, wide) == (rows, wide)


@pytest.mark.parametrize("wish", [{}, {"cuda_graph": True}])
def test_bound_items_are_the_callers_own_memory(wish: dict[str, object]) -> None:
    inputs = call(3, 20)
    bound = session(**wish) if wish else RankerSession(exported()[0], "cpu", io_binding=True)
    bound.bind_items(inputs.item_vectors)
    before = bound.score(inputs)
    inputs.item_vectors[1:] *= -2.0  # rows change in place
    after = bound.score(inputs)
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, torch_scores(inputs), atol=1e-4)


def test_a_grown_table_and_an_unbound_one_are_used_as_given() -> None:
    bound = session(cuda_graph=True)
    small, grown = call(3, 20), call(3, 20, places=ITEMS + 40, seed=1)
    bound.bind_items(small.item_vectors)
    for inputs in (small, grown, small):
        np.testing.assert_allclose(bound.score(inputs), torch_scores(inputs), atol=1e-4)
    bound.bind_items(grown.item_vectors, version=1)
    for inputs in (grown, small, grown):
        np.testing.assert_allclose(bound.score(inputs), torch_scores(inputs), atol=1e-4)


def test_items_of_another_layout_are_refused() -> None:
    one = session()
    for wrong in (np.zeros((4, 8)), np.zeros((8, 4), np.float32).T, np.zeros(8, np.float32)):
        with pytest.raises(ValueError, match="C-contiguous float32"):
            one.bind_items(wrong)  # type: ignore[arg-type]


def test_a_place_without_a_vector_is_an_error_with_the_shapes() -> None:
    inputs = dataclasses.replace(call(2, 5), item_vectors=np.zeros((3, CONTENT), np.float32))
    with pytest.raises(RankerError, match=r"item_vectors \(3, 8\)"):
        session().score(inputs)


def test_a_user_is_encoded_once_whatever_the_candidates(tmp_path: Path) -> None:
    few, many = (_profiled(tmp_path / str(count), count) for count in (20, 2000))
    assert [kernel.operator for kernel in few] == [kernel.operator for kernel in many]
    fixed = [a for a, b in zip(few, many, strict=True) if a.shapes == b.shapes]
    grows = [b for a, b in zip(few, many, strict=True) if a.shapes != b.shapes]
    products = {"MatMul", "FusedMatMul", "Gemm"}
    assert sum(kernel.operator in products for kernel in fixed) >= 12  # 2 blocks of 6, and the content's
    scored = [kernel.shapes for kernel in grows if kernel.operator in products]
    assert 2 <= len(scored) <= 5, f"by id, by content, and three of the fusion; found {scored}"
    assert all(shape[-1] < SETTINGS.dim for shapes in scored for shape in shapes), "candidates were encoded"


def _profiled(folder: Path, candidates: int) -> list[Kernel]:
    one = session(profile=folder)
    one.score(call(4, candidates))
    return one.kernels()


@pytest.mark.gpu
@pytest.mark.skipif(CUDA not in available_providers(), reason="no CUDA in this build of ONNX Runtime")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_gpu_gives_the_same_scores(cuda_graph: bool) -> None:
    gpu = session(provider="cuda", cuda_graph=cuda_graph)
    if gpu.fell_back:
        pytest.skip(f"no GPU here: {gpu.in_force}")
    assert gpu.in_force.cuda_graph is cuda_graph
    inputs = call(7, 200)
    for version in range(3):
        inputs.item_vectors[1:] += 0.1
        gpu.bind_items(inputs.item_vectors, version)
        for _ in range(3):
            np.testing.assert_allclose(gpu.score(inputs), torch_scores(inputs), atol=1e-3)
