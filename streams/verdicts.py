"""What the owner of partition 0 says of versions on trial, for all workers: promoted, dropped, kept, rolled
back.

Every worker judges two versions on the queries that it answers, and carries its totals in `worker-stats`. One
of them adds them up, looks with a bound on error that allows for looking each second
(`serving.registry.verdict`), and writes what follows to `models`, inside the transaction that only the owner
of partition 0 can commit: a worker that was taken for dead can't speak, and nobody speaks twice.
"""

from __future__ import annotations

import logging
import time

import msgspec

from serving.ranker.errors import FAULTS_OF_THE_VERSION
from serving.registry.swap import Role, SwapEvent
from serving.registry.verdict import PairedCounts, Verdict, probation_verdict, shadow_verdict
from streams.events import ModelRecord, TrialStats
from streams.model_records import key_of, live_announcement, open_registry
from streams.model_state import ModelState, Trial
from streams.reading import PartitionReader, watermarks, where
from streams.replica import Replica
from streams.settings import Settings
from streams.transaction import OutputRecord

__all__ = ["Verdicts"]

log = logging.getLogger("freshet.models")

EVERY_S = 0.5
SLICE_RECORDS = 1000
MOST_EVENTS = 10_000_000
"""Of a worker's part; the evidence is a sum over them."""


class _Report(msgspec.Struct):
    """The part of a record of `worker-stats` that matters here."""

    worker: str
    epoch: int
    trial: TrialStats | None = None


class Verdicts:
    """Adds up the workers' parts of the trial in hand, from now on, and says how it ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uri = open_registry(settings).uri
        topic = settings.names["worker-stats"]
        ends = watermarks(settings, [(topic, 0)], isolation="read_committed")
        self._reader = PartitionReader(settings, {key: end for key, (_, end) in ends.items()})
        self._decode = msgspec.json.Decoder(_Report).decode
        self._parts: dict[tuple[str, int], TrialStats] = {}
        self._trial: Trial | None = None
        self._told = False
        """Whether `_trial` has ended, as far as this worker could say so: the record is on its way."""
        self._refusals: dict[Role, SwapEvent] = {}
        """Those that something was said of."""
        self._put_right: ModelRecord | None = None
        self._ended: set[tuple[str, str | None]] = set()
        self._due = 0.0

    def poll(self, replica: Replica) -> list[OutputRecord]:
        """Records for `models`, while nobody else follows it; none most of the time, for it looks only now
        and then."""
        now = time.monotonic()
        if now < self._due:
            return []
        self._due = now + EVERY_S
        models = replica.models
        if models.trial != self._trial:
            self._trial, self._told = models.trial, False
            self._parts.clear()
        self._read()
        records = self._superseded(models) + (
            self._overtaken(models) or self._refused(replica) or self._judged(models)
        )
        for record in records:
            log.warning("%s %s is %s: %s", record.model, record.version, record.status, record.reason)
        return [
            OutputRecord(self._settings.names["models"], key_of(record), msgspec.json.encode(record))
            for record in records
        ]

    def counts(self, trial: Trial) -> tuple[PairedCounts, str | None]:
        """All workers' parts of `trial` added up, and why the other version failed where it did."""
        total, failed = PairedCounts(), None
        for part in self._parts.values():
            if (part.kind, part.live_digest, part.other_digest) == (
                trial.kind, trial.live_digest, trial.other_digest,
            ):  # fmt: skip
                total, failed = total.plus(part), failed or part.failed
        return total, failed

    def close(self) -> None:
        self._reader.close()

    def _read(self) -> None:
        for message in self._reader.poll(SLICE_RECORDS, 0):
            try:
                report = self._decode(message.value() or b"")
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                log.warning("%s: not a worker's report (%s); passed over", where(message), error)
                continue
            if report.trial is not None and not _can_be(report.trial):
                log.warning("%s: no counts of a trial: %s; passed over", where(message), report.trial)
            elif report.trial is None:
                self._parts.pop((report.worker, report.epoch), None)
            else:
                self._parts[report.worker, report.epoch] = report.trial

    def _superseded(self, models: ModelState) -> list[ModelRecord]:
        """Shadows that another came after are dropped, each once."""
        newest = models.shadow or models.live
        reason = f"{newest.version if newest is not None else 'another'} came before there was a verdict"
        old = [one for one in models.superseded if (one.version, one.digest) not in self._ended]
        self._ended |= {(one.version, one.digest) for one in old}
        return [self._record(one, "dropped", reason, "shadow") for one in old]

    def _overtaken(self, models: ModelState) -> list[ModelRecord]:
        """A verdict came after the record that it should have come before: the topic's last word is put
        right, for whoever reads only that."""
        live = models.live
        if not models.overtaken or live is None or live is self._put_right:
            return []
        self._put_right = live
        return [msgspec.structs.replace(live, replaces=live.version, published_at=int(time.time() * 1000))]

    def _judged(self, models: ModelState) -> list[ModelRecord]:
        """How the trial in hand ended, if it has, or a shadow's that has nothing to be compared with."""
        if self._trial is None:
            return self._unopposed(models)
        if self._told:
            return []
        counts, failed = self.counts(self._trial)
        verdict = self._verdict(self._trial, counts, failed)
        if verdict is None:
            return []
        self._told = True
        numbers = counts.metrics("shadow" if self._trial.kind == "shadow" else "former")
        return self._told_of(models, self._trial, verdict, numbers)

    def _verdict(self, trial: Trial, counts: PairedCounts, failed: str | None) -> Verdict | None:
        ranker = self._settings.ranker
        if trial.kind == "shadow":
            if failed is not None:
                return Verdict(outcome="dropped", reason=failed)
            return shadow_verdict(counts, ranker)
        if failed is not None:
            return Verdict(outcome="kept", reason=f"nothing to compare it with: {failed}")
        return probation_verdict(counts, ranker)

    def _told_of(
        self, models: ModelState, trial: Trial, verdict: Verdict, numbers: dict[str, float]
    ) -> list[ModelRecord]:
        live, shadow, reason = models.live, models.shadow, verdict.reason
        if live is None:
            return []
        if verdict.outcome == "kept":
            kept = msgspec.structs.replace(live, against=None, against_digest=None)
            return [self._record(kept, "live", reason, trial.kind, numbers, live.version)]
        if verdict.outcome == "rolled_back":
            former = self._former(models, live, trial)
            why = f"{trial.live} was rolled back: {reason}"
            return [
                self._record(former, "live", why, trial.kind, numbers, live.version),
                self._record(live, "dropped", reason, trial.kind, numbers),
            ]
        if shadow is None:
            return []
        ended = self._record(shadow, verdict.outcome, reason, trial.kind, numbers)
        if verdict.outcome == "dropped":
            return [ended]
        promoted = live_announcement(ended, live, self._settings)
        return [msgspec.structs.replace(promoted, replaces=live.version), ended]

    def _unopposed(self, models: ModelState) -> list[ModelRecord]:
        """A shadow while nothing is live serves at once: there is nothing to lose."""
        shadow = models.shadow
        if models.live is not None or shadow is None or (shadow.version, shadow.digest) in self._ended:
            return []
        self._ended.add((shadow.version, shadow.digest))
        ended = self._record(shadow, "promoted", "no version was live", "shadow")
        return [live_announcement(ended, None, self._settings), ended]

    def _refused(self, replica: Replica) -> list[ModelRecord]:
        """What refusals by this worker mean for all: a version that is faulty itself is taken back."""
        models, records, trial = replica.models, list[ModelRecord](), self._trial
        for role, event in replica.refused.items():
            if self._refusals.get(role) is event:
                continue
            live = models.live
            if role == "live" and live is not None and _is(live, event):
                if event.kind in FAULTS_OF_THE_VERSION:
                    records += self._faulty(replica, live, event)
                self._refusals[role] = event
            elif (
                role == "shadow"
                and trial is not None
                and (trial.other, trial.other_digest) == (event.version, event.digest)
                and event.kind != "store"
            ):
                verdict = self._verdict(trial, PairedCounts(), event.reason)
                if verdict is not None:
                    records += self._told_of(models, trial, verdict, {})
                self._refusals[role], self._told = event, True
        return records

    def _faulty(self, replica: Replica, live: ModelRecord, event: SwapEvent) -> list[ModelRecord]:
        """The live version can't be served by anybody: what serves here is live again."""
        refused = self._record(live, "refused", event.reason, "load")
        serving, before = replica.slot.current, replica.models.before
        if serving is None:
            return [refused]
        known = before is not None and before.version == serving.version
        metrics = before.metrics if before is not None and known else {}
        again = self._other(live, serving.version, serving.digest, metrics)
        why = f"it goes on serving: {event.reason}"
        return [self._record(again, "live", why, "load", replaces=live.version), refused]

    def _former(self, models: ModelState, live: ModelRecord, trial: Trial) -> ModelRecord:
        """The record of the version before the live one, as far as it is known."""
        before = models.before
        if before is not None and before.version == trial.other:
            return before
        return self._other(live, trial.other, trial.other_digest, {})

    def _other(self, of: ModelRecord, version: str, digest: str, metrics: dict[str, float]) -> ModelRecord:
        """A record of another version than `of`."""
        return msgspec.structs.replace(
            of, version=version, digest=digest, uri=self._uri(version), metrics=metrics, trained_on={}
        )

    def _record(
        self,
        of: ModelRecord,
        status: str,
        reason: str,
        trial: str | None = None,
        numbers: dict[str, float] | None = None,
        replaces: str | None = None,
    ) -> ModelRecord:
        """`of` with another status, said now."""
        return msgspec.structs.replace(
            of,
            status=status,
            reason=reason,
            trial=trial,
            replaces=replaces,
            metrics={**of.metrics, **(numbers or {})},
            against=None,
            against_digest=None,
            published_at=int(time.time() * 1000),
        )


def _can_be(part: PairedCounts) -> bool:
    """Whether these are counts: hits among events, and of them those of one list alone."""
    hits = ((part.live_only, part.live_hits), (part.other_only, part.other_hits))
    return part.events <= MOST_EVENTS and all(
        0 <= alone <= all_hits <= part.events for alone, all_hits in hits
    )


def _is(record: ModelRecord, event: SwapEvent) -> bool:
    return (record.version, record.digest) == (event.version, event.digest)
