"""Snapshots on stores of every kind: written beside and renamed, the last few kept, damage of any kind
passed over; and no pickle in any of the packages."""

from __future__ import annotations

import ast
import hashlib
import logging
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from streams.errors import SettingsError, StateError
from streams.settings import Settings
from streams.snapshots import SnapshotStore
from tests.test_streams.snapshot_log import state_at

ROOT = Path(__file__).parents[2]


class Recording(LocalFileSystem):
    """A folder that notes what is done to it, and fails where it is told to."""

    protocol = "recording"
    cachable = False
    done: list[tuple[str, str]] = []  # noqa: RUF012  # one list for all: the store makes the instance
    failing = ""

    def _note(self, what: str, path: str) -> None:
        Recording.done.append((what, path.rsplit("/", 1)[-1]))
        if what == Recording.failing:
            raise OSError(28, "No space left on device")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value if Recording.failing != "pipe_file" else value[:10], mode, **kwargs)
        self._note("pipe_file", path)

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        self._note("ls", path)
        return super().ls(path, detail, **kwargs)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self._note("mv", path2)
        super().mv(path1, path2, **kwargs)


def _on(small_log: Settings, url: str) -> SnapshotStore:
    return SnapshotStore(
        msgspec.structs.replace(small_log, state=msgspec.structs.replace(small_log.state, dir=url))
    )


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_any_store_keeps_the_last_few_and_gives_the_newest_back(
    small_log: Settings, scheme: str, tmp_path: Path
) -> None:
    url = f"{scheme}/{uuid.uuid4().hex}" if scheme == "memory://" else f"{scheme}{tmp_path / 'deep' / 'er'}"
    store = _on(small_log, url)
    for n in range(1, 6):
        store.save(state_at(10 * n, n))
    assert [int(name.split("-")[1]) for name in store.names()] == [5, 4, 3]
    found = store.newest_or_empty()
    assert (found.offset, found.digest()) == (5, state_at(50, 5).digest())
    filesystem, folder = fsspec.core.url_to_fs(url)
    whole = [path for path in filesystem.find(folder) if path.endswith(".safetensors")]
    assert len(whole) == len(filesystem.find(folder)) == 3, "nothing half written is left"


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("nonsense", "")])
def test_a_store_without_its_package_is_said(
    small_log: Settings, scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"\[state\] dir = '{scheme}://.*freshet\[s3\]"):
        _on(small_log, f"{scheme}://bucket/snapshots")


def test_it_is_written_beside_and_renamed_and_a_full_disk_leaves_nothing(
    small_log: Settings, tmp_path: Path
) -> None:
    fsspec.register_implementation("recording", Recording, clobber=True)
    store = _on(small_log, f"recording://{tmp_path}/snapshots")
    Recording.done, Recording.failing = [], ""
    name = store.save(state_at(10, 1))
    (first, beside), second = (done for done in Recording.done if done[0] != "ls")
    assert (first, second) == ("pipe_file", ("mv", name))
    assert beside.startswith(f".{name}.")
    for failing in ("pipe_file", "mv"):
        Recording.failing = failing
        with pytest.raises(OSError, match="No space left"):
            store.save(state_at(20, 2))
        assert [path.name for path in tmp_path.rglob("*safetensors*")] == [name]
    Recording.failing = ""
    assert store.newest_or_empty().offset == 1


def _named(offset: int, data: bytes) -> str:
    """The name that a snapshot with these bytes would have."""
    return f"items-{offset:020d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"


def test_whole_files_that_are_no_snapshots_are_passed_over(
    small_log: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their digests are right: it is what they hold that is not."""
    store = _on(small_log, str(tmp_path))
    folder = next(Path(tmp_path).rglob(store.save(state_at(10, 1)))).parent
    arrays = safetensors.numpy.load(state_at(10, 9).to_bytes())
    wrong = [
        b"",
        b"\x80\x04\x95 this was another format once",
        safetensors.numpy.save(arrays),
        safetensors.numpy.save(arrays, {"format": "999"}),
        safetensors.numpy.save({}, {"format": "1"}),
    ]
    for offset, data in enumerate(wrong, start=2):
        (folder / _named(offset, data)).write_bytes(data)
    (folder / _named(9, b"gone")).symlink_to(folder / "gone")
    with caplog.at_level(logging.WARNING):
        assert store.newest_or_empty().offset == 1
    for offset, data in enumerate(wrong, start=2):
        assert f"snapshot {_named(offset, data)}: " in caplog.text


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cut=strategies.floats(0, 1, exclude_max=True), bit=strategies.integers(0, 7), flip=strategies.booleans()
)
def test_no_cut_and_no_flipped_bit_goes_unnoticed(
    small_log: Settings, tmp_path: Path, cut: float, bit: int, flip: bool
) -> None:
    store = _on(small_log, str(tmp_path / uuid.uuid4().hex))
    store.save(state_at(10, 1))
    newest = next(tmp_path.rglob(store.save(state_at(20, 2))))
    data = bytearray(newest.read_bytes())
    place = int(cut * len(data))
    if flip:
        data[place] ^= 1 << bit
    else:
        del data[place:]
    newest.write_bytes(data)
    found = store.newest_or_empty()
    assert (found.offset, found.digest()) == (1, state_at(10, 1).digest())
    newest.unlink()


def test_a_store_that_cannot_be_listed_is_said(small_log: Settings, tmp_path: Path) -> None:
    fsspec.register_implementation("recording", Recording, clobber=True)
    store = _on(small_log, f"recording://{tmp_path}")
    Recording.failing = ""
    store.save(state_at(10, 1))
    Recording.failing = "ls"
    with pytest.raises(StateError, match=r"can't be listed.*\[state\] dir"):
        store.newest_or_empty()


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def _loads_code(tree: ast.AST) -> list[str]:
    """What in a module could run code from a file: pickle in any of its forms."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            name = ast.unparse(node.func)
            if given.get("allow_pickle", "False") != "False":
                found.append(f"{name}(allow_pickle={given['allow_pickle']})")
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if name in ("torch.save", "pd.read_pickle", "pandas.read_pickle"):
                found.append(name)
    return found


def test_no_pickle_anywhere() -> None:
    files = [
        path for package in ("streams", "serving", "online_models") for path in (ROOT / package).rglob("*.py")
    ]
    assert len(files) > 50
    found = {str(path.relative_to(ROOT)): _loads_code(ast.parse(path.read_text())) for path in files}
    assert not {path: what for path, what in found.items() if what}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=flag)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
    ],
)
def test_pickle_in_any_form_is_seen(code: str) -> None:
    assert _loads_code(ast.parse(code))
