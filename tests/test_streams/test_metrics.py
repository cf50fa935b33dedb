"""Latency histograms, stage clock and memory: exact counts, bounded quantile error, lossless merges."""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.metrics import (
    BUCKET_NAMES,
    LATENCY_BOUNDS_MS,
    OVERFLOW_BUCKET,
    LatencyHistogram,
    StageClock,
    rss_bytes,
)

latencies = st.lists(st.floats(min_value=-10.0, max_value=1e7, allow_nan=False), max_size=200)


def test_bounds_rise_and_names_are_their_numbers() -> None:
    assert list(LATENCY_BOUNDS_MS) == sorted(set(LATENCY_BOUNDS_MS))
    assert LATENCY_BOUNDS_MS[0] == 0.1
    assert LATENCY_BOUNDS_MS[-1] == 100_000
    assert [float(name) for name in BUCKET_NAMES] == [*LATENCY_BOUNDS_MS, math.inf]
    assert len(set(BUCKET_NAMES)) == len(BUCKET_NAMES) == 62


@given(latencies)
def test_one_by_one_equals_many(values: list[float]) -> None:
    one, many = LatencyHistogram(), LatencyHistogram()
    for value in values:
        one.add(value)
    many.add_many(np.asarray(values))
    assert one.buckets() == many.buckets()
    assert one.count == len(values)


@given(latencies, latencies)
def test_merge_is_the_histogram_of_both(left: list[float], right: list[float]) -> None:
    whole, a, b = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    whole.add_many(left + right)
    a.add_many(left)
    b.add_many(right)
    a.merge(b)
    assert a.buckets() == whole.buckets()
    assert LatencyHistogram(b.buckets()).buckets() == b.buckets()


@given(st.lists(st.floats(min_value=0.1, max_value=99_999.0), min_size=1, max_size=300), st.floats(0.0, 1.0))
def test_quantile_is_within_one_bucket_of_the_exact_one(values: list[float], p: float) -> None:
    histogram = LatencyHistogram()
    histogram.add_many(values)
    answer = histogram.quantile(p)
    assert answer is not None
    # the rank that the histogram uses: the smallest value with at least p * n values up to it
    exact = sorted(values)[max(0, math.ceil(p * len(values)) - 1)]
    bucket = next(i for i, bound in enumerate(LATENCY_BOUNDS_MS) if exact <= bound)
    lower = LATENCY_BOUNDS_MS[bucket - 1] if bucket else 0.0
    assert lower <= answer <= LATENCY_BOUNDS_MS[bucket]


def test_quantile_of_a_known_uniform_sample() -> None:
    histogram = LatencyHistogram()
    histogram.add_many(np.linspace(0.0, 100.0, 100_001))
    assert histogram.quantile(0.5) == pytest.approx(50.0, rel=0.001)
    assert histogram.quantile(0.99) == pytest.approx(99.0, rel=0.001)


def test_empty_overflow_and_reset() -> None:
    histogram = LatencyHistogram()
    assert histogram.quantile(0.5) is None
    histogram.add(3.6e6)
    assert histogram.buckets() == {OVERFLOW_BUCKET: 1}
    assert histogram.quantile(0.5) == 100_000
    assert histogram.cumulative()[-1] == (math.inf, 1)
    histogram.reset()
    assert histogram.count == 0


def test_what_is_not_a_latency_is_refused() -> None:
    histogram = LatencyHistogram()
    with pytest.raises(ValueError, match="NaN"):
        histogram.add(math.nan)
    with pytest.raises(ValueError, match="1 of 2"):
        histogram.add_many([1.0, math.nan])
    with pytest.raises(ValueError, match="'7'"):
        histogram.merge({"1": 3, "7": 1})
    with pytest.raises(ValueError, match="-1"):
        histogram.merge({"1": -1})
    with pytest.raises(ValueError, match=r"1\.5"):
        histogram.quantile(1.5)
    assert histogram.count == 0, "a refused merge must leave no part of itself"


def test_stage_clock_measures_nested_stages_and_counts_a_stage_that_raised() -> None:
    clock = StageClock()
    with clock.stage("outer"):
        time.sleep(0.01)
        with contextlib.suppress(KeyError), clock.stage("inner"):
            time.sleep(0.02)
            raise KeyError
    spent = clock.take()
    assert spent["inner"] >= 0.02
    assert spent["outer"] >= spent["inner"] + 0.01
    assert clock.take() == {}


def test_memory_grows_by_what_is_held() -> None:
    before = rss_bytes()
    held = np.ones(8_000_000)  # 64 MB, written
    assert rss_bytes() - before > 0.8 * held.nbytes
