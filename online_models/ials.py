"""Incremental implicit alternating least squares."""

from __future__ import annotations

from online_models.als_kernels import Objective
from online_models.alternating import AlternatingRanker
from online_models.parameters import require

__all__ = ["IALS"]


class IALS(AlternatingRanker):
    r"""Implicit ALS that moves with every event: the user exactly, the item exactly, the rest in turn.

    $$\mathrm{score}(u, i) = p_u \cdot v_i, \qquad
    L = \sum_{(u,i) \in S} w_{ui} (y_{ui} - p_u \cdot v_i)^2 + \alpha_0 \sum_{u,i} (p_u \cdot v_i)^2
    + \sum_u \lambda_u |p_u|^2 + \sum_i \lambda_i |v_i|^2$$

    S is what is held; w_ui the summed weight in size, y_ui 1 where it is positive, else 0. An event solves
    for its user at the owner and for its item at every replica, with the Gram matrices kept up to date:

    $$p_u = \Big(\alpha_0 V^\top V + \sum_{i \in S_u} w_{ui} v_i v_i^\top + \lambda_u I\Big)^{-1}
    \sum_{i \in S_u} w_{ui} y_{ui} v_i$$

    and likewise v_i from its newest `users_per_item` users, who count for all that are held of it. Then
    `refresh` users and items are solved again, in turn, so that those at rest follow those that move.
    `sweep` does so for all: two sweeps are two passes of a full refit over S from the same start.
    $\lambda_u = \lambda (|S_u| + \alpha_0 |I|)^\nu$, and likewise for items (Rendle et al. 2021; 0 = plain).
    When predicting, the r-th newest interaction of the user counts 1 + boost * decay ** r times.

    The defaults are the first fifth of MovieLens-100K's; boost 0 and nu 0 are the papers' plain model.

    With all weights 1, implicit's `AlternatingLeastSquares(regularization=g, alpha=a)` has, up to the scale
    of scores, this model's minimum at alpha_0 = 1 / (a - 1) and lambda = g / a.

    Parameters: dimension d, unobserved_weight alpha_0, regularization lambda, regularization_exponent nu,
    recent_boost, recent_decay, refresh, start_scale (standard deviation of the start vectors); history,
    users_per_item, max_users and max_interactions bound memory and time; seed. An event costs
    O((history + users_per_item) d**2 + d**3), whatever the size of the catalogue.

    References: Hu, Koren and Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008.
    Rendle, Krichene, Zhang and Koren, Revisiting the Performance of iALS on Item Recommendation Benchmarks,
    RecSys 2022.

    >>> model = IALS(dimension=4)
    >>> for user, item in [("ann", "tea"), ("ann", "milk"), ("bob", "nails"), ("cy", "tea")]:
    ...     model.learn_one(user, item)
    >>> model.rank("cy", ["nails", "milk", "tea"])
    ['tea', 'milk', 'nails']
    >>> round(model.predict_one("cy", "tea"), 3), model.predict_one("cy", "unknown")
    (0.981, 0.0)
    """

    _name = "ials"

    def __init__(
        self,
        dimension: int = 32,
        unobserved_weight: float = 0.3,
        regularization: float = 0.01,
        regularization_exponent: float = 1.0,
        recent_boost: float = 30.0,
        recent_decay: float = 0.8,
        refresh: int = 0,
        start_scale: float = 0.1,
        history: int = 512,
        users_per_item: int = 1024,
        max_users: int = 100_000,
        max_interactions: int = 5_000_000,
        seed: int = 0,
    ) -> None:
        require("unobserved_weight", unobserved_weight, 0.0, 1000.0)
        require("regularization", regularization, 1e-6, 1e6)
        require("regularization_exponent", regularization_exponent, 0.0, 2.0)
        require("recent_boost", recent_boost, 0.0, 1000.0)
        require("recent_decay", recent_decay, 0.0, 1.0)
        self.unobserved_weight = unobserved_weight
        self.regularization = regularization
        self.regularization_exponent = regularization_exponent
        self.recent_boost = recent_boost
        self.recent_decay = recent_decay
        super().__init__(
            dimension=dimension, start_scale=start_scale, refresh=refresh, history=history,
            users_per_item=users_per_item, max_users=max_users, max_interactions=max_interactions, seed=seed,
        )  # fmt: skip

    @property
    def _objective(self) -> Objective:
        return Objective(
            unobserved=float(self.unobserved_weight), shared=False, exponent=0.0,
            ridge=float(self.regularization), ridge_exponent=float(self.regularization_exponent), passes=0,
            user_boost=0.0, user_decay=0.0, query_boost=float(self.recent_boost),
            query_decay=float(self.recent_decay), item_boost=0.0, history=self.history,
            per_item=self.users_per_item, turns=self.refresh,
        )  # fmt: skip
