"""A BERT sentence encoder as an ONNX graph, straight from its weights: no PyTorch takes part.

Token, position and type embeddings are added and normalised; each layer is

    h <- LayerNorm(h + W_o Attention(h) + b_o),   Attention = softmax(Q K^T / sqrt(d) + mask) V by heads
    h <- LayerNorm(h + W_2 gelu(W_1 h + b_1) + b_2)

and a text's vector is the mean of h over its tokens, divided by its length.

References: Devlin, Chang, Lee, Toutanova, BERT, NAACL 2019; Wang et al., MiniLM, NeurIPS 2020; Reimers and
Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.content.errors import ContentError

__all__ = ["bert_encoder"]

Float32 = npt.NDArray[np.float32]

OPSET = 20
"""The first with Gelu; LayerNormalization came with 17."""
IR_VERSION = 9
MASKED = np.float32(-1e9)


def bert_encoder(weights: Mapping[str, Float32], heads: int, epsilon: float = 1e-12) -> bytes:
    """ONNX bytes of (input_ids int64[B, T], attention_mask int64[B, T]) -> embedding float32[B, D].

    Args:
        weights: by their names in Hugging Face's BertModel.
        heads: of each attention.
        epsilon: added to the variance in layer normalisation.

    Raises:
        ContentError: the package `onnx` is not installed, or a weight is missing.
    """
    try:
        graph = _Graph(weights, heads, epsilon)
        h, bias, mask = graph.embedded()
        layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
        for layer in range(len(layers)):
            h = graph.layer(f"encoder.layer.{layer}", h, bias)
        graph.pool(h, mask)
        return graph.serialized()
    except KeyError as error:
        raise ContentError(f"the weights hold no {error.args[0]}: they are not a BertModel's.") from error


class _Graph:
    def __init__(self, weights: Mapping[str, Float32], heads: int, epsilon: float) -> None:
        try:
            import onnx
        except ImportError as error:
            raise ContentError(
                f"the text encoder's graph is made with the package onnx, which can't be loaded ({error}): "
                "install the `text` extra of this package"
            ) from error
        self._onnx: Any = onnx
        self._weights, self._heads, self._epsilon = weights, heads, epsilon
        self._width = int(weights["embeddings.word_embeddings.weight"].shape[1])
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def embedded(self) -> tuple[str, str, str]:
        """Names of the embedded tokens [B, T, D], the attention bias [B, 1, 1, T], the mask [B, T, 1]."""
        ids, mask = "input_ids", "attention_mask"
        length = self._add("Gather", self._add("Shape", ids), self._constant(np.int64(1)))
        places = self._add("Range", self._constant(np.int64(0)), length, self._constant(np.int64(1)))
        tokens = self._add("Gather", self._weight("embeddings.word_embeddings.weight"), ids)
        positions = self._add("Gather", self._weight("embeddings.position_embeddings.weight"), places)
        kind = self._constant(self._weights["embeddings.token_type_embeddings.weight"][0])
        h = self._add("Add", self._add("Add", tokens, positions), kind)
        real = self._add("Cast", mask, to=self._onnx.TensorProto.FLOAT)
        hidden = self._add("Sub", self._constant(np.float32(1.0)), real)
        bias = self._add("Mul", hidden, self._constant(MASKED))
        return (
            self._normalised("embeddings.LayerNorm", h),
            self._add("Unsqueeze", bias, self._constant(np.array([1, 2]))),
            self._add("Unsqueeze", real, self._constant(np.array([2]))),
        )

    def layer(self, name: str, h: str, bias: str) -> str:
        attended = self._linear(f"{name}.attention.output.dense", self._attention(name, h, bias))
        h = self._normalised(f"{name}.attention.output.LayerNorm", self._add("Add", attended, h))
        inner = self._add("Gelu", self._linear(f"{name}.intermediate.dense", h))
        outer = self._linear(f"{name}.output.dense", inner)
        return self._normalised(f"{name}.output.LayerNorm", self._add("Add", outer, h))

    def pool(self, h: str, mask: str) -> None:
        """The output `embedding`: the mean over real tokens, of length 1."""
        axis = self._constant(np.array([1]))
        total = self._add("ReduceSum", self._add("Mul", h, mask), axis, keepdims=0)
        count = self._add("ReduceSum", mask, axis, keepdims=0)
        least = self._constant(np.float32(1e-9))
        mean = self._add("Div", total, self._add("Max", count, least))
        norm = self._add("ReduceL2", mean, self._constant(np.array([-1])), keepdims=1)
        self._add("Div", mean, self._add("Max", norm, least), out="embedding")

    def serialized(self) -> bytes:
        onnx, helper = self._onnx, self._onnx.helper
        whole, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
        inputs = [
            helper.make_tensor_value_info(name, whole, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ]
        output = helper.make_tensor_value_info("embedding", real, ["batch", self._width])
        graph = helper.make_graph(self._nodes, "text_encoder", inputs, [output], self._constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(model)
        serialized: bytes = model.SerializeToString()
        return serialized

    def _attention(self, name: str, h: str, bias: str) -> str:
        size = self._width // self._heads
        by_heads = self._constant(np.array([0, 0, self._heads, size]))
        query, key, value = (
            self._add("Reshape", self._linear(f"{name}.attention.self.{part}", h), by_heads)
            for part in ("query", "key", "value")
        )
        query = self._add("Transpose", query, perm=[0, 2, 1, 3])
        key = self._add("Transpose", key, perm=[0, 2, 3, 1])
        value = self._add("Transpose", value, perm=[0, 2, 1, 3])
        scale = self._constant(np.float32(1.0 / np.sqrt(size)))
        logits = self._add("Add", self._add("Mul", self._add("MatMul", query, key), scale), bias)
        mixed = self._add("MatMul", self._add("Softmax", logits, axis=-1), value)
        mixed = self._add("Transpose", mixed, perm=[0, 2, 1, 3])
        return self._add("Reshape", mixed, self._constant(np.array([0, 0, self._width])))

    def _linear(self, name: str, h: str) -> str:
        weight = self._constant(np.ascontiguousarray(self._weights[f"{name}.weight"].T))
        return self._add("Add", self._add("MatMul", h, weight), self._weight(f"{name}.bias"))

    def _normalised(self, name: str, h: str) -> str:
        scale, shift = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._add("LayerNormalization", h, scale, shift, axis=-1, epsilon=self._epsilon)

    def _weight(self, name: str) -> str:
        return self._constant(self._weights[name])

    def _constant(self, value: npt.NDArray[Any] | np.generic) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"value{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [out], **attributes))
        return out
