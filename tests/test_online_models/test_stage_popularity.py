from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from online_models import DecayedPopularity, ItemTable
from online_models.stage_popularity import StagePopularity
from online_models.stage_popularity_kernels import stage_of

HOUR_MS = 3_600_000


def stream(n: int, seed: int = 0) -> list[tuple[str, str, float, dict[str, int]]]:
    rng = np.random.default_rng(seed)
    return [
        (
            f"u{rng.integers(9)}",
            f"i{rng.integers(12)}",
            float(rng.choice([1.0, 2.0, -0.5])),
            {"timestamp": int(k * HOUR_MS + rng.integers(-5, 5) * HOUR_MS + 5 * HOUR_MS)},
        )
        for k in range(n)
    ]


def test_stages_double_in_length() -> None:
    histories = [0, 1, 2, 3, 6, 7, 14, 15, 30, 31, 50, 1000]
    assert [stage_of(n) for n in histories] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]


@pytest.mark.parametrize("half_life_h", [0, 10])
def test_scores_are_the_equation(half_life_h: int) -> None:
    """Over 400 hours and more, so that the landmark moves: what each event is still worth, summed."""
    model, had = StagePopularity(half_life_s=3600.0 * half_life_h, leak=0.3), defaultdict(int)
    events: list[tuple[str, int, float, int]] = []
    for user, item, weight, x in stream(450):
        model.learn_one(user, item, weight, x)
        events.append((item, min(int(np.log2(1 + min(had[user], 50))), 5), weight, x["timestamp"]))
        had[user] += weight > 0.0  # what a user dislikes is not among what he has behind him
    now = max(time_ms for *_, time_ms in events)
    for user in ("u3", "nobody"):
        own = min(int(np.log2(1 + min(had[user], 50))), 5)
        for item in ("i0", "i7"):
            expected = sum(
                weight * 0.3 ** abs(stage - own) * 2.0 ** -((now - time_ms) / HOUR_MS / half_life_h)
                if half_life_h
                else weight * 0.3 ** abs(stage - own)
                for name, stage, weight, time_ms in events
                if name == item
            )
            assert model.predict_one(user, item) == pytest.approx(expected, rel=1e-5)


def test_without_stages_it_is_decayed_popularity() -> None:
    model, plain = StagePopularity(half_life_s=36_000.0, leak=1.0), DecayedPopularity(half_life_s=36_000.0)
    for event in stream(120):
        model.learn_one(*event)
        plain.learn_one(*event)
    for item in plain.items.ids:
        assert model.predict_one("u1", item) == pytest.approx(plain.predict_one("u1", item), rel=1e-5)


def test_newcomers_are_told_apart_from_the_busy() -> None:
    """Everybody starts at the same door; the busy then use the cellar so often that it leads every count."""
    model, plain = StagePopularity(), DecayedPopularity()
    for user in range(20):
        for item in ["door", *["cellar"] * 40]:
            model.learn_one(f"u{user}", item)
            plain.learn_one(f"u{user}", item)
    assert plain.rank("new", ["cellar", "door"]) == ["cellar", "door"]
    assert model.rank("new", ["cellar", "door"]) == ["door", "cellar"]
    assert model.rank("u1", ["cellar", "door"]) == ["cellar", "door"]


def test_an_item_that_loses_its_row_is_forgotten() -> None:
    model = StagePopularity()
    model.items = ItemTable(limit=40)
    for k in range(200):
        model.learn_one("u", f"i{k}", 1.0, {"timestamp": k * 1000})
    assert model.items.evictions > 100
    kept = {item for item in model.items.ids if item}
    assert model._table.sum() == pytest.approx(len(kept), rel=0.01)
    assert all(0.0 < model.predict_one("u", item) <= 1.0 for item in kept)


def test_parameters_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"leak is 1.5, but 0 to 1"):
        StagePopularity(leak=1.5)
    with pytest.raises(ValueError, match=r"half_life_s is 0.5"):
        StagePopularity(half_life_s=0.5)
