"""Element-wise alternating least squares with popularity-weighted missing data."""

from __future__ import annotations

from online_models.als_kernels import Objective
from online_models.alternating import AlternatingRanker
from online_models.parameters import require

__all__ = ["EALS"]


class EALS(AlternatingRanker):
    r"""Implicit factors whose missing pairs count the more, the more popular the item; one component a step.

    $$\mathrm{score}(u, i) = p_u \cdot q_i, \qquad
    c_i = c_0 \frac{f_i^\alpha}{\sum_j f_j^\alpha}$$

    $$L = \sum_{(u,i) \in S} w_{ui} (y_{ui} - p_u \cdot q_i)^2
    + \sum_u \sum_{i \notin S_u} c_i (p_u \cdot q_i)^2
    + \lambda \Big(\sum_u |p_u|^2 + \sum_i |q_i|^2\Big)$$

    S is what is held, f_i the number of an item's users in it; w_ui the summed weight in size, y_ui 1 where
    it is positive, else 0. An event moves its user at the owner, then its item at every replica, component
    by component, with $\hat r^f_{ui} = p_u \cdot q_i - p_{uf} q_{if}$ and the caches
    $S^q = \sum_i c_i q_i q_i^\top$, $S^p = P^\top P$:

    $$p_{uf} = \frac{\sum_{i \in S_u} (w_{ui} y_{ui} - (w_{ui} - c_i) \hat r^f_{ui}) q_{if}
    - \sum_{k \ne f} p_{uk} S^q_{kf}}{\sum_{i \in S_u} (w_{ui} - c_i) q_{if}^2 + S^q_{ff} + \lambda}$$

    $$q_{if} = \frac{\sum_{u \in S_i} (w_{ui} y_{ui} - (w_{ui} - c_i) \hat r^f_{ui}) p_{uf}
    - c_i \sum_{k \ne f} q_{ik} S^p_{kf}}{\sum_{u \in S_i} (w_{ui} - c_i) p_{uf}^2 + c_i S^p_{ff} + \lambda}$$

    In its own event's steps, and when predicting, the newest interaction counts `new_weight` times. f_i is
    taken when the item is next moved (what evicted users leave is noticed then). `refresh` users and items
    are moved again with every event, in turn; `sweep` moves all once.

    Parameters: dimension d, missing_weight c_0, popularity_exponent alpha, regularization lambda, new_weight,
    passes (over the components, a step), refresh, start_scale (standard deviation of the start vectors);
    history, users_per_item, max_users and max_interactions bound memory and time; seed. An event costs
    O((history + users_per_item) d + d**2) a pass, whatever the size of the catalogue.

    Reference: He, Zhang, Kan and Chua, Fast Matrix Factorization for Online Recommendation with Implicit
    Feedback, SIGIR 2016.

    >>> model = EALS(dimension=4)
    >>> for user, item in [("ann", "tea"), ("ann", "milk"), ("bob", "nails"), ("cy", "tea")]:
    ...     model.learn_one(user, item)
    >>> model.rank("cy", ["nails", "milk", "tea"])
    ['tea', 'milk', 'nails']
    >>> round(model.predict_one("cy", "tea"), 3), model.predict_one("cy", "unknown")
    (0.405, 0.0)
    """

    _name = "eals"

    def __init__(
        self,
        dimension: int = 32,
        missing_weight: float = 512.0,
        popularity_exponent: float = 0.5,
        regularization: float = 0.05,
        new_weight: float = 4.0,
        passes: int = 1,
        refresh: int = 0,
        start_scale: float = 0.1,
        history: int = 512,
        users_per_item: int = 1024,
        max_users: int = 100_000,
        max_interactions: int = 5_000_000,
        seed: int = 0,
    ) -> None:
        require("missing_weight", missing_weight, 0.0, 1e9)
        require("popularity_exponent", popularity_exponent, 0.0, 2.0)
        require("regularization", regularization, 1e-6, 1e6)
        require("new_weight", new_weight, 1.0, 1000.0)
        require("passes", passes, 1, 100)
        self.missing_weight = missing_weight
        self.popularity_exponent = popularity_exponent
        self.regularization = regularization
        self.new_weight = new_weight
        self.passes = passes
        super().__init__(
            dimension=dimension, start_scale=start_scale, refresh=refresh, history=history,
            users_per_item=users_per_item, max_users=max_users, max_interactions=max_interactions, seed=seed,
        )  # fmt: skip

    @property
    def _objective(self) -> Objective:
        boost = float(self.new_weight) - 1.0
        return Objective(
            unobserved=float(self.missing_weight), shared=True, exponent=float(self.popularity_exponent),
            ridge=float(self.regularization), ridge_exponent=0.0, passes=self.passes, user_boost=boost,
            user_decay=0.0, query_boost=boost, query_decay=0.0, item_boost=boost, history=self.history,
            per_item=self.users_per_item, turns=self.refresh,
        )  # fmt: skip
