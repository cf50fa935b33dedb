"""How columns of the learning log that are not of one width are packed: ids, and hashed contexts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serving.ranker.inputs import HASHED
from streams import log_kernels as kernels
from streams.errors import LearningLogError

__all__ = ["DIGEST_BYTES", "joined_bytes", "packed_contexts", "split_ids", "unpacked_contexts"]

Float32 = npt.NDArray[np.float32]

DIGEST_BYTES = 8


def split_ids(joined: bytes, lengths: bytes, name: str) -> list[str]:
    """The ids of UTF-8 that stand one behind the other, by their lengths uint16; raises LearningLogError."""
    ends = np.cumsum(np.frombuffer(lengths[: len(lengths) & ~1], "<u2"), dtype=np.int64).tolist()
    wanted = ends[-1] if ends else 0
    if wanted != len(joined) or len(lengths) % 2:
        raise LearningLogError(
            f"learning log: {len(joined)} bytes of {name} ids, {wanted} expected ({len(lengths)} bytes of"
            " lengths)"
        )
    try:
        return [joined[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
    except UnicodeDecodeError as error:
        raise LearningLogError(f"learning log: {name} ids that are not UTF-8 ({error})") from error


def joined_bytes(data: npt.NDArray[np.uint8], starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> bytes:
    """The spans of `data` one behind the other."""
    out = np.empty(int(lengths.sum()), np.uint8)
    kernels.join(data, starts.astype(np.int64), lengths.astype(np.int64), out)
    return out.tobytes()


def packed_contexts(hashed: Float32, digest: bytes) -> bytes:
    """Rows float32[n, HASHED] that float16 holds (`ContextHash`), n < 65,536: the digest of what they mean,
    the distinct rows in float16 behind their number, and which of them each row is, uint16, 0 for zeros.
    Nothing where all are zeros."""
    if not hashed.any():
        return b""
    held = np.where(hashed == 0, np.float32(0), hashed).astype("<f2")  # -0.0 is another row than 0.0
    whole, size = held.tobytes(), 2 * HASHED
    number_of = {bytes(size): 0}
    numbers = [
        number_of.setdefault(whole[at : at + size], len(number_of)) for at in range(0, len(whole), size)
    ]
    table = b"".join(number_of)[size:]
    return digest + (len(number_of) - 1).to_bytes(2, "little") + table + np.array(numbers, "<u2").tobytes()


def unpacked_contexts(packed: bytes, n: int) -> Float32 | None:
    """float32[n, HASHED]; None where there are none. Their digest is what `packed` begins with.

    Raises LearningLogError when the bytes don't say so many rows.
    """
    if not packed:
        return None
    start = DIGEST_BYTES + 2
    count = int.from_bytes(packed[DIGEST_BYTES:start], "little")
    end = start + 2 * HASHED * count
    if len(packed) != end + 2 * n:
        raise LearningLogError(
            f"learning log: column context has {len(packed)} bytes, {end + 2 * n} expected for {count} "
            f"distinct contexts of {n} interactions"
        )
    which = np.frombuffer(packed[end:], "<u2")
    if which.max(initial=0) > count:
        raise LearningLogError(
            f"learning log: column context names row {which.max()}, of {count} that it holds"
        )
    table = np.zeros((count + 1, HASHED), np.float32)
    table[1:] = np.frombuffer(packed[start:end], "<f2").reshape(count, HASHED)
    if not np.isfinite(table).all():
        raise LearningLogError("learning log: column context holds a value that is not finite")
    found: Float32 = table[which]
    return found
