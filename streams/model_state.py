"""What the records of `models` say when they are read one after the other: what serves, what is on trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.ranker.ranker import Ranker
from streams.events import ModelRecord

__all__ = ["ModelState", "Trial"]


@dataclass(frozen=True, slots=True)
class Trial:
    """Two versions to be judged on the same queries: `live` is served, `other` is only scored.

    A `shadow` may become the live version; on `probation` the other was live before, and may be so again.
    """

    kind: Literal["shadow", "probation"]
    live: str
    live_digest: str
    other: str
    other_digest: str

    def in_force(self, live: Ranker | None, other: Ranker | None) -> bool:
        """Whether these two rankers are the ones."""
        wanted = ((self.live, self.live_digest), (self.other, self.other_digest))
        return all(
            ranker is not None and (ranker.version, ranker.digest) == one
            for ranker, one in zip((live, other), wanted, strict=True)
        )


class ModelState:
    """Follows the records of one model, in their order. Every reader comes to the same state."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.live: ModelRecord | None = None
        self.before: ModelRecord | None = None
        """The live record before that, of another version, where this reader has met it."""
        self.shadow: ModelRecord | None = None
        self.superseded: list[ModelRecord] = []
        """Shadows that another one came after before there was a verdict."""
        self.overtaken = False
        """Whether the newest live record counts for nothing, because another version went live before it."""

    def take(self, record: ModelRecord) -> bool:
        """Take the next record; False when it says nothing of this model."""
        if record.model != self._model:
            return False
        if record.status == "live" and self.live is not None and record.replaces is not None:
            self.overtaken = record.replaces != self.live.version
            if self.overtaken:
                return True
        if record.status == "live" and record.digest is not None:
            self.overtaken = False
            if self.live is not None and self.live.version != record.version:
                self.before = self.live
            self.live = record
            self._end(record.version)
        elif record.status == "shadow" and record.digest is not None:
            if self.shadow is not None and self.shadow.version != record.version:
                self.superseded.append(self.shadow)
            served = self.live is not None and self.live.version == record.version
            self.shadow = None if served else record
        elif record.status != "live":
            self._end(record.version)
        return True

    @property
    def trial(self) -> Trial | None:
        """The trial that is wanted: a new version's probation goes before a shadow's turn."""
        live, shadow = self.live, self.shadow
        if live is None or live.digest is None:
            return None
        if live.against is not None and live.against_digest is not None:
            return Trial("probation", live.version, live.digest, live.against, live.against_digest)
        if shadow is not None and shadow.digest is not None:
            return Trial("shadow", live.version, live.digest, shadow.version, shadow.digest)
        return None

    def _end(self, version: str) -> None:
        if self.shadow is not None and self.shadow.version == version:
            self.shadow = None
        self.superseded = [record for record in self.superseded if record.version != version]
