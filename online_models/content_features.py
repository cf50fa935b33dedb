"""Features of a catalogue entry: words, categories, labels, price, and given embeddings."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMED", "PRICE", "TEXT", "bucket_of", "features_of", "tokens", "unit_vector"]

TEXT, NAMED, PRICE = range(3)
"""Groups of hashed features: words; categories and labels; price."""
PRICE_STEPS = 2.0
"""Price buckets in an octave: prices that differ by a factor of 2 or more have no bucket in common."""
LOWEST_PRICE = 2.0**-10
_WORD = re.compile(r"\w+")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def tokens(text: str) -> list[str]:
    """Words of a text, case folded; scripts that put no spaces between words give pairs of characters.

    >>> tokens("The Return of the KING, 2003"), tokens("指环王")
    (['the', 'return', 'of', 'the', 'king', '2003'], ['指环', '环王'])
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [part for word in words for part in _parts(word)]


def features_of(item: str, x: Mapping[str, Any]) -> list[tuple[int, str, float]]:
    """(group, name, value) of an entry's title, description, categories, labels and price. Raises ValueError
    for a field of another type, naming item and field.

    >>> features_of("i", {"title": "Tea, tea", "categories": ["drink"], "price": 4.0})
    [(1, 'category:drink', 1.0), (2, 'price:4', 1.0), (0, 'tea', 1.6931471805599454)]
    """
    found = [(NAMED, f"category:{name}", 1.0) for name in _names(item, "categories", x)]
    found.extend((NAMED, f"label:{name}", 1.0) for name in _names(item, "labels", x))
    price = x.get("price")
    if price is not None:
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0.0 <= price < math.inf:
            raise ValueError(f"{item}: price is {price!r}, but a finite number of at least 0 is needed")
        found.extend(_price_features(float(price)))
    counts: dict[str, int] = {}
    for field in ("title", "description"):
        text = x.get(field)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{item}: {field} is {text!r}, but text is needed")
        for token in tokens(text or ""):
            counts[token] = counts.get(token, 0) + 1
    found.extend((TEXT, token, 1.0 + math.log(count)) for token, count in counts.items())
    return found


@lru_cache(maxsize=65_536)
def bucket_of(group: int, name: str, buckets: int) -> tuple[int, float]:
    """A feature's bucket and sign, a function of group and name only."""
    digest = hashlib.blake2b(name.encode(), key=bytes([group]), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return (number >> 1) % buckets, 1.0 if number & 1 else -1.0


def _parts(word: str) -> Iterator[str]:
    """A word, its unspaced stretches cut into pairs of characters."""
    end = 0
    for stretch in _UNSPACED.finditer(word):
        if stretch.start() > end:
            yield word[end : stretch.start()]
        text, end = stretch.group(), stretch.end()
        yield from [text[k : k + 2] for k in range(max(len(text) - 1, 1))]
    if end < len(word):
        yield word[end:]


def _names(item: str, field: str, x: Mapping[str, Any]) -> list[str]:
    """A list of names, or of name=value where the field is a map."""
    given = x.get(field)
    if given is None:
        return []
    if isinstance(given, Mapping):
        return [f"{name}={value}" for name, value in given.items()]
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{item}: {field} is {given!r}, but a list of names is needed")
    return list(given)


def _price_features(price: float) -> list[tuple[int, str, float]]:
    """A price's place between two buckets; one below LOWEST_PRICE counts as that."""
    place = PRICE_STEPS * math.log2(max(price, LOWEST_PRICE))
    low = math.floor(place)
    shares = [(low, 1.0 - (place - low)), (low + 1, place - low)]
    return [(PRICE, f"price:{number}", share) for number, share in shares if share > 0.0]


def unit_vector(item: str, name: str, values: Any) -> NDArray[np.float64]:
    """An embedding of length 1, or of zeros."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise ValueError(f"{item}: embedding {name!r} is no list of finite numbers")
    largest = float(np.abs(vector).max())
    if largest > 0.0:
        vector = vector / largest  # its square can't overflow
        vector /= np.sqrt(np.sum(vector**2))
    return vector
