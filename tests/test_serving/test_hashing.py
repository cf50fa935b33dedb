"""What producers say, in a few columns: the same on every machine, bounded, and told apart."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_models.item_table import ItemTable
from serving.query import Query, QueryBatch
from serving.ranker import hashing as hashing_module
from serving.ranker.hashing import ContextHash, squashed
from serving.ranker.inputs import CONTEXT, HASHED, OWN_CONTEXT, context_of

KEYS = ("device", "country", "age", "signed_in")
values = st.text(max_size=20) | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e15, 1e15)
contexts = st.dictionaries(st.sampled_from([*KEYS, "other", "Device"]), values, max_size=6)


def by_hand(context: dict[str, str | float | bool]) -> npt.NDArray[np.float32]:
    """The equation, value by value."""
    row = np.zeros(HASHED)
    for key in KEYS:
        if key not in context:
            continue
        value = context[key]
        kind = {bool: "truth", str: "text"}.get(type(value), "number")
        feature = f"{kind}\0{key}\0{'' if kind == 'number' else value}".encode()
        size = 1.0
        if kind == "number":
            low = math.floor(math.log2(1 + abs(value)))  # type: ignore[arg-type]
            low += (2.0 ** (low + 1) <= 1 + abs(value)) - (2.0**low > 1 + abs(value))  # type: ignore[arg-type]
            size = math.copysign((low + (1 + abs(value)) / 2.0**low - 1) / 16, value)  # type: ignore[arg-type]
        reached: list[int] = []
        digest = hashlib.blake2b(feature, digest_size=32, salt=bytes(8)).digest()
        for byte in digest:
            if byte % 16 not in reached and len(reached) < 4:
                reached.append(byte % 16)
                row[byte % 16] += size / 2 if byte >= 128 else -size / 2
        assert len(reached) == 4
    return row.astype(np.float16).astype(np.float32)


@given(st.lists(contexts, max_size=4))
def test_rows_are_the_equation(said: list[dict[str, str | float | bool]]) -> None:
    rows = ContextHash(KEYS).rows(said)
    assert rows.shape == (len(said), HASHED)
    for row, context in zip(rows, said, strict=True):
        assert row.tobytes() == by_hand(context).tobytes()
        assert np.abs(row).max() <= 0.5 * 4 * len(KEYS)
        assert np.array_equal(row, row.astype(np.float16)), "the log holds it"
        if not set(context) & set(KEYS):
            assert not row.any()


def test_what_one_dict_takes_for_one_key_is_told_apart() -> None:
    hashing = ContextHash(("a",))
    rows = hashing.rows([{"a": True}, {"a": 1}, {"a": "1"}, {"a": "True"}, {"a": 1.0}])
    assert np.array_equal(rows[1], rows[4])
    assert len(np.unique(rows, axis=0)) == 4
    assert np.array_equal(
        rows, ContextHash(("a",)).rows([{"a": True}, {"a": 1}, {"a": "1"}, {"a": "True"}, {"a": 1}])
    )


def test_no_text_outlives_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of combinations met is of one size, whatever was said, and bounded in number."""
    monkeypatch.setattr(hashing_module, "MOST_CACHED", 3)
    hashing = ContextHash(KEYS)
    said = [{"device": f"{n} of somebody@example.org " * 30} for n in range(5)]
    rows = hashing.rows(said)
    assert len(hashing._rows) == 2
    assert {len(key) for key in hashing._rows} == {16}
    assert not any(b"somebody" in key for key in hashing._rows)
    assert np.array_equal(hashing.rows(said[::-1]), rows[::-1])
    assert np.array_equal(ContextHash(KEYS).rows(said), rows)


def test_common_values_can_be_told_apart_by_a_linear_map() -> None:
    names = ["phone", "tv", "tablet", "desktop", "watch", "car", "speaker", "console"]
    rows = ContextHash(("device",)).rows([{"device": name} for name in names])
    assert np.linalg.matrix_rank(rows) == len(names)


@given(st.lists(st.floats(-1e15, 1e15), min_size=2, max_size=9, unique=True))
def test_larger_numbers_stay_larger(numbers: list[float]) -> None:
    found = [squashed(number) for number in sorted(numbers)]
    assert all(low <= high for low, high in pairwise(found))
    assert all(abs(one) <= 4.0 for one in found)


def test_no_keys_read_nothing() -> None:
    assert ContextHash().rows([{"device": "tv"}, None]).shape == (2, 0)


def test_the_digest_says_which_keys() -> None:
    digests = {ContextHash(keys).digest for keys in ((), ("a",), ("a", "b"), ("b", "a"), ("ab",))}
    assert len(digests) == 5
    assert {len(digest) for digest in digests} == {8}


def test_another_process_hashes_alike() -> None:
    code = (
        "from serving.ranker.hashing import ContextHash;"
        "print(ContextHash(('a','n')).rows([{'a':'x','n':2.5}]).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ContextHash(("a", "n")).rows([{"a": "x", "n": 2.5}]).tobytes().hex()


@pytest.mark.parametrize("hashed", [None, np.empty((2, 0), np.float32), np.zeros((2, HASHED), np.float32)])
def test_nothing_said_is_zeros_behind_the_rest(hashed: npt.NDArray[np.float32] | None) -> None:
    given_ = np.array([0, 10**12]), np.array([5, 0], np.float32), np.array([3, 0], np.int32)
    said = ContextHash(("device",)).rows([{"device": "tv"}, None])
    plain, whole = context_of(*given_, hashed), context_of(*given_, said)
    own = len(OWN_CONTEXT)
    assert plain.shape == whole.shape == (2, len(CONTEXT))
    assert plain[:, :own].tobytes() == whole[:, :own].tobytes()
    assert not plain[:, own:].any()
    assert np.array_equal(whole[:, own:], said)


def test_a_batch_of_queries_keeps_each_one_s_context_however_it_is_cut() -> None:
    said = ContextHash(("device",)).rows([{"device": "tv"}, None, {"device": "phone"}, {"device": "car"}])
    nobody = np.zeros(2, np.float32)
    queries = [Query((), (), nobody, 1, hashed=None if n == 1 else row) for n, row in enumerate(said)]
    whole = QueryBatch.of(queries, ItemTable(), 3)
    assert np.array_equal(whole.hashed, said)
    assert np.array_equal(whole.part(1, 3).hashed, said[1:3])
    assert np.array_equal(whole.take(np.array([3, 0, 3])).hashed, said[[3, 0, 3]])
    for batch in (whole, QueryBatch.of(queries[1:2], ItemTable(), 3)):
        twice = QueryBatch.joined([batch, batch])
        assert np.array_equal(twice.hashed, np.concatenate([batch.hashed, batch.hashed]))
    assert QueryBatch.of(queries[1:2], ItemTable(), 3).hashed.shape == (1, 0)
