"""policy/credentials: which of a provider's keys makes the next try (B33, B34, B35).

Pure.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.policy.affinity import rank
from app.policy.breaker import BreakerRules
from app.policy.credentials import MOST_POOLS, TRIAL_S, Credentials, CredentialStats, Later
from app.policy.key_state import TRAVEL_S, Change, Key, Lease
from app.wire.ratelimit import Remaining

RULES = BreakerRules(min_calls=3, open_s=5.0)
NAME = b"n" * 16
NAMES = [number.to_bytes(16, "big") for number in range(2000)]


def made(*keys: Key | str) -> Credentials:
    return Credentials([Key(key) if isinstance(key, str) else key for key in keys], RULES, lambda: 0.5)


def lease(credentials: Credentials, now: float = 0.0, conversation: bytes = b"", model: str = "m") -> Lease:
    found = credentials.choose(model, conversation, now)
    assert isinstance(found, Lease)
    return found


def label(credentials: Credentials, now: float = 0.0, conversation: bytes = b"", model: str = "m") -> str:
    """The key one quick exchange gets."""
    found = lease(credentials, now, conversation, model)
    credentials.answered(found, now)
    credentials.ended(found)
    return found.label


def fails(error_labels: str, credentials: Credentials, now: float = 0.0) -> None:
    """One failed exchange on each of the keys named."""
    for index, one in enumerate(credentials.snapshot(now)):
        for _ in range(error_labels.count(one.label)):
            found = credentials.choose("m", b"", now, {at for at in range(9) if at != index})
            assert isinstance(found, Lease)
            credentials.failed(found, now)
            credentials.ended(found)


def test_two_keys_of_one_label_are_refused() -> None:
    with pytest.raises(ValueError, match="one label"):
        made("a", "a")


def test_b34_idle_keys_take_turns_by_weight() -> None:
    credentials = made("a", Key("b", 2.0), "c")
    used = [label(credentials) for _ in range(400)]
    assert Counter(used) == {"a": 100, "b": 200, "c": 100}
    assert set(used[:4]) == {"a", "b", "c"}


def test_b34_load_follows_the_weights() -> None:
    credentials = made("a", Key("b", 2.0), "c")
    assert Counter(lease(credentials).label for _ in range(400)) == {"a": 100, "b": 200, "c": 100}


def test_b34_the_one_with_fewer_tries_in_flight_is_next() -> None:
    credentials = made("a", "b")
    held = [lease(credentials) for _ in range(10)]
    for one in held:
        if one.label == "a":
            credentials.ended(one)
    assert [lease(credentials).label for _ in range(5)] == ["a"] * 5


def test_a_key_that_was_away_is_not_flooded_when_it_is_back() -> None:
    credentials = made("a", "b")
    found = lease(credentials)
    credentials.cooled(found, 10.0, 0.0)
    credentials.ended(found)
    assert {label(credentials) for _ in range(1000)} == {"b"}
    used = Counter(label(credentials, 10.0) for _ in range(100))
    assert min(used["a"], used["b"]) >= 49


def test_b34_errors_steer_away_and_fade() -> None:
    credentials = made("a", "b")
    fails("aa", credentials)
    held = [lease(credentials) for _ in range(100)]
    share = Counter(one.label for one in held)
    assert 5 <= share["a"] <= 25
    for one in held:
        credentials.ended(one)
    assert Counter(lease(credentials, 300.0).label for _ in range(100))["a"] >= 49


def test_b34_a_key_that_fails_at_once_draws_no_load_though_it_is_never_busy() -> None:
    credentials = Credentials([Key("a"), Key("b")], BreakerRules(min_calls=10_000), lambda: 0.5)
    fails("aaaaa", credentials)
    held = [lease(credentials, 1.0) for _ in range(100)]
    assert Counter(one.label for one in held) == {"b": 99, "a": 1}, "but for one trial"
    credentials.failed(held[0], 1.0)
    credentials.ended(held[0])
    assert {lease(credentials, 1.9).label for _ in range(20)} == {"b"}
    assert lease(credentials, 2.0, NAME).label == "a", "once a second, whose conversation it may be"
    assert {lease(credentials, 9.0).label for _ in range(20)} == {"b"}, "not while a trial is under way"


def test_b34_a_key_whose_trials_succeed_is_back_soon() -> None:
    credentials = Credentials([Key("a"), Key("b")], BreakerRules(min_calls=10_000), lambda: 0.5)
    fails("a" * 20, credentials)
    used = [label(credentials, float(second)) for second in range(1, 6)]
    assert used[:3] == ["a"] * 3 and credentials.snapshot(6.0)[0].errors < 0.5
    fails("bbbbbbbb" + "aaaaaaaa", credentials, 6.0)
    assert Counter(lease(credentials, 6.0).label for _ in range(10)) == {"a": 5, "b": 5}, "all fail: all serve"


def test_b34_a_key_that_keeps_failing_serves_where_no_other_can() -> None:
    credentials = Credentials([Key("a"), Key("b")], BreakerRules(), lambda: 0.5)
    fails("aaaa", credentials)
    credentials.learn("b", "cooling", 0.5, 0.0)
    assert {lease(credentials).label for _ in range(9)} == {"a"}


def test_where_all_keys_keep_failing_they_take_turns() -> None:
    credentials = Credentials([Key("a"), Key("b")], BreakerRules(), lambda: 0.5)
    fails("a" * 10 + "b" * 10, credentials)
    used = set()
    for number in range(1, 13):
        found = lease(credentials, number * TRIAL_S)
        credentials.ended(found)
        used.add(found.label)
    assert used == {"a", "b"}


def test_b34_a_key_that_runs_dry_is_left_before_its_429() -> None:
    credentials = made("a", "b")
    credentials.limits(0, Remaining(0.02, 60.0, None), 0.0)
    assert {lease(credentials).label for _ in range(30)} == {"b"}
    credentials.limits(1, Remaining(0.0, 60.0, 60.0), 0.0)
    assert lease(credentials).label == "a", "all are short: the least short one"
    assert Counter(lease(credentials, 60.0).label for _ in range(100))["a"] >= 49


def test_b34_a_conversation_keeps_its_key_leaves_it_while_it_cools_and_comes_back() -> None:
    credentials = made("a", "b", "c")
    for name in NAMES[:50]:
        order = ["abc"[index] for index in rank(name, [("a", 1.0), ("b", 1.0), ("c", 1.0)])]
        assert {label(credentials, 0.0, name) for _ in range(5)} == {order[0]}
    found = lease(credentials, 0.0, name)
    assert found.label == order[0]
    credentials.cooled(found, 10.0, 0.0)
    credentials.ended(found)
    assert {label(credentials, 5.0, name) for _ in range(5)} == {order[1]}
    assert {label(credentials, 10.0, name) for _ in range(5)} == {order[0]}


def test_b34_conversations_spread_by_weight() -> None:
    credentials = made("a", Key("b", 2.0), "c")
    share = Counter(label(credentials, 0.0, name) for name in NAMES)
    assert all(abs(share[one] / len(NAMES) - weight / 4) < 0.04 for one, weight in (("a", 1), ("b", 2), ("c", 1)))


def test_b34_a_conversation_leaves_a_key_that_has_much_more_than_the_others() -> None:
    credentials = made("a", "b")
    own = lease(credentials, 0.0, NAME).label
    held = [lease(credentials, 0.0, NAME).label for _ in range(204)]
    assert held[:4] == [own] * 4
    assert 130 <= Counter(held)[own] <= 2 * 67 + 8, "twice the other's and a little, not all"


def test_b34_a_heavy_key_may_have_more_of_its_conversations() -> None:
    credentials = made("a", Key("b", 8.0))
    heavy = next(name for name in NAMES if label(credentials, 0.0, name) == "b")
    held = [lease(credentials, 0.0, heavy) for _ in range(90)]
    assert Counter(one.label for one in held)["b"] >= 84
    assert "a" in {one.label for one in held}


def test_b34_a_conversation_leaves_a_key_that_fails_or_runs_dry() -> None:
    credentials = made("a", "b")
    own = label(credentials, 0.0, NAME)
    credentials.limits("ab".index(own), Remaining(0.05, 60.0, None), 0.0)
    assert label(credentials, 0.0, NAME) != own
    assert label(credentials, 60.0, NAME) == own
    credentials = Credentials([Key("a"), Key("b")], BreakerRules(), lambda: 0.5)
    fails(own * 3, credentials)
    assert label(credentials, 0.0, NAME) == own
    fails(own * 2, credentials)
    assert label(credentials, 0.0, NAME) != own


def test_with_no_fit_key_a_conversation_goes_by_load() -> None:
    credentials = made("a", "b")
    for index in (0, 1):
        credentials.limits(index, Remaining(0.01 * (1 + index), 60.0, None), 0.0)
    assert {label(credentials, 0.0, name) for name in NAMES[:20]} == {"b"}


def test_b33_what_was_tried_is_tried_again_only_if_there_is_nothing_else() -> None:
    credentials = made("a", "b", "c")
    for tried, expected in (({0, 1}, {2}), (frozenset({2}), {0, 1}), ([0, 1, 2], {0, 1, 2})):
        found = [credentials.choose("m", NAME if one % 2 else b"", 0.0, tried) for one in range(12)]
        assert {one.index for one in found if isinstance(one, Lease)} <= expected
    credentials.learn("c", "cooling", 10.0, 0.0)
    again = credentials.choose("m", b"", 0.0, {0, 1})
    assert isinstance(again, Lease)


def test_b33_usable_speaks_of_other_keys() -> None:
    credentials = made("a", "b")
    assert credentials.usable("m", 0.0, {0})
    credentials.learn("b", "cooling", 10.0, 0.0)
    assert not credentials.usable("m", 0.0, {0})
    assert credentials.usable("m", 0.0, {1})
    assert credentials.usable("m", 10.0, {0})
    assert not made("a").usable("m", 0.0, {0})


RULED = (Key("a"), Key("b"), Key("pre", 1.0, ("claude-*-preview", "x?")), Key("pre2", 1.0, ("claude-5-*",)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-4", {"a", "b"}),
        ("", {"a", "b"}),
        ("claude-4-preview", {"pre"}),
        ("CLAUDE-4-preview", {"a", "b"}),
        ("x1", {"pre"}),
        ("claude-5-preview", {"pre", "pre2"}),
        ("claude-5-x", {"pre2"}),
    ],
)
def test_b34_a_pool_is_kept_for_its_models(model: str, expected: set[str]) -> None:
    credentials = made(*RULED)
    assert credentials.serves(model)
    assert {lease(credentials, 0.0, name, model).label for name in [b"", *NAMES[:40]]} == expected
    assert {lease(credentials, 0.0, b"", model).alone for _ in range(3)} == {len(expected) == 1}


def test_b34_a_pool_that_is_out_is_not_replaced_by_another() -> None:
    credentials = made(*RULED)
    credentials.learn("pre", "cooling", 10.0, 0.0)
    assert credentials.choose("claude-4-preview", b"", 0.0) == Later(10.0, "cooling")
    assert not credentials.usable("claude-4-preview", 0.0, {0})
    assert credentials.serves("claude-4-preview")


def test_a_model_no_key_serves() -> None:
    credentials = made(Key("a", 1.0, ("x",)), Key("b", 1.0, ("y",)))
    assert credentials.choose("z", b"", 0.0) == Later(math.inf, "unserved")
    assert not credentials.serves("z")
    assert {label(credentials, 0.0, b"", "") for _ in range(9)} == {"a", "b"}, "no model: any pool"
    assert made().choose("m", b"", 0.0) == Later(math.inf, "unserved")


def test_models_named_by_callers_do_not_pile_up() -> None:
    credentials = made(*RULED)
    for number in range(3 * MOST_POOLS):
        assert credentials.serves(f"m{number}")
        assert len(credentials._pools) <= MOST_POOLS


def test_later_is_the_earliest_of_all_keys() -> None:
    credentials = made("a", "b", "c", "d")
    for one, (kind, until_at) in {"a": ("cooling", 30.0), "b": ("benched", 20.0), "c": ("open", 10.0)}.items():
        credentials.learn(one, kind, until_at, 0.0)  # type: ignore[arg-type]
    found = lease(credentials)
    credentials.cooled(found, 1.0, 0.0)
    credentials.ended(found)
    assert credentials.choose("m", b"", 0.0) == Later(1.0, "cooling")
    probe = lease(credentials, 1.0)
    assert credentials.choose("m", b"", 1.0) == Later(10.0, "open")
    assert lease(credentials, 10.0).label == "c"
    assert credentials.choose("m", b"", 10.0) == Later(20.0, "benched")
    assert lease(credentials, 20.0).label == "b"
    assert lease(credentials, 30.0).label == "a"
    assert credentials.choose("m", b"", 31.0) == Later(math.inf, "probing")
    credentials.ended(probe)
    assert lease(credentials, 31.0).label == "d"


def test_probing_is_waited_for_as_long_as_told() -> None:
    credentials = Credentials([Key("a")], RULES, lambda: 0.5, probe_patience_s=3.0)
    credentials.learn("a", "cooling", 10.0, 0.0)
    lease(credentials, 10.0)
    assert credentials.choose("m", b"", 11.0) == Later(13.0, "probing")
    assert lease(credentials, 13.0).probe


def test_b34_a_403_of_two_keys_is_the_requests_fault() -> None:
    credentials = made("a", "b")
    first = lease(credentials)
    assert credentials.benched(first, 403, 0.0) == Change("benched", first.label, 60.0)
    second = credentials.choose("m", b"", 0.0, {first.index})
    assert isinstance(second, Lease)
    assert second.index != first.index
    assert not second.alone, "there is a second key, if not now"
    assert credentials.exonerate(first.index) == Change("restored", first.label)
    assert {label(credentials) for _ in range(4)} == {"a", "b"}


def test_b34_an_only_key_is_not_put_out_by_a_403_and_hardly_by_a_401() -> None:
    for credentials, model in ((made("a"), "m"), (made(*RULED), "claude-5-x")):
        assert credentials.benched(lease(credentials, model=model), 403, 0.0) is None
        change = credentials.benched(lease(credentials, model=model), 401, 0.0)
        assert change is not None
        assert change.until_at == 5.0


def test_news_of_a_key_nobody_has_is_no_news() -> None:
    made("a").learn("b", "cooling", 10.0, 0.0)


def test_b37_the_snapshot_says_it_all() -> None:
    credentials = made("a", "b", "c", "d")
    credentials.learn("b", "cooling", 30.0, 0.0)
    credentials.learn("c", "benched", 20.0, 0.0)
    found = lease(credentials)
    credentials.limits(found.index, Remaining(0.5, 9.0, None), 0.0)
    fails("ddd", credentials)
    stats = credentials.snapshot(0.0)
    assert stats[3].errors == pytest.approx(1 - 0.8**3)
    assert [replace(one, errors=0.0) for one in stats] == [
        CredentialStats("a", "healthy", 1, 0.0, 0.0, 0.5, 1),
        CredentialStats("b", "cooling", 0, 30.0, 0.0, None, 0),
        CredentialStats("c", "benched", 0, 20.0, 0.0, None, 0),
        CredentialStats("d", "open", 0, 5.0, 0.0, None, 3),
    ]
    assert [one.state for one in credentials.snapshot(30.0)] == ["healthy", "probation", "probation", "probation"]


KEYS = (Key("a"), Key("b", 3.0), Key("pre", 1.0, ("claude-*-preview",)))
MODELS = ("claude-4", "", "claude-4-preview")
AHEAD_S = st.sampled_from([-1.0, 0.0, 0.5, 3.0, 20.0, 400.0])


def _allowed(model: str) -> set[str]:
    kept = {key.label for key in KEYS if any(fnmatchcase(model, pattern) for pattern in key.models)}
    return kept or {key.label for key in KEYS if not key.models}


class Traffic(RuleBasedStateMachine):
    """Any order of leases, verdicts, ends and news, against what each key may do by its own simple book."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.credentials = Credentials(KEYS, RULES, lambda: 0.5)
        self.leases: list[Lease] = []  # not ended
        self.cooling = {key.label: -math.inf for key in KEYS}
        self.benched = {key.label: -math.inf for key in KEYS}
        self.open = {key.label: -math.inf for key in KEYS}
        self.cooled_at = {key.label: -math.inf for key in KEYS}
        self.refused_at = {key.label: -math.inf for key in KEYS}
        self.cause: dict[str, set[str]] = {key.label: set() for key in KEYS}  # why it has to prove itself
        self.probe: dict[str, Lease | None] = {key.label: None for key in KEYS}
        self.sent_at: dict[int, int] = {}
        self.events = 0
        self.last_refusal = {key.label: 0 for key in KEYS}

    @rule(
        model=st.sampled_from(MODELS),
        conversation=st.sampled_from([b"", *NAMES[:4]]),
        tried=st.sets(st.integers(0, 2), max_size=2),
    )
    def choose(self, model: str, conversation: bytes, tried: set[int]) -> None:
        found = self.credentials.choose(model, conversation, self.now, tried)
        if isinstance(found, Later):
            self._is_the_earliest(found, model)
            return
        assert found.label in _allowed(model)
        assert self.now >= max(self.cooling[found.label], self.benched[found.label], self.open[found.label])
        if self.cause[found.label]:
            assert found.probe
            assert self.probe[found.label] is None, "one try in probation at a time"
            self.probe[found.label] = found
        self.events += 1
        self.sent_at[id(found)] = self.events
        self.leases.append(found)

    def _is_the_earliest(self, later: Later, model: str) -> None:
        assert later.at > self.now
        before = math.nextafter(later.at, 0.0) if later.at < math.inf else self.now + 1e6
        assert isinstance(copy.deepcopy(self.credentials).choose(model, b"", before), Later)
        if later.at < math.inf:
            then = copy.deepcopy(self.credentials).choose(model, b"", later.at)
            assert isinstance(then, Lease) or then.at > later.at  # a probe that is still out

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), counted=st.booleans())
    def answered(self, data: st.DataObject, counted: bool) -> None:
        found = self._judged(data)
        change = self.credentials.answered(found, self.now, counted)
        proves = counted and self.sent_at[id(found)] > self.last_refusal[found.label]
        assert (change is not None and change.kind == "restored") == bool(proves and self.cause[found.label])
        if proves:
            self.cause[found.label].clear()
        if change is not None and change.kind == "closed":
            self.open[found.label] = -math.inf

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def failed(self, data: st.DataObject) -> None:
        found = self._judged(data)
        change = self.credentials.failed(found, self.now)
        if change is not None:
            assert change.kind == "open"
            self.open[found.label] = change.until_at

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), ahead_s=AHEAD_S)
    def cooled(self, data: st.DataObject, ahead_s: float) -> None:
        found = self._judged(data)
        self.credentials.cooled(found, self.now + ahead_s, self.now)
        self._cool(found.label, self.now + ahead_s)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), status=st.sampled_from([401, 403]))
    def put_out(self, data: st.DataObject, status: int) -> None:
        found = self._judged(data)
        change = self.credentials.benched(found, status, self.now)
        if change is not None:
            self._bench(found.label, change.until_at)
            self.refused_at[found.label] = self.now
        else:
            assert (found.alone and status == 403) or self.sent_at[id(found)] < self.events

    @rule(index=st.integers(0, 2))
    def exonerate(self, index: int) -> None:
        if self.credentials.exonerate(index) is not None:
            self.benched[KEYS[index].label] = -math.inf
            self.cause[KEYS[index].label].discard("bench")

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), twice=st.booleans())
    def ended(self, data: st.DataObject, twice: bool) -> None:
        found = self._judged(data)
        self.leases.remove(found)
        for _ in range(1 + twice):
            self.credentials.ended(found)

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(["cooling", "benched", "open"]), ahead_s=AHEAD_S)
    def bad_news(self, key: Key, kind: str, ahead_s: float) -> None:
        until_at = self.now + ahead_s
        self.credentials.learn(key.label, kind, until_at, self.now)  # type: ignore[arg-type]
        if kind == "open" and ahead_s > 0:
            self.open[key.label] = max(until_at, self.open[key.label])
        elif kind == "cooling" and until_at > max(self.now, self.cooling[key.label]):
            self._cool(key.label, until_at)
        elif kind == "benched" and until_at > max(self.now, self.benched[key.label]):
            self._bench(key.label, until_at)

    @rule(key=st.sampled_from(KEYS))
    def half_opened(self, key: Key) -> None:
        self.bad_news(key, "open", 0.5)
        self.time_passes(0.5)
        for _ in range(3):
            self.choose(key.models[0].replace("*", "x") if key.models else "m", b"", set())

    @rule(key=st.sampled_from(KEYS), kind=st.sampled_from(["restored", "closed"]))
    def good_news(self, key: Key, kind: str) -> None:
        self.credentials.learn(key.label, kind, 0.0, self.now)  # type: ignore[arg-type]
        self.open[key.label] = -math.inf
        if kind == "restored":
            if self.now >= self.refused_at[key.label] + TRAVEL_S:
                self.benched[key.label] = -math.inf
                self.cause[key.label].discard("bench")
            if self.now >= self.cooled_at[key.label] + TRAVEL_S:
                self.cooling[key.label] = -math.inf
                self.cause[key.label].discard("limit")

    @rule(index=st.integers(0, 2), share=st.floats(0.0, 1.0), reset_in_s=st.sampled_from([0.0, 5.0, 60.0]))
    def told(self, index: int, share: float, reset_in_s: float) -> None:
        self.credentials.limits(index, Remaining(share, reset_in_s, None), self.now)

    @rule(step_s=st.sampled_from([0.1, 1.0, 5.0, 30.0, 1000.0]))
    def time_passes(self, step_s: float) -> None:
        self.now += step_s

    @invariant()
    def in_flight_is_what_has_not_ended(self) -> None:
        counted = Counter(one.label for one in self.leases)
        stats = self.credentials.snapshot(self.now)
        assert {one.label: one.in_flight for one in stats} == {key.label: counted[key.label] for key in KEYS}

    @invariant()
    def the_snapshot_and_the_book_agree(self) -> None:
        for one in self.credentials.snapshot(self.now):
            until_at = max(self.cooling[one.label], self.benched[one.label])
            assert (one.state in ("cooling", "benched")) == (self.now < until_at)
            if one.state == "healthy":
                assert not self.cause[one.label]

    def teardown(self) -> None:
        """Nothing is lost: when all exchanges are over and all times have passed, each key may be used again."""
        for one in self.leases:
            self.credentials.ended(one)
        for model in MODELS:
            found = self.credentials.choose(model, b"", self.now + 1e6)
            assert isinstance(found, Lease)
        assert all(one.in_flight <= 4 for one in self.credentials.snapshot(self.now))

    def _judged(self, data: st.DataObject) -> Lease:
        found = data.draw(st.sampled_from(self.leases))
        if self.probe[found.label] is found:
            self.probe[found.label] = None
        return found

    def _cool(self, name: str, until_at: float) -> None:
        self.cooling[name] = max(self.cooling[name], until_at)
        self.cooled_at[name] = self.now
        self._distrust(name, "limit")

    def _bench(self, name: str, until_at: float) -> None:
        self.benched[name] = max(self.benched[name], until_at)
        self._distrust(name, "bench")

    def _distrust(self, name: str, why: str) -> None:
        self.cause[name].add(why)
        self.events += 1
        self.last_refusal[name] = self.events


Traffic.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestTraffic = Traffic.TestCase
