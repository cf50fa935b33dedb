"""Data sets to replay and to evaluate on: MovieLens-100K, the synthetic generator, or a file of one's own.

- `ml-100k`: 100,000 ratings of 1,682 movies by 943 people. It is fetched from inside the RecBole package on
  first use and never shipped: GroupLens lets it be used for research, not passed on.
- `synthetic`: `streams.synthetic` with its default size.
- `*.inter`: RecBole's atomic file, tab-separated with typed column names: `user_id`, `item_id`, and
  optionally `rating` and `timestamp` (seconds); without times the file's order counts, an event a second. A
  sibling `.item` file gives titles.
- `*.csv`: comma-separated with a header: `user_id`, `item_id`, `timestamp`, and optionally `rating` or
  `value`, `event_type`, `event_id`, `session_id`. Columns of other names are named by `columns`.
- `*.parquet`: the same columns, where pyarrow is installed.
- `*.jsonl`: one event of the wire format per line, in the order in which they are to be sent.

Reference: F. M. Harper, J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from serving.package_files import PackageFilesError, fetch_package_files
from streams.errors import DatasetError
from streams.events import Event, Item
from streams.settings import default_state_dir
from streams.synthetic import Truth, synthetic

__all__ = ["Dataset", "load_dataset", "time_ms"]

REQUIREMENT = "recbole==1.2.1"
ML_100K = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
"""SHA-256 of the files inside the package; another copy of MovieLens orders ties differently."""

SUFFIXES = (".inter", ".csv", ".parquet", ".jsonl")
COLUMNS = ("user_id", "item_id", "timestamp", "rating", "value", "event_type", "event_id", "session_id")
MILLISECONDS_FROM = 10**11
"""A table's numeric timestamp from here on is in milliseconds: in seconds it would be past the year 5000."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Events in the order in which they happened, and the catalogue they speak of."""

    name: str
    events: list[Event]
    items: dict[str, Item] = field(default_factory=dict)
    truth: Truth | None = None
    """What the synthetic generator planted; None for real data."""


def load_dataset(
    name: str, cache_dir: Path | None = None, columns: Mapping[str, str] | None = None
) -> Dataset:
    """`ml-100k`, `synthetic`, or the path of an `.inter`, `.csv`, `.parquet` or `.jsonl` file.

    Args:
        name: as above.
        cache_dir: where fetched data is kept; default `datasets` in the state folder.
        columns: our names to the file's where they differ, as {"user_id": "userId"}.

    Raises:
        DatasetError: the name or file is unknown, can't be fetched, or a row can't be read (it names file and
            line).
    """
    if name == "ml-100k":
        return _ml_100k((cache_dir or default_state_dir() / "datasets") / "ml-100k")
    if name == "synthetic":
        made = synthetic()
        return Dataset("synthetic", made.events, made.items, made.truth)
    path = Path(name)
    if path.suffix not in SUFFIXES:
        raise DatasetError(
            f"no data set {name!r}: give ml-100k, synthetic, or a file ending in {', '.join(SUFFIXES)}."
        )
    if not path.is_file():
        raise DatasetError(f"the data set file {path.absolute()} does not exist.")
    try:
        if path.suffix == ".jsonl":
            return _read_jsonl(path)
        if path.suffix == ".inter":
            return _read_inter(path, columns=columns)
        rows = _rows(path, ",") if path.suffix == ".csv" else _parquet_rows(path)
        return Dataset(path.stem, _read_events(path, rows, path.stem, columns=columns))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8: {error}. Convert it first.") from error


def _ml_100k(folder: Path) -> Dataset:
    try:
        fetch_package_files(REQUIREMENT, "recbole/dataset_example/ml-100k", ML_100K, folder)
    except PackageFilesError as error:
        raise DatasetError(
            f"MovieLens-100K comes inside a package. {error} Or use --dataset synthetic or a file."
        ) from error
    return _read_inter(folder / "ml-100k.inter", name="ml-100k", event_prefix="ml")


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and named fields of each row; RecBole's `name:type` headers lose their types."""
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a byte order mark
        tabs = delimiter == "\t"  # RecBole's files quote nothing, and titles hold quotes
        reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
        header = [name.partition(":")[0].strip() for name in next(reader, [])]
        for row in reader:
            if not row:  # an empty line, as many files end with
                continue
            if len(row) != len(header):
                raise DatasetError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, and the header has {len(header)}."
                    " Mend the line."
                )
            yield reader.line_num, dict(zip(header, row, strict=True))


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """As `_rows`, with the row's number from 1; times as ISO 8601, nothing for what is null."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        arrow_error = importlib.import_module("pyarrow").ArrowException
    except ImportError as error:
        raise DatasetError(
            f"{path} needs pyarrow, which can't be loaded ({error}): pip install pyarrow, or make the file"
            " a CSV file."
        ) from error
    number = 0
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        for batch in file.iter_batches(batch_size=65_536):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, {name: _text(value) for name, value in zip(names, values, strict=True)}
    except arrow_error as error:
        raise DatasetError(f"{path}, after row {number}: {error}. Mend the file.") from error


def _text(value: object) -> str:
    if value is None or value != value:  # a table's NaN is a missing value too
        return ""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def time_ms(text: str) -> int:
    """Epoch ms of a number of seconds or milliseconds, or of ISO 8601 (UTC unless it says otherwise)."""
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    return round(number * 1000) if number < MILLISECONDS_FROM else round(number)


def _event(row: dict[str, str], event_id: str, at_ms: int) -> Event:
    rating = row.get("rating") or None
    value = rating or row.get("value") or None
    return Event(
        event_id=row.get("event_id") or event_id,
        user_id=row["user_id"],
        item_id=row["item_id"],
        event_type=row.get("event_type") or ("rating" if rating else "click"),
        timestamp=at_ms,
        value=None if value is None else float(value),
        session_id=row.get("session_id") or None,
    )


def _renamed(row: dict[str, str], columns: Mapping[str, str]) -> dict[str, str]:
    """The row by our names; a column that was named and is not there raises KeyError."""
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items()}} if columns else row


def _read_events(
    path: Path, rows: Iterator[tuple[int, dict[str, str]]], prefix: str,
    columns: Mapping[str, str] | None = None, times_optional: bool = False,
) -> list[Event]:  # fmt: skip
    """Events in order of time; those of one moment stay in the file's order. Where times are optional
    and there are none, events are a second apart."""
    if unknown := sorted(set(columns or {}) - set(COLUMNS)):
        raise DatasetError(
            f"no column {', '.join(unknown)} can be named; those that can: {', '.join(COLUMNS)}."
        )
    events: list[Event] = []
    for line, found in rows:
        try:
            row = _renamed(found, columns or {})
            timed = "timestamp" in row or not times_optional
            at = time_ms(row["timestamp"]) if timed else 1000 * len(events)
            events.append(_event(row, f"{prefix}-{len(events)}", at))
        except KeyError as error:
            raise DatasetError(
                f"{path} has no column {error.args[0]}; needed are user_id, item_id and timestamp, and it has"
                f" {', '.join(found)}. Rename the column, or say which one is meant (--column)."
            ) from error
        except (ValueError, OverflowError) as error:
            raise DatasetError(f"{path}, line {line}: {error}. Mend the line.") from error
    if not events:
        raise DatasetError(f"{path} holds no events. Give a file with a header and rows.")
    events.sort(key=lambda event: event.timestamp)
    return events


def _read_inter(
    path: Path, name: str | None = None, event_prefix: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Dataset:  # fmt: skip
    events = _read_events(
        path, _rows(path, "\t"), event_prefix or path.stem, times_optional=True, columns=columns
    )
    catalogue = path.with_suffix(".item")
    items = {item.item_id: item for item in _read_items(catalogue)} if catalogue.is_file() else {}
    return Dataset(name or path.stem, events, items)


_ARTICLE_LAST = re.compile(r"^(?P<title>.+), (?P<article>The|A|An)(?P<rest>( \(.*\))?)$")


def _title(row: dict[str, str]) -> str | None:
    """`Usual Suspects, The` of 1995 as people say it: `The Usual Suspects (1995)`."""
    title = row.get("movie_title") or row.get("title") or row.get("name")
    if not title:
        return None
    title = _ARTICLE_LAST.sub(r"\g<article> \g<title>\g<rest>", title)
    year = row.get("release_year", "")
    return f"{title} ({year})" if year.isdigit() else title


def _read_items(path: Path) -> Iterator[Item]:
    for line, row in _rows(path, "\t"):
        if not row.get("item_id"):
            raise DatasetError(f"{path}, line {line}: no item_id. Mend the line.")
        genres = row.get("class") or row.get("genre") or row.get("categories") or ""
        yield Item(item_id=row["item_id"], title=_title(row), categories=genres.split())


def _read_jsonl(path: Path) -> Dataset:
    decoder = msgspec.json.Decoder(Event)
    events: list[Event] = []
    for line, text in enumerate(path.read_bytes().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            events.append(decoder.decode(text))
        except msgspec.DecodeError as error:
            raise DatasetError(
                f"{path}, line {line}: {error}. Mend the line; docs/events.md describes events."
            ) from error
    return Dataset(path.stem, events)
