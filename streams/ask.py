"""Ask the running workers for a list, as any service would: a record on `requests`, an answer on
`recommendations`."""

from __future__ import annotations

import time
import uuid

import msgspec

from streams.clients import make_producer, partition_for, producer_config
from streams.errors import BrokerUnavailableError, FreshetError
from streams.events import Recommendation, Request
from streams.reading import PartitionReader, watermarks
from streams.settings import Settings
from streams.topic_admin import check_layout

__all__ = ["ask"]


def ask(
    settings: Settings, user_id: str, count: int | None, categories: list[str] | None, timeout_s: float
) -> Recommendation:
    """The list that a worker makes for `user_id` now.

    Raises:
        FreshetError: no worker answered within `timeout_s`.
    """
    partition = partition_for(user_id.encode(), check_layout(settings)["recommendations"])
    place = (settings.names["recommendations"], partition)
    [(_, end)] = watermarks(settings, [place]).values()
    request = Request(request_id=uuid.uuid4().hex, user_id=user_id, count=count, categories=categories)
    producer = make_producer(producer_config(settings))
    producer.produce(settings.names["requests"], msgspec.json.encode(request), user_id)
    if producer.flush(timeout_s):
        raise BrokerUnavailableError(
            f"{settings.bootstrap_servers}: the request was not taken in {timeout_s} s."
        )
    reader = PartitionReader(settings, {place: end})
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            for message in reader.poll(500, 0.05):
                value = message.value()
                if value is None:
                    continue
                try:
                    answer = msgspec.json.decode(value, type=Recommendation)
                except (msgspec.DecodeError, msgspec.ValidationError):
                    continue  # not a worker's record, so not our answer
                if answer.request_id == request.request_id:
                    return answer
    finally:
        reader.close()
    raise FreshetError(
        f"no answer for {user_id} within {timeout_s} s. Does a worker run (`freshet worker`), is "
        "trigger.requests on, "
        f"and was the request rejected ({settings.names['events-dlq']})?"
    )
