# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the evaluator: where an item stands among all, and what the first ten are like."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from online_models.kernels import kernel

__all__ = ["describe_list", "rank_target"]

Scores = NDArray[np.floating]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]


@kernel
def rank_target(
    scores: Scores, rows: Ints, all_items: bool, seen: Ints, target: int, hidden: Flags, top: Ints
) -> tuple[int, int, int, int]:
    """Items above the target, items tied with it, length of the list, and an item whose score is not finite.

    scores [n] of all items; rows int32[n], -1 = unknown to the model and a candidate only with `all_items`;
    seen int32[s] are never candidates; target -1 = none is counted. top int32[k] gets the best k candidates
    by falling score, then number. The last figure is -1 where all candidates' scores are finite. hidden
    bool[>= n] is all False before and after.
    """
    for place in range(seen.shape[0]):
        hidden[seen[place]] = True
    best = np.empty(top.shape[0], dtype=np.float64)
    above, tied, size, bad = 0, 0, 0, -1
    wanted = scores[target] if target >= 0 else 0.0
    for item in range(scores.shape[0]):
        if rows[item] < 0 and not all_items:
            continue
        score = scores[item]
        if not np.isfinite(score):
            bad = item
            break
        if hidden[item]:
            continue
        if target >= 0 and item != target:
            above += score > wanted
            tied += score == wanted
        if size < top.shape[0] or (size > 0 and score > best[size - 1]):
            place = min(size, top.shape[0] - 1)
            while place > 0 and best[place - 1] < score:
                best[place], top[place] = best[place - 1], top[place - 1]
                place -= 1
            best[place], top[place] = score, item
            size = min(size + 1, top.shape[0])
    for place in range(seen.shape[0]):
        hidden[seen[place]] = False
    return above, tied, size, bad


@kernel
def _bits(word: int) -> int:
    count, rest = 0, np.uint64(word)
    while rest != np.uint64(0):
        rest &= rest - np.uint64(1)
        count += 1
    return count


@kernel
def describe_list(
    top: Ints, item_events: Longs, events: int, words: Words, shown: Longs
) -> tuple[float, float, int]:
    """Surprise of the listed items, dissimilarity summed over pairs, and the number of those pairs.

    Surprise is the sum of -log2(max(events of the item, 1) / max(events, 1)); dissimilarity 1 - Jaccard of
    the categories, words uint64[items, w] as bits, over pairs of which both have any. shown int64[items]
    counts what was listed.
    """
    surprise, apart, pairs = 0.0, 0.0, 0
    for place in range(top.shape[0]):
        item = top[place]
        shown[item] += 1
        surprise -= np.log2(max(item_events[item], 1) / max(events, 1))
        for earlier in range(place):
            common = either = own = others = 0
            for word in range(words.shape[1]):
                left, right = words[item, word], words[top[earlier], word]
                own += _bits(left)
                others += _bits(right)
                common += _bits(left & right)
                either += _bits(left | right)
            if own > 0 and others > 0:
                apart += 1.0 - common / either
                pairs += 1
    return surprise, apart, pairs
