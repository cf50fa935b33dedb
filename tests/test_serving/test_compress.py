"""Smaller graphs: what is stored, that scores stay, that losses are measured in pairs, and what is chosen."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.helper
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from serving.ranker.session import RankerSession
from serving.registry.onnx_checks import check_onnx
from serving.training import quantize
from serving.training.calibration import training_calls
from serving.training.compress import Source, compress_best, paired_loss
from serving.training.compress_judge import Judge
from serving.training.dataset import LogSplit, split_by_time
from serving.training.export import export_onnx
from serving.training.fused import ExportedRanker, FusionHead
from serving.training.prune import prune, sparsity_at
from serving.training.settings import CompressionSettings, TrainerSettings
from serving.training.slim import slim
from serving.training.train import train
from tests.test_serving.ranker_cases import markov_log

SETTINGS = TrainerSettings(
    dim=32,
    blocks=1,
    heads=2,
    history_length=8,
    window_stride=8,
    max_epochs=4,
    max_seconds=60.0,
    compression=CompressionSettings(
        candidates=("int8_rows", "int8_static"), max_ndcg_loss=0.1, least_gain=1.0, size_weight=1.0
    ),
)


@functools.cache
def split() -> LogSplit:
    return split_by_time(markov_log(users=200, steps=12), SETTINGS)


@functools.cache
def source() -> Source:
    """A small network that has learned its chain, with a fusion head that has not."""
    ranker = ExportedRanker(train(split(), SETTINGS).network, FusionHead())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export = export_onnx(ranker, path)
        return Source(ranker, export, path.read_bytes(), split(), SETTINGS)


def gather_graph(table: np.ndarray) -> bytes:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "places"], ["rows"], axis=0)],
        "g",
        [value("places", TensorProto.INT64, ["n"])],
        [value("rows", TensorProto.FLOAT, ["n", table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    return bytes(onnx.helper.make_model(graph, opset_imports=opset).SerializeToString())


def stored(model: bytes, *kinds: int) -> int:
    """Numbers in initialisers of some element types."""
    tensors = onnx.load_model_from_string(model).graph.initializer
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type in kinds)


def test_a_row_in_int8_is_off_by_half_a_step_at_most() -> None:
    table = np.random.default_rng(0).normal(0, 1, (80, 16)).astype(np.float32)
    table[0], table[1] = 0.0, np.linspace(-127, 127, 16)  # nothing to scale, and a step of 1
    small = quantize.int8_rows(gather_graph(table))
    (rows,) = ReferenceEvaluator(onnx.load_model_from_string(small)).run(None, {"places": np.arange(80)})
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(rows - table) <= steps / 2 + 1e-6).all()
    np.testing.assert_array_equal(rows[0], 0.0)
    np.testing.assert_allclose(rows[1], np.round(table[1]), atol=1e-5)
    assert stored(small, TensorProto.INT8) == table.size
    assert stored(small, TensorProto.FLOAT) == len(table)


def test_small_tables_and_tables_that_are_not_only_gathered_stay() -> None:
    tiny = gather_graph(np.ones((8, 16), np.float32))
    assert stored(quantize.int8_rows(tiny), TensorProto.INT8) == 0
    proto = onnx.load_model_from_string(gather_graph(np.ones((80, 16), np.float32)))
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["table"], ["sum"]))
    assert stored(quantize.int8_rows(bytes(proto.SerializeToString())), TensorProto.INT8) == 0


@pytest.mark.parametrize(
    ("make", "kind", "share", "tolerance"),
    [
        (quantize.int8_rows, TensorProto.INT8, 0.3, 0.05),
        (lambda model: quantize.int8_static(model, calls()), TensorProto.INT8, 0.3, 0.5),
        (quantize.int8_dynamic, TensorProto.INT8, 0.3, 0.5),
        (quantize.float16, TensorProto.FLOAT16, 0.9, 0.2),
    ],
    ids=["int8_rows", "int8_static", "int8_dynamic", "fp16"],
)
def test_a_graph_of_fewer_bits_is_let_in_and_scores_alike(make, kind, share, tolerance) -> None:  # type: ignore[no-untyped-def]
    whole = source().model
    model = slim(make(whole), keep_names=False)
    check_onnx(model)
    assert stored(model, kind) >= share * stored(whole, TensorProto.FLOAT)
    assert len(model) < len(whole)
    call = calls()[0]
    expected, scores = RankerSession(whole, "cpu").score(call), RankerSession(model, "cpu").score(call)
    assert np.abs(scores - expected).max() < tolerance * expected.std()
    assert not np.array_equal(scores, expected)


def calls() -> list:  # type: ignore[type-arg]
    return training_calls(split(), SETTINGS, 64)


def test_ranges_of_the_calibration_make_a_score_the_users_own() -> None:
    call = calls()[0]
    static = RankerSession(quantize.int8_static(source().model, calls()), "cpu")
    alone = np.concatenate([static.score(call.part(row, row + 1)) for row in range(4)])
    np.testing.assert_allclose(alone, static.score(call)[:4], atol=1e-4)


def test_what_reads_live_features_stays_float32() -> None:
    """Calibration has only zeros there: their range would make all features 0."""
    whole, call = source().model, calls()[0]
    call.features = np.random.default_rng(0).normal(0, 3, call.features.shape).astype(np.float32)
    without = RankerSession(whole, "cpu").score(calls()[0])
    expected = RankerSession(whole, "cpu").score(call)
    scores = RankerSession(quantize.int8_static(whole, calls()), "cpu").score(call)
    assert np.abs(expected - without).max() > 0.5 * expected.std()  # the features count
    assert np.abs(scores - expected).max() < 0.3 * expected.std()


def test_mostly_zero_weights_are_stored_by_place_and_score_the_same() -> None:
    proto = onnx.load_model_from_string(source().model)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype == np.float32:
            kept = np.abs(values) >= np.quantile(np.abs(values), 0.9)
            tensor.CopyFrom(numpy_helper.from_array(values * kept, tensor.name))
    dense = bytes(proto.SerializeToString())
    sparse = slim(quantize.sparse(dense), keep_names=False)
    check_onnx(sparse)
    assert len(sparse) < 0.6 * len(dense)
    call = calls()[0]
    np.testing.assert_allclose(
        RankerSession(sparse, "cpu").score(call), RankerSession(dense, "cpu").score(call), atol=1e-5
    )


def test_the_share_of_zeros_rises_to_what_is_asked_for() -> None:
    shares = [sparsity_at(epoch, 5, 0.75) for epoch in range(1, 6)]
    assert shares == sorted(shares)
    assert shares[-1] == 0.75
    assert shares[0] == pytest.approx(0.75 * (1 - 0.8**3))


def test_a_pruned_network_has_its_zeros_and_learned_around_them() -> None:
    asked = CompressionSettings(sparsity=0.6, pruning_epochs=2)
    network = source().ranker.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pruned = prune(network, split(), msgspec.structs.replace(SETTINGS, compression=asked))
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert set(pruned.state_dict()) == set(before)
    for name in ("item_embedding.weight", "blocks.0.query.weight", "blocks.0.feed_forward.1.weight"):
        own, old = pruned.state_dict()[name].numpy(), before[name].numpy()
        zeros = own == 0
        assert zeros.mean() == pytest.approx(0.6, abs=0.01)
        assert np.abs(old[zeros]).mean() < np.abs(old[~zeros]).mean()
        assert np.abs(own - old)[~zeros].max() > 1e-3


def test_losses_are_shares_of_the_same_users_gains() -> None:
    rng = np.random.default_rng(1)
    users = rng.integers(0, 400, 4000)
    base = rng.random(4000)
    loss, low, high = paired_loss(base, 0.9 * base, users)
    assert (loss, low, high) == pytest.approx((0.1, 0.1, 0.1))  # all lose alike: nothing to be unsure of
    other = base - 0.1 * rng.normal(0.2, 1, 4000)
    loss, low, high = paired_loss(base, other, users)
    assert loss == pytest.approx((base - other).mean() / base.mean())
    error = 0.1 / np.sqrt(4000) / base.mean()  # independent events: the usual standard error of a mean
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    assert paired_loss(np.zeros(3), np.zeros(3), np.arange(3)) == (0.0, 0.0, 0.0)


def test_the_cheapest_that_loses_little_is_taken_with_its_own_golden_scores() -> None:
    given = source()
    taken = compress_best(given)
    table = {candidate.kind: candidate for candidate in taken.table}
    assert set(table) == {"fp32", "int8_rows", "int8_static"}
    assert table["fp32"].size_bytes == len(given.model)
    assert table["fp32"].ndcg_at_10 > 0.3  # it has learned the chain
    chosen = table[taken.precision]
    assert chosen.verdict == "taken"
    assert chosen.cost == min(candidate.cost for candidate in taken.table)
    assert chosen.size_bytes == len(taken.model) < len(given.model)
    session = RankerSession(taken.model, "cpu")
    np.testing.assert_array_equal(session.score(taken.golden.inputs), taken.golden.scores)
    assert taken.figures()[taken.precision]["size_ratio"] == len(taken.model) / len(given.model)


class Halved(Judge):
    """The float32 graph hits all, any other half as well; two events each of three users."""

    def __init__(self, float32: bytes) -> None:
        self.users = np.array([0, 0, 1, 1, 2, 2])
        self._whole = RankerSession(float32, "cpu").score(calls()[0])

    def gains(self, session: RankerSession) -> np.ndarray:
        same = np.array_equal(session.score(calls()[0]), self._whole)
        return np.full(6, 1.0 if same else 0.5)


def test_what_may_lose_too_much_or_can_not_be_made_is_not_taken() -> None:
    asked = CompressionSettings(candidates=("int8_rows", "pruned"))
    nothing = dataclasses.replace(split().train, targets=np.zeros_like(split().train.targets))
    given = dataclasses.replace(
        source(),
        settings=msgspec.structs.replace(SETTINGS, compression=asked),
        split=dataclasses.replace(split(), train=nothing),
    )
    taken = compress_best(given, Halved(given.model))
    fp32, rows, pruned = taken.table
    assert (taken.precision, taken.model) == ("fp32", given.model)
    assert taken.golden is given.export.golden
    assert fp32.verdict == "taken"
    assert (rows.ndcg_loss, rows.low, rows.high) == (0.5, 0.5, 0.5)
    assert rows.verdict == "may lose 50.0 % of NDCG@10, at most 1.0 % is allowed"
    assert pruned.verdict == "could not be made: no window of the training part holds a positive target"
    assert "pruned" not in taken.figures()


def test_what_gains_too_little_is_not_taken() -> None:
    asked = CompressionSettings(candidates=("int8_rows",), least_gain=0.01, max_ndcg_loss=0.9)
    given = dataclasses.replace(source(), settings=msgspec.structs.replace(SETTINGS, compression=asked))
    taken = compress_best(given)
    assert taken.precision == "fp32"
    assert taken.table[1].verdict.endswith("of float32, at most 0.01 is asked for")


def test_weeks_between_two_events_are_not_beyond_float16() -> None:
    call = calls()[0]
    call.history_gaps_s = np.where(call.history > 0, np.float32(3e6), np.float32(0)).astype(np.float32)
    expected = RankerSession(source().model, "cpu").score(call)
    scores = RankerSession(quantize.float16(source().model), "cpu").score(call)
    assert np.abs(scores - expected).max() < 0.2 * expected.std()
