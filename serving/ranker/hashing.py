r"""What producers say beside an event or a request (`context`), hashed into a few columns.

Each named key's value sets `SPREAD` of the `HASHED` columns to plus or minus a half; values add up:

$$x_j = \sum_{\text{key}} \sum_{h=1}^{4} \tfrac12\, \xi_h(f)\, v\, [\,\eta_h(f) = j\,]$$

f is "key=value" and v = 1 for a text or a truth value; for a number f is the key and v its squashed size.
K. Weinberger, A. Dasgupta, J. Langford, A. Smola, J. Attenberg, "Feature Hashing for Large Scale Multitask
Learning", ICML 2009: signs keep inner products unbiased, and several hash functions for one feature make it
unlikely that two values can't be told apart (here one pair in 29,120). What comes out is rounded to float16,
in which the learning log holds it, and is the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import HASHED

__all__ = ["ContextHash", "squashed"]

Float32 = npt.NDArray[np.float32]

SPREAD = 4
"""Columns that one value reaches, all different."""
VERSION = 1
"""Counts the changes to the equation above."""
MOST_CACHED = 1 << 14
"""Combinations of values whose columns are kept, by a digest: a long text takes no more memory than a short
one, and none outlives its record. Above, they are forgotten and hashed again."""


class ContextHash:
    """Hashes the values of `keys`; what stands under other keys is not looked at.

    >>> hashing = ContextHash(("device",))
    >>> rows = hashing.rows([{"device": "phone"}, {"country": "NZ"}, None])
    >>> rows.shape, np.abs(rows).sum(axis=1).tolist()
    ((3, 16), [2.0, 0.0, 0.0])
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self.keys = tuple(keys)
        self._rows: dict[bytes, Float32] = {}

    @property
    def digest(self) -> bytes:
        """8 bytes: what the columns mean. Columns of another digest must not be compared with these."""
        meaning = repr((VERSION, HASHED, SPREAD, self.keys))
        return hashlib.blake2b(meaning.encode(), digest_size=8).digest()

    def rows(self, contexts: Sequence[Mapping[str, str | float | bool] | None]) -> Float32:
        """float32[n, HASHED], zeros for a context that has none of the keys; [n, 0] where there are no
        keys."""
        if not self.keys:
            return np.empty((len(contexts), 0), dtype=np.float32)
        found = np.zeros((len(contexts), HASHED), dtype=np.float32)
        for n, context in enumerate(contexts):
            if context:
                found[n] = self._row(context)
        return found

    def _row(self, context: Mapping[str, str | float | bool]) -> Float32:
        values = [context.get(key) for key in self.keys]
        spelled = repr(values).encode()  # tells True, "True" and 1.0 apart, and escapes what UTF-8 can't hold
        known = hashlib.blake2b(spelled, digest_size=16).digest()
        row = self._rows.get(known)
        if row is None:
            if len(self._rows) >= MOST_CACHED:
                self._rows.clear()
            row = self._rows[known] = _summed(self.keys, values)
        return row


def squashed(number: float) -> float:
    """The sign of a number times log2(1 + |number|) / 16, linear between powers of two: exact arithmetic
    alone, so that no two machines differ.

    >>> squashed(0.0), squashed(1.0), squashed(-3.0), squashed(65535)
    (0.0, 0.0625, -0.125, 1.0)
    """
    mantissa, exponent = math.frexp(1.0 + abs(number))
    return math.copysign((exponent - 1 + (2.0 * mantissa - 1.0)) / 16.0, number)


def _summed(keys: Sequence[str], values: Sequence[str | float | bool | None]) -> Float32:
    row = np.zeros(HASHED, dtype=np.float64)
    for key, value in zip(keys, values, strict=True):
        if value is None:
            continue
        is_number = not isinstance(value, (bool, str))
        size = squashed(float(value)) if is_number else 1.0
        for column, sign in _columns(_feature(key, value)):
            row[column] += 0.5 * sign * size
    return row.astype(np.float16).astype(np.float32)


def _feature(key: str, value: str | float | bool) -> bytes:
    if isinstance(value, bool):
        kind, text = "truth", str(value)
    elif isinstance(value, str):
        kind, text = "text", value
    else:
        kind, text = "number", ""
    return "\0".join((kind, key, text)).encode("utf-8", "surrogatepass")


def _columns(feature: bytes) -> list[tuple[int, int]]:
    """The columns of a feature, all different, each with its sign, by the bytes of its BLAKE2b digest."""
    found: dict[int, int] = {}
    number = 0
    while len(found) < SPREAD:
        for byte in hashlib.blake2b(feature, digest_size=32, salt=number.to_bytes(8, "little")).digest():
            if len(found) < SPREAD:
                found.setdefault(byte % HASHED, 1 if byte & 0x80 else -1)
        number += 1
    return list(found.items())
