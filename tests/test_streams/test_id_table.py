"""Ids to codes and back: as a dict would have it, whatever is removed, given again or moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams import user_kernels as kernels
from streams.event_kernels import hash_bytes
from streams.id_table import GROWTH, IdTable
from streams.user_kernels import DEAD_SLOTS, DELETED, EMPTY, END, GARBAGE

IDS = st.integers(0, 400).map(lambda n: b"id-%d" % n) | st.binary(min_size=1, max_size=256)


def _span(one: bytes) -> tuple[Any, int, int]:
    return np.frombuffer(one, np.uint8), 0, len(one)


class AgainstADict(RuleBasedStateMachine):
    """`codes` is what the table must say; with `colliding`, all ids have one of four hashes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = IdTable()
        self.codes: dict[bytes, int] = {}

    @initialize(colliding=st.booleans())
    def choose(self, colliding: bool) -> None:
        self.colliding = colliding

    def _hash(self, one: bytes) -> np.uint64:
        hashed = int(hash_bytes(*_span(one)))
        return np.uint64((hashed % 4) << 62 if self.colliding else hashed)

    def _find(self, one: bytes) -> int:
        return int(kernels.find(self.table.ids, *_span(one), self._hash(one)))

    @rule(ids=st.lists(IDS, max_size=40))
    def insert(self, ids: list[bytes]) -> None:
        self.table.reserve(len(ids), sum(map(len, ids)))
        for one in ids:
            assert self._find(one) == self.codes.get(one, -1)
            if one not in self.codes:
                code = kernels.insert(self.table.ids, *_span(one), self._hash(one))
                assert code not in self.codes.values(), "the code of another id"
                self.codes[one] = int(code)

    @rule(ids=st.lists(IDS, max_size=40))
    @precondition(lambda self: not self.colliding)
    def ensure(self, ids: list[bytes]) -> None:
        for one, code in zip(ids, self.table.codes_of(ids, ensure=True).tolist(), strict=True):
            assert self.codes.setdefault(one, code) == code

    @rule(data=st.data(), share=st.floats(0, 1))
    def remove(self, data: st.DataObject, share: float) -> None:
        ids = sorted(self.codes)
        gone = ids if share > 0.9 else data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
        self.table.remove(np.array([self.codes.pop(one) for one in gone], np.int32))

    @rule(n=st.integers(0, 300), n_bytes=st.integers(0, 5000))
    def reserve(self, n: int, n_bytes: int) -> None:
        before = self.table.ids
        moved = self.table.reserve(n, n_bytes)
        assert moved or all(a is b for a, b in zip(before, self.table.ids, strict=True))
        counts = self.table.ids.counts
        assert self.table.capacity >= self.table.codes + n
        assert len(self.table.ids.arena) >= counts[END] + n_bytes
        assert 4 * (len(self.table) + counts[DEAD_SLOTS] + n) <= 3 * len(self.table.ids.slots)

    @invariant()
    def is_the_dict(self) -> None:
        table, counts = self.table, self.table.ids.counts
        assert len(table) == len(self.codes)
        assert sorted(table.held().tolist()) == sorted(self.codes.values())
        assert len(set(self.codes.values())) == len(self.codes)
        for one, code in self.codes.items():
            assert table.id_of(code) == one
            assert table.is_held(code)
        slots = table.ids.slots
        assert int((slots == DELETED).sum()) == counts[DEAD_SLOTS]
        assert int((slots >= 0).sum()) == len(self.codes)
        assert int((slots == EMPTY).sum()) > 0, "a search for an unknown id would never end"
        assert sum(map(len, self.codes)) + counts[GARBAGE] == counts[END] <= len(table.ids.arena)

    @invariant()
    def finds(self) -> None:
        if hasattr(self, "colliding"):
            for one, code in self.codes.items():
                assert self._find(one) == code
            for one in (b"unknown", b"id-", b"x" * 257):
                assert self._find(one) == self.codes.get(one, -1)


AgainstADict.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestAgainstADict = AgainstADict.TestCase


@given(ids=st.lists(st.binary(max_size=20), max_size=60))
@settings(deadline=None, max_examples=50)
def test_codes_of_many_ids(ids: list[bytes]) -> None:
    table = IdTable()
    assert table.codes_of(ids).tolist() == [-1] * len(ids)
    assert len(table) == 0
    codes = table.codes_of(ids, ensure=True).tolist()
    first = {one: n for n, one in enumerate(dict.fromkeys(ids))}
    assert codes == [first[one] for one in ids]
    assert table.codes_of(ids[::-1]).tolist() == codes[::-1]
    assert [table.id_of(code) for code in codes] == ids


def test_a_hundred_thousand_ids_take_little_more_than_they_need() -> None:
    table = IdTable()
    ids = [b"item-%06d" % n for n in range(100_000)]
    for start in range(0, len(ids), 1000):
        table.codes_of(ids[start : start + 1000], ensure=True)
    assert table.codes_of(ids).tolist() == list(range(100_000))
    per_id = table.nbytes / len(table)
    assert per_id < GROWTH * (len(ids[0]) + 8 + 8 + 4) + 4 * 4, "slots are at least a quarter full"


def test_coming_and_going_takes_no_more_memory() -> None:
    table = IdTable()
    sizes = []
    for turn in range(40):
        codes = table.codes_of([b"%d-%d" % (turn, n) for n in range(2000)], ensure=True)
        sizes.append(table.nbytes)
        table.remove(codes)
        assert len(table) == 0
        assert not table.is_held(int(codes[0]))
    assert table.codes <= 2000
    assert sizes[-1] == sizes[len(sizes) // 2]


@pytest.mark.parametrize("wanted", ["slots", "arena"])
def test_rebuilding_keeps_codes_and_drops_garbage(wanted: str) -> None:
    table = IdTable()
    codes = table.codes_of([b"id-%d" % n for n in range(40)], ensure=True)
    table.remove(codes[::2])
    assert table.ids.counts[GARBAGE] > 0
    assert table.reserve(*((1000, 0) if wanted == "slots" else (0, 100_000)))
    assert table.ids.counts[GARBAGE] == table.ids.counts[DEAD_SLOTS] == 0
    for n in range(40):
        expected = -1 if n % 2 == 0 else int(codes[n])
        assert table.codes_of([b"id-%d" % n]).tolist() == [expected]
