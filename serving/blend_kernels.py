# mypy: disable-error-code="return-value, arg-type, assignment, no-any-return, call-overload, operator"
# numba unifies Python's and numpy's scalars, which mypy keeps apart.
"""Compiled kernels of the blend, and of what a ranker reads of candidates: log-probabilities of each source.

Logarithms and exponentials are written as additions and multiplications, which fill the vector registers: a
tenth of the time of calls to the mathematical library, to a relative 1e-9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.kernels import RANKER, Found, kernel

__all__ = ["FAR_S", "add_opinion", "blend", "describe"]

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]

FAR_S = 1e9
"""Seconds, 32 years, since the newest event of an item that has none."""

_LN2, _LOG2E = 0.6931471805599453, 1.4426950408889634


@kernel
def _log(values: Doubles, work: Doubles) -> None:
    """values = log values, in place, for normal positive ones: log(2^e m) = e log 2 + 2 artanh((m-1)/(m+1)),
    m in [√½, √2), to 1e-9. A loop of additions and multiplications, which fills the vector registers."""
    bits, mantissas = values.view(np.int64), work.view(np.int64)
    for at in range(values.shape[0]):
        mantissas[at] = (bits[at] & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000
    for at in range(values.shape[0]):
        m, exponent = work[at], np.float64((bits[at] >> 52) - 1023)
        large = m > 1.4142135623730951
        m = 0.5 * m if large else m
        exponent = exponent + 1.0 if large else exponent
        s = (m - 1.0) / (m + 1.0)
        q = s * s
        series = 2.0 + q * (2.0 / 3 + q * (2.0 / 5 + q * (2.0 / 7 + q * (2.0 / 9))))
        values[at] = exponent * _LN2 + s * series


@kernel
def _exp(values: Doubles, work: Doubles) -> None:
    """values = exp values, in place, for values of at most 0: 2^n e^r, |r| <= log(2) / 2, to 1e-9 of
    itself."""
    powers = work.view(np.int64)
    for at in range(values.shape[0]):
        x = max(values[at], -700.0)
        n = np.floor(x * _LOG2E + 0.5)
        powers[at] = (np.int64(n) + 1023) << 52
        r = x - n * _LN2
        tail = 1.0 / 24 + r * (1.0 / 120 + r * (1.0 / 720 + r * (1.0 / 5040 + r * (1.0 / 40320))))
        values[at] = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6 + r * tail)))
    for at in range(values.shape[0]):
        values[at] *= work[at]


@kernel
def _add_log_share(
    scores: Floats, weight: float, floor: float, out: Doubles, values: Doubles, work: Doubles
) -> None:
    """out += weight log p, p the scores' shares with a floor, all 1/n when there is none above 0."""
    total = 0.0
    for column in range(scores.shape[0]):
        total += max(np.float64(scores[column]), 0.0)
    if total <= 0.0:
        return
    least = floor * total / scores.shape[0]
    for column in range(scores.shape[0]):
        values[column] = max(np.float64(scores[column]), 0.0) + least
    _log(values, work)
    whole = np.log(total * (1.0 + floor))
    for column in range(scores.shape[0]):
        out[column] += weight * (values[column] - whole)


@kernel
def _add_log_softmax(logits: Floats, weight: float, out: Doubles, values: Doubles, work: Doubles) -> None:
    """out += weight log softmax(logits)."""
    highest, total = np.float32(-np.inf), 0.0
    for column in range(logits.shape[0]):
        highest = max(highest, logits[column])
    for column in range(logits.shape[0]):
        values[column] = np.float64(logits[column]) - highest
    _exp(values, work)
    for column in range(logits.shape[0]):
        total += values[column]
    whole = highest + np.log(total)
    for column in range(logits.shape[0]):
        out[column] += weight * (np.float64(logits[column]) - whole)


@kernel
def _add_ranker(logits: Floats, weight: float, out: Doubles, values: Doubles, work: Doubles) -> None:
    """out += weight log softmax over the known (not NaN); an unknown item gets its own standing in `out`,
    moved and scaled to the ranker's mean and spread on the known ones."""
    known, highest, total, mean, mean_out = 0.0, np.float32(-np.inf), 0.0, 0.0, 0.0
    for column in range(logits.shape[0]):
        is_known = logits[column] == logits[column]
        known += 1.0 if is_known else 0.0
        highest = max(highest, logits[column] if is_known else np.float32(-np.inf))
        mean += np.float64(logits[column]) if is_known else 0.0
        mean_out += out[column] if is_known else 0.0
    if known == 0.0:
        return
    mean, mean_out, spread, spread_out = mean / known, mean_out / known, 0.0, 0.0
    for column in range(logits.shape[0]):
        is_known = logits[column] == logits[column]
        values[column] = np.float64(logits[column]) - highest if is_known else -700.0
        spread += (np.float64(logits[column]) - mean) ** 2 if is_known else 0.0
        spread_out += (out[column] - mean_out) ** 2 if is_known else 0.0
    _exp(values, work)
    for column in range(logits.shape[0]):
        total += values[column]
    whole = highest + np.log(total)
    ratio = np.sqrt(spread / spread_out) if spread_out > 0.0 else 0.0
    for column in range(logits.shape[0]):
        is_known = logits[column] == logits[column]
        opinion = np.float64(logits[column]) if is_known else mean + ratio * (out[column] - mean_out)
        out[column] += weight * (opinion - whole)


@kernel
def blend(
    found: Found, logits: Floats, experience: Doubles, weights: tuple[float, float, float, float, float],
    floor: float, out: Floats,
) -> None:  # fmt: skip
    """One score a candidate, out float32[n, C], -inf behind a user's last: the equation of `serving.scoring`.

    logits float32[n, C], or [n, 0] without a ranker; experience float64[n] scales the factors' weight;
    weights: of co-visitation, popularity, factors, content, ranker. A ranker that knows a candidate adds its
    bit to the candidate's sources.
    """
    room = found.rows.shape[1]
    sums, parts, scraps = np.empty(room), np.empty(room), np.empty(room)
    for user in range(out.shape[0]):
        n = found.length[user]
        scores, blended, values, work = found.scores[user], sums[:n], parts[:n], scraps[:n]
        out[user, n:] = -np.inf
        if n == 0:
            continue
        blended[:] = 0.0
        _add_log_share(scores[0, :n], weights[0], floor, blended, values, work)
        _add_log_share(scores[1, :n], weights[1], floor, blended, values, work)
        if experience[user] > 0.0:
            _add_log_softmax(scores[2, :n], weights[2] * experience[user], blended, values, work)
        _add_log_share(scores[3, :n], weights[3], floor, blended, values, work)
        if logits.shape[1] > 0:
            _add_ranker(logits[user, :n], weights[4], blended, values, work)
            for column in range(n):
                if not np.isnan(logits[user, column]):
                    found.sources[user, column] |= np.uint8(RANKER)
        for column in range(n):
            out[user, column] = blended[column]


@kernel
def add_opinion(logits: Floats, length: NDArray[np.int32], weight: float, scores: Floats) -> None:
    """scores += weight times a ranker's opinion, as `blend` adds it: scores float32[n, C] are the online
    models' blend, logits float32[n, C] the ranker's, NaN where it knows nothing; `length` int32[n] candidates
    count, and what is behind them is left as it is."""
    room = logits.shape[1]
    sums, parts, scraps = np.empty(room), np.empty(room), np.empty(room)
    for user in range(logits.shape[0]):
        n = length[user]
        blended = sums[:n]
        for column in range(n):
            blended[column] = np.float64(scores[user, column])
        _add_ranker(logits[user, :n], weight, blended, parts[:n], scraps[:n])
        for column in range(n):
            scores[user, column] = np.float32(blended[column])


@kernel
def _put_logs(values: Doubles, work: Doubles, scale: float, out: Floats) -> None:
    """out = scale ln(1 + values), values at least 0."""
    for column in range(values.shape[0]):
        values[column] += 1.0
    _log(values, work)
    for column in range(values.shape[0]):
        out[column] = scale * values[column]


@kernel
def _any_positive(scores: Floats) -> bool:
    found = False
    for column in range(scores.shape[0]):
        found |= scores[column] > 0.0
    return found


@kernel
def describe(
    found: Found, experience: Doubles, floor: float, now_ms: Longs, plain: Doubles, exposures: Longs, last_ms:
    Longs, scales: tuple[float, float, float], out: Floats,
) -> None:  # fmt: skip
    """What is known of each candidate, out float32[n, C, 6], 0 behind a user's last: the equations of
    `serving.features`.

    experience float64[n]; now_ms int64[n]; plain float64, exposures and last_ms int64, all [>= rows]; scales
    of the logarithms of counts, exposures and seconds.
    """
    room = found.rows.shape[1]
    sums, parts, scraps = np.empty(room), np.empty(room), np.empty(room)
    for user in range(out.shape[0]):
        n = found.length[user]
        rows, scores, features = found.rows[user, :n], found.scores[user], out[user]
        total, values, work = sums[:n], parts[:n], scraps[:n]
        features[n:, :] = np.float32(0.0)
        for source in range(3):
            total[:] = 0.0
            if source == 2:
                _add_log_softmax(scores[2, :n], experience[user], total, values, work)
                even = experience[user] * np.log(max(n, 1))
            else:
                _add_log_share(scores[source, :n], 1.0, floor, total, values, work)
                even = np.log(n) if _any_positive(scores[source, :n]) else 0.0
            for column in range(n):
                features[column, source] = total[column] + even
        for column in range(n):
            values[column] = max(plain[rows[column]], 0.0)
        _put_logs(values, work, scales[0], features[:n, 3])
        for column in range(n):
            values[column] = max(np.float64(exposures[rows[column]]), 0.0)
        _put_logs(values, work, scales[1], features[:n, 4])
        for column in range(n):
            row = rows[column]
            since_s = (now_ms[user] - last_ms[row]) / 1000.0
            is_used = last_ms[row] >= 0 and plain[row] > 0.0
            values[column] = min(max(since_s, 0.0), FAR_S) if is_used else FAR_S
        _put_logs(values, work, scales[2], features[:n, 5])
