"""The demo's live table; where stderr is no terminal, a line every few seconds instead."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from streams.demo_watch import Watch
from streams.settings import Settings

__all__ = ["Screen"]

LINE_EVERY_S = 10.0


class Screen:
    """Shows a `Watch` while the replay runs."""

    def __init__(self, console: Console, watch: Watch, settings: Settings, total: int) -> None:
        self._console = console
        self._watch = watch
        self._page = f"http://{settings.monitor.host}:{settings.monitor.port}/"
        columns = (TextColumn("replay"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, expand=True)
        self._task = self._progress.add_task("events", total=total)
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=False)
        self._said = 0.0

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self.update()
            self._live.__exit__(kind, error, trace)
        elif kind is None:
            self._line()

    def update(self) -> None:
        self._progress.update(self._task, completed=self._watch.sent)
        if self._console.is_terminal:
            self._live.update(self._render())
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            self._line()

    def _numbers(self) -> list[tuple[str, str]]:
        watch = self._watch
        totals = watch.totals()
        events_per_s, lists_per_s = watch.rates()
        lag = watch.lag
        evaluated = max(1, totals.evaluated)
        p50, p99 = watch.latency.quantile(0.5), watch.latency.quantile(0.99)
        return [
            ("events/s", f"{events_per_s:,.0f}"),
            ("recommendations/s", f"{lists_per_s:,.0f}"),
            ("lag", "unknown" if lag is None or lag.records is None else f"{lag.records:,} records"),
            ("lag in time", "unknown" if lag is None or lag.seconds is None else f"{lag.seconds:.2f} s"),
            ("latency p50 / p99", "-" if p50 is None or p99 is None else f"{p50:.0f} / {p99:.0f} ms"),
            (
                "HR@10 (popularity)",
                f"{totals.hits_at_10 / evaluated:.4f} ({totals.popularity_hits_at_10 / evaluated:.4f})",
            ),
            ("ranker", watch.rankers[-1] if watch.rankers else "none yet: online models alone"),
            ("swaps", str(watch.swaps())),
        ]

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 3), expand=True)
        numbers = self._numbers()
        for _ in range(4):
            table.add_column()
        half = len(numbers) // 2
        for left, right in zip(numbers[:half], numbers[half:], strict=True):
            table.add_row(f"[dim]{left[0]}[/]", left[1], f"[dim]{right[0]}[/]", right[1])
        return Group(self._progress, table, f"[dim]live page[/] {self._page}")

    def _line(self) -> None:
        parts = ", ".join(f"{name} {value}" for name, value in self._numbers())
        self._console.print(
            f"{self._watch.sent:,} of {self._watch.total:,} sent; {parts}", highlight=False, soft_wrap=True
        )
