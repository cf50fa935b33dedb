"""Where the microseconds go: py-spy on a worker that is behind, as a table by function.

    python -m benchmarks.profile [--workload learn|lists|ranker] [--events N] [--seconds 10] [--docs]

Samples of the worker's own thread that is not idle are counted by function: `self` is time in the function
itself (with what it calls in C or compiled code), `total` includes what it calls in Python. Both are shown as
a share, and as microseconds an event by the rate of the same seconds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.answering import LISTS, wait_ready
from benchmarks.bench import Bench, open_bench
from benchmarks.learning import LEARN_ONLY
from benchmarks.ranker_model import VERSION, announce_random, publish_random
from benchmarks.report import DOCUMENT, put_into
from benchmarks.workloads import Stream, item_name
from streams.errors import FreshetError

__all__ = ["Profile", "function_table", "parse", "sample"]

RATE_HZ = 200
SHOWN = 25
MAIN_LOOP = "streams/worker.py"
"""Samples whose stack does not hold this file are of other threads."""
_FRAME = re.compile(r"^(?P<name>.+) \((?P<file>[^():]+)(?::\d+)?\)$")


@dataclass(frozen=True, slots=True)
class Profile:
    """Samples of the main loop by function, and microseconds an event while they were taken."""

    samples: int
    own: Counter[str]
    total: Counter[str]
    us_per_event: float


def parse(raw: str, us_per_event: float) -> Profile:
    """py-spy's raw format, `frame;frame;… count` a line, outermost frame first.

    >>> found = parse("run (streams/worker.py:1);read (a.py:2) 3", 10.0)
    >>> found.samples, found.own["read (a.py)"], found.total["run (streams/worker.py)"]
    (3, 3, 3)
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        if not any(MAIN_LOOP in frame for frame in frames):
            continue
        samples += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    return Profile(samples, own, total, us_per_event)


def _function(frame: str) -> str:
    match = _FRAME.match(frame)
    return f"{match['name']} ({match['file']})" if match else frame


def function_table(profile: Profile, shown: int = SHOWN) -> str:
    """The functions with the most time of their own, as a Markdown table."""
    lines = ["| function | self % | self µs/event | total % |", "| --- | --- | --- | --- |"]
    for name, count in profile.own.most_common(shown):
        share = count / profile.samples
        whole = profile.total[name] / profile.samples
        lines.append(f"| `{name}` | {share:.1%} | {share * profile.us_per_event:.2f} | {whole:.1%} |")
    return "\n".join(lines)


def sample(bench: Bench, workload: str, events: int, seconds: int) -> Profile:
    """Run the workload and sample its worker in the middle of it.

    Raises:
        FreshetError: py-spy is not there, may not look, or saw nothing of the main loop.
    """
    stream = Stream(events, 20_000 if workload == "learn" else 5_000, 2_000)
    with bench.deployment(LEARN_ONLY if workload == "learn" else LISTS) as deployment:
        if workload == "ranker":
            publish_random(bench, [item_name(number) for number in range(stream.items)])
            announce_random(deployment)
        child = deployment.worker()
        wait_ready(deployment, 1, VERSION if workload == "ranker" else None)
        deployment.fill(deployment.topic("events"), stream.records())
        _wait_past(deployment.handled, events // 10)
        begun, at = time.perf_counter(), deployment.handled()
        raw = bench.folder / "profile.raw"
        _spy(child.process.pid, seconds, raw)
        spent, done = time.perf_counter() - begun, deployment.handled() - at
        if done >= 0.85 * events:
            click.echo(f"the worker was done before py-spy was: raise --events above {events}", err=True)
    profile = parse(raw.read_text("utf-8"), 1e6 * spent / max(1, done))
    if not profile.samples:
        raise FreshetError("py-spy saw no sample of the worker's loop")
    return profile


def _wait_past(handled: Callable[[], int], wanted: int) -> None:
    deadline = time.monotonic() + 120
    while handled() < wanted:
        if time.monotonic() > deadline:
            raise FreshetError(f"the worker did not get past {wanted} events in 120 s")
        time.sleep(0.05)


def _spy(pid: int, seconds: int, raw: Path) -> None:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise FreshetError("py-spy is not installed: it is in the dev dependencies (`make install`)")
    command = [
        program, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE_HZ),
        "--format", "raw", "--output", str(raw), "--nonblocking",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode or not raw.exists():
        raise FreshetError(
            f"py-spy: {done.stderr.strip() or done.stdout.strip()}. It needs to trace other processes: run as"
            " root, or allow it (kernel.yama.ptrace_scope = 0)."
        )


@click.command()
@click.option("--workload", type=click.Choice(["learn", "lists", "ranker"]), default="learn")
@click.option("--events", default=1_000_000, show_default=True)
@click.option("--seconds", default=10, show_default=True)
@click.option("--docs", is_flag=True, help="Put the table into docs/performance.md too.")
def main(workload: str, events: int, seconds: int, docs: bool) -> None:
    """Profile one worker and print its functions by their own time."""
    with open_bench() as bench:
        profile = sample(bench, workload, events, seconds)
    head = f"`{workload}`: {profile.us_per_event:.1f} µs an event, {profile.samples} samples\n\n"
    text = head + function_table(profile)
    click.echo(text)
    if docs:
        put_into(DOCUMENT, f"profile {workload}", text)


if __name__ == "__main__":
    main()
