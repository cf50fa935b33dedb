"""Which domain an item belongs to, as its catalogue entry says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_models.item_table import pack_ids, unpack_ids

__all__ = ["CODES", "ItemDomains", "domain_code"]

CODES = 2**24
"""A domain's code is a whole number below this, exact as float32."""


def domain_code(name: Any) -> int:
    """A domain's code, 1 to 2**24 - 1, a function of its name only; 0 for none. Raises ValueError for a name
    that is no text.

    >>> domain_code("films"), domain_code(""), domain_code(None)
    (11221884, 0, 0)
    """
    if name is None or name == "":
        return 0
    if not isinstance(name, str):
        raise ValueError(f"domain is {name!r}, but text is needed")
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (CODES - 1)


class ItemDomains:
    """Domain codes of the newest `max_items` entries that name a domain.

    >>> listed = ItemDomains(max_items=2)
    >>> for item in ["alien", "heidi", "dune"]:
    ...     listed.put(item, "films")
    >>> listed.code("alien"), listed.code("dune") == domain_code("films")
    (0, True)
    """

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self._code_of: dict[str, int] = {}  # in the order of their entries

    def put(self, item: str, name: Any) -> None:
        """Take in an entry in place of the item's former one. Raises ValueError for a name that is no
        text."""
        code = domain_code(name)
        self.drop(item)
        if code:
            self._code_of[item] = code
        if len(self._code_of) > self.max_items:
            del self._code_of[next(iter(self._code_of))]

    def code(self, item: str) -> int:
        """The code of an item's domain, 0 where no entry names one."""
        return self._code_of.get(item, 0)

    def drop(self, item: str) -> None:
        """Forget an item's entry, if there is one."""
        self._code_of.pop(item, None)

    def to_arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """Every entry, in the order of entry, under `name`."""
        codes = np.array(list(self._code_of.values()), dtype=np.int32)
        return {**pack_ids(name, list(self._code_of)), f"{name}.codes": codes}

    def load(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Replace all entries by those of `to_arrays`."""
        self._code_of = dict(zip(unpack_ids(name, arrays), arrays[f"{name}.codes"].tolist(), strict=True))
