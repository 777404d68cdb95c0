"""observe/watch: what a change sets off, once, and what the next worker goes on with (B44).

Runs on: the test's threads.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from prometheus_client import REGISTRY

from app.observe.alerts import Alert, Rule, State
from app.observe.watch import Watch
from app.observe.webhook import Webhook

RULES = (Rule("error_rate", 0.05, "share"), Rule("p95_latency_ms", 500.0, "p95", " ms"))
BAD, GOOD = {"error_rate": 0.5, "p95_latency_ms": 1.0}, {"error_rate": 0.0, "p95_latency_ms": 1.0}


class Hook:
    """In place of the webhook: keeps what is put."""

    def __init__(self, done: Callable[[Alert, str], None]) -> None:
        self.put_: list[Alert] = []
        self.done = done
        self.stopped = False

    def put(self, alert: Alert) -> None:
        self.put_.append(alert)

    def stop(self) -> None:
        self.stopped = True


class Made:
    """A watch with what it tells."""

    def __init__(self, hooked: bool = True) -> None:
        self.events: list[dict[str, object]] = []
        self.hooks: list[Hook] = []
        self.watch = Watch(RULES, self.events.append, self._hook if hooked else None)

    def _hook(self, done: Callable[[Alert, str], None]) -> Webhook:
        self.hooks.append(Hook(done))
        return self.hooks[-1]  # type: ignore[return-value]

    @property
    def put(self) -> list[tuple[str, str]]:
        return [(one.state, one.rule) for one in self.hooks[-1].put_]

    def evaluate(self, values: dict[str, float], times: int = 3, at: float = 100.0) -> None:
        for number in range(times):
            self.watch.evaluate(values, at + number)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_b44_a_change_is_logged_counted_shown_and_sent_once() -> None:
    made = Made()
    before = value("penstock_alerts_total", rule="error_rate")
    made.evaluate(BAD, 10)
    assert [(one["event"], one["rule"], one["value"], one["threshold"]) for one in made.events] == [
        ("alert_firing", "error_rate", 0.5, 0.05)
    ]
    assert value("penstock_alerts_total", rule="error_rate") == before + 1
    assert value("penstock_alert_firing", rule="error_rate") == 1
    assert REGISTRY.get_sample_value("penstock_alert_firing", {"rule": "p95_latency_ms"}) == 0
    made.evaluate(GOOD, 10, 200.0)
    assert [one["event"] for one in made.events] == ["alert_firing", "alert_resolved"]
    assert value("penstock_alerts_total", rule="error_rate") == before + 1
    assert value("penstock_alert_firing", rule="error_rate") == 0
    assert made.put == [("firing", "error_rate"), ("resolved", "error_rate")]
    first, last = made.hooks[-1].put_
    assert first.alert == last.alert


def test_b44_missing_values_are_no_alerts() -> None:
    made = Made()
    made.evaluate({}, 10)
    assert made.events == []


def test_b44_callbacks_are_called_in_a_thread_of_their_own_whatever_one_raises() -> None:
    made = Made(hooked=False)
    called: list[tuple[str, Alert]] = []

    def stumble(alert: Alert) -> None:
        called.append(("stumble", alert))
        raise ValueError("oh")

    made.watch.callbacks += [
        stumble,
        lambda alert: called.append((threading.current_thread().name, alert)),
    ]
    made.evaluate(BAD)
    until(lambda: len(called) == 2 and len(made.events) == 2)
    assert [name for name, _ in called] == ["stumble", "penstock-alerts"]
    assert called[0][1] == called[1][1]
    assert (called[0][1].state, called[0][1].rule) == ("firing", "error_rate")
    failed = made.events[1]
    assert failed == {
        "event": "alert_callback_failed",
        "callback": stumble.__qualname__,
        "error": "ValueError('oh')",
    }


def test_b44_a_webhook_that_fails_is_a_trouble_until_one_arrives() -> None:
    made = Made()
    delivered, failed = (value("penstock_alert_deliveries_total", result=one) for one in ("delivered", "failed"))
    made.evaluate(BAD)
    hook = made.hooks[-1]
    hook.done(hook.put_[0], "status 500")
    assert made.watch.written()["trouble"] == "alerts: the webhook was not told of error_rate: status 500"
    assert made.events[-1] == {
        "event": "alert_undelivered",
        "rule": "error_rate",
        "state": "firing",
        "error": "status 500",
    }
    hook.done(hook.put_[0], "")
    assert made.watch.written()["trouble"] == ""
    assert value("penstock_alert_deliveries_total", result="delivered") == delivered + 1
    assert value("penstock_alert_deliveries_total", result="failed") == failed + 1


def test_b44_the_next_worker_does_not_tell_again_and_sends_what_had_not_arrived() -> None:
    one, two, three = Made(), Made(), Made()
    one.evaluate(BAD)
    written = json.loads(json.dumps(one.watch.written()))
    assert len(json.dumps(written)) < 2000
    two.watch.take_over(written)
    assert two.hooks[-1].put_ == one.hooks[-1].put_
    two.evaluate(BAD, 10, 200.0)
    assert two.events == []
    assert value("penstock_alert_firing", rule="error_rate") == 1
    two.hooks[-1].done(two.hooks[-1].put_[0], "")
    three.watch.take_over(json.loads(json.dumps(two.watch.written())))
    assert three.hooks[-1].put_ == []
    three.evaluate(GOOD, 3, 300.0)
    assert [one_["event"] for one_ in three.events] == ["alert_resolved"]
    assert three.hooks[-1].put_[0].alert == one.hooks[-1].put_[0].alert


def test_b44_that_the_beginning_has_arrived_says_nothing_of_the_end() -> None:
    made = Made()
    made.evaluate(BAD)
    made.evaluate(GOOD, 3, 200.0)
    hook = made.hooks[-1]
    hook.done(hook.put_[0], "")
    assert made.watch.written()["states"]["error_rate"]["untold"][0] == "resolved"
    hook.done(hook.put_[1], "")
    assert made.watch.written()["states"]["error_rate"]["untold"] is None


def test_b44_what_is_written_fits_however_much_there_is_to_say() -> None:
    rules = tuple(Rule(f"requests_per_second_min_{number}", 1.0, "x") for number in range(5))
    made = Watch(rules, lambda _: None, lambda done: Hook(done))  # type: ignore[arg-type,return-value]
    for at in range(3):
        made.evaluate({rule.name: 123456.7891 for rule in rules}, 1795267519.2018714 + at)
    made._arrived(Alert("a", "firing", "gone", 1.0, 1.0, 60, 1.0, "h", "t"), "x" * 5000)
    assert len(json.dumps(made.written(), separators=(",", ":"))) < 2000


def test_b44_nothing_is_sent_where_there_is_no_address_and_rules_may_change() -> None:
    made = Made(hooked=False)
    made.watch.take_over({"states": {"unknown": State()._asdict()}, "trouble": ""})
    made.evaluate(BAD)
    assert made.watch.written()["states"]["error_rate"]["untold"] is None
    assert set(made.watch.written()["states"]) == {"error_rate", "p95_latency_ms"}
    made.watch.stop()


def test_b44_whoever_steps_down_shows_nothing_any_more_and_the_end_ends_all() -> None:
    made = Made()
    made.evaluate(BAD)
    made.watch.step_down()
    assert value("penstock_alert_firing", rule="error_rate") == 0
    made.watch.stop()
    assert made.hooks[-1].stopped
