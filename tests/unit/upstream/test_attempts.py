"""upstream/attempts: the one retry layer, against a scripted upstream that counts tries; pauses are only noted.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from app.errors import (
    BodyTimeout,
    BreakerOpen,
    ConnectFailed,
    DeadlinePassed,
    GatewayError,
    InvalidRequest,
    NoCredential,
    ProtocolBroken,
    QueueFull,
    QueueTimeout,
    StreamBroken,
    UnservedModel,
)
from app.exchange import Journey
from app.policy.breaker import BreakerRules
from app.policy.credentials import Credentials
from app.policy.key_state import Key
from app.policy.retry import Budget, Rules
from app.store.facts import Fact
from app.upstream import attempts, target
from app.upstream.pool import Pool
from app.upstream.transport_base import Asker, NotProcessed, Pairs
from tests.unit.upstream.scripted import (
    NEVER,
    OVERLOADED,
    STARTED,
    Canned,
    Naps,
    Scene,
    ScriptedPool,
    answer,
    run,
    stream,
)

RETRIED = [408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529]


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> Naps:
    made = Naps()
    monkeypatch.setattr(attempts, "pause", made)
    return made


def journey_of(error: GatewayError) -> Journey:
    assert isinstance(error.journey, Journey)
    return error.journey


@pytest.mark.parametrize("status", RETRIED)
def test_b30_what_is_worth_another_try_gets_it(status: int, naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(status, b"no"), answer(200, b"yes")])
        port = await one.serve()
        assert (port.status, port.body, port.outcomes) == (200, b"yes", [str(status), "200"])
        assert len(one.pools[0].sent) == 2
        assert naps.slept == [0.5]  # half of the base: full jitter with chance 0.5

    run(scene)


@pytest.mark.parametrize("status", [200, 201, 204, 302, 400, 401, 403, 404, 413, 422, 499])
def test_b30_a_clients_own_fault_is_never_tried_again(status: int, naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(status, b"body")])
        port = await one.serve()
        assert (port.status, port.body, len(one.pools[0].sent), naps.slept) == (status, b"body", 1, [])

    run(scene)


def test_b30_an_overloaded_first_event_is_a_529(naps: Naps) -> None:
    async def scene() -> None:
        bad, good = stream(OVERLOADED), stream(STARTED, b"rest")
        one = Scene([bad, good])
        port = await one.serve()
        assert (port.body, port.outcomes) == (STARTED + b"rest", ["overloaded_error", "200"])
        assert bad.reset, "the stream that is not passed on is let go"

    run(scene)


def test_b30_once_a_byte_is_out_nothing_is_sent_again() -> None:
    async def scene() -> None:
        one = Scene([stream(STARTED, httpx.ReadError("broken"))])
        with pytest.raises(StreamBroken):
            await one.serve()
        assert len(one.pools[0].sent) == 1
        late = Scene([stream(STARTED, OVERLOADED)])
        port = await late.serve()
        assert port.body == STARTED + OVERLOADED and len(late.pools[0].sent) == 1

    run(scene)


def test_b20_a_head_without_an_event_is_not_held_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PEEK_S", 0.01)

    async def scene() -> None:
        one = Scene([stream(NEVER)])
        with pytest.raises(StreamBroken):
            await one.serve(within_s=0.2)
        assert len(one.pools[0].sent) == 1

    run(scene)


def test_b40_a_reply_says_when_it_was_judged() -> None:
    """At once, or with as much as it is judged by; that instant is also the end of its try."""

    class Late(Canned):
        async def __anext__(self) -> bytes:
            if self.steps:
                arrived_at.append(time.monotonic())
            return await super().__anext__()

    arrived_at: list[float] = []
    event_stream: Pairs = [("content-type", "text/event-stream")]

    async def scene() -> None:
        for made in (answer(200, b"{}"), answer(500, STARTED, content_type="text/event-stream")):
            reply = (await Scene([made], rules=Rules(1)).serve()).reply
            assert reply is not None and reply.judged_at == reply.head_at
        reply = (await Scene([Late(200, event_stream, [b"event: ", STARTED])]).serve()).reply
        assert reply is not None and reply.head_at < arrived_at[1] <= reply.judged_at
        assert reply.journey.attempts[-1].ms == (reply.judged_at - reply.sent_at) * 1000.0

    run(scene)


def test_the_last_answer_is_passed_on_as_it_came(naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(529, b"first"), answer(500, b"second"), answer(503, b"third", request_id="r3")])
        port = await one.serve()
        assert (port.status, port.body, len(one.pools[0].sent)) == (503, b"third", 3)
        assert naps.slept == [0.5, 1.0]

    run(scene)


def test_overloaded_at_the_last_try_is_passed_on() -> None:
    async def scene() -> None:
        one = Scene([lambda: stream(OVERLOADED)])
        port = await one.serve()
        assert port.body == OVERLOADED and len(one.pools[0].sent) == 3

    run(scene)


def test_b35_overloaded_at_the_last_try_counts_as_a_failure_all_the_same() -> None:
    async def scene() -> None:
        rules = BreakerRules(min_calls=5)
        one = Scene([lambda: stream(OVERLOADED)], breaker=rules, rules=Rules(1), keys=("a",))
        for _ in range(5):
            assert (await one.serve()).body == OVERLOADED
        with pytest.raises(BreakerOpen):
            await one.serve()
        assert len(one.pools[0].sent) == 5

    run(scene)


@pytest.mark.parametrize(("asked", "slept"), [("2", [2.1]), ("0.5", [0.525]), ("12", [12.125])])
def test_b31_retry_after_is_obeyed(asked: str, slept: list[float], naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(429, retry_after=asked), answer(200, b"yes")])
        assert (await one.serve()).status == 200
        assert naps.slept == slept

    run(scene)


def test_b31_over_the_cap_it_is_passed_on_at_once(naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(429, b"wait", retry_after="13")])
        port = await one.serve()
        assert (port.status, port.body, naps.slept, len(one.pools[0].sent)) == (429, b"wait", [], 1)
        assert port.reply is not None and ("retry-after", "13") in port.reply.headers

    run(scene)


def test_b31_never_past_the_deadline(naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(429, b"wait", retry_after="5")])
        assert ((await one.serve(within_s=4.0)).status, naps.slept) == (429, [])

    run(scene)


def test_b32_the_budget_and_the_clients_own_retries_bound_them() -> None:
    async def scene() -> None:
        one = Scene([lambda: answer(500)], floor=3)
        for _ in range(10):
            assert (await one.serve()).status == 500
        assert len(one.pools[0].sent) == 10 + 3
        two = Scene([lambda: answer(500)])
        for told, tries in ((0, 3), (1, 2), (2, 1), (7, 1)):
            two.pools[0].sent.clear()
            await two.serve(client_retries=told)
            assert len(two.pools[0].sent) == tries

    run(scene)


def test_b32_what_was_refused_earns_no_retries() -> None:
    """Under overload most requests are dropped; a tenth of those would be a storm upon the few that are sent."""

    async def scene() -> None:
        one = Scene([NEVER], concurrency=1, buffer_size=1, drop=True)
        one.dispatcher._budget = budget = Budget(1.0, 0)
        stuck = asyncio.create_task(one.serve())
        await asyncio.sleep(0.01)
        for _ in range(20):
            with pytest.raises(QueueFull):
                await one.serve()
        assert budget.left(asyncio.get_running_loop().time()) == 1
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)

    run(scene)


@pytest.mark.parametrize(
    ("error", "raised", "tries", "repeatable"),
    [
        (httpx.ConnectError("x"), ConnectFailed, 3, False),
        (httpx.ConnectTimeout("x"), ConnectFailed, 3, False),
        (NotProcessed("x"), ProtocolBroken, 3, False),
        (httpx.ReadError("x"), ProtocolBroken, 3, True),
        (httpx.ReadError("x"), ProtocolBroken, 1, False),
        (httpx.RemoteProtocolError("x"), ProtocolBroken, 1, False),
        (httpx.ReadTimeout("x"), DeadlinePassed, 3, True),
        (httpx.PoolTimeout("x"), QueueTimeout, 1, True),
        (httpx.LocalProtocolError("x"), InvalidRequest, 1, True),
    ],
)
def test_b30_failures_without_an_answer(
    error: Exception, raised: type[GatewayError], tries: int, repeatable: bool
) -> None:
    async def scene() -> None:
        one = Scene([error])
        with pytest.raises(raised) as caught:
            await one.serve(repeatable=repeatable)
        assert len(one.pools[0].sent) == tries
        assert [a.outcome for a in journey_of(caught.value).attempts] == [raised.slug] * tries
        assert caught.value.__cause__ is error

    run(scene)


async def upload() -> AsyncIterator[bytes]:
    yield b"part"


def test_streamed_bodies_are_sent_again_only_if_nothing_was() -> None:
    async def scene() -> None:
        one = Scene([httpx.ConnectError("x"), answer(200)])
        assert (await one.serve(upload())).status == 200
        assert one.pools[0].bodies == [b"part"]
        two = Scene([answer(503, b"busy"), answer(200)])
        assert (await two.serve(upload())).status == 503
        assert len(two.pools[0].sent) == 1

    run(scene)


def test_b33_the_key_at_fault_is_changed_at_once(naps: Naps) -> None:
    async def scene() -> None:
        for status in (401, 403, 429):
            one = Scene([answer(status), answer(200)], keys=("a", "b"), floor=0)
            port = await one.serve()
            assert port.status == 200 and naps.slept == []
            used = one.keys_used()
            assert sorted(used) == ["a", "b"]
            assert port.reply is not None and port.reply.journey.credential == used[1]

    run(scene)


def test_b33_keys_that_have_all_been_tried_are_not_gone_round_again(naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([lambda: answer(529)], keys=("a", "b"))
        assert (await one.serve()).status == 529
        assert len(set(one.keys_used()[:2])) == 2
        assert (len(one.pools[0].sent), naps.slept) == (3, [1.0]), "the other at once, the third after a pause"

    run(scene)


def test_b34_no_try_goes_to_a_key_that_cools_or_is_benched() -> None:
    async def scene() -> None:
        one = Scene([answer(429, retry_after="60"), lambda: answer(200)], keys=("a", "b"))
        for _ in range(20):
            await one.serve()
        cooled = one.keys_used()[0]
        assert one.keys_used().count(cooled) == 1
        (fact,) = one.shared
        assert (fact.kind, fact.provider, fact.credential) == ("cooling", one.first.place, one.mark(cooled))
        assert cooled not in fact.credential and "sk-" not in fact.credential
        (event,) = one.told("credential_cooling")
        assert event["credential"] == cooled and event["provider"] == "anthropic"

    run(scene)


def test_b34_a_rejected_key_is_benched_with_an_alert() -> None:
    async def scene() -> None:
        one = Scene([answer(401), lambda: answer(200)], keys=("a", "b"))
        for _ in range(20):
            assert (await one.serve()).status == 200
        bad = one.keys_used()[0]
        assert one.keys_used().count(bad) == 1
        (event,) = one.told("credential_benched")
        assert (event["credential"], event["status"]) == (bad, 401)
        assert "sk-" not in repr(list(one.events))

    run(scene)


def test_a_403_that_every_key_gives_is_the_requests_own_and_benches_none() -> None:
    async def scene() -> None:
        one = Scene([lambda: answer(403, b"no access")], keys=("a", "b"))
        port = await one.serve()
        assert (port.status, port.body, len(one.pools[0].sent)) == (403, b"no access", 2)
        now_states = {c.state for c in one.first.stats(asyncio.get_running_loop().time()).credentials}
        assert "benched" not in now_states
        assert {fact.kind for fact in one.shared} >= {"benched", "restored"}

    run(scene)


def test_what_keys_of_one_provider_did_says_nothing_of_anothers() -> None:
    async def scene() -> None:
        one = Scene([answer(403)], [answer(403), lambda: answer(200)], keys=("a", "b"))
        first, second = (target.credentials for target in one.targets)
        assert first is not None and second is not None
        now = asyncio.get_running_loop().time()
        first.learn("b", "cooling", now + 60, now)
        second.choose("", b"", now)  # so that its second key is asked first
        port = await one.serve()
        assert (port.outcomes, one.keys_used(0), one.keys_used(1)) == (["403", "403", "200"], ["a"], ["b", "a"])
        assert [stats.state for stats in second.snapshot(now)] == ["healthy", "benched"]

    run(scene)


def test_all_keys_cooling_for_long_is_refused_with_the_time_left() -> None:
    async def scene() -> None:
        one = Scene([lambda: answer(429, b"mine", retry_after="100")], keys=("a", "b"))
        first = await one.serve()
        assert (first.status, first.body) == (429, b"mine"), "the last answer, as it came"
        with pytest.raises(NoCredential) as caught:
            await one.serve()
        assert caught.value.retry_after_s is not None and 98 <= caught.value.retry_after_s <= 101
        assert len(one.pools[0].sent) == 2

    run(scene)


def test_a_key_that_cools_briefly_is_waited_for() -> None:
    async def scene() -> None:
        one = Scene([answer(429, retry_after="0.05"), lambda: answer(200)], keys=("a",))
        ports = await asyncio.gather(*(one.serve() for _ in range(5)))
        assert {port.status for port in ports} == {200}

    run(scene)


def test_a_key_that_is_benched_or_failing_is_not_waited_for() -> None:
    """Waiting mends neither; a rest does."""

    async def scene() -> None:
        one = Scene([answer(401), lambda: answer(200)], keys=("a",))
        assert (await one.serve()).status == 401
        with pytest.raises(NoCredential, match="rejected") as caught:
            await one.serve(within_s=2.0)
        assert caught.value.retry_after_s == 5.0
        two = Scene([lambda: answer(200)], keys=("a",))
        assert two.first.credentials is not None
        now = asyncio.get_running_loop().time()
        two.first.credentials.learn("a", "open", now + 1.0, now)
        with pytest.raises(NoCredential, match="failing"):
            await two.serve(within_s=2.0)

    run(scene)


def test_one_probe_decides_for_all_who_wait() -> None:
    async def scene() -> None:
        one = Scene([answer(429, retry_after="0.05"), NEVER], keys=("a",), rules=Rules(1, 1.0, 0.3))
        assert (await one.serve()).status == 429
        tasks = [asyncio.create_task(one.serve()) for _ in range(5)]
        await asyncio.sleep(0.15)
        assert len(one.pools[0].sent) == 2, "one probe, and nobody else"
        done, pending = await asyncio.wait(tasks, timeout=0.6)
        assert {type(task.exception()) for task in done} == {NoCredential} and len(pending) == 1
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
        one.pools[0].script[:] = [lambda: answer(200)]
        assert (await one.serve()).status == 200, "a cancelled probe leaves its place to the next"

    run(scene)


def test_models_with_keys_of_their_own_use_no_others() -> None:
    async def scene() -> None:
        keys = (Key("scarce", 1.0, ("claude-*-preview",)), Key("common"))
        one = Scene([lambda: answer(200)], keys=keys)
        for model in ("claude-x-preview", "claude-x"):
            one.pools[0].sent.clear()
            for _ in range(5):
                await one.serve(model=model)
            assert set(one.keys_used()) == {"scarce" if model.endswith("preview") else "common"}
        only = Scene([lambda: answer(200)], keys=keys[:1])
        with pytest.raises(UnservedModel, match="claude-y"):
            await only.serve(model="claude-y")

    run(scene)


def test_fallbacks_serve_what_the_first_refuses_and_say_so() -> None:
    async def scene() -> None:
        one = Scene([httpx.ConnectError("x")], [lambda: answer(200, b"eu")])
        port = await one.serve()
        assert (port.body, port.outcomes) == (b"eu", ["connect_failed", "200"])
        assert port.reply is not None and port.reply.journey.provider == "eu"
        assert one.pools[1].sent[0].origin == "https://eu.test"

    run(scene)


@pytest.mark.parametrize("status", [429, 503, 529])
def test_fallbacks_serve_what_the_first_is_too_busy_for(status: int, naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(status)], [lambda: answer(200)])
        assert (await one.serve()).outcomes == [str(status), "200"]
        assert naps.slept == []

    run(scene)


def test_the_last_try_of_a_failing_provider_goes_to_its_fallback() -> None:
    async def scene() -> None:
        one = Scene([lambda: answer(500)], [lambda: answer(200)])
        assert (await one.serve()).outcomes == ["500", "500", "200"]

    run(scene)


def test_a_fallback_that_refuses_too_leaves_the_first_answer() -> None:
    async def scene() -> None:
        one = Scene([answer(529, b"mine")], [lambda: answer(200)])
        one.targets[1].breaker.force_open(
            asyncio.get_running_loop().time() + 60, asyncio.get_running_loop().time()
        )
        port = await one.serve()
        assert (port.status, port.body) == (529, b"mine")
        assert port.reply is not None and port.reply.journey.provider == "anthropic", (
            "who answered, not who refused"
        )

    run(scene)


def test_a_provider_without_a_key_for_the_model_is_passed_over() -> None:
    async def scene() -> None:
        kept = (Key("scarce", 1.0, ("claude-*-preview",)),)
        one = Scene([answer(529, b"mine")], [lambda: answer(200)], keys=("a",))
        one.targets[1].credentials = Credentials(kept, BreakerRules(), lambda: 0.5)
        port = await one.serve(model="claude-x")
        assert (port.status, port.body, one.pools[1].sent) == (529, b"mine", [])
        two = Scene([lambda: answer(200)], [lambda: answer(200, b"eu")], keys=("a",))
        two.targets[0].credentials = Credentials(kept, BreakerRules(), lambda: 0.5)
        port = await two.serve(model="claude-x")
        assert (port.body, two.pools[0].sent) == (b"eu", [])
        two.targets[1].credentials = Credentials(kept, BreakerRules(), lambda: 0.5)
        with pytest.raises(UnservedModel):
            await two.serve(model="claude-x")

    run(scene)


def test_b35_open_is_refused_with_the_time_or_served_elsewhere() -> None:
    async def scene() -> None:
        rules = BreakerRules(min_calls=5, open_s=30.0)
        one = Scene([lambda: answer(500)], breaker=rules, rules=Rules(1))
        for _ in range(5):
            await one.serve()
        with pytest.raises(BreakerOpen) as caught:
            await one.serve()
        assert caught.value.retry_after_s is not None and 20 <= caught.value.retry_after_s <= 40
        assert len(one.pools[0].sent) == 5
        assert len(one.told("breaker_opened")) == 1
        assert [fact.kind for fact in one.shared] == ["open"]
        two = Scene([lambda: answer(500)], [lambda: answer(200)], breaker=rules)
        two.first.breaker.force_open(asyncio.get_running_loop().time() + 60, asyncio.get_running_loop().time())
        port = await two.serve()
        assert (port.status, port.outcomes) == (200, ["200"]) and two.pools[0].sent == []

    run(scene)


def test_b35_one_probe_at_a_time_and_a_slow_one_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "PROBE_PATIENCE_S", 0.1)

    async def scene() -> None:
        rules = BreakerRules(min_calls=1, open_s=0.02)
        one = Scene([answer(500), NEVER], breaker=rules, rules=Rules(1))
        await one.serve()
        await asyncio.sleep(0.05)
        slow = asyncio.create_task(one.serve())
        await asyncio.sleep(0.01)
        with pytest.raises(BreakerOpen):
            await one.serve()
        assert len(one.pools[0].sent) == 2
        await asyncio.sleep(0.15)
        one.pools[0].script[:] = [lambda: answer(200)]
        assert (await one.serve()).status == 200
        assert one.first.stats(0.0).breaker == "closed"
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    run(scene)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429])
def test_b35_clients_faults_open_nothing(status: int) -> None:
    async def scene() -> None:
        one = Scene([lambda: answer(status)], breaker=BreakerRules(min_calls=5), rules=Rules(1))
        for _ in range(20):
            assert (await one.serve()).status == status

    run(scene)


def test_b35_open_is_refused_at_once_also_where_all_slots_are_taken() -> None:
    async def scene() -> None:
        one = Scene([NEVER], concurrency=1, buffer_size=9)
        stuck = asyncio.create_task(one.serve())
        await asyncio.sleep(0.01)
        one.first.breaker.force_open(asyncio.get_running_loop().time() + 60, asyncio.get_running_loop().time())
        with pytest.raises(BreakerOpen):
            await one.serve(within_s=0.5)
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)

    run(scene)


def test_b35_an_upload_that_its_client_breaks_off_is_nobodys_failure() -> None:
    """Transports say WriteError, and what the source raised is its cause."""

    async def scene() -> None:
        broken = httpx.WriteError("The upload's source failed.")
        broken.__cause__ = BodyTimeout()
        one = Scene([broken], [lambda: answer(200)], keys=("a",), breaker=BreakerRules(min_calls=3))
        for _ in range(10):
            with pytest.raises(GatewayError):
                await one.serve(upload())
        assert (len(one.pools[0].sent), one.pools[1].sent) == (10, [])
        stats = one.first.stats(asyncio.get_running_loop().time())
        assert (stats.breaker, stats.credentials[0].state, stats.credentials[0].errors) == ("closed", "healthy", 0)

    run(scene)


def test_b35_streams_that_break_count_too() -> None:
    async def scene() -> None:
        one = Scene([lambda: stream(STARTED, httpx.ReadError("x"))], breaker=BreakerRules(min_calls=5))
        for _ in range(5):
            with pytest.raises(StreamBroken):
                await one.serve()
        with pytest.raises(BreakerOpen):
            await one.serve()

    run(scene)


def test_b36_slots_are_held_by_what_runs_and_given_back_whatever_happens() -> None:
    async def scene() -> None:
        script: list[Any] = [NEVER]
        one = Scene(script, concurrency=2, buffer_size=3, drop=True)
        tasks = [asyncio.create_task(one.serve()) for _ in range(4)]
        await asyncio.sleep(0.01)
        stats = one.first.stats(0.0).slots
        assert (stats.running, stats.waiting, stats.dropped) == (2, 1, 1)
        done = [task for task in tasks if task.done()]
        assert isinstance(done[0].exception(), QueueFull)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stats = one.first.stats(0.0).slots
        assert (stats.running, stats.waiting) == (0, 0)

    run(scene)


def test_b36_a_full_first_provider_hands_over_to_its_fallback() -> None:
    async def scene() -> None:
        one = Scene([NEVER], [lambda: answer(200, b"eu")], concurrency=1, buffer_size=1, drop=True)
        stuck = asyncio.create_task(one.serve())
        await asyncio.sleep(0.01)
        assert (await one.serve()).body == b"eu"
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)

    run(scene)


def test_the_deadline_says_where_it_struck() -> None:
    async def scene() -> None:
        one = Scene([NEVER], concurrency=1, buffer_size=10)
        running = asyncio.create_task(one.serve(within_s=0.2))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueTimeout):
            await one.serve(within_s=0.05)
        with pytest.raises(DeadlinePassed) as caught:
            await running
        assert [a.outcome for a in journey_of(caught.value).attempts] == ["deadline_passed"]
        assert one.first.stats(0.0).slots.running == 0

    run(scene)


def test_waits_are_told_apart_by_try(naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(500), answer(200)], keys=("a",))
        port = await one.serve()
        assert port.reply is not None
        first, second = port.reply.journey.attempts
        assert (first.waited_ms, second.waited_ms >= 500.0) == (0.0, True)
        assert (first.provider, first.credential) == ("anthropic", "a")

    run(scene)


def test_what_other_workers_learned_holds_here() -> None:
    async def scene() -> None:
        now = asyncio.get_running_loop().time()
        one = Scene([lambda: answer(200)], keys=("a", "b"))
        a, b = one.mark("a"), one.mark("b")
        one.news = [Fact("cooling", one.first.place, a, now + 60), Fact("cooling", "elsewhere@x", b, now + 60)]
        one.news.append(Fact("benched", one.first.place, "unknown", now + 60))
        for _ in range(10):
            await one.serve()
        assert set(one.keys_used()) == {"b"}
        one.news = [Fact("open", one.first.place, "", now + 60)]
        with pytest.raises(BreakerOpen):
            await one.serve()
        one.news = [Fact("closed", one.first.place, "", 0.0)]
        assert (await one.serve()).status == 200

    run(scene)


def test_b34_a_key_is_left_before_its_429_and_its_limits_are_read_now_and_then() -> None:
    def limited(left: int) -> dict[str, str]:
        name = "anthropic_ratelimit_requests_"
        return {f"{name}limit": "100", f"{name}remaining": str(left), f"{name}reset": "2999-01-01T00:00:00Z"}

    async def scene() -> None:
        one = Scene([answer(200, **limited(1)), lambda: answer(200, **limited(90))], keys=("a", "b"))
        for _ in range(10):
            await one.serve()
        used = one.keys_used()
        assert used.count(used[0]) == 1, "the first key has one request left"
        shares = {stats.label: stats.remaining for stats in one.first.stats(0.0).credentials}
        assert shares[used[0]] == 0.01 and shares[used[1]] == 0.9

    run(scene)


def test_b34_a_401_where_not_every_key_may_go_says_nothing_of_the_keys() -> None:
    """Else one caller could bench all keys for everybody, by asking for what none of them may have."""

    async def scene() -> None:
        one = Scene([lambda: answer(401, b"admins only")], keys=("a", "b", "c", "d"))
        for _ in range(3):
            port = await one.serve(proves_key=False)
            assert (port.status, port.body) == (401, b"admins only")
        assert {stats.state for stats in one.first.stats(0.0).credentials} == {"healthy"}
        assert one.shared == [] and one.told("credential_benched") == []

    run(scene)


def test_b36_who_waits_for_a_scarce_key_holds_no_slot_of_the_others() -> None:
    async def scene() -> None:
        keys = (Key("scarce", 1.0, ("claude-*-preview",)), Key("common"))
        one = Scene(
            [answer(429, retry_after="0.3"), lambda: answer(200)], keys=keys, concurrency=2, rules=Rules(1)
        )
        assert (await one.serve(model="claude-x-preview")).status == 429
        waiting = [asyncio.create_task(one.serve(model="claude-x-preview")) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert one.first.stats(0.0).slots.running == 0
        common = await asyncio.wait_for(one.serve(model="claude-x"), 0.2)
        assert common.reply is not None and common.reply.journey.credential == "common"
        ports = await asyncio.gather(*waiting)
        assert {port.status for port in ports} == {200}
        told = [port.reply.journey.attempts[0].waited_ms for port in ports if port.reply is not None]
        assert min(told) > 100.0, "and the wait is told"
        assert one.first.stats(0.0).slots.running == 0

    run(scene)


def test_b5_a_target_whose_keys_all_rest_for_long_is_of_no_use_now() -> None:
    async def scene() -> None:
        for asked, usable in (("3600", False), ("5", True)):
            one = Scene([lambda asked=asked: answer(429, retry_after=asked)], keys=("a",), rules=Rules(1))
            await one.serve()
            assert one.first.stats(asyncio.get_running_loop().time()).usable is usable

    run(scene)


def test_a_cancel_while_an_answer_is_let_go_still_frees_its_slot_and_key() -> None:
    async def scene() -> None:
        release = asyncio.get_running_loop().create_future()

        class Slow(Canned):
            async def _close(self) -> None:
                self.reset = True
                await release

        slow = Slow(200, [], [b"piece", httpx.ReadError("broken")])
        one = Scene([slow], keys=["a"])
        task = asyncio.get_running_loop().create_task(one.serve())
        while not slow.reset:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        release.set_result(None)
        stats = one.first.stats(time.monotonic())
        assert task.cancelled() and (stats.slots.running, stats.credentials[0].in_flight) == (0, 0)

    run(scene)


class Slow:
    """A pool that needs so many milliseconds of a connection for each of its steps."""

    def __init__(self, *steps: tuple[float, Any]) -> None:
        self.steps = list(steps)
        self.asked: list[str] = []

    async def send(self, *_: Any, asker: Asker, **__: Any) -> Any:
        self.asked.append(asker.request_id)
        ms, step = self.steps.pop(0)
        asker.connect_ms += ms
        if isinstance(step, BaseException):
            raise step
        return step

    def __getattr__(self, name: str) -> Any:
        return getattr(ScriptedPool([]), name)


def test_what_getting_a_connection_took_is_told_by_try(naps: Naps) -> None:
    async def scene() -> None:
        one = Scene([answer(200)])
        pool = Slow((40.0, httpx.ReadError("broke")), (0.0, answer(529)), (20.0, answer(200, b"yes")))
        one.first.pool = cast(Pool, pool)
        port = await one.serve(request_id="req-1")
        assert port.reply is not None
        made = port.reply.journey.attempts
        assert [attempt.connect_ms for attempt in made] == [40.0, 0.0, 20.0]
        assert [attempt.outcome for attempt in made] == ["protocol_broken", "529", "200"]
        assert pool.asked == ["req-1"] * 3

    run(scene)


@pytest.mark.parametrize("error", [httpx.ConnectError("no"), httpx.ConnectTimeout("no"), httpx.PoolTimeout("no")])
def test_a_try_without_a_connection_was_nothing_but_getting_one(error: httpx.TransportError, naps: Naps) -> None:
    """Also where the library does not tell how long it took."""

    async def scene() -> None:
        one = Scene([error])
        with pytest.raises(GatewayError) as caught:
            await one.serve()
        made = journey_of(caught.value).attempts
        assert made and all(0.0 < attempt.connect_ms == attempt.ms for attempt in made)

    run(scene)
