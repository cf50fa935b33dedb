from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from online_models import ItemState, LearningBatch, ModelSettings, SnapshotMismatchError, corrections
from online_models.learning_batch import LEARN, UNCOUNT, WITHDRAW
from online_models.settings import CoVisitationSettings, FactorSettings, PopularitySettings

SETTINGS = ModelSettings(
    covisitation=CoVisitationSettings(half_life_s=3600.0, row_capacity=8),
    popularity=PopularitySettings(half_life_s=100.0, top_size=5),
    factors=FactorSettings(dimension=4),
)


def make_log(n: int, seed: int = 0) -> LearningBatch:
    """Random interactions with negative weights, unknown negatives and a jump in time."""
    rng = np.random.default_rng(seed)
    return LearningBatch(
        item_ids=[f"i{k}" for k in range(30)],
        item=rng.integers(0, 25, n).astype(np.int32),
        recent=rng.integers(-1, 30, (n, 6)).astype(np.int32),
        time_ms=np.cumsum(rng.integers(0, 9_000_000, n)).astype(np.int64),
        weight=rng.choice([1.0, 2.0, 0.5, -1.0, 0.0], n).astype(np.float32),
        event_type=np.zeros(n, dtype=np.uint8),
        user_before=rng.normal(size=(n, 4)).astype(np.float32),
        user_after=rng.normal(size=(n, 4)).astype(np.float32),
        negatives=rng.integers(-1, 30, (n, 3)).astype(np.int32),
    )


@given(cuts=st.lists(st.integers(0, 200), max_size=10), snapshot=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_batches_and_a_snapshot_between_give_one_state(cuts: list[int], snapshot: bool) -> None:
    log = make_log(200)
    whole, state = ItemState(SETTINGS), ItemState(SETTINGS)
    whole.apply(log)
    edges = [0, *sorted(cuts), 200]
    for start, stop in pairwise(edges):
        state.apply(log.slice(start, stop))
        if snapshot:
            state = ItemState.from_bytes(SETTINGS, state.to_bytes())
    assert state.digest() == whole.digest()
    assert state.items.ids == whole.items.ids


def corrected_log(n: int, seed: int) -> list[LearningBatch]:
    """Records of one event each: three users' events, of which some are withdrawn, and one user forgotten."""
    rng, log = np.random.default_rng(seed), []
    pasts: dict[int, list[corrections.Past]] = {1: [], 2: [], 3: []}

    def write(record: LearningBatch, whole: bool = False) -> None:
        width = 4 if whole else 0
        record.user_before, record.user_after = rng.normal(size=(2, 1, width)).astype(np.float32)
        negatives = [[index_of(record, f"i{k}") for k in rng.integers(0, 9, 2)]] if whole else [[-1, -1]]
        record.negatives = np.array(negatives, dtype=np.int32)
        record.recent = np.pad(record.recent, ((0, 0), (0, 50 - record.recent.shape[1])), constant_values=-1)
        log.append(record)

    for number in range(n):
        user = int(rng.integers(1, 4))
        kept = pasts[user]
        if number == n - 5:
            for record in corrections.forgetting(2, pasts[2]):
                write(record)
        elif kept and rng.random() < 0.2:
            place = int(rng.integers(0, len(kept)))
            for record in corrections.withdrawal(user, kept, place):
                write(record, whole=record.kind == WITHDRAW)
            del kept[place]
        else:
            weight = float(rng.choice([1.0, 0.5, -1.0]))
            past = corrections.Past(f"i{rng.integers(0, 9)}", str(number), 500_000 * number, weight, 0, 1.0)
            write(corrections.record_of([(user, past)], [[old.item for old in kept[:50]]]), whole=True)
            kept.insert(0, past)
    return log


def index_of(record: LearningBatch, item_id: str) -> int:
    if item_id not in record.item_ids:
        record.item_ids.append(item_id)
    return record.item_ids.index(item_id)


@given(cuts=st.sets(st.integers(0, 400), max_size=12), seed=st.integers(0, 3), snapshot=st.booleans())
@settings(max_examples=12, deadline=None)
def test_corrections_replayed_in_any_batches_give_one_state(
    cuts: set[int], seed: int, snapshot: bool
) -> None:
    log = corrected_log(60, seed)
    assert {record.kind for record in log} == {0, 1, 2, 3, 4}
    one_by_one, state = ItemState(SETTINGS), ItemState(SETTINGS)
    for record in log:
        one_by_one.apply(record)
    runs: list[list[LearningBatch]] = [[]]
    for place, record in enumerate(log):
        if runs[-1] and (place in cuts or runs[-1][-1].kind != record.kind):
            runs.append([])
        runs[-1].append(record)
    for run in runs:
        state.apply(LearningBatch.concat(run))
        if snapshot and len(run) > 1:
            state = ItemState.from_bytes(SETTINGS, state.to_bytes())
    assert state.digest() == one_by_one.digest()


def test_counts_are_those_of_a_log_without_the_withdrawn_events() -> None:
    log = [record for record in corrected_log(80, 7) if record.kind != UNCOUNT]
    state, without = ItemState(SETTINGS), ItemState(SETTINGS)
    withdrawn = {(r.item_ids[r.item[0]], int(r.time_ms[0])) for r in log if r.kind == WITHDRAW}
    assert len(withdrawn) > 5
    for record in log:
        state.apply(record)
        if (
            record.kind == LEARN
            and (record.item_ids[record.item[0]], int(record.time_ms[0])) not in withdrawn
        ):
            without.apply(record)
    rows = state.items.rows(without.items.ids)
    theirs = np.arange(len(rows), dtype=np.int32)
    assert state.popularity.score_plain(rows).tolist() == without.popularity.score_plain(theirs).tolist()
    assert state.popularity.score(rows) == pytest.approx(without.popularity.score(theirs), rel=1e-5, abs=1e-5)
    counts = state.covisitation._uses[rows]
    assert counts.tolist() == pytest.approx(without.covisitation._uses[theirs].tolist(), rel=1e-6)


def test_a_forgotten_item_is_gone_from_every_model_and_may_come_back() -> None:
    state, never = ItemState(SETTINGS), ItemState(SETTINGS)
    log = make_log(60)
    state.apply(log)
    row = state.items.row("i3")
    assert state.forget_item("i3")
    assert not state.forget_item("i3")
    assert not state.forget_item("never seen")
    rows = np.array([row], dtype=np.int32)
    assert state.popularity.score_plain(rows).tolist() == [0.0]
    assert row not in state.popularity.top(100)
    assert not state.factors.factors.rows[row].any()
    others = np.arange(len(state.items), dtype=np.int32)[:, None]
    assert not state.covisitation.score(others, np.full_like(others, row)).any()
    restored = ItemState.from_bytes(SETTINGS, state.to_bytes())
    for one in (state, restored):
        one.apply(log)
    assert state.items.row("i3") >= 0
    assert state.digest() == restored.digest()
    assert never.forget_item("i3") is False


def test_the_owner_takes_a_step_back() -> None:
    state = ItemState(SETTINGS)
    state.apply(make_log(40))
    before, digest = state.start_users(["u"]), state.digest()
    event = (["i1"], np.ones(1, dtype=np.float32), np.array([5], dtype=np.uint64))
    after, drawn = state.learn_users(before, *event)
    back, again = state.unlearn_users(after, *event)
    assert np.linalg.norm(back - before) < np.linalg.norm(after - before)
    assert again == drawn
    assert state.digest() == digest


def test_digest_shows_every_model() -> None:
    log = make_log(50)
    changed: dict[str, Any] = {
        "weight": log.weight + np.float32(1),
        "time_ms": log.time_ms + 1_000_000 * np.arange(50),
        "user_before": log.user_before + np.float32(0.5),
        "recent": np.full_like(log.recent, -1),
    }
    digests = set()
    for name, column in [("item", log.item), *changed.items()]:
        state, other = ItemState(SETTINGS), make_log(50)
        setattr(other, name, column)
        state.apply(other)
        digests.add(state.digest())
    assert len(digests) == 5


def test_a_bad_batch_changes_nothing() -> None:
    state, log = ItemState(SETTINGS), make_log(20)
    state.apply(log)
    before = state.digest()
    log.weight[7] = np.nan
    with pytest.raises(ValueError, match=r"weight\[7\] is nan"):
        state.apply(log)
    other = make_log(3)
    other.user_before = other.user_after = np.zeros((3, 9), dtype=np.float32)
    with pytest.raises(ValueError, match="9 dimensions, but settings say 4"):
        state.apply(other)
    assert state.digest() == before


def test_snapshot_keeps_the_offset_and_refuses_other_settings() -> None:
    state = ItemState(SETTINGS)
    state.apply(make_log(40))
    state.offset = 12_345
    data = state.to_bytes()
    restored = ItemState.from_bytes(SETTINGS, data)
    assert (restored.offset, restored.digest()) == (12_345, state.digest())
    other = msgspec.structs.replace(SETTINGS, seed=1)
    with pytest.raises(SnapshotMismatchError) as caught:
        ItemState.from_bytes(other, data)
    assert state.settings_digest in str(caught.value)
    assert ItemState(other).settings_digest in str(caught.value)
    assert "learning log" in str(caught.value)


def test_snapshot_of_another_format_is_refused() -> None:
    state = ItemState(SETTINGS)
    data = safetensors.numpy.save(state.to_arrays(), metadata={"freshet": '{"format": "0"}'})
    with pytest.raises(SnapshotMismatchError, match="format 0, this program reads 5"):
        ItemState.from_bytes(SETTINGS, data)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_snapshot_is_refused(cut: int) -> None:
    state = ItemState(SETTINGS)
    state.apply(make_log(40))
    with pytest.raises(safetensors.SafetensorError):
        ItemState.from_bytes(SETTINGS, state.to_bytes()[:cut])


def test_owner_step_reads_and_does_not_write() -> None:
    state = ItemState(SETTINGS)
    state.apply(make_log(40))
    before = state.digest()
    users = state.start_users(["u", "v"])
    after, negatives = state.learn_users(
        users, ["i1", "never seen"], np.ones(2, dtype=np.float32), np.array([1, 2], dtype=np.uint64)
    )
    assert after.shape == (2, 4)
    assert len(negatives) == 2
    assert state.digest() == before


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"covisitation.window"):
        msgspec.convert({"covisitation": {"window": 0}}, ModelSettings)
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.convert({"colour": 1}, ModelSettings)
    assert ItemState(ModelSettings()).settings_digest != ItemState(SETTINGS).settings_digest


def test_defaults_of_settings_and_models_agree() -> None:
    from online_models import ISGD, CoVisitation, DecayedPopularity

    for section, model in [
        (CoVisitationSettings(), CoVisitation()),
        (PopularitySettings(), DecayedPopularity()),
        (FactorSettings(), ISGD()),
    ]:
        assert msgspec.structs.asdict(section) == {
            k: v for k, v in model._get_params().items() if k != "seed"
        }


def test_equal_states_give_equal_snapshot_bytes() -> None:
    """A snapshot's name holds its digest: two replicas at one offset must write the same file."""
    state = ItemState(ModelSettings())
    assert {ItemState.from_bytes(ModelSettings(), state.to_bytes()).to_bytes() for _ in range(20)} == {
        state.to_bytes()
    }
