"""`freshet models`: ranker versions for operators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from streams.cli_common import JSON, Context, show, table

__all__ = ["models"]


@click.group()
def models() -> None:
    """Ranker versions."""


@models.command("list")
@JSON
@click.pass_obj
def models_list(context: Context, as_json: bool) -> None:
    """Versions in the registry and what became of them: live, shadow, dropped, refused, superseded, or only
    stored."""
    from streams.model_commands import list_models

    rows = list_models(context.settings())
    if as_json:
        show(rows)
    else:
        columns = ["version", "status", "against", "ndcg_at_10", "precision", "trained_on", "reason"]
        table([{name: _text(row[name]) for name in columns} for row in rows], columns)


@models.command("show")
@click.argument("version")
@JSON
@click.pass_obj
def models_show(context: Context, version: str, as_json: bool) -> None:
    """VERSION's manifest: what it was trained on, the gate's numbers, its files, what compression cost."""
    from streams.model_commands import show_model

    shown = show_model(context.settings(), version)
    if as_json:
        show(shown)
    else:
        _print_model(shown)


@models.command("promote")
@click.argument("version")
@click.option(
    "--shadow", is_flag=True, help="Score it beside the live one first; workers promote or drop it."
)
@JSON
@click.pass_obj
def models_promote(context: Context, version: str, shadow: bool, as_json: bool) -> None:
    """Make VERSION of the registry the live one; every worker verifies it, then swaps."""
    from streams.model_commands import promote

    record = promote(context.settings(), version, shadow=shadow)
    if as_json:
        show(record)
    else:
        beside = f", beside {record.against} for a while" if record.against else ""
        click.echo(f"{record.model} {record.version} is {record.status}{beside}")


@models.command("rollback")
@JSON
@click.pass_obj
def models_rollback(context: Context, as_json: bool) -> None:
    """Make the version before the live one live again."""
    from streams.model_commands import rollback

    record = rollback(context.settings())
    if as_json:
        show(record)
    else:
        click.echo(f"{record.model} {record.version} is live")


def _print_model(shown: dict[str, Any]) -> None:
    manifest = shown["manifest"]
    created = datetime.fromtimestamp(manifest["created_at_ms"] / 1000, tz=UTC)
    trained = manifest["trained_on"]
    pairs = {
        "version": shown["version"],
        "status": shown["status"] + (f", beside {shown['against']}" if shown["against"] else ""),
        "reason": shown["reason"],
        "digest": shown["digest"],
        "place": shown["uri"],
        "created": f"{created:%Y-%m-%d %H:%M:%S} UTC, freshet {manifest['code_version']}",
        "network": f"{manifest['network']}, {manifest['precision']}, opset {manifest['opset']}"
        + (", fused with the online scores" if manifest["fused"] else ""),
        "trained on": f"{trained['interactions']} interactions, offsets {trained['from_offset']} to"
        f" {trained['to_offset']}",
        "items": f"{manifest['vocabulary_size']}, histories of {manifest['history_length']}",
        "event types": ", ".join(manifest["event_types"]),
        "features": ", ".join(manifest["features"]),
        "content": ", ".join(f"{one['name']} ({one['dim']})" for one in manifest["content"]),
    }
    for name, text in pairs.items():
        if text:
            click.echo(f"{name:<12}{text}")
    _print_gate(manifest["gate"])
    click.echo("\nmetrics")
    table([{"metric": name, "value": _text(value)} for name, value in sorted(manifest["metrics"].items())], [
        "metric", "value",
    ])  # fmt: skip
    click.echo("\nfiles")
    files = manifest["files"].items()
    table([{"file": name, **entry} for name, entry in sorted(files)], ["file", "size_bytes", "sha256"])
    _print_compression(manifest["compression"])


def _print_gate(gate: dict[str, Any]) -> None:
    click.echo(f"\ngate: {'accepted' if gate['accepted'] else 'refused'} on {gate['events']} events")
    for reason in gate["reasons"]:
        click.echo(f"  {reason}")
    who = [(name, gate[name]) for name in ("challenger", "champion", "popularity") if gate[name] is not None]
    table(
        [{"who": name, **{key: _text(value) for key, value in score.items()}} for name, score in who],
        ["who", "hr_at_10", "ndcg_at_10"],
    )
    for one in gate["comparisons"]:
        click.echo(
            f"against {one['against']}: NDCG@10 {one['ndcg_gain']:+.4f}, 95 % {one['low']:+.4f} to"
            f" {one['high']:+.4f}"
        )


def _print_compression(compression: dict[str, dict[str, float]]) -> None:
    if not compression:
        return
    click.echo("\ncompression")
    columns = sorted({name for figures in compression.values() for name in figures})
    rows = [
        {"way": way, **{name: _text(figures.get(name)) for name in columns}}
        for way, figures in compression.items()
    ]
    table(rows, ["way", *columns])


def _text(value: Any) -> str:
    """A cell: four digits of a number that is none whole, nothing for what is unknown."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
