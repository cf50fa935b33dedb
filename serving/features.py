r"""What the online models say of a candidate as a list is made: the features that a fused ranker reads.

One function for workers and for the trainer's replay of the learning log (`serving.training.replay`), so that
a ranker is served the numbers that it was trained on. Of a user's n candidates, with the sources' scores x_s
that `serving.kernels.gather` gave, and the item state at time T:

    covisitation, popularity   ln(n p_s(i)),  p_s(i) = (x_s(i) + m_s) / sum_j (x_s(j) + m_s)
    factor                     h / (h + 5) ln(n q(i)),  q = softmax of the inner products
    count                      ln(1 + positive events of the item) / 8
    exposure                   ln(1 + times the item was shown) / 8
    recency                    ln(1 + seconds from the item's newest positive event to T) / 16

m_s is the mean of x_s over the candidates, and h how many items the user has seen. The first three are the
opinions that `serving.scoring` blends, told as how often an even share each gives to a candidate: 0 where a
source knows nothing, whatever the number of candidates. An item without a positive event was last used 1e9
seconds ago. All are finite; what stands behind a user's last candidate is 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from online_models.item_state import ItemState
from serving.blend_kernels import FAR_S, describe
from serving.kernels import Found
from serving.ranker.inputs import FEATURES
from serving.retrieval.learned import activity_arrays

__all__ = ["FEATURES_DIGEST", "VERSION", "candidate_features", "digest_of"]

VERSION = 1
"""Counts the changes to the equations above."""
FLOOR = 1.0
"""As in `serving.scoring`: what an unrelated item gets, as a share of the mean one's."""
EXPERIENCE_ITEMS = 5.0
SCALES = (1 / 8, 1 / 8, 1 / 16)
"""Of the logarithms of counts, exposures and seconds: about 1 at 3,000 events and at a hundred days."""


def digest_of(names: Sequence[str], version: int = VERSION) -> str:
    """SHA-256 (hex) of all that decides what columns of these names mean."""
    meaning = (version, tuple(names), FLOOR, EXPERIENCE_ITEMS, SCALES, FAR_S)
    return hashlib.sha256(repr(meaning).encode()).hexdigest()


FEATURES_DIGEST = digest_of(FEATURES)
"""A fused ranker that was trained on features of another digest must not be served."""


def candidate_features(
    found: Found, items: ItemState, now_ms: npt.NDArray[np.int64], seen_count: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """float32[n, C, len(FEATURES)] of the candidates in `found`, as of the times now_ms int64[n] (0: as of
    the newest event), for users who have seen seen_count int32[n] items. Changes nothing."""
    activity = activity_arrays(items)
    seen = np.maximum(seen_count, 0).astype(np.float64)
    moments = np.where(np.asarray(now_ms) > 0, now_ms, activity.newest_ms).astype(np.int64)
    features = np.empty((*found.rows.shape, len(FEATURES)), dtype=np.float32)
    describe(
        found, seen / (seen + EXPERIENCE_ITEMS), FLOOR, moments, activity.plain, activity.exposures,
        activity.last_ms, SCALES, features,
    )  # fmt: skip
    return features
