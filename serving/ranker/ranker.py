"""A ranker: one loaded network with the vocabulary it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.ranker.errors import RankerError
from serving.ranker.inputs import CONTEXT, FEATURES, RankerInputs
from serving.ranker.layout import hide, lay_out
from serving.ranker.providers import InForce

__all__ = ["Asked", "Ranker", "Scorer"]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

PADDING = 0
_TRIM = 8
"""A batch's history is cut to its longest row, rounded up to this: fewer shapes for the runtime to plan
for."""
MAX_CELLS = 65_536
"""Candidates that the network scores at a time, padding included: bounds the runtime's memory (with 64
dimensions, 16 MB a layer)."""


class Scorer(Protocol):
    """What a session gives a ranker."""

    @property
    def providers_in_force(self) -> list[str]: ...

    @property
    def in_force(self) -> InForce: ...

    def score(self, inputs: RankerInputs) -> Float32: ...

    def bind_items(self, vectors: Float32, version: int = 0) -> None: ...


@dataclass(slots=True)
class Asked:
    """What is to be scored for B users, by rows of an item table: recent int32[B, L] newest first (-1 padded)
    with codes of event types int32[B, L] and times int64[B, L] (-1 unknown), context float32[B, K],
    candidates' rows int32[B, C] (-1 padded) and features float32[B, C, F]."""

    recent: Int32
    kinds: Int32
    times_ms: Int64
    context: Float32
    rows: Int32
    features: Float32


class Ranker:
    """Scores candidates for users by their recent items. Item ids have places: 0 is padding, 1 to V the
    vocabulary, V + 1 any other, and from V + 2 on others with a content vector.

    A `fused` ranker has seen the online models' features and scores every item; another knows nothing of an
    item without a place of its own, whose score is NaN, for the caller to fill.
    """

    def __init__(
        self,
        session: Scorer,
        vocabulary: Sequence[str],
        *,
        version: str,
        history_length: int,
        digest: str = "",
        event_types: Sequence[str] = (),
        fused: bool = False,
        contents: Float32 | None = None,
        content: tuple[tuple[str, int], ...] = (),
    ) -> None:
        """`event_types` are the names of types 1, 2, ...; `contents` float32[V + 2, E] the content vectors of
        the vocabulary, None where there are none; `content` says what they are made of, by name and
        dimension."""
        self.session = session
        self.version = version
        self.digest = digest
        self.history_length = history_length
        self.event_types = tuple(event_types)
        self.fused = fused
        self.vocabulary: tuple[str, ...] = tuple(vocabulary)
        self._places = {item_id: place for place, item_id in enumerate(self.vocabulary, start=1)}
        if len(self._places) != len(self.vocabulary):
            raise RankerError(
                f"{version}: the vocabulary of {len(self.vocabulary)} holds an item id more than once",
                "vocabulary",
            )
        rows = len(self.vocabulary) + 2
        self.content = content
        self.contents = np.zeros((rows, 1), dtype=np.float32) if contents is None else contents
        if len(self.contents) != rows:
            raise RankerError(f"{version}: {len(self.contents)} content vectors for {rows} places")

    @property
    def unseen(self) -> int:
        """The place V + 1 of items that the export has never seen."""
        return len(self.vocabulary) + 1

    def places_of(self, item_ids: Sequence[str]) -> Int64:
        """int64[n]: each id's place in the vocabulary, from 1, or `unseen`."""
        get, unseen = self._places.get, self.unseen
        return np.fromiter((get(item_id, unseen) for item_id in item_ids), np.int64, len(item_ids))

    def types_of(self, names: Sequence[str]) -> Int64:
        """int64[n]: the network's event type of each name, from 1, or 0 where it has none."""
        types = {name: number for number, name in enumerate(self.event_types, start=1)}
        return np.array([types.get(name, 0) for name in names], dtype=np.int64)

    def score_rows(
        self, asked: Asked, places: Int32, types_of: Int64, contents: Float32 | None = None
    ) -> Float32:
        """float32[B, C], NaN where a candidate is unknown or padding: `places` int32[item rows] leads from
        the table's rows to places, `types_of` int64[codes] from codes to the network's types, and `contents`
        float32[N, E] has a row for each place. Raises RankerError as `score_inputs`."""
        n, width = asked.rows.shape
        shape = (n, self.history_length)
        history, types = np.empty(shape, np.int64), np.empty(shape, np.int64)
        gaps_s, candidates = np.empty(shape, np.float32), np.empty((n, width), np.int64)
        longest = lay_out(
            asked.recent, asked.kinds, asked.times_ms, asked.rows, places, types_of, history, types, gaps_s,
            candidates,
        )  # fmt: skip
        kept = slice(-self._trimmed(longest), None)
        inputs = RankerInputs(
            history=history[:, kept],
            history_types=types[:, kept],
            history_gaps_s=gaps_s[:, kept],
            context=asked.context,
            candidates=candidates,
            features=asked.features,
            item_vectors=self.contents if contents is None else contents,
        )
        return self._scored(inputs)

    def score_inputs(self, inputs: RankerInputs) -> Float32:
        """float32[B, C], NaN where a candidate is padding, or unknown to a network that isn't `fused`.

        Raises RankerError when shapes don't fit, a place has no content vector, or a score is not finite.
        """
        self._check(inputs)
        return self._scored(inputs)

    def _scored(self, inputs: RankerInputs) -> Float32:
        n, width = inputs.candidates.shape
        if not n or not width:
            return np.empty((n, width), dtype=np.float32)
        step = max(1, MAX_CELLS // width)
        if n <= step:
            scores = self.session.score(inputs)
        else:
            parts = [self.session.score(inputs.part(start, start + step)) for start in range(0, n, step)]
            scores = np.concatenate(parts)
        hidden = -1 if self.fused else self.unseen
        if bad := hide(scores, inputs.candidates, hidden):
            judged = np.count_nonzero((inputs.candidates > PADDING) & (inputs.candidates != hidden))
            raise RankerError(f"{self.version}: {bad} of {judged} scores are not finite", "not_finite")
        return scores

    def inputs_of(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> RankerInputs:
        """Of ids alone, histories oldest first: event types, gaps, context and features are unknown (0)."""
        if len(histories) != len(candidates):
            raise RankerError(f"{len(histories)} histories for {len(candidates)} lists of candidates")
        n, width = len(candidates), max((len(ids) for ids in candidates), default=0)
        history = np.zeros((n, self.history_length), dtype=np.int64)
        places = np.full((n, width), PADDING, dtype=np.int64)
        for row, (recent, ids) in enumerate(zip(histories, candidates, strict=True)):
            newest = self.places_of(list(recent)[-self.history_length :])
            history[row, self.history_length - len(newest) :] = newest
            places[row, : len(ids)] = self.places_of(ids)
        return self.plain_inputs(history, places)

    def plain_inputs(self, history: Int64, candidates: Int64) -> RankerInputs:
        """Inputs of places int64[B, L] (0 on the left) and int64[B, C] alone."""
        return RankerInputs(
            history=history,
            history_types=np.zeros_like(history),
            history_gaps_s=np.zeros(history.shape, dtype=np.float32),
            context=np.zeros((len(history), len(CONTEXT)), dtype=np.float32),
            candidates=candidates,
            features=np.zeros((*candidates.shape, len(FEATURES)), dtype=np.float32),
            item_vectors=self.contents,
        )

    def score(self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> Float32:
        """float32[B, longest of candidates] of ids, as `score_inputs`."""
        return self.score_inputs(self.inputs_of(histories, candidates))

    def _check(self, inputs: RankerInputs) -> None:
        history, candidates, top = inputs.history, inputs.candidates, len(inputs.item_vectors)
        if history.ndim != 2 or candidates.ndim != 2 or len(history) != len(candidates):
            raise RankerError(
                f"history {history.shape} and candidates {candidates.shape}: expected [B, L], [B, C]"
            )
        for name, places in (("history", history), ("candidates", candidates)):
            if places.size and (places.min() < 0 or places.max() >= top):
                raise RankerError(
                    f"{name}: places {places.min()}..{places.max()} outside 0..{top - 1} of {self.version}"
                )

    def _trimmed(self, longest: int) -> int:
        return min(self.history_length, -(-max(1, longest) // _TRIM) * _TRIM)
