"""One taste a user, seen by each domain through a mapping of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from online_models import cross_domain_kernels as kernels
from online_models.base import Arrays, Context, OnlineRanker, contiguous_rows
from online_models.biased_table import BiasedTable
from online_models.factor_table import event_hash, name_negatives, pack_users, unpack_users
from online_models.item_domains import ItemDomains, domain_code
from online_models.item_table import grown
from online_models.learning_batch import BatchRows, LearningBatch
from online_models.parameters import require_ranges

__all__ = ["CrossDomain"]

_RANGES = (
    ("dimension", 1, 256),
    ("max_domains", 1, 1024),
    ("max_items", 1, 2**26),
    ("learning_rate", 0.0, 0.5),
    ("bias_learning_rate", 0.0, 0.5),
    ("mapping_learning_rate", 0.0, 0.5),
    ("regularization", 0.0, 1.0),
    ("mapping_regularization", 0.0, 1.0),
    ("negatives", 1, 64),
    ("candidates", 1, 16),
    ("start_scale", 0.0, 1.0),
)
"""Parameters and the least and most that they may be."""


class CrossDomain(OnlineRanker):
    r"""Factors shared by all domains, so that what a user did in one helps in another.

    $$\mathrm{score}(u, i) = b_i + (W_{d(i)}\, p_u) \cdot q_i$$

    p_u is the one factor of user u, d(i) the domain of item i, and W_d the domain's mapping, which starts as
    the identity and learns how a taste shows in that domain. An event of weight w on item i draws m other
    items j. Each pair climbs

    $$\ln \sigma(s\,(\mathrm{score}(u, i) - \mathrm{score}(u, j)))
    - \tfrac{\lambda}{2} (\|p_u\|^2 + \|q_i\|^2 + \|q_j\|^2)
    - \tfrac{\lambda_W}{2} (\|W_{d(i)} - I\|^2 + \|W_{d(j)} - I\|^2), \qquad s = \mathrm{sign}(w)$$

    with steps min(|w| eta, 1/2), of biases and mappings with eta_b and eta_W: the user at the owner, pair by
    pair, with items and mappings as they were before the event; items and mappings at every replica, pair by
    pair, with the user as it was before the event. A negative is the best scored (for a negative event the
    worst) of `candidates` known items, drawn by a hash of user, item and time, none of them one of the user's
    recent 50; every second one is of the item's own domain, where 16 draws find such, so that a small
    domain's items are told apart too. Withdrawing an event takes the same steps back, from what is there now.

    Item factors alone could follow any taste. With a mapping, all items of a domain learn from each event how
    tastes show there, which helps with items that few have used.

    An item's domain is the one of its first event in the log, and stays while it has a row. The owner takes
    it from `learn_item` (of the newest `max_items` entries), or else from x["domain"]; the record carries it,
    as a 24-bit hash of the name before the user's factor in user_before, so that replicas need no catalogue
    and agree whatever they were told of it. No name (or "") is the common domain; so are all names that come
    when `max_domains` - 1 have been given a mapping.

    Parameters: dimension d, max_domains (mappings, the common one included), max_items, learning_rate eta,
    bias_learning_rate eta_b, mapping_learning_rate eta_W, regularization lambda, mapping_regularization
    lambda_W, negatives m, candidates, start_scale (standard deviation of the start vectors), seed. State:
    float32[1 + d] and a domain an item, float32[d, d] a domain, float32[d] a user. All parts are bounded by
    10: no input reaches a NaN.

    References: Man, Shen, Jin and Cheng, Cross-Domain Recommendation: An Embedding and Mapping Approach,
    IJCAI 2017; Singh and Gordon, Relational Learning via Collective Matrix Factorization, KDD 2008; pairs:
    Rendle, Freudenthaler, Gantner and Schmidt-Thieme, BPR, UAI 2009.

    >>> model = CrossDomain(dimension=8)
    >>> for _ in range(60):
    ...     for user, film, book in [("ann", "alien", "dune"), ("bob", "heidi", "emma")]:
    ...         model.learn_one(user, film, x={"domain": "films"})
    ...         model.learn_one(user, book, x={"domain": "books"})
    ...     model.learn_one("cleo", "alien")  # cleo has read no book
    >>> model.domains(), model.rank("cleo", ["emma", "dune"])
    (3, ['dune', 'emma'])
    >>> [round(model.predict_one("cleo", book), 2) for book in ("dune", "emma", "unknown")]
    [0.98, -2.27, 0.0]
    """

    owner_reads_items = True

    def __init__(
        self,
        dimension: int = 32,
        max_domains: int = 32,
        max_items: int = 100_000,
        learning_rate: float = 0.07,
        bias_learning_rate: float = 0.01,
        mapping_learning_rate: float = 0.02,
        regularization: float = 0.02,
        mapping_regularization: float = 0.05,
        negatives: int = 10,
        candidates: int = 4,
        start_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.dimension = dimension
        self.max_domains = max_domains
        self.max_items = max_items
        self.learning_rate = learning_rate
        self.bias_learning_rate = bias_learning_rate
        self.mapping_learning_rate = mapping_learning_rate
        self.regularization = regularization
        self.mapping_regularization = mapping_regularization
        self.negatives = negatives
        self.candidates = candidates
        self.start_scale = start_scale
        self._rule = self._make_rule()
        self._table = BiasedTable(dimension, seed, start_scale)
        self._users: dict[str, NDArray[np.float32]] = {}
        self._listed = ItemDomains(max_items)
        self._domains = kernels.Domains(
            mapping=np.tile(np.eye(dimension, dtype=np.float32), (max_domains, 1, 1)),
            codes=np.zeros(max_domains, dtype=np.int32),
            count=np.ones(1, dtype=np.int64),
            of_row=np.zeros(0, dtype=np.int32),
        )
        self._mapped = np.zeros((max_domains, dimension), dtype=np.float32)

    def domains(self) -> int:
        """Domains that have a mapping, the common one included."""
        return int(self._domains.count[0])

    def learn_item(self, item: str, x: Context) -> None:
        """Note the item's domain, for its first event. Raises ValueError for one that is no text."""
        super().learn_item(item, x)
        self._listed.put(item, x.get("domain"))

    def learn_user(self, events: Sequence[tuple[str, str, float, Context | None]]) -> LearningBatch:
        """As the base's, with factors, domain and negatives; one event at a time (`owner_reads_items`)."""
        if len(events) != 1:
            raise ValueError(f"{len(events)} events, but a factor model's owner learns one at a time")
        user, item, _, context = events[0]
        code = self._code_of(item, context)
        batch = super().learn_user(events)
        before = self._user_factor(user)
        self._users[user] = self._fill(batch, before, user, code, 1.0)
        return batch

    def unlearn_user(self, user: str, batch: LearningBatch) -> None:
        item = batch.item_ids[batch.item[0]]
        before = self._user_factor(user)
        after = self._fill(batch, before, user, self._code_of(item, None), -1.0)
        batch.user_before[0, 1:] = after  # as it was before the event: what items learned the event from
        self._users[user] = after

    def apply(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_width(batch)
        given = rows.changes[rows.changes[:, 1] == kernels.GIVEN, 3].tolist()
        start = self._table.start_vectors([batch.item_ids[index] for index in given])
        self._table.ensure(self.items.ids, self.items.limit)
        of_row = grown(self._domains.of_row, len(self._table), self.items.limit)
        self._domains = self._domains._replace(of_row=of_row)
        kernels.apply(
            rows.changes, start, rows.item, rows.negatives, batch.weight, batch.user_before, self._table.rows,
            self._domains, self._rule, 1.0,
        )  # fmt: skip

    def unlearn(self, batch: LearningBatch, rows: BatchRows) -> None:
        self._require_width(batch)
        none = np.zeros((0, 4), dtype=np.int32)
        kernels.apply(
            none, self._table.rows[:0], rows.item, rows.negatives, batch.weight, batch.user_before,
            self._table.rows, self._domains, self._rule, -1.0,
        )  # fmt: skip

    def forget_rows(self, rows: NDArray[np.int32]) -> None:
        known = rows[rows < len(self._table)]
        self._table.rows[known] = 0.0
        self._domains.of_row[known] = 0

    def forget(self, user: str | None = None, *, item: str | None = None) -> None:
        super().forget(user, item=item)
        if item is not None:
            self._listed.drop(item)

    def drop_user(self, user: str) -> None:
        super().drop_user(user)
        self._users.pop(user, None)

    def score_rows(self, user: str, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out = np.empty(len(rows), dtype=np.float32)
        kernels.score(
            self._user_factor(user), contiguous_rows(rows), self._table.rows, self._domains, self._mapped, out
        )
        return out

    def nbytes(self) -> int:
        """Bytes of the item rows in use, and of the mappings."""
        return (self._table.dimension + 1) * 4 * len(self._table) + self._domains.mapping.nbytes

    def item_arrays(self) -> Arrays:
        used = self.domains()
        return {
            **self._table.to_arrays("cross_domain.items"),
            "cross_domain.of_row": self._domains.of_row[: len(self._table)].copy(),
            "cross_domain.mappings": self._domains.mapping[:used].copy(),
            "cross_domain.codes": self._domains.codes[:used].copy(),
        }

    def load_item_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        self._table.load("cross_domain.items", arrays)
        used, domains = len(arrays["cross_domain.codes"]), self._domains
        domains.mapping[:] = np.eye(self.dimension, dtype=np.float32)
        domains.mapping[:used] = arrays["cross_domain.mappings"]
        domains.codes[:] = 0
        domains.codes[:used] = arrays["cross_domain.codes"]
        domains.count[0] = used
        self._domains = domains._replace(of_row=arrays["cross_domain.of_row"].astype(np.int32))

    def to_arrays(self) -> Arrays:
        return {
            **super().to_arrays(),
            **pack_users("cross_domain.users", self._users, self.dimension),
            **self._listed.to_arrays("cross_domain.listed"),
        }

    def from_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        super().from_arrays(arrays)
        self._users = unpack_users("cross_domain.users", arrays)
        self._listed.load("cross_domain.listed", arrays)

    def _fill(
        self, batch: LearningBatch, before: NDArray[np.float32], user: str, code: int, direction: float
    ) -> NDArray[np.float32]:
        """Fill a record of one event with factors, domain and negatives; returns the user's factor after."""
        item = batch.item_ids[batch.item[0]]
        after, drawn = before.copy(), np.empty(self.negatives, dtype=np.int32)
        row, recent = self.items.row(item), self.items.rows(batch.item_ids)[batch.recent[0]]
        recent[batch.recent[0] < 0] = -1
        slot = int(self._domains.of_row[row]) if 0 <= row < len(self._table) else -1
        slot = kernels.slot_of(code, self._domains) if slot < 0 else slot
        kernels.learn_user(
            row, slot, self._table.row_of(row, item), float(batch.weight[0]),
            np.uint64(event_hash(self.seed, "", user, item, int(batch.time_ms[0]))), recent, self.items.given,
            self._table.rows, self._domains, self._rule, direction, after, drawn,
        )  # fmt: skip
        name_negatives(batch, [self.items.ids[other] for other in drawn.tolist() if other >= 0])
        first = np.array([code], dtype=np.float32)
        batch.user_before = np.concatenate([first, before])[None, :]
        batch.user_after = np.concatenate([first, after])[None, :]
        return after

    def _code_of(self, item: str, context: Context | None) -> int:
        """The code of an item's domain: that which it has, or else that of its entry or its event."""
        row = self.items.row(item)
        if 0 <= row < len(self._table):
            return int(self._domains.codes[self._domains.of_row[row]])
        return self._listed.code(item) or domain_code((context or {}).get("domain"))

    def _require_width(self, batch: LearningBatch) -> None:
        if batch.user_before.shape[1] != 1 + self.dimension:
            raise ValueError(
                f"user_before: {batch.user_before.shape[1]} columns, but this model has {1 + self.dimension} "
                "(domain and factor); the record was made under other settings"
            )

    def _user_factor(self, user: str) -> NDArray[np.float32]:
        """float32[d], the start factor for a user never seen; not to be written to."""
        factor = self._users.get(user)
        if factor is None:
            start: NDArray[np.float32] = self._table.start_users([user])[0, 1:].copy()
            return start
        return factor

    def _make_rule(self) -> kernels.Rule:
        """Raises ValueError for a parameter that is out of range, naming it."""
        require_ranges(self, _RANGES)
        return kernels.Rule(
            candidates=self.candidates,
            rate=float(self.learning_rate),
            bias_rate=float(self.bias_learning_rate),
            mapping_rate=float(self.mapping_learning_rate),
            penalty=float(self.regularization),
            mapping_penalty=float(self.mapping_regularization),
        )
