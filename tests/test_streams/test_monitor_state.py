"""The monitor's state: exact totals over rebalances and redeliveries, unknown stays unknown, bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events import PartitionStats
from streams.lag import GroupInfo, PartitionLag
from streams.monitor.report import state_report
from streams.monitor.state import MODELS_KEPT, REASONS_KEPT, MonitorState
from tests.test_streams.monitor_records import model_record, partition_stats, trial_stats, worker_stats


class Clock:
    """Wall clock and monotonic clock of a test, both in s."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> MonitorState:
    return MonitorState(100, now=clock, clock=clock)


def lag_row(partition: int = 0, **changes: Any) -> PartitionLag:
    fields: dict[str, Any] = {
        "group": "freshet-workers", "topic": "events", "partition": partition, "low": 0, "committed": 10,
        "end": 15,
        "lag": 5, "lag_s": 1.5, "lost": 0, "owner": "w1", "state": "OK",
    }  # fmt: skip
    return PartitionLag(**{**fields, **changes})


def test_nothing_known_is_none_not_zero(state: MonitorState) -> None:
    state.tick()
    report = state_report(state)
    for key in ("as_of", "broker_up", "hit_rate_at_10", "events_per_s", "latency_p50_ms", "lag", "lag_s"):
        assert report[key] is None, key
    point = state.history[-1]
    assert {getattr(point, name) for name in point.__struct_fields__ if name != "at"} == {None}


def test_figures_of_one_worker(state: MonitorState, clock: Clock) -> None:
    state.take_stats(worker_stats(at=1_000_000))
    state.take_lag([lag_row(), lag_row(1, lag=0, lag_s=0.0)], {"freshet-workers": GroupInfo("STABLE", 1)})
    state.tick()
    report = state_report(state)
    assert report["events_per_s"] == 100
    assert report["recommendations_per_s"] == 80
    assert report["hit_rate_at_10"] == pytest.approx(160 / 800)
    assert report["popularity_hit_rate_at_10"] == pytest.approx(64 / 800)
    assert report["ndcg_at_10"] == pytest.approx(0.1)
    assert (report["lag"], report["lag_s"]) == (5, 1.5)
    assert 8 <= report["latency_p50_ms"] <= 10
    assert 800 <= report["latency_p99_ms"] <= 1000
    assert [p["accepted"] for p in report["partitions"]] == [1000, None]
    assert msgspec.json.decode(msgspec.json.encode(report))["workers"][0]["worker"] == "w1"


def test_totals_survive_a_move_of_the_partition(state: MonitorState) -> None:
    state.take_stats(worker_stats("old", at=1_000_000, partitions={"3": partition_stats(accepted=1000)}))
    state.take_stats(worker_stats("new", at=1_001_000, partitions={"3": partition_stats(accepted=1200)}))
    late = worker_stats("old", at=1_001_500, partitions={"3": partition_stats(accepted=1100)})
    state.take_stats(late)
    assert state.totals().accepted == 1200
    assert state.partition_totals()[3][1] == "new"


def test_totals_start_again_with_a_new_topic(state: MonitorState) -> None:
    state.take_stats(worker_stats(at=1_000_000, partitions={"0": partition_stats(accepted=1000)}))
    state.take_stats(worker_stats(at=1_030_000, partitions={"0": partition_stats(accepted=3)}))
    assert state.totals().accepted == 3


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=40
    ),
    st.randoms(use_true_random=False),
)
def test_redelivered_records_change_nothing(steps: list[tuple[str, int, int]], random: Any) -> None:
    """At least once, in order by worker: whatever comes again, sums and latencies are those of once."""
    clock = Clock()
    once, again = (MonitorState(10, now=clock, clock=clock) for _ in range(2))
    totals: dict[int, int] = {}
    records = []
    for index, (worker, partition, more) in enumerate(steps):
        totals[partition] = totals.get(partition, 0) + more
        stats = PartitionStats(accepted=totals[partition])
        records.append(worker_stats(worker, at=1_000_000 + index, partitions={str(partition): stats}))
    for index, record in enumerate(records):
        once.take_stats(record)
        again.take_stats(record)
        for old in random.sample(records[: index + 1], random.randint(0, index + 1)):
            again.take_stats(old)
    assert once.totals() == again.totals()
    assert once.totals().accepted == sum(totals.values())
    assert once.latency.buckets() == again.latency.buckets()


def test_a_restarted_worker_is_taken_though_its_clock_went_back(state: MonitorState) -> None:
    state.take_stats(worker_stats(at=1_000_000, epoch=1))
    state.take_stats(worker_stats(at=999_000, epoch=2, events=7))
    assert state.workers["w1"].stats.events == 7


def test_silent_workers_give_no_rates_and_leave_in_the_end(state: MonitorState, clock: Clock) -> None:
    state.take_stats(worker_stats("a", at=1_000_000))
    state.take_stats(worker_stats("b", at=1_000_000))
    assert state.events_per_s() == 200
    clock.s += 4
    state.take_stats(worker_stats("b", at=1_004_000))
    clock.s += 3
    assert state.events_per_s() == 100
    clock.s += 60
    assert state.events_per_s() is None
    clock.s += 3600
    state.tick()
    assert state.workers == {}


def test_backlog_rebuilds_totals_but_not_rates(state: MonitorState) -> None:
    state.take_stats(worker_stats(at=900_000))
    assert state.totals().accepted == 1000
    assert state.events_per_s() is None
    assert state.latency.count == 0


def test_latency_window_forgets(state: MonitorState, clock: Clock) -> None:
    state.take_stats(worker_stats(at=1_000_000, latency_ms_buckets={"1000": 10}))
    clock.s += 11
    state.take_stats(worker_stats(at=1_011_000, latency_ms_buckets={"1": 10}))
    state.tick()
    p50, p99 = state.latency_ms()
    assert p50 is not None
    assert p99 is not None
    assert p50 < p99 <= 1
    assert state.latency.count == 20


def test_hit_rate_over_time_is_of_the_last_minute(state: MonitorState, clock: Clock) -> None:
    for second in range(200):
        served = 10 * second if second < 100 else 1000 + 30 * (second - 100)
        stats = partition_stats(
            evaluated=100 * (second + 1), hits_at_10=served, popularity_hits_at_10=5 * second
        )
        state.take_stats(worker_stats(at=int(clock.s * 1000), partitions={"0": stats}))
        state.tick()
        clock.s += 1
    assert state.history[0].hit_rate_at_10 == pytest.approx(0.1)
    assert state.history[-1].hit_rate_at_10 == pytest.approx(0.3)
    assert state.history[-1].popularity_hit_rate_at_10 == pytest.approx(0.05)
    assert len(state.history) == 100, "the ring of 100 points"


def test_swaps_are_marked_once_for_all_workers_and_again_after_a_rollback(state: MonitorState) -> None:
    at = 1_000_000
    for ranker in ("v1", "v2", "v1"):
        for worker in ("a", "b"):
            at += 1
            state.take_stats(worker_stats(worker, at=at, ranker=ranker))
    assert [(swap.version, swap.worker) for swap in state.swaps] == [("v1", "a"), ("v2", "a"), ("v1", "a")]


def test_broker_down_hides_lag_and_says_why(state: MonitorState, clock: Clock) -> None:
    state.take_lag([lag_row(owner=None)], {"freshet-workers": GroupInfo("EMPTY", 0)})
    clock.s += 31
    state.take_lag([lag_row(owner=None)], {"freshet-workers": GroupInfo("EMPTY", 0)})
    assert state.unowned_s(state.lag[0]) == 31
    state.take_broker_error("no answer from 127.0.0.1:9092")
    report = state_report(state)
    assert (report["broker_up"], report["lag"], report["partitions"]) == (False, None, [])
    assert report["broker_error"] == "no answer from 127.0.0.1:9092"
    assert report["as_of"] == 1_031_000, "the last answer keeps its time"
    state.take_lag([lag_row()], {})
    assert state.unowned_s(state.lag[0]) is None


def test_models_supersede_each_other_and_refusals_stay(state: MonitorState) -> None:
    state.take_model(model_record("v1", published_at=1))
    state.take_model(model_record("v2", status="refused", published_at=2, reason="worse than v1"))
    state.take_model(model_record("v3", published_at=3))
    assert [(m.version, m.status) for m in state.model_list()] == [
        ("v3", "live"), ("v2", "refused"), ("v1", "superseded"),
    ]  # fmt: skip
    assert "uri" not in state_report(state)["models"][0]


def test_what_became_of_a_version_on_trial(state: MonitorState) -> None:
    state.take_model(model_record("v1", published_at=1))
    state.take_model(model_record("v2", status="shadow", published_at=2))
    state.take_model(model_record("v2", published_at=3, against="v1", replaces="v1"))
    state.take_model(model_record("v2", status="promoted", published_at=3))
    assert {m.version: m.status for m in state.model_list()} == {"v1": "superseded", "v2": "live"}
    state.take_model(model_record("v3", published_at=4))
    state.take_model(model_record("v1", published_at=5, replaces="v2"))
    assert {m.version: m.status for m in state.model_list() if m.status == "live"} == {"v3": "live"}, (
        "a verdict on v2 came after v3 went live"
    )
    dropped = model_record("v3", status="dropped", published_at=6, trial="probation")
    state.take_model(model_record("v2", published_at=6, replaces="v3"))
    state.take_model(dropped)
    state.take_model(dropped)
    state.take_model(model_record("v4", status="dropped", published_at=7, trial="shadow"))
    assert state.rollbacks == 1
    assert state_report(state)["rollbacks"] == 1


def test_trials_of_all_workers_are_added_up(state: MonitorState) -> None:
    state.take_stats(worker_stats("w1"))
    state.take_stats(worker_stats("w2"))
    state.take_stats(worker_stats("w3", trial=trial_stats(other="v9", other_digest="v9", events=1)))
    state.take_stats(worker_stats("w4", trial=None))
    both, alone = sorted(state.trials(), key=lambda trial: -trial.events)
    assert (both.other, both.events, both.live_hits, both.other_hits) == ("v2", 800, 160, 200)
    assert (alone.other, alone.events) == ("v9", 1)


def test_memory_is_bounded_against_strangers(state: MonitorState) -> None:
    for number in range(MODELS_KEPT + 50):
        state.take_model(model_record(f"v{number}", published_at=number))
    for number in range(REASONS_KEPT + 50):
        state.take_dead_letter(f"reason-{number}", 2000.0)
    assert len(state.models) == MODELS_KEPT
    assert state.model_list()[-1].version == "v50"
    assert len(state.dead_letters) == REASONS_KEPT + 1
    assert state.dead_letters["other"] == 50


def test_dead_letters_wait_until_the_backlog_is_read(state: MonitorState, clock: Clock) -> None:
    state.take_dead_letter("invalid_json", 900.0)
    clock.s += 1
    state.take_dead_letter("invalid_json", 901.0)
    clock.s += 1.5
    state.tick()
    assert not state.dead_letters_read
    clock.s += 1
    state.tick()
    assert state.dead_letters_read
    assert state.dead_letters["invalid_json"] == 2


def test_history_is_sent_from_a_point_on(state: MonitorState, clock: Clock) -> None:
    for _ in range(5):
        state.tick()
        clock.s += 1
    assert len(state_report(state)["history"]) == 5
    assert [point.at for point in state_report(state, since_ms=1_002_000)["history"]] == [
        1_003_000,
        1_004_000,
    ]
