"""Step 5 of the fast path: commit a batch, and, when behind, let the broker do so beside the next one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from confluent_kafka import TopicPartition

from streams.source import Source
from streams.stats import Committed
from streams.transaction import OutputRecord, OutputRecords, Transactions

__all__ = ["Committer"]


class Committer:
    """One transaction at a time. Where a full batch shows that more is waiting, the last two steps of its
    transaction run in a thread, and `settle` is where their error comes out."""

    def __init__(self, transactions: Transactions, count: Callable[[Committed], None], full: int) -> None:
        self._transactions = transactions
        self._count = count
        self._full = full
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._begun: tuple[Future[None], Committed] | None = None

    def commit(
        self,
        records: list[OutputRecord | OutputRecords],
        source: Source,
        offsets: list[TopicPartition],
        counted: Committed,
    ) -> None:
        """Commit `records` and `offsets`, at the latest before the next batch is.

        Raises:
            TransactionLostError, WorkerFencedError, FreshetError: this batch, or the one before, was not.
        """
        self.settle()
        self._transactions.begin(records)
        source.committed(offsets)
        member = self._transactions.member(source.consumer)
        if self._transactions.exactly_once and counted.records >= self._full:
            self._begun = self._thread.submit(self._transactions.finish, member, offsets), counted
        else:
            self._transactions.finish(member, offsets)
            self._count(counted)

    def close(self) -> None:
        """Let the thread end, after what was begun."""
        self._thread.shutdown(wait=False)

    def settle(self) -> None:
        """Wait until what was begun is committed, and count it; raises as `commit`."""
        if self._begun is None:
            return
        (finished, counted), self._begun = self._begun, None
        finished.result()
        self._count(counted)
