"""`python -m tests.chaos`: a chaos run from the command line; docs/chaos.md says how to read it."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from pathlib import Path

import msgspec

from streams.errors import EmbeddedBrokerError
from tests.chaos.process import WORKER
from tests.chaos.run import Plan, Report, run_chaos

__all__ = ["main"]

NO_BROKER = 3
"""Exit code where no embedded broker can be had: no Java, or no jars."""
SHOWN = 40


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0, help="how long faults come (default 900)")
    parser.add_argument("--seed", type=int, default=None, help="of faults and load (default: a new one)")
    parser.add_argument("--rate", type=float, default=150.0, help="records a second (default 150)")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout, and nothing else")
    parser.add_argument("--json-file", type=Path, help="also write the report there, as JSON")
    parser.add_argument("--keep", type=Path, help="folder for logs and snapshots (default: a temporary one)")
    parser.add_argument(
        "--control",
        choices=("offsets_first", "no_transactions"),
        help="run these workers instead, which are not exactly once: the audit must fail",
    )
    return parser.parse_args()


def text_of(report: Report) -> str:
    """The report, for people; the last line is the verdict."""
    r = report
    lines = [
        f"seed={r.seed} seconds={r.seconds:g} kills={r.kills} (in service: {r.kills_in_service}) "
        f"zombies={r.zombies} stops={r.stops} added={r.added} removed={r.removed} "
        f"ended_by_themselves={r.ended} broker_restarts={r.broker_kills + r.broker_stops} "
        f"(killed: {r.broker_kills})",
        f"events={r.events} requests={r.requests} accepted={r.accepted} rejected={r.rejected} "
        f"duplicates={r.duplicates} late={r.late} lists={r.lists} dead_letters={r.dead_letters} "
        f"users={r.users}",
        f"snapshots={r.snapshots} digest={r.digest[:16]} drain_s={r.drain_s:g} audit_s={r.audit_s:g}",
        *(f"  trouble: {line}" for line in r.trouble),
        *(f"  VIOLATION: {line}" for line in r.findings[:SHOWN]),
    ]
    if len(r.findings) > SHOWN:
        lines.append(f"  ... and {len(r.findings) - SHOWN} more violations")
    what = "STUCK, what was not handled counts as lost" if r.stuck else "NOT EXACTLY ONCE"
    verdict = "clean" if r.clean else f"{what} (wrong={r.wrong}), seed {r.seed}, logs in {r.folder}"
    return "\n".join([*lines, f"chaos: {verdict}: lost={r.lost} duplicated={r.duplicated}"])


def main() -> int:
    """0 when the run was exactly once, 1 when not, 3 when there is no broker to be had."""
    given = _arguments()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    command = WORKER if given.control is None else ("-m", f"tests.chaos.controls.{given.control}")
    plan = Plan(seed=seed, seconds=given.seconds, rate=given.rate, command=command, folder=given.keep)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"chaos {time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    say(f"seed {seed}")
    try:
        report = run_chaos(plan, say)
    except EmbeddedBrokerError as error:
        print(f"chaos: seed {seed}: {error}", file=sys.stderr)
        return NO_BROKER
    data = msgspec.to_builtins(report)
    if given.json_file is not None:
        given.json_file.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(json.dumps(data) if given.json else text_of(report), flush=True)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
