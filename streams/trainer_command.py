"""`freshet trainer`: train the deep ranker, as a process beside the workers, once, or on a data set alone."""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streams.cli_common import JSON, Context, progress_bar, show, stop_on_signals, table
from streams.errors import FreshetError
from streams.settings import Settings

if TYPE_CHECKING:
    from serving.training.distributed import World

__all__ = ["trainer"]


@click.command()
@click.option("--once", is_flag=True, help="Train once on all that the learning log holds, then end.")
@click.option(
    "--dataset",
    help="With --once, without Kafka: ml-100k, synthetic, or an .inter, .csv, .parquet or .jsonl file.",
)
@click.option("--events", type=click.IntRange(min=1), help="Of the data set, only the first so many.")
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS",
    help="A column's name in the file, as user_id=userId.",
)  # fmt: skip
@click.option("--network", help="transformer, gru, cnn, ncf, two_tower. Default: trainer.network.")
@click.option(
    "--from-offset",
    type=click.IntRange(min=0),
    help="Read the learning log from here. Default: its beginning.",
)
@click.option("--from-time", help="Or from the first record at or after this time: ms, or RFC 3339.")
@click.option(
    "--set",
    "keys",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting, as trainer.dim=128; may be repeated.",
)
@click.option(
    "--out", help="Folder or URL of the registry that the version goes into. Default: registry.url."
)
@click.option("--champion", help="With --dataset: the version in that registry to beat, and to start from.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path),
    help="With --dataset: write a page with curves, metrics and slices here.",
)  # fmt: skip
@JSON
@click.pass_obj
def trainer(
    context: Context, once: bool, dataset: str | None, events: int | None, columns: tuple[str, ...],
    network: str | None, from_offset: int | None, from_time: str | None, keys: tuple[str, ...],
    out: str | None, champion: str | None, report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Train the deep ranker as the log grows, gate it, and announce what passes.

    On several processes or GPUs: torchrun --nproc_per_node=2 -m streams.cli trainer ..."""
    stop_on_signals(_end_here)  # importing PyTorch takes seconds
    given: dict[str, dict[str, Any]] = {
        "trainer": {"network": network},
        "schedule": {"from_offset": from_offset, "from_time": from_time},
        "registry": {"url": out},
    }
    settings = context.settings(**_overrides(keys, given))
    _check(
        once, dataset, {"--events": events, "--column": columns, "--champion": champion, "--report": report}
    )
    _check_histories(settings)
    if report is not None and not report.absolute().parent.is_dir():  # before the run, which may take long
        raise FreshetError(
            f"--report {report}: there is no folder {report.absolute().parent}; make it first."
        )
    try:
        from serving.training.device import DeviceError, choose_device
        from serving.training.distributed import ProcessLostError, joined
    except ModuleNotFoundError as error:
        raise FreshetError(
            f"the trainer needs {error.name}: install the `train` extra of this package."
        ) from error
    try:
        with joined(choose_device(settings.trainer.device)) as world:
            if dataset is not None:
                _on_dataset(settings, world, dataset, events, columns, champion, report, as_json)
            elif once:
                _once(settings, world, as_json)
            else:
                _forever(settings, world)
    except (DeviceError, ProcessLostError) as error:
        raise FreshetError(str(error)) from error


def _forever(settings: Settings, world: World) -> None:
    from streams.trainer import Trainer

    running = Trainer(settings, world=world)
    stop_on_signals(running.stop)
    running.run()


def _once(settings: Settings, world: World, as_json: bool) -> None:
    from streams.trainer import Trainer

    stop_on_signals(lambda: sys.exit(130))  # nothing is published before the end
    with _progress(world) as update:
        record, _ = Trainer(
            settings, lambda stage: update(round(100 * stage.fraction), f"{stage.name}: {stage.text}"), world
        ).run_once()
    if record is None:
        return
    if as_json:
        show(record)
    else:
        click.echo(f"{record.model} {record.version} is {record.status}. {record.reason or ''}".rstrip())
        for name, value in sorted(record.metrics.items()):
            click.echo(f"  {name} {value:.4f}")


def _on_dataset(
    settings: Settings, world: World, dataset: str, events: int | None, columns: Sequence[str],
    champion: str | None, report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    from streams.datasets import load_dataset
    from streams.trainer_local import summary_of, train_on_dataset

    stop_on_signals(lambda: sys.exit(130))  # the next run with the same words continues this one
    data = load_dataset(dataset, columns=_pairs("--column", columns, "user_id=userId"))
    with _progress(world) as update:
        found = train_on_dataset(
            settings, data, events, champion, world,
            lambda stage: update(round(100 * stage.fraction), f"{stage.name}: {stage.text}"),
        )  # fmt: skip
    if found is None:
        return
    if report is not None:
        from serving.training.report import html_report

        report.write_text(html_report(found, data.name), encoding="utf-8")
    summary = summary_of(found, data.name)
    if as_json:
        show(summary)
    else:
        _print(summary)


def _progress(world: World) -> AbstractContextManager[Callable[[float, str], None]]:
    """One bar, the first process's."""
    return progress_bar("training", 100) if world.leads else nullcontext(lambda _done, _text: None)


def _print(summary: dict[str, Any]) -> None:
    where = f"{summary['version']} is in {summary['uri']}" if summary["version"] else "refused"
    click.echo(
        f"{summary['dataset']}: {summary['interactions']:,} interactions, {summary['items']:,} items;"
        f" {summary['epochs']} epochs in {summary['train_seconds']:.0f} s; {where}"
    )
    for reason in summary["reasons"]:
        click.echo(f"  not published: {reason}")
    for note in summary["notes"]:
        click.echo(f"  {note}")
    metrics = summary["metrics"]
    whose = ("challenger", "champion", "online", "popularity")
    rows = [
        {"": name, "HR@10": f"{hr:.4f}", "NDCG@10": f"{metrics[f'{name}_ndcg_at_10']:.4f}"}
        for name in whose
        if (hr := metrics.get(f"{name}_hr_at_10")) is not None
    ]
    table(rows, ["", "HR@10", "NDCG@10"])


def _check(once: bool, dataset: str | None, of_dataset: dict[str, object]) -> None:
    if dataset is not None and not once:
        raise FreshetError("--dataset trains once, on that data alone: give --once, too.")
    unused = [name for name, value in of_dataset.items() if value]
    if dataset is None and unused:
        raise FreshetError(f"{', '.join(unused)} only counts with --dataset.")


def _check_histories(settings: Settings) -> None:
    """A network that is trained and judged on more than workers keep would be served on less."""
    trained_on, kept = settings.trainer.history_length, settings.user_state.recent
    if trained_on > kept:
        raise FreshetError(
            f"trainer.history_length={trained_on}, but workers keep {kept} recent events of a user"
            f" (user_state.recent): raise that to {trained_on} for them too, or lower the first."
        )


def _overrides(keys: Sequence[str], given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`trainer.dim=128` as nested tables, over what other options say."""
    tree: dict[str, Any] = {
        section: {name: value for name, value in table.items() if value is not None}
        for section, table in given.items()
    }
    for key, text in _pairs("--set", keys, "trainer.dim=128").items():
        *path, last = key.split(".")
        if not path:
            raise FreshetError(f"--set {key}={text}: name the section, as in trainer.dim=128.")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        try:
            node[last] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            node[last] = text
    return {section: table for section, table in tree.items() if table}


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        if not (left.strip() and equals and right.strip()):
            raise FreshetError(f"{option} {text!r}: write it as {example}.")
        found[left.strip()] = right.strip()
    return found


def _end_here() -> None:
    logging.shutdown()
    os._exit(0)
