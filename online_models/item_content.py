"""What a catalogue says of its items, as vectors of hashed features and given embeddings."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.content_features import NAMED, PRICE, TEXT, bucket_of, features_of, unit_vector
from online_models.content_kernels import EMPTY, Contents
from online_models.item_table import grown, pack_ids, unpack_ids

__all__ = ["ItemContent"]

UNLIMITED = 2**28
MAX_EMBEDDING_DIMENSION = 65_536
SLOTS_AT_ONCE = 4096
"""Weighing all vectors at once would take several times their memory."""


class ItemContent:
    r"""Content vectors by item id, in slots 0, 1, 2, ...

    Words, categories, labels ("name=value") and price are hashed into B buckets with a sign (Weinberger,
    Dasgupta, Langford, Smola and Attenberg, Feature Hashing for Large Scale Multitask Learning, ICML 2009),
    the first `max_features` of them: categories, labels, price, then words in their order. A word counts
    1 + ln(its count), times its running inverse document frequency 1 + ln((1 + N) / (1 + N_word)), as it is
    when the entry comes in; all vectors are made anew whenever the catalogue has doubled. A price lies
    between two of the buckets that halve an octave, and is shared out between them. Each group (words,
    categories and labels, price, each embedding) has length 1, and the whole vector too.

    At most `max_items` have a slot: a new one takes that of the item whose entry came in longest ago.

    >>> store = ItemContent(buckets=64, max_features=8, max_items=2)
    >>> for item in ["tea", "milk", "nails"]:
    ...     _ = store.put(item, {"title": item, "embeddings": {"image": [3.0, 4.0]}})
    >>> store.slots(["tea", "milk", "nails"]).tolist(), store.contents.dense[:2].round(3).tolist()
    ([-1, 1, 0], [[0.42399999499320984, 0.5659999847412109], [0.42399999499320984, 0.5659999847412109]])
    """

    def __init__(self, buckets: int, max_features: int, max_items: int) -> None:
        self.buckets = buckets
        self.max_features = max_features
        self.max_items = max_items
        self.clear()

    def clear(self) -> None:
        """Forget every entry, and the embeddings' names."""
        width = self.max_features
        self.contents = Contents(
            feature=np.zeros((0, width), dtype=np.int32),
            value=np.zeros((0, width), dtype=np.float32),
            length=np.zeros(0, dtype=np.int32),
            dense=np.zeros((0, 0), dtype=np.float32),
        )
        self._raw = np.zeros((0, width), dtype=np.float32)
        self._group = np.zeros((0, width), dtype=np.int8)
        self._slot_of: dict[str, int] = {}  # in the order of their entries
        self._free: list[int] = []
        self._spans: dict[str, tuple[int, int]] = {}
        self._documents = np.zeros(self.buckets, dtype=np.int64)
        self.used = 0
        self._weighed_at = 0

    def __len__(self) -> int:
        """Items that have content."""
        return len(self._slot_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slot_of)

    def places(self) -> ItemsView[str, int]:
        """Items with their slots, in the order of their entries."""
        return self._slot_of.items()

    @property
    def width(self) -> int:
        """Components of a vector: buckets and embeddings."""
        return self.buckets + int(self.contents.dense.shape[1])

    def slots(self, items: Iterable[str]) -> NDArray[np.int32]:
        """Slots int32[n] of items, -1 where they have no content."""
        get = self._slot_of.get
        return np.array([get(item, -1) for item in items], dtype=np.int32)

    def put(self, item: str, x: Mapping[str, Any]) -> tuple[int, str | None]:
        """Take in an entry in place of the item's former one. Returns its slot, and the item that lost it.
        Raises ValueError for a bad field or an embedding of another dimension; nothing is changed then."""
        hashed = self._hashed(features_of(item, x))
        vectors = self._checked_embeddings(item, x.get("embeddings") or {})
        self.drop(item)
        gone = next(iter(self._slot_of)) if len(self._slot_of) >= self.max_items else None
        if gone is not None:
            self.drop(gone)
        slot = self._free.pop() if self._free else self.used
        self.used = max(self.used, slot + 1)
        self._reserve(self.used)
        self._slot_of[item] = slot
        self._write(slot, hashed, vectors)
        self._weigh(np.array([slot]))
        if len(self) >= 2 * self._weighed_at:
            self._weighed_at = len(self)
            slots = np.array(sorted(self._slot_of.values()))
            for start in range(0, len(slots), SLOTS_AT_ONCE):
                self._weigh(slots[start : start + SLOTS_AT_ONCE])
        return slot, gone

    def drop(self, item: str) -> int:
        """Forget an item's entry; returns its slot, -1 where it had none."""
        slot = self._slot_of.pop(item, -1)
        if slot >= 0:
            text = self._group[slot, : self.contents.length[slot]] == TEXT
            self._documents[self.contents.feature[slot, : len(text)][text]] -= 1
            for array in (*self.contents, self._raw, self._group):
                array[slot] = 0
            self.contents.length[slot] = EMPTY
            self._free.append(slot)
        return slot

    def nbytes(self) -> int:
        """Bytes of the slots in use, and of the document counts."""
        width = self.max_features * (4 + 4 + 4 + 1) + 4 * int(self.contents.dense.shape[1]) + 4
        return self.used * width + self._documents.nbytes

    def to_arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """Every entry, in the order of entry, under `name`."""
        slots = np.array(list(self._slot_of.values()), dtype=np.int32)
        used = np.arange(self.max_features) < self.contents.length[slots][:, None]
        spans = np.array(list(self._spans.values()), dtype=np.int32).reshape(-1, 2)
        return {
            **pack_ids(f"{name}.items", list(self._slot_of)),
            **pack_ids(f"{name}.embeddings", list(self._spans)),
            f"{name}.embedding_spans": spans,
            f"{name}.slots": slots,
            f"{name}.free": np.array(self._free, dtype=np.int32),
            f"{name}.lengths": self.contents.length[slots],
            f"{name}.features": self.contents.feature[slots][used],
            f"{name}.values": self.contents.value[slots][used],
            f"{name}.raw": self._raw[slots][used],
            f"{name}.groups": self._group[slots][used].astype(np.uint8),
            f"{name}.dense": self.contents.dense[slots],
            f"{name}.weighed_at": np.array([self._weighed_at], dtype=np.int64),
        }

    def load(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace all entries by those of `to_arrays`."""
        self.clear()
        slots, lengths = arrays[f"{name}.slots"], arrays[f"{name}.lengths"]
        self._free = arrays[f"{name}.free"].tolist()
        self.used = len(slots) + len(self._free)
        self._slot_of = dict(zip(unpack_ids(f"{name}.items", arrays), slots.tolist(), strict=True))
        spans = [(first, size) for first, size in arrays[f"{name}.embedding_spans"].tolist()]
        self._spans = dict(zip(unpack_ids(f"{name}.embeddings", arrays), spans, strict=True))
        self._widen(sum(size for _, size in spans))
        self._reserve(self.used)
        row, place = np.nonzero(np.arange(self.max_features) < lengths[:, None])
        where = slots[row], place
        self.contents.length[slots] = lengths
        self.contents.feature[where] = arrays[f"{name}.features"]
        self.contents.value[where] = arrays[f"{name}.values"]
        self.contents.dense[slots] = arrays[f"{name}.dense"]
        self._raw[where] = arrays[f"{name}.raw"]
        self._group[where] = arrays[f"{name}.groups"]
        text = arrays[f"{name}.features"][arrays[f"{name}.groups"] == TEXT]
        self._documents = np.bincount(text, minlength=self.buckets).astype(np.int64)
        self._weighed_at = int(arrays[f"{name}.weighed_at"][0])

    def _hashed(self, features: Iterable[tuple[int, str, float]]) -> dict[tuple[int, int], float]:
        """(group, bucket) to signed value, the first `max_features`."""
        found: dict[tuple[int, int], float] = {}
        for group, name, value in features:
            bucket, sign = bucket_of(group, name, self.buckets)
            key = (group, bucket)
            if key in found or len(found) < self.max_features:
                found[key] = found.get(key, 0.0) + sign * value
        return found

    def _checked_embeddings(self, item: str, given: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
        if not isinstance(given, Mapping):
            raise ValueError(f"{item}: embeddings is {type(given).__name__}, but names to lists are needed")
        found: dict[str, NDArray[np.float64]] = {}
        more = 0
        for name, values in given.items():
            vector = unit_vector(item, name, values)
            _, size = self._spans.get(name, (0, len(vector)))
            if len(vector) != size:
                raise ValueError(
                    f"{item}: embedding {name!r} has {len(vector)} dimensions, but the first one had {size}"
                )
            more += size if name not in self._spans else 0
            found[name] = vector
        if self.width - self.buckets + more > MAX_EMBEDDING_DIMENSION:
            raise ValueError(
                f"{item}: {', '.join(found)} bring the embeddings to {self.width - self.buckets + more} "
                f"dimensions in all, but {MAX_EMBEDDING_DIMENSION} is the most"
            )
        return found

    def _write(
        self, slot: int, hashed: Mapping[tuple[int, int], float], vectors: Mapping[str, NDArray[np.float64]]
    ) -> None:
        for place, ((group, bucket), value) in enumerate(hashed.items()):
            self._group[slot, place], self.contents.feature[slot, place] = group, bucket
            self._raw[slot, place] = value
            self._documents[bucket] += group == TEXT
        self.contents.length[slot] = len(hashed)
        for name, vector in vectors.items():
            if name not in self._spans:
                first = self.width - self.buckets
                self._spans[name] = (first, len(vector))
                self._widen(first + len(vector))
            first, size = self._spans[name]
            self.contents.dense[slot, first : first + size] = vector

    def _weigh(self, slots: NDArray[Any]) -> None:
        """Make the vectors of slots int[n] of what is known of them, with the present document counts."""
        raw, group, feature = (
            self._raw[slots].astype(np.float64),
            self._group[slots],
            self.contents.feature[slots],
        )
        used = np.arange(self.max_features) < self.contents.length[slots][:, None]
        rarity = 1.0 + np.log((1.0 + len(self)) / (1.0 + self._documents[feature]))
        value = np.where(used, raw * np.where(group == TEXT, rarity, 1.0), 0.0)
        dense, groups = self.contents.dense[slots].astype(np.float64), np.zeros(len(slots))
        for number in (TEXT, NAMED, PRICE):
            of_group = used & (group == number)
            norm = np.sqrt(np.sum(np.where(of_group, value, 0.0) ** 2, axis=1))
            value /= np.where(of_group, np.where(norm > 0.0, norm, 1.0)[:, None], 1.0)
            groups += norm > 0.0
        for first, size in self._spans.values():
            part = dense[:, first : first + size]
            norm = np.sqrt(np.sum(part**2, axis=1))
            part /= np.where(norm > 0.0, norm, 1.0)[:, None]
            groups += norm > 0.0
        share = np.sqrt(np.maximum(groups, 1.0))[:, None]
        self.contents.value[slots] = value / share
        self.contents.dense[slots] = dense / share

    def _widen(self, dimension: int) -> None:
        dense = self.contents.dense
        wider = np.zeros((len(dense), dimension), dtype=np.float32)
        wider[:, : dense.shape[1]] = dense
        self.contents = self.contents._replace(dense=wider)

    def _reserve(self, slots: int) -> None:
        contents = self.contents
        if slots > len(contents.length):
            most = UNLIMITED if self.max_items > UNLIMITED else self.max_items
            self.contents = Contents(
                feature=grown(contents.feature, slots, most),
                value=grown(contents.value, slots, most),
                length=grown(contents.length, slots, most, fill=EMPTY),
                dense=grown(contents.dense, slots, most),
            )
            self._raw, self._group = grown(self._raw, slots, most), grown(self._group, slots, most)
