# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator, call-arg"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels over the bytes of a batch of records: hashes of ids.

All stand in this one file because numba's disk cache watches only the file of the kernel that is called.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from online_models.kernels import kernel

__all__ = ["hash_bytes"]

Bytes = NDArray[np.uint8]

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_8, _27, _29, _31, _32, _33, _37 = (np.uint64(bits) for bits in (8, 27, 29, 31, 32, 33, 37))


@intrinsic
def _word(typing_context: Any, data: Any, at: Any) -> Any:
    """The 8 bytes from `data[at]` on as a little-endian integer, from any address."""

    def load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        word_type = context.get_value_type(types.uint64)
        word = builder.load(builder.bitcast(place, word_type.as_pointer()), align=1)
        return word if sys.byteorder == "little" else builder.bswap(word)

    return types.uint64(data, types.int64), load


@kernel
def _round(h: int, word: int) -> int:
    word *= _PRIME_2
    h ^= ((word << _31) | (word >> _33)) * _PRIME_1
    return ((h << _27) | (h >> _37)) * _PRIME_1 + _PRIME_4


@kernel
def hash_bytes(data: Bytes, start: int, length: int) -> int:
    """64 bits of `data[start : start + length]` for hash tables, the same on every machine.

    The rounds for short inputs and the final mixing of XXH64, with another ending: the last 1 to 8 bytes
    are one word, which overlaps the one before it. Without a secret: a table has to bound its probes itself.

    Reference: Y. Collet, xxHash fast digest algorithm, specification 0.1.1 (2018).
    """
    h = _PRIME_5 + np.uint64(length)
    if length >= 8:
        last = start + length - 8
        for at in range(start, last, 8):
            h = _round(h, _word(data, at))
        h = _round(h, _word(data, last))
    else:
        word = np.uint64(0)
        for at in range(start + length - 1, start - 1, -1):
            word = (word << _8) | np.uint64(data[at])
        h = _round(h, word)
    h = (h ^ (h >> _33)) * _PRIME_2
    h = (h ^ (h >> _29)) * _PRIME_3
    return h ^ (h >> _32)
