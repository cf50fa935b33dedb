"""The producer: it keeps sending records with known ids, good and bad, whatever happens to the broker."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, Message

from streams.clients import make_producer, producer_config
from streams.settings import Settings
from tests.chaos.records import fingerprint
from tests.integration.worker_process import START_MS, Input, event
from tests.test_streams.hostile_corpus import hostile_records, odd_records

__all__ = ["Load", "Mix"]

DAY_MS = 86_400_000
USERS, ITEMS = 150, 250
KINDS = ("click",) * 5 + ("rating",) * 2 + ("purchase", "dislike", "impression", "view")
SHARES = {
    "event": 0.835,
    "retract": 0.01,
    "duplicate": 0.05,
    "out of order": 0.03,
    "late": 0.01,
    "hostile": 0.02,
    "odd": 0.005,
    "request": 0.035,
    "bad request": 0.003,
    "item": 0.002,
}
HOSTILE_ROUND = 420
"""Two rounds of the hostile corpus, those of a megabyte included; then it begins again with other ids."""
GIVE_UP_S = 3600
"""The producer goes on trying for so long: what it was told to send must not depend on the broker's fate."""
BAD_REQUESTS = (b"", b"not json", b"{}", b'{"request_id":"r"}', b'{"request_id":1,"user_id":"user-1"}', None)


class Mix:
    """An endless, seeded stream of (topic, record, what it is)."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"load {seed}")
        self._seed = seed
        self._n = 0
        self._recent: deque[Input] = deque(maxlen=2000)
        self._hostile: list[Input] = []
        self._odd: list[Input] = []
        self._makers: dict[str, Callable[[], tuple[str, Input]]] = {
            "event": lambda: ("events", self._event(0)),
            "retract": self._retract,
            "duplicate": self._duplicate,
            "out of order": lambda: ("events", self._event(self._rng.randrange(3_600_000, 5 * DAY_MS))),
            "late": lambda: ("events", self._event(40 * DAY_MS)),
            "hostile": self._bad_event,
            "odd": self._odd_event,
            "request": self._request,
            "bad request": self._bad_request,
            "item": self._item,
        }

    def next(self) -> tuple[str, Input, str]:
        [what] = self._rng.choices(list(SHARES), list(SHARES.values()))
        self._n += 1
        return *self._makers[what](), what

    def _user(self) -> str:
        """Some users do much, most do little."""
        return f"user-{min(int(self._rng.paretovariate(0.7)), USERS)}"

    def _event(self, age_ms: int) -> Input:
        rng = self._rng
        made = event(
            f"e{self._n}",
            self._user(),
            f"item-{min(int(rng.paretovariate(0.6)), ITEMS)}",
            START_MS + 45 * DAY_MS + 1000 * self._n + rng.randrange(-30_000, 30_000) - age_ms,
            rng.choice(KINDS),
            value=rng.randrange(1, 6),
        )
        self._recent.append(made)
        return made

    def _duplicate(self) -> tuple[str, Input]:
        return "events", self._rng.choice(self._recent) if self._recent else self._event(0)

    def _retract(self) -> tuple[str, Input]:
        """Takes back one of the latest events, whatever it was; now and then one that is too old by then."""
        if not self._recent:
            return "events", self._event(0)
        fields = json.loads(self._rng.choice(self._recent).value or b"")
        fields |= {"event_id": f"e{self._n}", "event_type": "retract", "retracts": fields["event_id"]}
        return "events", Input(fields["user_id"].encode(), json.dumps(fields).encode())

    def _bad_event(self) -> tuple[str, Input]:
        if not self._hostile:
            made = hostile_records(HOSTILE_ROUND, self._rng.randrange(2**31), START_MS)
            self._hostile = [Input(h.key, h.value, tuple(h.headers)) for h in made]
        return "events", self._hostile.pop()

    def _odd_event(self) -> tuple[str, Input]:
        if not self._odd:
            made = odd_records(self._rng.randrange(2**31), START_MS + 45 * DAY_MS)
            self._odd = [Input(key, value) for key, value in made.values()]
        return "events", self._odd.pop()

    def _request(self) -> tuple[str, Input]:
        rng, request_id = self._rng, f"r{self._n}"
        asked: dict[str, Any] = {"request_id": request_id}
        if rng.random() < 0.2:
            asked["session_items"] = [f"item-{rng.randrange(1, ITEMS)}" for _ in range(3)]
        else:
            asked["user_id"] = self._user() if rng.random() < 0.9 else f"stranger-{self._n}"
        if rng.random() < 0.3:
            asked["count"] = rng.randrange(1, 30)
        if rng.random() < 0.2:
            asked["exclude"] = [f"item-{rng.randrange(1, ITEMS)}" for _ in range(20)]
        key = asked.get("user_id", request_id)
        return "requests", Input(key.encode(), json.dumps(asked).encode())

    def _bad_request(self) -> tuple[str, Input]:
        return "requests", Input(b"user-1", self._rng.choice(BAD_REQUESTS))

    def _item(self) -> tuple[str, Input]:
        item_id = f"item-{self._rng.randrange(1, ITEMS)}"
        fields = {"item_id": item_id, "title": f"Title {self._n}", "is_hidden": self._rng.random() < 0.02}
        value = json.dumps(fields).encode() if self._rng.random() < 0.7 else b'{"title":%d}' % self._n
        return "items", Input(item_id.encode(), value)


class Load(threading.Thread):
    """Sends a `Mix` at a steady rate until `stop`; knows what the broker has acknowledged, and where."""

    def __init__(self, settings: Settings, seed: int, rate: float) -> None:
        super().__init__(name="load", daemon=True)
        self._settings = settings
        self._mix = Mix(seed)
        self._rate = rate
        config = producer_config(settings)
        patient = {
            "delivery.timeout.ms": GIVE_UP_S * 1000,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,  # it is meant to lose its broker
        }
        self._producer = make_producer({**config, **patient})
        self._halt = threading.Event()
        self.sent: Counter[str] = Counter()
        """How many records of each share."""
        self.acknowledged: dict[tuple[str, int, int], bytes] = {}
        """Fingerprints by topic (table name), partition, offset."""
        self.refused: list[str] = []
        self._bad_items: list[tuple[int, int]] = []

    def run(self) -> None:
        started, n = time.monotonic(), 0
        while not self._halt.is_set():
            due = int((time.monotonic() - started) * self._rate)
            self.send(due - n)
            n = max(n, due)
            self._producer.poll(0)
            self._halt.wait(0.02)

    def send(self, n: int) -> None:
        for _ in range(n):
            topic, record, what = self._mix.next()
            self._produce(topic, record)
            self.sent[what] += 1

    def _produce(self, topic: str, record: Input) -> None:
        mark = fingerprint(record.key, record.value, tuple(record.headers))

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.refused.append(f"{topic}: {error.name()}")
                return
            place = message.partition() or 0, message.offset() or 0
            self.acknowledged[topic, *place] = mark
            if topic == "items" and b"item_id" not in (record.value or b""):
                self._bad_items.append(place)

        while True:
            try:
                self._producer.produce(
                    self._settings.names[topic],
                    record.value,
                    record.key,
                    headers=list(record.headers) or None,
                    on_delivery=delivered,
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def bad_items(self) -> list[tuple[int, int]]:
        """Partition and offset of the acknowledged `items` records that must become dead letters."""
        return list(self._bad_items)

    def stop(self) -> None:
        self._halt.set()
        self.join()

    def flush(self, timeout_s: float) -> int:
        """Wait for the acknowledgements; how many are still missing."""
        return self._producer.flush(timeout_s)
