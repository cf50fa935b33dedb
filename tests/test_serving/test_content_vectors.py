"""The table of content vectors: what stands in it, when it comes, and what is masked."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.content.background import Content, Modality
from serving.content.errors import ContentError
from serving.content.opening import open_content
from serving.content.settings import ContentSettings, EncoderSettings
from serving.content.vector_cache import VectorCache
from serving.content.vectors import ContentVectors
from tests.test_serving.content_cases import WORDS, flat_encoder, word_encoder


def angle_of(text: str) -> list[float]:
    """A vector of length 1 that tells texts of digits apart."""
    return [float(np.cos(0.1 * int(text))), float(np.sin(0.1 * int(text)))]


class Slow:
    """An encoder of texts of digits that waits until it is let go; `bad` texts break it."""

    def __init__(self, *bad: str, cache: VectorCache | None = None) -> None:
        self.go, self.started, self.bad, self.encoded = threading.Event(), threading.Event(), bad, list[str]()
        self.modality = Modality(
            name="text",
            dim=2,
            digest="0123456789abcdef",
            source_of=lambda fields: fields.get("title"),
            load=self.load,
            encode=self.encode,
            cache=cache or VectorCache(None, 2),
        )

    def load(self, text: str) -> Content:
        if text == "lost":
            raise ContentError("it is lost")
        return Content("", text.encode())

    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        self.started.set()
        assert self.go.wait(120)
        texts = [content.data.decode() for content in contents]
        if set(texts) & set(self.bad):
            raise RuntimeError(f"a decoder broke on one of {texts}")
        self.encoded += texts
        return np.array([angle_of(text) for text in texts], dtype=np.float32)


@pytest.fixture
def opened() -> Any:
    """Make tables that are closed at the end, their threads let go."""
    made: list[tuple[ContentVectors, Slow | None]] = []

    def make(slow: Slow | None = None, **more: Any) -> ContentVectors:
        vectors = ContentVectors([slow.modality] if slow else [], **more)
        made.append((vectors, slow))
        return vectors

    yield make
    for vectors, slow in made:
        if slow:
            slow.go.set()
        vectors.close()


Open = Callable[..., ContentVectors]


def test_vectors_of_length_one_stand_beside_their_masks(opened: Open) -> None:
    slow = Slow()
    slow.go.set()
    vectors = opened(slow, embeddings={"sound": 3, "image": 2})
    assert vectors.spec == (("text@0123456789ab", 2), ("image", 2), ("sound", 3))
    assert vectors.width == 2 + 2 + 3 + 3
    vectors.put("a", {"title": "0", "embeddings": {"image": [0.0, -5.0], "other": [1.0]}})
    vectors.put("b", {"title": None, "embeddings": {"sound": [2, 2, 1]}})
    vectors.put("c", {})
    assert vectors.wait(120)
    rows = vectors.rows_of(["a", "b", "c", "never seen"])
    assert rows[3] == 0
    expected = [
        [1, 0, 0, -1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 2 / 3, 2 / 3, 1 / 3, 0, 0, 1],
        [0] * 10,
        [0] * 10,
    ]
    np.testing.assert_allclose(vectors.table[rows], expected, atol=1e-6)
    assert vectors.table.flags.c_contiguous
    assert vectors.table.dtype == np.float32
    assert (len(vectors), len(vectors.table)) == (3, 4)


def test_an_item_is_masked_until_its_vector_is_there_and_nothing_waits_for_it(opened: Open) -> None:
    slow = Slow()
    vectors = opened(slow)
    vectors.put("a", {"title": "3"})
    vectors.put("b", {"title": "4"})
    assert vectors.collect() == 0
    assert vectors.pending == 2
    assert not vectors.table.any()
    assert not vectors.wait(0.01)
    vectors.put("c", {})
    assert vectors.take_changes() == set()
    slow.go.set()
    assert vectors.wait(120)
    assert vectors.pending == 0
    assert vectors.take_changes() == {"a", "b"}
    vectors.forget("a")
    vectors.forget("never seen")
    assert vectors.take_changes() == {"a"}
    np.testing.assert_array_equal(vectors.of(["b", "a", "x"]), [vectors.table[2], [0] * 3, [0] * 3])
    np.testing.assert_allclose(vectors.table[1:], [[0] * 3, [*angle_of("4"), 1], [0] * 3], atol=1e-6)


def test_what_comes_too_late_is_dropped(opened: Open) -> None:
    """Forgotten, given to another, or with another text meanwhile: the newest entry alone counts."""
    slow = Slow()
    vectors = opened(slow)
    vectors.put("gone", {"title": "1"})
    vectors.put("changed", {"title": "2"})
    vectors.put("bare", {"title": "3"})
    vectors.forget("gone")
    vectors.put("new", {})  # takes the row of "gone"
    vectors.put("changed", {"title": "5"})
    vectors.put("bare", {"title": None})
    slow.go.set()
    assert vectors.wait(120)
    rows = vectors.rows_of(["gone", "new", "changed", "bare"])
    assert rows[0] == 0
    expected = [[0, 0, 0], [0, 0, 0], [*angle_of("5"), 1], [0, 0, 0]]
    np.testing.assert_allclose(vectors.table[rows], expected, atol=1e-6)
    assert len(vectors.table) == 4


def test_a_catalogue_that_changes_faster_than_it_is_encoded_waits_once_for_each_item(opened: Open) -> None:
    slow = Slow()
    vectors = opened(slow, max_items=5)
    vectors.put("first", {"title": "1"})
    slow.started.wait(120)
    for turn in range(1000):
        vectors.put(f"item-{turn % 10}", {"title": str(turn)})
    assert vectors.pending <= 6, "five items have rows, and one is being encoded"
    vectors.forget("item-9")
    assert vectors.pending <= 5
    slow.go.set()
    assert vectors.wait(120)
    assert len(slow.encoded) <= 5
    names = [f"item-{n}" for n in range(5, 9)]
    expected = [[*angle_of(str(990 + n)), 1] for n in range(5, 9)]
    np.testing.assert_allclose(vectors.of(names), expected, atol=1e-6)


def test_the_same_text_again_costs_nothing_and_keeps_its_vector(opened: Open) -> None:
    slow = Slow()
    slow.go.set()
    vectors = opened(slow, embeddings={"image": 1})
    vectors.put("a", {"title": "7"})
    assert vectors.wait(120)
    vectors.put("a", {"title": "7", "price": 3.0, "embeddings": {"image": [2.0]}})
    assert vectors.pending == 0
    np.testing.assert_allclose(vectors.table[1], [*angle_of("7"), 1, 1, 1], atol=1e-6)
    assert slow.encoded == ["7"]


def test_a_bad_content_costs_no_other_item_its_vector(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow("13")
    vectors = opened(slow)
    with caplog.at_level(logging.WARNING):
        for text in ("11", "12", "13", "14", "lost"):
            vectors.put(text, {"title": text})
        slow.go.set()
        assert vectors.wait(120)
    mask = vectors.table[vectors.rows_of(["11", "12", "13", "14", "lost"]), -1]
    assert mask.tolist() == [1, 1, 0, 1, 0]
    assert vectors.failed == {"text": 2}
    told = "\n".join(record.message for record in caplog.records)
    assert "item 13 goes without text: a decoder broke on one of ['13']" in told
    assert "item lost goes without text: it is lost" in told


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([1.0, 2.0, 3.0], "'image' has 3 dimensions, but content.embeddings says 2"),
        ([1.0, float("nan")], "no list of finite numbers"),
        ("ab", "no list of finite numbers"),
        ([], "no list of finite numbers"),
        ([1e308, 1e308], None),
        ([0.0, 0.0], None),
        (None, None),
    ],
)
def test_a_given_embedding_that_does_not_fit_is_told_and_masked(
    opened: Open, caplog: pytest.LogCaptureFixture, given: Any, error: str | None
) -> None:
    vectors = opened(embeddings={"image": 2})
    vectors.put("a", {"embeddings": {"image": [3.0, 4.0]}})
    with caplog.at_level(logging.WARNING):
        vectors.put("a", {"embeddings": {"image": given}})
    usable = given == [1e308, 1e308]
    expected = [2**-0.5, 2**-0.5, 1] if usable else [0, 0, 0]
    np.testing.assert_allclose(vectors.table[1], expected, atol=1e-6)
    assert vectors.refused.total() == len(caplog.records) == (error is not None)
    assert error is None or error in caplog.text


def test_with_more_items_than_rows_the_oldest_entry_goes(opened: Open) -> None:
    vectors = opened(embeddings={"image": 1}, max_items=2)
    for item in ("a", "b", "a", "c"):
        vectors.put(item, {"embeddings": {"image": [1.0]}})
    assert vectors.rows_of(["a", "b", "c"]).tolist() == [1, 0, 2]
    assert len(vectors.table) == 3


def test_with_nothing_asked_for_nothing_is_held(tmp_path: Path) -> None:
    vectors = open_content(ContentSettings(), tmp_path)
    vectors.put("a", {"title": "Tea", "embeddings": {"image": [1.0]}})
    vectors.forget("b")
    assert (vectors.spec, vectors.width, len(vectors)) == ((), 0, 0)
    assert vectors.table[vectors.rows_of(["a", "b"])].shape == (2, 0)
    assert vectors.collect() == 0
    assert vectors.wait(0.0)
    assert not list(tmp_path.iterdir())


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "forget", "wait"]),
        st.sampled_from("abcdef"),
        st.one_of(st.none(), st.integers(0, 30).map(str)),
        st.one_of(st.none(), st.floats(-5, 5).filter(lambda x: abs(x) > 0.1)),
    ),
    max_size=30,
)


@given(steps, st.integers(1, 6))
@settings(max_examples=40)
def test_the_table_is_what_the_newest_entries_say(
    taken: list[tuple[str, str, str | None, float | None]], most: int
) -> None:
    slow = Slow()
    slow.go.set()
    vectors = ContentVectors([slow.modality], {"image": 1}, max_items=most)
    plain: dict[str, tuple[str | None, float | None]] = {}
    for what, item, text, number in taken:
        if what == "put":
            vectors.put(item, {"title": text, "embeddings": {} if number is None else {"image": [number]}})
            plain.pop(item, None)
            if len(plain) == most:
                del plain[next(iter(plain))]
            plain[item] = (text, number)
        elif what == "forget":
            vectors.forget(item)
            plain.pop(item, None)
        else:
            vectors.collect()
    assert vectors.wait(120)
    vectors.close()
    rows = dict(zip("abcdef", vectors.rows_of("abcdef").tolist(), strict=True))
    assert {item for item, row in rows.items() if row} == set(plain)
    assert len({rows[item] for item in plain}) == len(plain)
    for item, (text, number) in plain.items():
        expected = [
            *(angle_of(text) if text else (0, 0)),
            np.sign(number or 0),
            bool(text),
            number is not None,
        ]
        np.testing.assert_allclose(vectors.table[rows[item]], expected, atol=1e-6)
    free = set(range(len(vectors.table))) - {rows[item] for item in plain}
    assert not vectors.table[sorted(free)].any()


def test_settings_bring_texts_files_and_embeddings_together(tmp_path: Path) -> None:
    table = np.zeros((len(WORDS), 2))
    table[WORDS.index("tea")], table[WORDS.index("milk")] = [3, 0], [0, 4]
    folder = word_encoder(tmp_path / "model", table)
    (tmp_path / "covers").mkdir()
    (tmp_path / "covers" / "tea.f32").write_bytes(np.array([3, 4], "<f4").tobytes())
    cover = EncoderSettings(
        model=str(flat_encoder(tmp_path / "c.onnx", [2])), field="cover", root=str(tmp_path / "covers")
    )
    chosen = ContentSettings(
        text=True, text_model=str(folder), embeddings={"sound": 1}, encoders={"cover": cover}
    )
    fields: Mapping[str, Mapping[str, Any]] = {
        "tea": {"title": "tea", "labels": {"cover": "tea.f32"}, "embeddings": {"sound": [9.0]}},
        "milk": {"title": "milk", "labels": {"cover": "milk.f32"}},
        "thief": {"labels": {"cover": "../model/model.onnx"}},
    }
    vectors = open_content(chosen, tmp_path / "state")
    for item_id, one in fields.items():
        vectors.put(item_id, one)
    assert vectors.wait(120)
    assert [name.partition("@")[0] for name, _ in vectors.spec] == ["text", "cover", "sound"]
    expected = [[1, 0, 0.6, 0.8, 1, 1, 1, 1], [0, 1, 0, 0, 0, 1, 0, 0], [0] * 8]
    np.testing.assert_allclose(vectors.table[vectors.rows_of(fields)], expected, atol=1e-6)
    assert vectors.failed == {"cover": 2}
    (tmp_path / "covers" / "tea.f32").write_bytes(np.array([0, 1], "<f4").tobytes())
    vectors.put("tea", fields["tea"])  # the path is the same, the file is not
    assert vectors.wait(120)
    np.testing.assert_allclose(vectors.table[vectors.rows_of(["tea"])[0], 2:4], [0, 1], atol=1e-6)
    vectors.close()


def test_a_restart_encodes_nothing_again(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    tables = []
    for n in range(2):
        slow = Slow(cache=VectorCache(file, 2))
        slow.go.set()
        vectors = ContentVectors([slow.modality])
        for text in map(str, range(300)):
            vectors.put(text, {"title": text})
        assert vectors.wait(120)
        assert len(slow.encoded) == (300 if n == 0 else 0)
        tables.append(vectors.table[vectors.rows_of(map(str, range(300)))])
        vectors.close()
    np.testing.assert_array_equal(*tables)
    assert tables[0][:, -1].all()


def test_a_name_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    folder = word_encoder(tmp_path / "model", np.ones((len(WORDS), 2)))
    chosen = ContentSettings(text=True, text_model=str(folder), embeddings={"text": 3})
    with pytest.raises(ContentError, match="text is named twice"):
        open_content(chosen, tmp_path)


def test_closing_does_not_wait_for_what_is_left(opened: Open) -> None:
    slow = Slow()
    slow.go.set()
    vectors = opened(slow, cpu_share=1e-9)  # the first batch would be followed by a pause of hours
    for text in map(str, range(40)):
        vectors.put(text, {"title": text})
    vectors.close()
    assert len(slow.encoded) <= 16


@pytest.mark.skipif(sys.platform != "linux", reason="niceness belongs to processes elsewhere")
@pytest.mark.parametrize(("share", "niceness"), [(0.5, 10), (1.0, 0)])
def test_a_worker_s_encoding_gives_way_and_a_trainer_s_does_not(share: float, niceness: int) -> None:
    seen: list[int] = []

    def encode(contents: Sequence[Content]) -> np.ndarray:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return np.ones((len(contents), 2), dtype=np.float32)

    mine = os.getpriority(os.PRIO_PROCESS, 0)
    vectors = ContentVectors([dataclasses.replace(Slow().modality, encode=encode)], cpu_share=share)
    vectors.put("a", {"title": "1"})
    assert vectors.wait(120)
    vectors.close()
    assert seen == [max(mine, niceness) if share < 1.0 else mine]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine, "the worker itself goes on as it was"
