"""Which list an event is the example of, and in what context it was made: against plain loops, and where the
context alone decides what is used next."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.ranker.hashing import ContextHash
from serving.ranker.inputs import CONTEXT, HASHED, OWN_CONTEXT
from serving.registry.store import Registry
from serving.registry.swap import load_verified
from serving.settings import ServingSettings
from serving.training.as_served import upon_event
from serving.training.dataset import InteractionLog, NotEnoughDataError, Sequences, split_by_time
from serving.training.fused import FusionHead
from serving.training.networks import network_names
from serving.training.pasts import Pasts
from serving.training.settings import ExamplesOf, TrainerSettings
from serving.training.slow_path import run_slow_path
from serving.training.train import train
from serving.training.windows import cut_windows, fill
from tests.test_serving import planted_cases

SETTINGS = msgspec.structs.replace(planted_cases.SETTINGS, max_cpu_seconds=600.0, max_seconds=600.0)
KEYS = ("device",)
DEVICES = ("phone", "tv", "tablet", "car")
HASHING = ContextHash(KEYS)
MODES: tuple[ExamplesOf, ...] = ("events", "requests", "both")
each_mode = pytest.mark.parametrize("examples", MODES)


class Row(NamedTuple):
    user: int
    item: int
    time_ms: int
    device: str | None


rows_of = st.lists(
    st.builds(
        Row, st.integers(0, 3), st.integers(0, 9), st.integers(0, 10**7), st.sampled_from([*DEVICES, None])
    ),
    min_size=20,
    max_size=50,
).map(lambda rows: sorted(rows, key=lambda row: row.time_ms))


def hashed(rows: list[Row]) -> npt.NDArray[np.float32]:
    return HASHING.rows([None if row.device is None else {"device": row.device} for row in rows])


def log_of(rows: list[Row]) -> InteractionLog:
    log = InteractionLog()
    log.context_keys = KEYS
    items = sorted({row.item for row in rows})
    log.append(
        user=[row.user for row in rows],
        item_ids=[f"i{item}" for item in items],
        item=[items.index(row.item) for row in rows],
        time_ms=[row.time_ms for row in rows],
        event_type=[0] * len(rows),
        weight=[1.0] * len(rows),
        offset=0,
        context=hashed(rows),
    )
    return log


def list_of(rows: list[Row], place: int, examples: ExamplesOf) -> tuple[int, Row]:
    """When the list before an event was made, and the row that it was made beside."""
    event = rows[place]
    before = [row for row in rows[:place] if row.user == event.user]
    user, time_ms = np.array([event.user], np.uint64), np.array([event.time_ms])
    if before and upon_event(user, time_ms, examples)[0]:
        return before[-1].time_ms, before[-1]
    return event.time_ms, event


def settings_of(examples: ExamplesOf) -> TrainerSettings:
    return TrainerSettings(
        min_interactions=1, min_count=1, slice_fraction=0.3, validation_fraction=0.2, history_length=4,
        examples=examples,
    )  # fmt: skip


@each_mode
@given(rows_of)
@settings(max_examples=40, deadline=None)
def test_the_gate_judges_in_the_context_of_the_lists(examples: ExamplesOf, rows: list[Row]) -> None:
    try:
        newest = split_by_time(log_of(rows), settings_of(examples)).newest
    except NotEnoughDataError:
        return
    found = newest.context()
    for n, place in enumerate(newest.rows[newest.positions].tolist()):
        made_ms, beside = list_of(rows, place, examples)
        before = [row for row in rows[:place] if row.user == rows[place].user]
        idle_s = (made_ms - before[-1].time_ms) / 1000.0 if before else 0.0
        own = dict(zip(OWN_CONTEXT, found[n], strict=False))
        assert own["log_idle"] == pytest.approx(np.log1p(idle_s) / 16.0, abs=1e-6)
        assert own["log_seen"] == pytest.approx(np.log1p(len(before)) / 8.0, abs=1e-6)
        assert own["hour_sin"] == pytest.approx(np.sin(2 * np.pi * (made_ms / 86_400_000 % 1)), abs=1e-5)
        assert np.array_equal(found[n, -HASHED:], hashed([beside])[0])


@each_mode
@given(rows_of, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_networks_learn_in_the_context_of_the_lists(examples: ExamplesOf, rows: list[Row], seed: int) -> None:
    try:
        split = split_by_time(log_of(rows), settings_of(examples))
    except NotEnoughDataError:
        return
    said = any(row.device is not None for row in rows)
    assert split.context_keys == (KEYS if said else ())
    assert (split.train.contexts is not None) == said
    if not said:
        return
    train_rows = log_rows(split.train, rows)
    windows = cut_windows(split.train.starts, 4, 2, np.random.default_rng(seed))
    batch = fill(split.train, windows, split.train.targets)
    assert batch.context is not None
    assert batch.context.shape == (*batch.inputs.shape, HASHED)
    assert np.array_equal(batch.part(1, 2).context, batch.context[1::2])  # type: ignore[arg-type]
    for window, column in zip(*np.nonzero(batch.targets), strict=True):
        place = train_rows[batch.rows[window, column]]
        _, beside = list_of(rows, place, examples)
        assert np.array_equal(batch.context[window, column], hashed([beside])[0])


def log_rows(train: Sequences, rows: list[Row]) -> list[int]:
    """Where each row of the training sequences stands in the log: each user's are its oldest, in order."""
    sizes = np.diff(train.starts).tolist()
    users = sorted({row.user for row in rows})
    own = [[place for place, row in enumerate(rows) if row.user == user] for user in users]
    whole = [one for one in own if rows[one[0]].time_ms in train.times_ms]
    found = [place for size, one in zip(sizes, whole, strict=False) for place in one[:size]]
    assert [rows[place].time_ms for place in found] == train.times_ms.tolist()
    return found


def test_both_is_half_of_each() -> None:
    users, times_ms = np.arange(40_000, dtype=np.uint64), np.arange(40_000, dtype=np.int64) * 1000
    chosen = upon_event(users, times_ms, "both")
    assert abs(chosen.mean() - 0.5) < 0.02
    assert np.array_equal(chosen, upon_event(users, times_ms, "both"))
    one_user = upon_event(np.zeros_like(users), times_ms, "both")
    assert abs(one_user.mean() - 0.5) < 0.02
    assert abs((one_user[1:] == one_user[:-1]).mean() - 0.5) < 0.02
    assert upon_event(users, times_ms, "events").all()
    assert not upon_event(users, times_ms, "requests").any()


def device_log(upon_previous: bool, *, users: int = 120, steps: int = 7, seed: int = 1) -> InteractionLog:
    """Each device has six items of its own. What is used next is drawn of those of the event's device, or of
    the device of the event before; nobody uses an item twice."""
    rng = np.random.default_rng(seed)
    log = InteractionLog()
    log.context_keys = KEYS
    had = np.zeros((users, 24), dtype=np.bool_)
    device = rng.integers(0, 4, users)
    for step in range(steps):
        before, device = device, rng.integers(0, 4, users)
        deciding = before if upon_previous else device
        free = ~had & (np.arange(24) // 6 == deciding[:, None])
        item = np.where(free, rng.random((users, 24)), -1.0).argmax(axis=1)
        had[np.arange(users), item] = True
        log.append(
            user=np.arange(users),
            item_ids=[f"i{n}" for n in range(24)],
            item=item,
            time_ms=np.arange(users) + 1000 * step,
            event_type=np.zeros(users, np.int64),
            weight=np.ones(users),
            offset=step,
            context=HASHING.rows([{"device": DEVICES[d]} for d in device.tolist()]),
        )
    return log


def without_contexts(log: InteractionLog) -> InteractionLog:
    rest = InteractionLog()
    columns = ("user", "item", "time_ms", "event_type", "weight", "offset")
    rest.append(item_ids=log.item_ids, **{name: log.column(name) for name in columns})
    return rest


def reached(log: InteractionLog, network: str, examples: ExamplesOf) -> float:
    """NDCG@10 on the newest training events."""
    epochs = 24 if network == "ncf" else 8  # a perceptron takes longer than a product
    chosen = msgspec.structs.replace(SETTINGS, network=network, examples=examples, max_epochs=epochs)
    return train(split_by_time(log, chosen), chosen).ndcg_at_10


@pytest.mark.parametrize(
    "network",
    [
        name if name in ("ncf", "transformer", "two_tower") else pytest.param(name, marks=pytest.mark.slow)
        for name in network_names()
    ],
)
def test_where_the_device_decides_the_network_that_reads_it_wins(network: str) -> None:
    """At best, five or six items are left to choose from with the context, about twenty without."""
    log = device_log(upon_previous=False)
    plain = reached(without_contexts(log), network, "requests")
    assert plain < 0.35
    assert reached(log, network, "requests") > plain + 0.25


def test_lists_upon_events_read_the_context_of_the_event_before() -> None:
    log = device_log(upon_previous=True)
    wrong, right = (reached(log, "transformer", examples) for examples in ("requests", "events"))
    assert wrong < 0.35
    assert right > wrong + 0.25


def test_a_stream_without_words_is_trained_as_one_without_keys() -> None:
    """To the bit: no weight is added where nothing would be read."""
    silent, keys = without_contexts(device_log(upon_previous=False)), KEYS
    chosen = msgspec.structs.replace(SETTINGS, max_epochs=1)
    first = train(split_by_time(silent, chosen), chosen).network
    silent.context_keys = keys
    split = split_by_time(silent, chosen)
    assert split.context_keys == ()
    again = train(split, chosen).network
    assert again.shape.context == 0
    assert again.context_map is None
    weights = again.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


def test_a_head_that_reads_the_context_starts_as_one_that_does_not() -> None:
    torch.manual_seed(0)
    plain = FusionHead.blending(ServingSettings())
    torch.manual_seed(0)
    reading = FusionHead.blending(ServingSettings(), reads_hashed=True)
    draws = torch.Generator().manual_seed(1)
    scores, features = torch.randn(3, 5, generator=draws), torch.randn(3, 5, 6, generator=draws)
    context = torch.randn(3, len(CONTEXT), generator=draws)
    present = torch.ones(3, 5, dtype=torch.bool)
    for head in (plain, reading):
        torch.nn.init.ones_(head.out.weight)
    with torch.no_grad():
        expected = plain(scores, present, context, features)
        assert torch.equal(reading(scores, present, context, features), expected)
        assert reading.hashed_gate is not None
        assert reading.hashed_hidden is not None
        for weights in (reading.hashed_gate, reading.hashed_hidden):
            weights.fill_(0.5)
            found = reading(scores, present, context, features)
            assert (found - expected).abs().min() > 1e-3
            context_of_nobody = context.clone()
            context_of_nobody[:, -HASHED:] = 0.0
            same = reading(scores, present, context_of_nobody, features)
            assert torch.allclose(same, plain(scores, present, context_of_nobody, features), atol=1e-6)
            weights.zero_()


@pytest.mark.slow
def test_a_version_says_which_keys_it_reads_and_other_keys_leave_it_out(tmp_path: Path) -> None:
    registry, log = Registry(str(tmp_path)), device_log(upon_previous=False)
    chosen = msgspec.structs.replace(SETTINGS, examples="requests", max_epochs=6)
    first = run_slow_path(log, registry, chosen)
    assert first is not None
    assert first.published is not None, first.report.reasons
    manifest, digest = first.published.manifest, first.published.digest
    assert (manifest.context_keys, manifest.context_digest) == (KEYS, HASHING.digest.hex())
    ranker = load_verified(registry, manifest.version, digest, "cpu", context_keys=KEYS)
    inputs = ranker.inputs_of([["i0"]] * 2, [ranker.vocabulary] * 2)
    inputs.context[:, -HASHED:] = HASHING.rows([{"device": "phone"}, {"device": "tv"}])
    for device, row in enumerate(ranker.score_inputs(inputs)):
        best = [int(ranker.vocabulary[n][1:]) // 6 for n in np.argsort(-row)[:5].tolist()]
        assert best.count(device) >= 4, "the best are the device's own"
    again = run_slow_path(log, registry, chosen, manifest.version)
    assert again is not None
    assert again.champion_problem == ""
    log.context_keys = ("country",)
    other = run_slow_path(log, registry, chosen, manifest.version)
    assert other is not None
    assert "context of device, here it is of country" in other.champion_problem


@given(
    st.integers(3, 40),
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 5)), min_size=1, max_size=8),
        max_size=12,
    ),
)
@settings(max_examples=40, deadline=None)
def test_what_was_said_beside_the_event_before_is_known_while_the_ring_holds_it(
    capacity: int, batches: list[list[tuple[int, bool, int]]]
) -> None:
    pasts = Pasts(capacity, most_seen=100)
    done: list[tuple[int, bool, int]] = []
    for number, batch in enumerate(part[:capacity] for part in batches):
        users, positive, said = (list(column) for column in zip(*batch, strict=True))
        contexts = np.zeros((len(batch), HASHED), np.float32)
        contexts[:, 0] = said
        items = np.arange(len(done), len(done) + len(batch), dtype=np.int32)
        given_ = None if number % 3 == 1 else contexts
        newest = pasts.add(users, items, items.astype(np.int64) * 1000, np.array(positive), given_)
        before = pasts.before(newest, np.full(len(batch), 999, np.int32), np.arange(1000, dtype=np.int32))
        found = pasts.contexts_at(before.newest_at)
        whole = done + [(u, p, 0 if given_ is None else s) for u, p, s in batch]
        oldest = max(0, len(whole) - capacity)
        for n, user in enumerate(users):
            own = [one for one in whole[oldest : len(done) + n] if one[0] == user and one[1]]
            expected = own[-1][2] if own else 0
            assert (0 if found is None else found[n, 0]) == expected
        done = whole
