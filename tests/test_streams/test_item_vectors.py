"""Content vectors of the catalogue on a real log: a worker's, a trainer's, and those of a data set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from serving.content.settings import ContentSettings
from streams.clients import make_producer, producer_config
from streams.datasets import Dataset, load_dataset
from streams.errors import DatasetError, FreshetError
from streams.events import Item
from streams.follower import Follower
from streams.id_table import IdTable
from streams.item_codes import ItemCodes
from streams.item_vectors import (
    CatalogueVectors,
    catalogue_contents,
    dataset_vectors,
    items_of,
    open_item_vectors,
)
from streams.replica import Replica
from streams.settings import Settings
from streams.topic_admin import check_layout
from streams.validation import EventValidator
from tests.test_serving.content_cases import WORDS, word_encoder


@pytest.fixture
def described(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with an encoder of the words tea and milk, and an embedding of two dimensions."""
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path / "state"))
    return msgspec.structs.replace(settings, content=content(tmp_path))


def content(folder: Path) -> ContentSettings:
    table = np.zeros((len(WORDS), 2))
    table[WORDS.index("tea")], table[WORDS.index("milk")] = [3, 0], [0, 4]
    model = word_encoder(folder / "model", table)
    return ContentSettings(text=True, text_model=str(model), embeddings={"image": 2})


def publish(settings: Settings, *records: dict[str, Any] | str | bytes) -> None:
    """Items, tombstones of ids, and raw bytes."""
    producer = make_producer(producer_config(settings))
    for record in records:
        if isinstance(record, dict):
            producer.produce(settings.names["items"], msgspec.json.encode(record), record["item_id"])
        elif isinstance(record, str):
            producer.produce(settings.names["items"], None, record)
        else:
            producer.produce(settings.names["items"], record, "bad")
    assert producer.flush(10) == 0


TEA = {"item_id": "tea", "title": "tea", "embeddings": {"image": [0, 2]}}
MILK = {"item_id": "milk", "title": "milk"}


def test_the_trainer_reads_the_catalogue_up_to_its_end_each_time(described: Settings) -> None:
    catalogue = CatalogueVectors(described)
    vectors = catalogue.vectors
    try:
        publish(described, TEA, MILK, b"no item")
        assert catalogue.catch_up()
        assert [dim for _, dim in vectors.spec] == [2, 2]
        expected = [[1, 0, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0]]
        np.testing.assert_allclose(vectors.of(["tea", "milk"]), expected, atol=1e-6)
        publish(described, "tea", {**MILK, "title": "tea"})
        assert catalogue.catch_up()
        np.testing.assert_allclose(vectors.of(["tea", "milk"]), [[0] * 6, [1, 0, 0, 0, 1, 0]], atol=1e-6)
        assert catalogue.catch_up()
    finally:
        catalogue.close()


def test_a_worker_follows_the_catalogue_and_tells_its_pipeline(
    described: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    validator = EventValidator(described.validation, lambda key: 0)
    replica = Replica(described, validator, check_layout(described))
    [row] = replica.items.items.ensure(["tea"]).tolist()  # learned of; milk is not
    follower = Follower(replica, described.serving, lambda swap: None)
    codes = ItemCodes(replica.items, IdTable())
    told: list[int] = []
    tell = follower.pipeline.rows_changed

    def noted(rows: np.ndarray) -> None:
        told.extend(rows.tolist())
        tell(rows)

    monkeypatch.setattr(follower.pipeline, "rows_changed", noted)

    def follow_until(wanted: list[list[float]]) -> None:
        deadline = time.monotonic() + 120
        while not np.allclose(replica.content.of(["tea", "milk"]), wanted, atol=1e-6):
            assert time.monotonic() < deadline, replica.content.of(["tea", "milk"])
            follower.begin()
            follower.join(codes)
            time.sleep(0.02)

    try:
        follow_until([[0] * 6] * 2)
        follower.begin()
        follower.join(codes)
        told.clear()
        publish(described, TEA, MILK)
        follow_until([[1, 0, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0]])
        assert set(told) == {row}
        told.clear()
        publish(described, "tea")
        follow_until([[0] * 6, [0, 1, 0, 0, 1, 0]])
        assert told == [row]
    finally:
        replica.close()


def test_processes_that_train_together_read_to_the_end_that_they_agreed_on(described: Settings) -> None:
    publish(described, TEA)
    asked: list[float] = []

    def agree(end: float) -> float:  # the first process looked before anything was there
        asked.append(end)
        return 0.0

    catalogue = CatalogueVectors(described)
    try:
        assert catalogue.catch_up(agree=agree)
        assert sum(asked) >= 1
        assert not catalogue.vectors.of(["tea"]).any()
    finally:
        catalogue.close()
    with catalogue_contents(described, lambda: False, lambda end: end) as contents:
        assert contents is not None
        np.testing.assert_allclose(contents.of(["tea"]), [[1, 0, 0, 1, 1, 1]], atol=1e-6)


def test_without_content_the_catalogue_is_not_read(settings: Settings) -> None:
    catalogue = CatalogueVectors(settings)
    publish(settings, TEA)
    assert catalogue.catch_up()
    assert (catalogue.vectors.spec, len(catalogue.vectors)) == ((), 0)
    catalogue.close()
    with catalogue_contents(settings, lambda: False, lambda end: end) as contents:
        assert contents is None


def test_an_encoder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    chosen = ContentSettings(text=True, text_model=str(tmp_path / "nowhere"))
    with pytest.raises(FreshetError, match=r"\[content\].*nowhere"):
        open_item_vectors(Settings(content=chosen))


def test_the_items_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path))
    items = {
        "tea": Item(item_id="tea", title="tea", embeddings={"image": [0.0, 2.0]}),
        "x": Item(item_id="x"),
    }
    dataset = Dataset("shop", [], items)
    assert items_of(dataset)["tea"]["embeddings"] == {"image": [0.0, 2.0]}
    assert items_of(Dataset("bare", [])) == {}
    vectors = dataset_vectors(Settings(content=content(tmp_path)), dataset)
    np.testing.assert_allclose(vectors.of(["tea", "x"]), [[1, 0, 0, 1, 1, 1], [0] * 6], atol=1e-6)
    vectors.close()


def test_movies_come_with_titles_years_and_genres() -> None:
    try:
        dataset = load_dataset("ml-100k")
    except DatasetError as error:
        pytest.skip(str(error))
    fields = items_of(dataset)["50"]
    assert fields["title"] == "Star Wars (1977)"
    assert fields["categories"] == ["Action", "Adventure", "Romance", "Sci-Fi", "War"]
    assert len(items_of(dataset)) == 1_682
