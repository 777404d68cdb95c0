"""Watch for alerts, and tell of them: log, metrics, callbacks, webhook (B44).

Of a node's workers one does this (``monitor`` sees to that); what it has found is written down, so that the next
one goes on where it ended, and sends to the webhook what had not arrived.

Runs on: worker.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import Counter, Gauge

from app.observe import (
    alerts,
    reserved,  # noqa: F401 - first of all: where metrics are kept
)
from app.observe.alerts import Alert, Rule, State
from app.observe.errands import Errands
from app.observe.webhook import Webhook

ALERTS: Final = Counter("penstock_alerts", "Alerts that began to fire.", ["rule"])
FIRING: Final = Gauge(
    "penstock_alert_firing", "1 while the alert fires, over all workers.", ["rule"], multiprocess_mode="livemax"
)
DELIVERIES: Final = Counter("penstock_alert_deliveries", "Alerts sent to the webhook.", ["result"])
DELIVERED: Final = "delivered"
FAILED: Final = "failed"

Callback = Callable[[Alert], object]
Tell = Callable[[dict[str, object]], None]


class Watch:
    """Where the rules stand, in one process.

    Args:
        rules: What is watched.
        tell: Takes the events ``alert_firing``, ``alert_resolved``, ``alert_undelivered``,
            ``alert_callback_failed``.
        webhook: Makes the sender; None: there is no address.

    Attributes:
        rules: What is watched.
        callbacks: Are shown every alert, in a thread of their own.
        unwritten: Something has changed between two looks: what ``written`` says should be written again.
    """

    def __init__(
        self,
        rules: tuple[Rule, ...],
        tell: Tell,
        webhook: Callable[[Callable[[Alert, str], None]], Webhook] | None = None,
    ) -> None:
        self.rules = rules
        self.callbacks: list[Callback] = []
        self._tell = tell
        self._make_webhook = webhook
        self.reset()

    def reset(self) -> None:
        """As new, in a process of its own; callbacks stay."""
        self._lock = threading.Lock()
        self._states = {rule.name: State() for rule in self.rules}
        self._trouble = ""
        self.unwritten = False
        self._webhook = self._make_webhook(self._arrived) if self._make_webhook is not None else None
        self._calls: Errands[Alert] = Errands("penstock-alerts", self._call)
        self._host = os.uname().nodename

    def evaluate(self, values: Mapping[str, float | None], at: float) -> None:
        """Look at every rule once, and tell what has changed.

        Args:
            values: By rule; None or missing: too little to judge by.
            at: Seconds since the epoch.
        """
        told: list[Alert] = []
        with self._lock:
            for rule in self.rules:
                before = self._states[rule.name]
                state, change = alerts.step(rule, before, values.get(rule.name), at)
                if change:
                    since = state.since if change == alerts.FIRING else before.since
                    told.append(alerts.alert(rule, change, since, at, state.value, self._host))
                    untold = (change, since, at, state.value) if self._webhook is not None else None
                    state = state._replace(untold=untold)
                self._states[rule.name] = state
        for rule in self.rules:
            FIRING.labels(rule.name).set(1 if self._states[rule.name].phase == alerts.FIRING else 0)
            ALERTS.labels(rule.name).inc(0)  # a series that begins with its first alert would hide its increase
        for alert in told:
            self._announce(alert)

    def take_over(self, written: Mapping[str, Any]) -> None:
        """Go on where another worker ended.

        Args:
            written: As ``written`` has it; may be empty.
        """
        with self._lock:
            found = alerts.restored(written.get("states", {}))
            self._states = {rule.name: found.get(rule.name, State()) for rule in self.rules}
            self._trouble = written.get("trouble", "")
            untold = []
            for rule in self.rules:
                if last := self._states[rule.name].untold:
                    untold.append(alerts.alert(rule, *last, self._host))
        if self._webhook is not None:
            for result in (DELIVERED, FAILED):
                DELIVERIES.labels(result).inc(0)
            for alert in sorted(untold, key=lambda one: one.at):
                self._webhook.put(alert)

    def step_down(self) -> None:
        """Another worker watches from now on."""
        for rule in self.rules:
            FIRING.labels(rule.name).set(0)

    def written(self) -> dict[str, Any]:
        """What another worker needs to go on, JSON-ready."""
        with self._lock:
            return {"states": alerts.plain(self._states), "trouble": self._trouble}

    def stop(self) -> None:
        """Send and call nothing more."""
        self._calls.stop()
        if self._webhook is not None:
            self._webhook.stop()

    def _announce(self, alert: Alert) -> None:
        fields = alert._asdict()
        self._tell({"event": f"alert_{alert.state}", **{name: fields[name] for name in fields if name != "state"}})
        if alert.state == alerts.FIRING:
            ALERTS.labels(alert.rule).inc()
        if self.callbacks:
            self._calls.put(alert)
        if self._webhook is not None:
            self._webhook.put(alert)

    def _call(self, alert: Alert) -> None:
        for callback in list(self.callbacks):
            try:
                callback(alert)
            except Exception as error:  # noqa: BLE001 - the application's own code; the others are called, too
                name = getattr(callback, "__qualname__", type(callback).__name__)
                self._tell({"event": "alert_callback_failed", "callback": name, "error": repr(error)})

    def _arrived(self, alert: Alert, fault: str) -> None:
        """What became of an alert at the webhook; on its thread."""
        DELIVERIES.labels(FAILED if fault else DELIVERED).inc()
        with self._lock:
            self._trouble = f"alerts: the webhook was not told of {alert.rule}: {fault[:200]}" if fault else ""
            state = self._states.get(alert.rule)
            if state is not None and state.untold and state.untold[2] == alert.at:  # and not a later one
                self._states[alert.rule] = state._replace(untold=None)
            self.unwritten = True
        if fault:
            self._tell({"event": "alert_undelivered", "rule": alert.rule, "state": alert.state, "error": fault})
