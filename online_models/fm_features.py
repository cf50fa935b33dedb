"""Contexts, labels and catalogue entries as hashed features: a bucket and a value each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.item_table import pack_ids, unpack_ids

__all__ = ["Catalogue", "Feature", "context_columns", "features_of", "hashed", "item_features"]

MAX_VALUE = 10.0
Feature = tuple[int, float]
"""Bucket and value; a value of 0 is no feature."""


@lru_cache(maxsize=65_536)
def _bucket_and_sign(text: str, buckets: int) -> tuple[int, float]:
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return (number >> 1) % buckets, 1.0 if number & 1 else -1.0


def hashed(text: str, value: float, buckets: int) -> Feature:
    """A named feature: its bucket, and its value with the sign that the name hashes to, so that two names in
    one bucket cancel in the mean (Weinberger et al., Feature Hashing, ICML 2009).

    >>> hashed("hour=9", 1.0, 4096)
    (2670, -1.0)
    """
    bucket, sign = _bucket_and_sign(text, buckets)
    return bucket, sign * value


def features_of(kind: str, values: Mapping[str, Any], buckets: int) -> list[Feature]:
    """Features of a flat map, by name: a string or bool is a category of its name, of value 1; a number x is
    the value of its name, sign(x) (1 + ln |x|) beyond 1, at most 10; a list holds categories, of values that
    sum to 1; None is nothing.

    Raises ValueError for a number that is not finite, TypeError for another type, both by name.
    """
    return [
        hashed(text, value, buckets)
        for name in sorted(values)
        for text, value in _named(kind, name, values[name])
    ]


def _named(kind: str, name: str, value: Any) -> Iterator[tuple[str, float]]:
    if value is None:
        return
    if isinstance(value, bool | str):
        yield f"{kind}:{name}={value}", 1.0
    elif isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{kind} {name!r} is {value!r}, but a finite number is needed")
        size = abs(value)
        yield (
            f"{kind}:{name}",
            math.copysign(size if size <= 1.0 else min(1.0 + math.log(size), MAX_VALUE), value),
        )
    elif isinstance(value, Sequence) and all(isinstance(one, str) for one in value):
        for one in value:
            yield f"{kind}:{name}={one}", 1.0 / len(value)
    else:
        raise TypeError(
            f"{kind} {name!r} is {value!r} ({type(value).__name__}); a string, a number, a bool or a list of "
            "strings is needed"
        )


def item_features(x: Mapping[str, Any], buckets: int) -> list[Feature]:
    """Features of a catalogue entry: domain, labels, and categories (of values that sum to 1)."""
    entry = {"domain": x.get("domain"), "categories": list(x.get("categories") or ())}
    return features_of("item", entry, buckets) + features_of("label", dict(x.get("labels") or {}), buckets)


def context_columns(features: Sequence[Feature], width: int) -> NDArray[np.float32]:
    """The first `width` features as a record of the log carries them, float32[2 width]: buckets, then values,
    0 where there is none.

    >>> context_columns([(5, 1.0), (7, -0.5)], 3).tolist()
    [5.0, 7.0, 0.0, 1.0, -0.5, 0.0]
    """
    columns = np.zeros((2, width), dtype=np.float32)
    columns[:, : len(features)] = np.array(features[:width], dtype=np.float32).reshape(-1, 2).T
    return columns.ravel()


class Catalogue:
    """The features of items by id, at most `width` an item.

    >>> catalogue = Catalogue(2)
    >>> catalogue.enter("tea", [(5, 1.0), (7, -0.5), (9, 1.0)])
    >>> [row.tolist() for row in catalogue.rows(["tea", "milk"])]
    [[[5, 7], [0, 0]], [[1.0, -0.5], [0.0, 0.0]]]
    """

    __slots__ = ("_entries", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self._entries: dict[str, list[Feature]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: str) -> bool:
        return item in self._entries

    def enter(self, item: str, features: Sequence[Feature]) -> None:
        """Replace an item's features."""
        self._entries[item] = list(features[: self.width])

    def drop(self, item: str) -> None:
        """Forget an item's features."""
        self._entries.pop(item, None)

    def rows(self, items: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Buckets int32[n, width] and values float32[n, width] of items, 0 where there is no feature."""
        feature = np.zeros((len(items), self.width), dtype=np.int32)
        amount = np.zeros((len(items), self.width), dtype=np.float32)
        for position, item in enumerate(items):
            for place, (bucket, value) in enumerate(self._entries.get(item, ())):
                feature[position, place], amount[position, place] = bucket, value
        return feature, amount

    def items(self) -> Iterable[tuple[str, list[Feature]]]:
        """Ids and features."""
        return self._entries.items()

    def to_arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """Ids, buckets and values, by id: equal contents give equal bytes."""
        items = sorted(self._entries)
        feature, amount = self.rows(items)
        return {**pack_ids(name, items), f"{name}.feature": feature, f"{name}.amount": amount}

    def load(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what `to_arrays` gave."""
        features, amounts = arrays[f"{name}.feature"].tolist(), arrays[f"{name}.amount"].tolist()
        self._entries = {
            item: [(bucket, value) for bucket, value in zip(*row, strict=True) if value]
            for item, *row in zip(unpack_ids(name, arrays), features, amounts, strict=True)
        }
