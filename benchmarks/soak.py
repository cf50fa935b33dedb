"""Two hours' worth of events at full speed through one worker with small bounds: does memory stay flat?

    python -m benchmarks.soak [--events 3600000] [--users 20000] [--items 20000] [--json PATH] [--quick]

Users and items come and go: every `--stay` events a new generation of both takes over, so that many times
more have been met than the bounds let stay. Memory is what the worker itself reports, each second. The slope
is a straight line's over the second half, in bytes an hour of the stream's time (500 events/s).

Then backpressure: a second worker makes lists that take longer than the events leave it (long lists, with the
ranker). Learning must go on, lists be coalesced to each user's newest, the lag be reported, memory stay flat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from benchmarks.answering import wait_ready
from benchmarks.bench import Bench, open_bench
from benchmarks.plots import IMAGES, line_plot
from benchmarks.ranker_model import VERSION, announce_random, publish_random
from benchmarks.report import environment
from benchmarks.workloads import START_MS, Record, Stream, item_name
from streams.events import WorkerStats

__all__ = ["Generations", "backpressure", "slope_per_s", "soak"]

RATE_PER_S = 500
SPACING_MS = 1000 // RATE_PER_S
PARTITIONS = 8
AHEAD = 200_000
"""Records kept waiting for the worker at most, so that the broker's disk stays small too."""


@dataclass(frozen=True, slots=True)
class Generations:
    """`count` events; each stretch of `stay` has `users` users and `items` items, half of them new."""

    count: int
    users: int
    items: int
    stay: int

    def records(self, start: int, size: int) -> Iterator[Record]:
        """Records `start` to `start + size`; both multiples of `stay`."""
        for number in range(start // self.stay, (start + size) // self.stay):
            yield from Stream(
                self.stay,
                self.users,
                self.items,
                seed=1000 + number,
                skew=0.6,
                spacing_ms=SPACING_MS,
                start_ms=START_MS + number * self.stay * SPACING_MS,
                first_user=number * self.users // 2,
                first_item=number * self.items // 2,
            ).records()

    def met(self) -> dict[str, int]:
        """How many different users and items there are in all of it, at most."""
        steps = max(0, self.count // self.stay - 1)
        return {"users": self.users + steps * self.users // 2, "items": self.items + steps * self.items // 2}


def slope_per_s(points: list[tuple[float, float]]) -> float:
    """Least-squares slope of y over x in the second half of `points`.

    >>> slope_per_s([(0.0, 9.0), (1.0, 1.0), (2.0, 3.0), (3.0, 5.0)])
    2.0
    """
    late = points[len(points) // 2 :]
    if len(late) < 2:
        return 0.0
    x, y = np.array(late).T
    return round(float(np.polyfit(x, y, 1)[0]), 6)


def soak(bench: Bench, plan: Generations, bounds: dict[str, str]) -> dict[str, Any]:
    """Run `plan` through one worker with `bounds`; memory, users and items by the worker's reports."""
    extra = {"WORKER__MAX_BATCH": "2000", "TRIGGER__EVENTS": "false", **bounds}
    with bench.deployment(extra, partitions=PARTITIONS) as deployment:
        deployment.worker()
        started, sent = time.monotonic(), 0
        step = plan.stay * max(1, AHEAD // (2 * plan.stay))
        while sent < plan.count:
            size = min(step, plan.count - sent)
            sent += deployment.fill(deployment.topic("events"), plan.records(sent, size))
            while sent - deployment.handled() > AHEAD // 2:
                deployment.check()
                time.sleep(0.2)
        bench.watch(deployment, deployment.handled, sent)
        deployment.totals(sent)
        seconds = time.monotonic() - started
        return _soaked(plan, deployment.reports(), seconds)


def _soaked(plan: Generations, reports: list[WorkerStats], seconds: float) -> dict[str, Any]:
    running = [report for report in reports if report.state == "running"]
    handled = np.cumsum([report.events for report in running]).tolist()
    rss = [float(report.rss_bytes) for report in running]
    streamed_s = [count / RATE_PER_S for count in handled]
    points = list(zip(streamed_s, rss, strict=True))
    return {
        "plan": {**asdict(plan), "met": plan.met()},
        "seconds": round(seconds, 1),
        "events_per_s": round(plan.count / seconds),
        "slope_bytes_per_stream_hour": round(3600 * slope_per_s(points)),
        "rss_half_way_bytes": rss[len(rss) // 2],
        "rss_end_bytes": rss[-1],
        "rss_largest_bytes": max(rss),
        "users_at_end": running[-1].users,
        "items_at_end": running[-1].items,
        "series": [
            {"stream_s": round(at, 1), "rss_bytes": value, "users": report.users, "items": report.items}
            for at, value, report in zip(streamed_s, rss, running, strict=True)
        ],
    }


def backpressure(bench: Bench, events: int, users: int) -> dict[str, Any]:
    """Send events faster than lists can be made; what the worker reports while it is behind."""
    stream = Stream(events, users, 2_000, skew=0.3)
    publish_random(bench, [item_name(number) for number in range(stream.items)])
    extra = {
        "RANKER__PROVIDER": "cpu",
        "TRIGGER__COUNT": "100",
        "TRIGGER__COALESCE_LAG": str(events // 20),
        "WORKER__MAX_BATCH": "2000",
        "WORKER__STATS_S": "0.5",
    }
    with bench.deployment(extra) as deployment:
        announce_random(deployment)
        deployment.worker()
        wait_ready(deployment, 1, VERSION)
        deployment.fill(deployment.topic("events"), stream.records())
        rate = bench.drain(deployment, deployment.handled, events)
        total = deployment.totals(events)
        time.sleep(4 * float(extra["WORKER__STATS_S"]))  # the log's end is followed once the events are done
        running = [r for r in deployment.reports() if r.state == "running"]
    behind = [report for report in running if report.lag]
    rss = [float(report.rss_bytes) for report in behind]
    return {
        "events": events,
        "users": users,
        "accepted": total.accepted,
        "lists": total.recommendations,
        "coalesced": total.coalesced,
        "answered_or_coalesced": total.recommendations + total.coalesced,
        "largest_lag_reported": max((report.lag or 0 for report in running), default=0),
        "largest_lag_s_reported": max((report.lag_s or 0.0 for report in running), default=0.0),
        "learning_log_followed_to": running[-1].online_offset,
        "reports_behind": len(behind),
        "events_per_s": round(rate.per_s),
        "lists_per_s": round(rate.per_s * total.recommendations / events),
        "rss_growth_while_behind_bytes": rss[-1] - rss[len(rss) // 2] if len(rss) > 2 else 0.0,
        "stats": msgspec.structs.asdict(total),
    }


def _plot(result: dict[str, Any], path: Path) -> None:
    series = result["series"]
    hours = [point["stream_s"] / 3600 for point in series]
    line_plot(
        path,
        "Memory of one worker over the soak",
        "hours of the stream (500 events/s)",
        "resident memory, MB",
        {"freshet worker": [(h, p["rss_bytes"] / 1e6) for h, p in zip(hours, series, strict=True)]},
        marks=False,
    )


@click.command()
@click.option("--events", default=3_600_000, show_default=True, help="Two hours at 500/s.")
@click.option("--users", default=20_000, show_default=True, help="Active at a time; also the bound.")
@click.option("--items", default=20_000, show_default=True, help="Active at a time; also the bound.")
@click.option("--stay", default=50_000, show_default=True, help="Events until half of both are new.")
@click.option("--lists", is_flag=True, help="Answer every event too, from online scores.")
@click.option("--bound", "bounds", multiple=True, help="SECTION__KEY=VALUE: a further bound.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result here too.")
@click.option("--quick", is_flag=True, help="A fiftieth of it.")
def main(
    events: int,
    users: int,
    items: int,
    stay: int,
    lists: bool,
    bounds: tuple[str, ...],
    path: Path | None,
    quick: bool,
) -> None:
    """Soak one worker, then put one under backpressure; print what their own reports say."""
    if quick:
        events, users, items, stay = events // 50, users // 20, items // 20, stay // 20
    events -= events % stay
    if lists:
        bounds = ("TRIGGER__EVENTS=true", *bounds)
    tables = {"MODELS__MAX_ITEMS": str(items), "USER_STATE__MAX_USERS": str(max(1, users // PARTITIONS))}
    set_bounds = tables | dict(bound.split("=", 1) for bound in bounds)
    about = environment(1, quick)
    with open_bench(quick=quick) as bench:
        soaked = soak(bench, Generations(events, users, items, stay), set_bounds)
        pressed = backpressure(bench, max(6_000, events // 60), max(500, users // 10))
    result = {"soak": soaked, "backpressure": pressed, "bounds": set_bounds, "environment": about}
    _plot(soaked, (path.parent if path and quick else IMAGES) / "soak.svg")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    shown = {**result, "soak": {name: value for name, value in soaked.items() if name != "series"}}
    click.echo(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
