"""The learned item state as the arrays that the kernels read: the one place that knows where the models keep
them."""

from __future__ import annotations

import numpy as np

from online_models.item_state import ItemState
from serving.kernels import Learned

__all__ = ["learned_arrays"]


def learned_arrays(items: ItemState) -> Learned:
    """Views, hardly a copy: take them anew for every batch of lists, for learning may move the arrays."""
    related, popular = items.covisitation, items.popularity
    return Learned(
        pool=related._pool,
        source_norm=related._source_norm,
        target_norm=related._target_norm,
        decay=related.query_decay ** np.arange(related.query_length, dtype=np.float64),
        popularity=popular._decayed,
        top=popular.top(popular.top_size),
        factors=items.factors.factors.rows,
    )
