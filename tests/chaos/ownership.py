"""No list came from a zombie: what the topics prove about who wrote what.

A worker that slept through its session, or was replaced, may wake up with a batch in its memory. Its process
may also rejoin the group and own the same partition again, rightly, under the same epoch. So that an epoch
comes back proves nothing. What does, for every partition of the users:

1. Each transaction leaves one record of the partition in `user-state`: the writer's id and epoch, and the
   next offsets of the inputs. In log order these offsets never go back. A zombie's transaction would repeat
   or go back behind what its successor has committed.
2. Every list carries its writer's id and epoch in its headers. The writer must be the very one whose
   transaction moved the partition's offset past the record that the list answers. That transaction also
   sent the group's offsets under a generation that the broker had not yet replaced, so its writer was the
   partition's owner at that moment.

Both need every record of the partition: `user-state` must not have been compacted since.

Where no two processes ever ran under one id at the same time (the chaos run sees to that), more holds:

3. Once a process of some id has committed, an earlier process of that id never commits again:
   `superseded`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable

from tests.chaos.records import Commit, Finding

__all__ = ["Author", "Authors", "backward_commits", "superseded"]

Author = tuple[str, int]
"""A worker's id and epoch."""


def backward_commits(commits: Iterable[Commit]) -> list[Finding]:
    """Check 1: transactions that did not go on where the one before them had ended."""
    findings = []
    stands: dict[tuple[int, str], tuple[int, Commit]] = {}
    for commit in commits:
        for name, offset in commit.next_offsets.items():
            before = stands.get((commit.partition, name))
            if before is not None and offset < before[0]:
                findings.append(
                    Finding(
                        "wrong",
                        1,
                        f"zombie: user-state[{commit.partition}]@{commit.offset}: {commit.worker} (epoch "
                        f"{commit.epoch}) goes back to {name} {offset}, {before[1].worker} (epoch "
                        f"{before[1].epoch}) was at {before[0]}",
                    )
                )
            stands[commit.partition, name] = offset, commit
    return findings


def superseded(commits: Iterable[Commit]) -> list[Finding]:
    """Check 3: commits of a process after a later process of the same id has committed in the partition."""
    findings = []
    newest: dict[tuple[int, str], int] = {}
    for commit in commits:
        key = commit.partition, commit.worker
        if commit.epoch < newest.get(key, 0):
            findings.append(
                Finding(
                    "wrong",
                    1,
                    f"zombie: user-state[{commit.partition}]@{commit.offset}: epoch {commit.epoch} of "
                    f"{commit.worker} commits after its epoch {newest[key]}",
                )
            )
        newest[key] = max(commit.epoch, newest.get(key, 0))
    return findings


class Authors:
    """Whose transaction handled which input record."""

    def __init__(self, commits: Iterable[Commit]) -> None:
        self._ends: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._authors: dict[tuple[int, str], list[Author]] = defaultdict(list)
        for commit in commits:
            for name, offset in commit.next_offsets.items():
                self._ends[commit.partition, name].append(offset)
                self._authors[commit.partition, name].append((commit.worker, commit.epoch))

    def of(self, name: str, partition: int, offset: int) -> Author | None:
        """Who moved `name`'s offset past `offset`; None when nobody has."""
        at = bisect_right(self._ends[partition, name], offset)
        authors = self._authors[partition, name]
        return authors[at] if at < len(authors) else None

    def finding(
        self, what: str, headers: Iterable[tuple[str, bytes | None]], name: str, place: tuple[int, int]
    ) -> list[Finding]:
        """Check 2 for one list, which answers the record of `name` at `place` (partition, offset)."""
        found = {key: (value or b"").decode() for key, value in headers}
        wrote = found.get("worker", ""), int(found.get("epoch", "0"))
        owner = self.of(name, *place)
        if wrote == owner:
            return []
        text = f"zombie: {what} is by {wrote}, but {name}[{place[0]}]@{place[1]} was committed by {owner}"
        return [Finding("wrong", 1, text)]
