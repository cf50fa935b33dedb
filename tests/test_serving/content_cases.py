"""Small ONNX encoders with known answers, and the real text encoder where it can be had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from serving.content.encoder import TextEncoder
from serving.content.errors import ContentError
from serving.content.opening import text_encoder
from serving.content.settings import ContentSettings
from streams.settings import default_state_dir

WORDS = ("[PAD]", "[UNK]", "tea", "milk", "nails")


def real_text_encoder() -> TextEncoder:
    """all-MiniLM-L6-v2 from the state folder; skips the test where the package index gives nothing."""
    try:
        return text_encoder(ContentSettings(text=True), default_state_dir() / "content")
    except ContentError as error:
        pytest.skip(str(error))


def saved(file: Path, nodes: Sequence[onnx.NodeProto], inputs: dict[str, tuple[int, list[int | str]]],
          output: list[int | str], constants: dict[str, np.ndarray] | None = None) -> Path:  # fmt: skip
    """An ONNX file with the one output `out` of float32."""
    graph = helper.make_graph(
        list(nodes),
        "encoder",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    return file


def flat_encoder(file: Path, shape: list[int], kind: int = onnx.TensorProto.FLOAT) -> Path:
    """Gives its input [1, *shape] back as a flat vector."""
    dim = int(np.prod(shape))
    nodes = [
        helper.make_node("Cast", ["x"], ["real"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Flatten", ["real"], ["out"], axis=1),
    ]
    return saved(file, nodes, {"x": (kind, ["batch", *shape])}, ["batch", dim])


def word_encoder(folder: Path, table: np.ndarray) -> Path:
    """A folder with a model that gives each token a row of `table` float32[len(WORDS), D], and the tokenizer
    of WORDS: a text's vector is the mean of its words' rows, divided by its length."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Gather", ["kinds", "token_type_ids"], ["kind"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["mask"], ["one"], keepdims=0),
        helper.make_node("Mul", ["kind", "one"], ["used"]),
        helper.make_node("Add", ["tokens", "used"], ["out"]),
    ]
    places: tuple[int, list[int | str]] = (onnx.TensorProto.INT64, ["batch", "tokens"])
    dim = table.shape[1]
    saved(
        folder / "model.onnx",
        nodes,
        dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), places),
        ["batch", "tokens", dim],
        {"table": table.astype(np.float32), "kinds": np.zeros((2, dim), np.float32)},
    )
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
