"""A new item arrives in the catalogue with a text, and is recommended to whom it is like before anybody has
had it: real workers, a real encoder with known answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from streams.events import RecommendedItem
from streams.log_kinds import FORGET_ITEM, INTRODUCE
from tests.integration.auditor import Run, assert_exactly_once, replayed_digests
from tests.integration.test_worker_crashes import snapshots
from tests.integration.worker_process import PATIENCE_S, START_MS, Deployment, Input, Tail, event
from tests.test_serving.content_cases import word_encoder

TEA, NAILS = [1.0, 0.0], [0.0, 1.0]
WORD_VECTORS = np.array([[0, 0], [0, 0], TEA, TEA, NAILS], dtype=np.float32)
"""Of `content_cases.WORDS`: padding, unknown, tea, milk, nails."""


def _item(item_id: str, title: str) -> Input:
    return Input(item_id.encode(), json.dumps({"item_id": item_id, "title": title}).encode())


class _Shop:
    """Ann drinks tea and Bob buys nails, again and again."""

    def __init__(self, fleet: Deployment) -> None:
        self._fleet, self._sent = fleet, 0
        self._lists: Tail = fleet.tail("recommendations")

    def lists(self) -> dict[str, list[RecommendedItem]]:
        """Both users' lists after one more event of each."""
        for user, item in (("ann", "t1"), ("bob", "n1")):
            event_id = f"e{self._sent}"
            self._fleet.produce("events", [event(event_id, user, item, START_MS + 1000 * self._sent)])
            self._sent += 1
            self._fleet.wait_for(self._lists, self._sent)
        made = [json.loads(record.value() or b"") for record in self._lists.records[-2:]]
        return {one["user_id"]: msgspec.convert(one["items"], list[RecommendedItem]) for one in made}

    def until(
        self, reached: Callable[[dict[str, list[RecommendedItem]]], bool]
    ) -> dict[str, list[RecommendedItem]]:
        end = time.monotonic() + PATIENCE_S
        while not reached(lists := self.lists()):
            assert time.monotonic() < end, f"not reached: {lists}\n{self._fleet.logs()}"
        return lists


def _named(items: list[RecommendedItem]) -> dict[str, RecommendedItem]:
    return {item.item_id: item for item in items}


def _places(run: Run, kind: int) -> dict[str | None, int]:
    """Of each item that rows of a kind name: where the last of them stands in the log."""
    return {row.item_id: row.order for row in run.corrections if row.kind == kind}


def test_a_new_item_is_found_by_its_text(fleet: Deployment, tmp_path: Path) -> None:
    model = word_encoder(tmp_path / "model", WORD_VECTORS)
    content = {"CONTENT__TEXT": "true", "CONTENT__TEXT_MODEL": str(model), "WORKER__SNAPSHOTS_KEPT": "1000"}
    folders = [tmp_path / "a", tmp_path / "b"]
    common = [{**content, "WORKER__SNAPSHOT_INTERACTIONS": "1", "STATE__DIR": str(one)} for one in folders]
    fleet.produce("items", [_item("t1", "tea"), _item("n1", "nails"), _item("n2", "nails nails")])
    for name, env in zip(("a", "b"), common, strict=True):
        fleet.worker(name, **env)
    fleet.wait_shared(2, 120.0)
    shop = _Shop(fleet)
    shop.lists()
    fleet.produce("items", [_item("t2", "milk")])
    lists = shop.until(lambda lists: "t2" in _named(lists["ann"]))
    found = _named(lists["ann"])["t2"]
    assert found.sources == ["content"]
    assert (found.reason.kind, found.reason.because, found.reason.text) == (
        "content",
        ["t1"],
        "Similar to “tea”",
    )
    assert "t2" not in _named(lists["bob"]), "not what he had"
    shop.until(lambda lists: "n2" in _named(lists["bob"]))
    for worker in fleet.workers:
        worker.stop()
    again = fleet.worker("a", **common[0])
    shop.until(lambda lists: "t2" in _named(lists["ann"]))
    fleet.produce("items", [Input(b"t2", None)])
    shop.until(lambda lists: "t2" not in _named(lists["ann"]))
    fleet.wait_handled()
    fleet.wait_followed()
    again.stop()
    run = assert_exactly_once(fleet.settings)
    introduced, forgotten = _places(run, INTRODUCE), _places(run, FORGET_ITEM)
    assert {"n2", "t2"} <= set(introduced) <= {"n1", "n2", "t1", "t2"}
    assert set(forgotten) == {"t2"}
    assert introduced["t2"] < forgotten["t2"], "not again, for the catalogue has it no more"
    for folder in folders:
        states = snapshots(folder)
        assert {o: state.digest() for o, state in states.items()} == replayed_digests(fleet.settings, states)
        assert any(state.introduced.any() for state in states.values())
