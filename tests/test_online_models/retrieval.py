"""What retrieval must give: the items that scoring puts first."""

from __future__ import annotations

import numpy as np

from online_models import CoVisitation


def assert_retrieve_is_score_sorted(model: CoVisitation, k: int, excluded: list[int]) -> None:
    """For the users u, v, w and x, twice: the k best positive scores, less the excluded rows."""
    recent = np.concatenate([model.recent_rows(user, 12) for user in "uvwx"])
    exclude = np.array([excluded] * 4, dtype=np.int32).reshape(4, len(excluded))
    every_row = np.tile(np.arange(len(model.items), dtype=np.int32), (4, 1))
    scores = model.score(recent, every_row)
    for _ in range(2):  # scratch left by the first call must not show in the second
        rows, found = model.retrieve(recent, k, exclude)
        for user in range(4):
            order = sorted(
                (row for row in range(len(model.items)) if scores[user, row] > 0 and row not in excluded),
                key=lambda row: (-scores[user, row], row),
            )[:k]
            assert rows[user].tolist() == order + [-1] * (k - len(order))
            assert found[user].tolist() == [scores[user, row] for row in order] + [0.0] * (k - len(order))
