"""How the demo went: counted from the topics, not from memory."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.datasets import Dataset
from streams.demo_watch import Watch
from streams.dumps import read_log, read_shards
from streams.events import summed
from streams.replay import ReplayReport
from streams.settings import Settings
from streams.user_records import ShardRecords, UserRecord

__all__ = ["show_summary", "summarise"]

EXAMPLES = 3
HISTORY_SHOWN = 5
LIST_SHOWN = 5


def summarise(settings: Settings, data: Dataset, watch: Watch, report: ReplayReport) -> dict[str, Any]:
    """The run in numbers; rates are over the events that were judged, each against the list before it."""
    shards = read_shards(settings)
    totals = summed(shard.stats for shard in shards.values())
    judged = max(1, totals.evaluated)
    lag = watch.lag
    learned = sum(record.n for record, _ in read_log(settings))
    return {
        "dataset": data.name,
        "events_in": report.events,
        "learned": learned,
        "duplicates": totals.duplicate,
        "rejected": totals.rejected,
        "late": totals.late,
        "recommendations_out": watch.lists,
        "coalesced": totals.coalesced,
        "degraded": totals.degraded,
        "lag": None if lag is None else lag.records,
        "lag_s": None if lag is None else lag.seconds,
        "hit_rate_at_10": round(totals.hits_at_10 / judged, 5),
        "ndcg_at_10": round(totals.ndcg_at_10_sum / judged, 5),
        "popularity_hit_rate_at_10": round(totals.popularity_hits_at_10 / judged, 5),
        "popularity_ndcg_at_10": round(totals.popularity_ndcg_at_10_sum / judged, 5),
        "evaluated": totals.evaluated,
        "swaps": watch.swaps(),
        "rankers": watch.rankers,
        "refused": watch.refused(),
        "latency_p50_ms": _rounded(watch.latency.quantile(0.5)),
        "latency_p99_ms": _rounded(watch.latency.quantile(0.99)),
        "events_per_s": round(report.events_per_s, 1),
        "seconds": round(report.seconds, 1),
        "accounted": learned == totals.accepted
        and totals.accepted + totals.duplicate + totals.rejected + totals.late == report.events,
        "examples": _examples(shards, data, watch),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _examples(shards: dict[int, ShardRecords], data: Dataset, watch: Watch) -> list[dict[str, Any]]:
    """The users who were active last and have a history to show: what they used, and their list with its
    reasons."""
    users = [user for shard in shards.values() for user in shard.users.values()]
    shown = [u for u in users if len(u.recent_items) >= HISTORY_SHOWN and u.user_id in watch.last_list]
    shown.sort(key=lambda user: (-user.last_ms, user.user_id))
    return [_example(user, data, watch) for user in shown[:EXAMPLES]]


def _example(user: UserRecord, data: Dataset, watch: Watch) -> dict[str, Any]:
    def title(item_id: str) -> str:
        item = data.items.get(item_id)
        return item.title if item is not None and item.title else item_id

    answer = watch.last_list[user.user_id]
    return {
        "user_id": user.user_id,
        "events": user.events,
        "history": [title(item_id) for item_id in user.recent_items[: -HISTORY_SHOWN - 1 : -1]],
        "list": [
            {"item_id": item.item_id, "title": title(item.item_id), "reason": item.reason.text}
            for item in answer.items[:LIST_SHOWN]
        ],
    }


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """The summary as tables."""
    table = Table(title="Summary", show_header=False, title_justify="left")
    for name, value in _lines(summary):
        table.add_row(name, value)
    console.print()
    console.print(table)
    for example in summary["examples"]:
        console.print(Text(f"\nUser {example['user_id']}, {example['events']} events", style="bold"))
        console.print(Text(f"  used last: {' · '.join(example['history'])}"))
        for rank, item in enumerate(example["list"], 1):
            console.print(Text(f"  {rank}. {item['title']}").append(f"  {item['reason']}", style="dim"))


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    better = summary["hit_rate_at_10"] / max(summary["popularity_hit_rate_at_10"], 1e-9)
    return [
        ("data set", summary["dataset"]),
        (
            "events in",
            f"{summary['events_in']:,} in {summary['seconds']:,} s ({summary['events_per_s']:,}/s)",
        ),
        ("learned", f"{summary['learned']:,}"),
        (
            "duplicates / rejected / late",
            f"{summary['duplicates']:,} / {summary['rejected']:,} / {summary['late']:,}",
        ),
        ("recommendations out", f"{summary['recommendations_out']:,} (coalesced {summary['coalesced']:,})"),
        ("lag", f"{summary['lag']} records"),
        (
            "HR@10, what was served",
            f"{summary['hit_rate_at_10']:.4f}, popularity {summary['popularity_hit_rate_at_10']:.4f} "
            f"({better:.2f} x)",
        ),
        (
            "NDCG@10, what was served",
            f"{summary['ndcg_at_10']:.4f}, popularity {summary['popularity_ndcg_at_10']:.4f}",
        ),
        ("ranker swaps", f"{summary['swaps']} ({', '.join(summary['rankers']) or 'none'})"),
        ("latency p50 / p99", f"{summary['latency_p50_ms']} / {summary['latency_p99_ms']} ms"),
    ]
