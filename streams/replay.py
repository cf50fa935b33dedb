"""Send a data set into `items` and `events`, at a steady rate or as fast as it goes (`freshet replay`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
from confluent_kafka import KafkaError, Message, Producer

from streams.clients import make_producer, producer_config
from streams.datasets import Dataset
from streams.errors import BrokerUnavailableError, SettingsError
from streams.events import Event, Item
from streams.settings import Settings

__all__ = ["ReplayReport", "encode_record", "replay"]

FLUSH_S = 60.0
PROGRESS_EVERY_S = 0.1
STEP_S = 0.05
"""Longest sleep between two looks at the clock and at the stop signal."""

ReplayProgress = Callable[[str, int, int], None]
"""Called with `items` or `events`, how many are sent, and how many there are."""


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay sent: every one of these records was acknowledged by the broker."""

    dataset: str
    items: int
    events: int
    seconds: float
    """Time for the events alone, first produced to last acknowledged."""
    events_per_s: float
    stopped: bool
    """The stop signal came before the end."""


def encode_record(record: Event | Item) -> bytes:
    """A record as JSON without the fields that say nothing: absent, empty or false ones.

    >>> encode_record(Event(event_id="e", user_id="u", event_type="click", timestamp=1, item_id="i"))
    b'{"event_id":"e","user_id":"u","event_type":"click","timestamp":1,"item_id":"i"}'
    """
    fields = ((name, getattr(record, name)) for name in record.__struct_fields__)
    return _encode({name: value for name, value in fields if not _says_nothing(value)})


_encode = msgspec.json.Encoder().encode


def _says_nothing(value: Any) -> bool:
    return value is None or value is False or value == [] or value == {}


class _Sender:
    """A producer that counts what is acknowledged and remembers the first failure."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer = make_producer(producer_config(settings))
        self.acknowledged = 0
        self.failed = 0
        self._first: KafkaError | None = None

    def send(self, topic: str, key: str, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value=value, key=key, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(STEP_S)

    def poll(self) -> None:
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed += 1
            self._first = self._first or error

    def finish(self) -> int:
        """Wait for all acknowledgements; how many records were acknowledged since the last call.

        Raises:
            BrokerUnavailableError: some were not; they may be sent again, duplicates are dropped by
                `event_id`.
        """
        waiting = self._producer.flush(FLUSH_S)
        if waiting or self.failed:
            reason = self._first.str() if self._first else f"no answer within {FLUSH_S:g} s"
            raise BrokerUnavailableError(
                f"{self.failed + waiting} of {self.acknowledged + self.failed + waiting} records were not"
                f" taken by the broker at {self._settings.bootstrap_servers}: {reason}. Check the broker and"
                " that the topics exist (`freshet topics create`), then replay again: events that did arrive"
                " are dropped as duplicates."
            )
        done, self.acknowledged = self.acknowledged, 0
        return done


def _due_s(events: Iterable[Event], rate: float | None, speedup: float | None) -> Iterator[float]:
    """Seconds after the start at which each event is to be sent."""
    first_ms: int | None = None
    for number, event in enumerate(events):
        if rate is not None:
            yield number / rate
        elif speedup is not None:
            if not isinstance(event.timestamp, int):
                raise SettingsError(
                    f"--speedup needs timestamps in ms; event {event.event_id} has {event.timestamp!r}. Use"
                    " --rate."
                )
            first_ms = event.timestamp if first_ms is None else first_ms
            yield (event.timestamp - first_ms) / 1000 / speedup
        else:
            yield 0.0


def _wait_until(moment_s: float, sender: _Sender, stop: threading.Event) -> None:
    while (left_s := moment_s - time.monotonic()) > 0 and not stop.is_set():
        sender.poll()
        stop.wait(min(left_s, STEP_S))


def _send_items(
    settings: Settings, dataset: Dataset, sender: _Sender, progress: ReplayProgress | None
) -> int:
    for item_id, item in dataset.items.items():
        sender.send(settings.names["items"], item_id, encode_record(item))
    sent = sender.finish()
    if progress and sent:
        progress("items", sent, sent)
    return sent


def replay(
    settings: Settings,
    dataset: Dataset,
    rate: float | None = None,
    limit: int | None = None,
    progress: ReplayProgress | None = None,
    *,
    speedup: float | None = None,
    stop: threading.Event | None = None,
) -> ReplayReport:
    """Send the catalogue, wait until it is taken, then send the events in their order, keyed by user.

    Args:
        rate: events per second; None with no `speedup` is as fast as it goes.
        limit: send only the first so many events.
        progress: told now and then how far it is.
        speedup: keep the data set's own gaps, this many times faster (instead of `rate`).
        stop: when set, sending ends; what was sent is still waited for.

    Raises:
        BrokerUnavailableError: a record was not acknowledged; none is lost unseen.
        SettingsError: `rate` or `speedup` is not positive, or both are given.
    """
    if (rate is not None and speedup is not None) or not all(x is None or x > 0 for x in (rate, speedup)):
        raise SettingsError(f"rate {rate} and speedup {speedup}: give one of them, above 0, or neither.")
    stop = stop or threading.Event()
    events = dataset.events if limit is None else list(islice(dataset.events, limit))
    sender = _Sender(settings)
    items = _send_items(settings, dataset, sender, progress)
    topic = settings.names["events"]
    start_s = time.monotonic()
    told_s = 0.0
    for number, (event, due_s) in enumerate(zip(events, _due_s(events, rate, speedup), strict=True)):
        now_s = time.monotonic() - start_s
        if due_s > now_s:
            _wait_until(start_s + due_s, sender, stop)
        if stop.is_set():
            break
        sender.send(topic, event.user_id, encode_record(event))
        if now_s - told_s >= PROGRESS_EVERY_S:
            told_s = now_s
            sender.poll()
            if progress:
                progress("events", number + 1, len(events))
    sent = sender.finish()
    seconds = time.monotonic() - start_s
    if progress:
        progress("events", sent, len(events))
    return ReplayReport(
        dataset=dataset.name,
        items=items,
        events=sent,
        seconds=seconds,
        events_per_s=sent / seconds if seconds else 0.0,
        stopped=stop.is_set(),
    )
