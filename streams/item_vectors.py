"""Content vectors of the catalogue: what `serving.content` makes of items on the wire and in data sets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec

from serving.content.errors import ContentError
from serving.content.opening import open_content
from serving.content.vectors import ContentVectors
from streams.clients import partition_for
from streams.datasets import Dataset
from streams.errors import FreshetError
from streams.events import Item
from streams.reading import PartitionId, PartitionReader, watermarks
from streams.records import Record
from streams.rejects import Rejected
from streams.settings import Settings, default_state_dir
from streams.topic_admin import check_layout
from streams.validation import AcceptedItem, EventValidator

__all__ = [
    "CatalogueVectors",
    "catalogue_contents",
    "dataset_vectors",
    "item_fields",
    "items_of",
    "open_item_vectors",
]

log = logging.getLogger("freshet.content")


def open_item_vectors(settings: Settings, cpu_share: float | None = None) -> ContentVectors:
    """The empty table that `[content]` asks for; encoders and their cache live in the state folder.
    `cpu_share` goes before the setting.

    Raises:
        FreshetError: an encoder that the settings name can't be had or loaded; says what to do.
    """
    try:
        return open_content(settings.content, default_state_dir() / "content", cpu_share)
    except ContentError as error:
        raise FreshetError(f"[content] {error}") from error


def item_fields(item: Item) -> dict[str, Any]:
    """An item as `ContentVectors.put` takes it."""
    return msgspec.structs.asdict(item)


def items_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Fields of a data set's items by item id; empty where the data set comes without a catalogue."""
    return {item_id: item_fields(item) for item_id, item in dataset.items.items()}


def dataset_vectors(settings: Settings, dataset: Dataset) -> ContentVectors:
    """The content vectors of a data set's items, all encoded.

    Raises:
        FreshetError: an encoder can't be had or loaded.
    """
    vectors = open_item_vectors(settings, cpu_share=1.0)
    for item_id, fields in items_of(dataset).items():
        vectors.put(item_id, fields)
    _encoded(vectors, lambda: False)
    return vectors


class CatalogueVectors:
    """The content vectors of `items` for a process that reads the topic for nothing else: the trainer."""

    def __init__(self, settings: Settings) -> None:
        """Raises FreshetError when an encoder can't be had or loaded."""
        self.vectors = open_item_vectors(settings, cpu_share=1.0)
        self._settings = settings
        self._reader: PartitionReader | None = None
        if self.vectors.spec:
            partitions = check_layout(settings)["items"]
            starts: dict[PartitionId, int] = {(settings.names["items"], n): 0 for n in range(partitions)}
            self._reader = PartitionReader(settings, starts)
            self._validator = EventValidator(
                settings.validation, partial(partition_for, partitions=partitions)
            )

    def catch_up(
        self,
        should_stop: Callable[[], bool] = lambda: False,
        agree: Callable[[float], float] = lambda end: end,
    ) -> bool:
        """Read the catalogue up to its present end, and wait until all of it is encoded. False when
        `should_stop` said so first. `agree` gives each partition's end that several processes agreed on.

        Raises:
            BrokerUnavailableError: nothing can be read.
        """
        if self._reader is None:
            return True
        found = watermarks(self._settings, self._reader.positions, isolation="read_committed")
        ends = {key: int(agree(end)) for key, (_, end) in sorted(found.items())}
        return self._reader.read_to(ends, self._apply, should_stop=should_stop) and _encoded(
            self.vectors, should_stop
        )

    def close(self) -> None:
        self.vectors.close()
        if self._reader is not None:
            self._reader.close()

    def _apply(self, message: Record) -> None:
        found = self._validator.decode_item(
            message.value(), message.key(), message.partition(), message.offset(), message.timestamp()[1]
        )
        if isinstance(found, AcceptedItem):
            self.vectors.put(found.item.item_id, item_fields(found.item))
        elif not isinstance(found, Rejected):  # a worker writes rejected ones to the dead letters
            self.vectors.forget(found.key)


@contextmanager
def catalogue_contents(
    settings: Settings, should_stop: Callable[[], bool], agree: Callable[[float], float]
) -> Iterator[ContentVectors | None]:
    """The catalogue's content vectors as of now, for one training; None where the settings ask for none.

    Raises:
        FreshetError: an encoder can't be had or loaded, or the catalogue can't be read.
    """
    catalogue = CatalogueVectors(settings)
    try:
        catalogue.catch_up(should_stop, agree)
        yield catalogue.vectors if catalogue.vectors.spec else None
    finally:
        catalogue.close()


def _encoded(vectors: ContentVectors, should_stop: Callable[[], bool]) -> bool:
    """Wait for all that is under way, with a line now and then."""
    told = time.monotonic()
    while not vectors.wait(0.2):
        if should_stop():
            return False
        if time.monotonic() - told > 10.0:
            told = time.monotonic()
            log.info("content: %d of %d items' contents to be encoded yet", vectors.pending, len(vectors))
    for name, count in vectors.failed.items():
        log.warning("content: %d items go without %s", count, name)
    return True
