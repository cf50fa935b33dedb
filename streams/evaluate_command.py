"""`freshet evaluate`: how well the online models rank on a data set, test-then-learn or offline."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streams.cli_common import JSON, Context, progress_bar, show
from streams.errors import FreshetError
from streams.interactions import Interactions

if TYPE_CHECKING:
    from online_models.evaluation.arena import Evaluated

__all__ = ["evaluate"]

WARM_UP_EVENTS = 40


@click.command()
@click.option(
    "--dataset",
    default="ml-100k",
    show_default=True,
    help="ml-100k, synthetic, or an .inter, .csv, .parquet or .jsonl file.",
)
@click.option(
    "--models",
    default="covisitation,popularity",
    show_default=True,
    help="Names with commas between; all = every one.",
)
@click.option(
    "--protocol",
    type=click.Choice(["prequential", "last-positive-out", "temporal"]),
    default="prequential",
    show_default=True,
    help="Judge each event, then learn it; hold out each user's last positive; or split by time at 80%.",
)
@click.option("--events", type=click.IntRange(min=1), help="Only the first so many.")
@click.option("--min-rating", type=float, help="Leave out events with a lower rating.")
@click.option(
    "--positive-from", default=4.0, show_default=True, help="Lowest rating that last-positive-out holds out."
)
@click.option(
    "--delay",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds of event time after which an event is learned.",
)
@click.option(
    "--window", type=click.IntRange(min=1), default=5000, show_default=True, help="Judged events in a window."
)
@click.option(
    "--param",
    "parameters",
    multiple=True,
    metavar="MODEL.NAME=VALUE",
    help="A model's parameter; may be repeated.",
)
@click.option(
    "--search",
    "trials",
    type=click.IntRange(min=1),
    metavar="TRIALS",
    help="Search each model's numeric parameters, so many sets of them; needs the extra `search`.",
)
@click.option(
    "--search-share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of the events, the first, on which is searched.",
)
@click.option(
    "--tie-seed",
    type=int,
    help="Put one user's events of the same moment into another order; their file's without.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    help="A column's name in the file, as user_id=userId.",
)
@click.option(
    "--peers", help="Other libraries beside ours: river, implicit, rectools, gorse, with commas between."
)
@click.option("--seed", default=0, show_default=True, help="Of bootstrap, search and peers.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots here."
)
@JSON
@click.pass_obj
def evaluate(
    context: Context, dataset: str, models: str, protocol: str, events: int | None, min_rating: float | None,
    positive_from: float, delay: float, window: int, parameters: tuple[str, ...], columns: tuple[str, ...],
    trials: int | None, search_share: float, tie_seed: int | None, peers: str | None, seed: int,
    report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Judge models on a data set: full ranking of all items, hit rate, NDCG and more, and whether they
    differ."""
    from online_models.evaluation.protocols import run_protocol
    from online_models.evaluation.results import summarise
    from streams.datasets import load_dataset
    from streams.evaluate_search import search_models
    from streams.evaluate_tables import print_tables

    if report is not None and not report.absolute().parent.is_dir():  # before the run, which may take long
        raise FreshetError(
            f"--report {report}: there is no folder {report.absolute().parent}; make it first."
        )
    given = _parameters(parameters)
    chosen = _models(models, given)
    others = _peers(peers, protocol, positive_from, seed)
    data = load_dataset(dataset, columns=_columns(columns))
    stream = Interactions(data, context.settings().validation.weights(), min_rating, events, tie_seed)
    _say(f"{data.name}: {len(stream):,} events; {stream.left_out:,} left out (no item, weight 0 or rating)")
    searched = max(int(search_share * len(stream)), 1) if trials else None
    with _plain_errors():
        for name in chosen:
            _warm_up(name, given.get(name, {}), stream)
        if trials and searched:
            given = search_models(
                list(chosen), given, stream, searched, trials, seed, protocol, positive_from
            )
            chosen = _models(",".join(chosen), given)
        for model in chosen.values():
            _tell_catalogue(model, stream.catalogue())
        with progress_bar(protocol, len(stream)) as update:
            run = run_protocol(
                protocol, {**chosen, **others}, stream, stream.categories(),
                lambda done: update(done, ""), positive_from, delay,
            )  # fmt: skip
            update(len(stream), "")
        result = summarise(run, data.name, window, seed, given, searched)
    if not result.judged:
        _say(
            "no event could be judged (repeats, weights below 0, or no positive one): the figures say nothing"
        )
    if report is not None:
        from online_models.evaluation.report import html_report

        report.write_text(html_report(result), encoding="utf-8")
    if as_json:
        show(result)
    else:
        print_tables(result)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What a model refuses, of the data or of its own scores, is one line for the operator."""
    from online_models.evaluation.peer_gorse import GorseError

    try:
        yield
    except (ValueError, GorseError) as error:
        logging.getLogger("freshet").debug("evaluation ended", exc_info=error)
        raise FreshetError(f"{error}. Figures would be worthless, so there are none.") from error


def _say(text: str) -> None:
    click.echo(text, err=True)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _models(names: str, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Evaluated]:
    from online_models.registry import MODEL_NAMES, make_model

    chosen = list(MODEL_NAMES) if names.strip() == "all" else _names(names)
    if not chosen:
        raise FreshetError(f"--models names none; there are {', '.join(MODEL_NAMES)}, or all.")
    if unused := sorted(set(parameters) - set(chosen)):
        raise FreshetError(f"--param names {', '.join(unused)}, which --models doesn't.")
    made: dict[str, Evaluated] = {}
    for name in chosen:
        own = dict(parameters.get(name, {}))
        try:
            made[name] = make_model(name, own)
        except ValueError as error:
            raise FreshetError(f"{error}.") from error
        except TypeError as error:  # a value of another type; the models' own words name none
            stated = ", ".join(f"{name}.{key}={value!r}" for key, value in own.items())
            raise FreshetError(f"--param: a value of {stated} has the wrong type ({error}).") from error
    return made


def _parameters(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`isgd.dimension=64` as {"isgd": {"dimension": 64}}; a value is TOML, or else text."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        where, equals, value = text.partition("=")
        model, dot, name = where.strip().partition(".")
        if not (equals and dot and model and name):
            raise FreshetError(f"--param {text!r}: write MODEL.NAME=VALUE, as isgd.dimension=64.")
        try:
            found.setdefault(model, {})[name] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            found.setdefault(model, {})[name] = value.strip()
    return found


def _columns(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (ours, equals, theirs) in zip(texts, pairs, strict=True):
        if not (ours and equals and theirs):
            raise FreshetError(f"--column {text!r}: write OURS=THEIRS, as user_id=userId.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _peers(names: str | None, protocol: str, positive_from: float, seed: int) -> dict[str, Evaluated]:
    if names is None:
        return {}
    from online_models.evaluation.peers import MissingPeerError, make_peers

    found: dict[str, Evaluated] = {}
    try:
        for library in _names(names):
            found.update(make_peers(library, protocol, positive_from, seed))
    except (MissingPeerError, ValueError) as error:
        raise FreshetError(f"--peers: {error}.") from error
    return found


def _warm_up(name: str, parameters: Mapping[str, Any], stream: Interactions) -> None:
    """Have the kernels compiled before anything is timed, by a model that is thrown away."""
    from online_models.evaluation.protocols import prequential
    from online_models.registry import make_model

    _say(f"compiling {name}")
    prequential({name: make_model(name, dict(parameters))}, stream[:WARM_UP_EVENTS], stream.categories())


def _tell_catalogue(model: Evaluated, catalogue: Mapping[str, Mapping[str, Any]]) -> None:
    """What is known of the items before anybody uses them."""
    from online_models.base import OnlineRanker

    if isinstance(model, OnlineRanker):
        for item, entry in catalogue.items():
            model.learn_item(item, entry)
