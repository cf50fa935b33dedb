"""The cache of vectors on disk: whatever happens to the file, a key never gets another key's vector."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.content.vector_cache import VectorCache

DIM = 3
RECORD = 32 + 4 * DIM + 4


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=DIM).astype(np.float32)


def ask(cache: VectorCache, numbers: list[int]) -> list[int]:
    """Ask for keys, check what comes; returns those that had to be made."""
    made: list[int] = []

    def make(places: list[int]) -> np.ndarray:
        made.extend(numbers[place] for place in places)
        return np.stack([vector(numbers[place]) for place in places])

    found = cache.find_or_make([key(number) for number in numbers], make)
    for number, got in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(got, vector(number))
    return made


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("other"), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("restart"), st.just([])),
        st.tuples(st.just("cut"), st.lists(st.integers(0, 400), min_size=1, max_size=1)),
        st.tuples(st.just("spoil"), st.lists(st.integers(0, 400), min_size=1, max_size=1)),
    ),
    max_size=12,
)


@given(steps, st.sampled_from([4 * RECORD, 1 << 20]))
@settings(max_examples=60)
def test_every_answer_is_the_key_s_own(taken: list[tuple[str, list[int]]], max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors"
        mine, other = VectorCache(file, DIM, max_bytes), VectorCache(file, DIM, max_bytes)
        for what, numbers in taken:
            if what in ("ask", "other"):
                made = ask(mine if what == "ask" else other, numbers)
                assert not made or ask(VectorCache(file, DIM, max_bytes), made) == []
                assert file.stat().st_size <= max_bytes
            elif what == "restart":
                mine = VectorCache(file, DIM, max_bytes)
            elif file.exists() and file.stat().st_size:
                data = bytearray(file.read_bytes())
                place = numbers[0] % len(data)
                if what == "spoil":
                    data[place] ^= 1
                file.write_bytes(data[:place] if what == "cut" else data)


def test_vectors_outlive_the_process_and_are_found_without_making(tmp_path: Path) -> None:
    file = tmp_path / "deeper" / "vectors"
    assert ask(VectorCache(file, DIM), [1, 2, 3]) == [1, 2, 3]
    assert ask(VectorCache(file, DIM), [2, 4, 1]) == [4]
    found = VectorCache(file, DIM).find([key(3), key(5)])
    np.testing.assert_array_equal(found[0], vector(3))
    assert found[1] is None
    assert file.stat().st_size == 4 * RECORD


def test_a_torn_record_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    ask(VectorCache(file, DIM), [1, 2])
    file.write_bytes(file.read_bytes()[:-5])
    assert VectorCache(file, DIM).find([key(2)]) == [None]
    assert ask(VectorCache(file, DIM), [1, 2, 3]) == [2, 3]
    assert file.stat().st_size == 3 * RECORD
    assert ask(VectorCache(file, DIM), [1, 2, 3]) == []


def test_processes_that_ask_at_once_make_each_vector_once(tmp_path: Path) -> None:
    """The order of the keys is each one's own, as that of topics' partitions is."""
    code = f"""if True:
        import hashlib, sys, time
        import numpy as np
        from pathlib import Path
        from serving.content.vector_cache import VectorCache
        cache, made = VectorCache(Path({str(tmp_path / "vectors")!r}), {DIM}), []
        numbers = np.random.default_rng(int(sys.argv[1])).permutation(60).tolist()
        def make(places):
            time.sleep(0.005)
            made.extend(part[place] for place in places)
            return np.ones((len(places), {DIM}), np.float32)
        for start in range(0, 60, 4):
            part = numbers[start : start + 4]
            cache.find_or_make([hashlib.sha256(str(n).encode()).digest() for n in part], make)
        print(*made)"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    made = [int(number) for one in running for number in one.communicate(timeout=100)[0].split()]
    assert sorted(made) == list(range(60))
    assert [one.returncode for one in running] == [0, 0, 0]


def test_threads_share_the_file_as_processes_do(tmp_path: Path) -> None:
    made: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: [made.extend(ask(VectorCache(tmp_path / "v", DIM), [n, n + 1])) for n in range(10)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == list(range(11))


def test_a_disk_that_fails_costs_encodings_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    cache = VectorCache(tmp_path / "file" / "vectors", DIM)
    with caplog.at_level(logging.WARNING):
        assert ask(cache, [1, 2]) == [1, 2]
        assert ask(cache, [1, 2]) == [1, 2]
    assert len([one for one in caplog.records if "fails" in one.message]) == 1


@pytest.mark.parametrize("cache", [VectorCache(None, DIM), VectorCache(Path("never-made"), DIM, 0)])
def test_without_a_file_nothing_is_kept(cache: VectorCache) -> None:
    assert cache.find([key(1)]) == [None]
    assert ask(cache, [1]) == [1]
    assert ask(cache, [1]) == [1]
    assert not Path("never-made").exists()
