from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from online_models import ISGD, checks
from online_models.base import user_token
from online_models.prequential import evaluate
from online_models.social_mf import SocialMF
from tests.test_online_models.test_social import friends_and_others, planted

FOLLOW = {"event_type": "follow"}


def befriended(**kwargs: float) -> SocialMF:
    model = SocialMF(**{"dimension": 4, "negatives": 0, **kwargs})  # type: ignore[arg-type]
    model.learn_many(["bob", "eve"], ["a", "b"])
    model.learn_follow("ann", "bob")
    model.learn_follow("ann", "eve")
    return model


def test_a_step_is_isgds_and_then_towards_the_friends() -> None:
    model = befriended(social=0.5, learning_rate=0.2, regularization=0.1, gain=0.5, decline=0.25)
    bob, eve = model._users["bob"].astype(float), model._users["eve"].astype(float)
    start = (bob + eve) / 2  # nothing is known of ann
    q = model.factors.rows[model.items.row("a")].astype(float)
    trust = [1.5 if friend @ q > start @ q else 0.75 for friend in (bob, eve)]
    assert sorted(trust) == [0.75, 1.5]
    after = start + 0.2 * ((1.0 - start @ q) * q - 0.1 * start)
    mean = (trust[0] * bob + trust[1] * eve) / sum(trust)
    after += 0.2 * 0.5 * (mean - after)
    record = model.learn_user([("ann", "a", 1.0, None)])
    assert record.user_before[0] == pytest.approx(start, rel=1e-5)
    assert record.user_after[0] == pytest.approx(after, rel=1e-5)
    assert [model.trust("ann", friend) for friend in ("bob", "eve")] == pytest.approx(trust)


def test_without_edges_it_is_isgd() -> None:
    social, plain = SocialMF(dimension=4), ISGD(dimension=4)
    for event in checks.random_events(60):
        social.learn_one(*event)
        plain.learn_one(*event)
    for user in ("user-0", "user-3", "stranger"):
        assert [social.predict_one(user, f"item-{k}") for k in range(12)] == [
            plain.predict_one(user, f"item-{k}") for k in range(12)
        ]


def test_who_only_follows_is_served_by_his_friends() -> None:
    model = SocialMF(dimension=8, social=0.5)
    for _ in range(30):
        model.learn_many(["bob", "eve"], ["tea", "nails"])
    model.learn_one("ann", "", x={**FOLLOW, "target_user": "bob", "event_id": "f"})
    assert model.predict_one("ann", "tea") == model.predict_one("bob", "tea")
    assert model.rank("ann", ["nails", "tea"]) == ["tea", "nails"]
    assert model.retract("ann", "f")
    assert model.trust("ann", "bob") == 0.0
    assert model.predict_one("ann", "tea") != model.predict_one("bob", "tea")


def test_friends_help_factors() -> None:
    edges, events = planted(friends_and_others)
    models = {"isgd": ISGD(), "social": SocialMF()}
    for user, target in edges:
        models["social"].learn_follow(user, target)  # type: ignore[attr-defined]
    hits = {name: report.hr_at_10 for name, report in evaluate(models, events).items()}
    assert hits["social"] > hits["isgd"] + 0.01, hits


def test_the_idlest_users_factor_makes_room() -> None:
    model = befriended(max_users=2)
    model.learn_one("tom", "a")
    tokens = model.item_arrays()["social_mf.tokens"].tolist()
    assert tokens == [user_token("eve"), user_token("tom")]
    model.learn_many(["eve", "zoe"], ["a", "a"])
    assert model.item_arrays()["social_mf.tokens"].tolist() == [user_token("eve"), user_token("zoe")]


def test_a_forgotten_user_leaves_no_factor_and_no_edge() -> None:
    model = befriended()
    model.learn_follow("bob", "ann")
    model.forget("bob")
    assert model.trust("ann", "bob") == model.trust("bob", "ann") == 0.0
    assert user_token("bob") not in model.item_arrays()["social_mf.tokens"].tolist()
    assert model.predict_one("ann", "b") == model.predict_one("eve", "b")  # eve alone is left


def test_two_owners_agree_with_one_process_and_a_restored_model_goes_on() -> None:
    events = [(u, i, y, {**(x or {}), "target_user": f"user-{k % 7}"}) for k, (u, i, y, x) in enumerate(
        checks.random_events(80)
    )]  # fmt: skip
    for k in range(0, 80, 5):
        if events[k][0] != events[k][3]["target_user"]:
            events[k][3].update(FOLLOW)
    single, owners = SocialMF(dimension=4), (SocialMF(dimension=4), SocialMF(dimension=4))
    for event in events:
        single.learn_one(*event)
        owner = owners[int(event[0].removeprefix("user-")) % 2]
        record = owner.learn_user([event])
        for replica in owners:
            replica.replicate(record)
        assert owner.predict_one(event[0], "item-1") == single.predict_one(event[0], "item-1")
    assert any(single.trust(f"user-{a}", f"user-{b}") for a in range(7) for b in range(7))
    arrays = single.item_arrays()
    for replica in owners:
        assert all(array.tobytes() == arrays[name].tobytes() for name, array in replica.item_arrays().items())
    restored = SocialMF(dimension=4)
    restored.from_arrays(single.to_arrays())
    for model in (single, restored):
        for event in events[:20]:
            model.learn_one(*event)
    assert restored.digest() == single.digest()
    assert all(np.isfinite(single.predict_one("user-1", item)) for item in single.items.ids)


@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_contract_of_users_who_follow(check: Callable[[Callable[[], SocialMF]], None]) -> None:
    def make() -> SocialMF:
        model = SocialMF(dimension=4)
        for k in range(7):
            model.learn_follow(f"user-{k}", f"user-{(k + 1) % 7}")
            model.learn_follow(f"user-{k}", f"user-{(k + 3) % 7}")
        return model

    check(make)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"social": 1.5}, "social is 1.5"),
        ({"gain": -1.0}, "gain is -1.0"),
        ({"decline": 1.0}, "decline 1.0"),
        ({"max_users": 0}, "max_users is 0"),
        ({"max_followed": 0}, "max_followed is 0"),
        ({"max_trust": 0.0}, "max_trust is 0.0"),
    ],
)
def test_bad_parameters_are_refused_by_name(kwargs: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SocialMF(**kwargs)  # type: ignore[arg-type]
