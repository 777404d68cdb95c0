"""Decide when there is something to be told: thresholds with hysteresis, one state machine per rule (B44).

    ok       --over------------------------------> pending
    pending  --over, HOLD times in a row---------> firing      told
    pending  --not over--------------------------> ok
    firing   --clear, HOLD times in a row--------> ok          told as resolved
    firing   --not clear-------------------------> firing      and counting what is clear begins anew

``over`` is beyond the threshold; ``clear`` is on its right side by a tenth of it (below 90 % of a ceiling, above
110 % of a floor), so that a value that hovers around the threshold is told once. Where there are fewer than 20
exchanges to judge by there is no value: that is not over, and it is clear.

The floor of the request rate is armed once a whole window had more than it: a gateway nobody uses yet is no alert.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

HOLD: Final = 3
"""Evaluations in a row that it takes to change what is told."""
CLEAR: Final = 0.1
WINDOW_S: Final = 60

OK: Final = "ok"
PENDING: Final = "pending"
FIRING: Final = "firing"
RESOLVED: Final = "resolved"


class Rule(NamedTuple):
    """One thing that is watched.

    Attributes:
        name: As behaviour and metrics name it.
        threshold: Beyond it is too much, or too little.
        text: What the value is, for people.
        unit: Of value and threshold, for people.
        floor: Below the threshold is what is told.
        window_s: What the value is taken over.
    """

    name: str
    threshold: float
    text: str
    unit: str = ""
    floor: bool = False
    window_s: int = WINDOW_S

    def over(self, value: float | None) -> bool:
        """Whether it is beyond the threshold."""
        return value is not None and (value < self.threshold if self.floor else value > self.threshold)

    def clear(self, value: float | None) -> bool:
        """Whether it is well on the right side."""
        if value is None:
            return True
        limit = self.threshold * (1 + CLEAR if self.floor else 1 - CLEAR)
        return value > limit if self.floor else value < limit


class State(NamedTuple):
    """Where one rule stands.

    Attributes:
        phase: ``ok``, ``pending`` or ``firing``.
        held: Evaluations in a row that speak for a change.
        since: When the phase began, seconds since the epoch; 0: it always was.
        value: At the last evaluation.
        armed: There has been a value on the right side.
        untold: Of the last alert, while it is still on its way to the webhook: what was told, when it began to
            fire, when it was told, and the value.
    """

    phase: str = OK
    held: int = 0
    since: float = 0.0
    value: float | None = None
    armed: bool = False
    untold: tuple[str, float, float, float | None] | None = None


class Alert(NamedTuple):
    """What is told when a rule begins or ceases to fire.

    Attributes:
        alert: Name of this one occurrence: the same for its begin and its end.
        state: ``firing`` or ``resolved``.
        rule: Name of the rule.
        value: What was found; None: there is too little traffic to judge by.
        threshold: Of the rule.
        window_s: What the value is taken over.
        at: Seconds since the epoch.
        host: Whose it is.
        text: The same for people.
    """

    alert: str
    state: str
    rule: str
    value: float | None
    threshold: float
    window_s: int
    at: float
    host: str
    text: str


def rules(
    *,
    p95_latency_ms: float,
    p99_latency_ms: float,
    error_rate: float,
    memory_growth_mb: float,
    requests_per_second_min: float,
) -> tuple[Rule, ...]:
    """Those of these thresholds that are on; 0 switches one off."""
    found = (
        Rule("p95_latency_ms", p95_latency_ms, "95th percentile of what the gateway adds", " ms"),
        Rule("p99_latency_ms", p99_latency_ms, "99th percentile of what the gateway adds", " ms"),
        Rule("error_rate", error_rate, "share of exchanges that failed"),
        Rule("memory_growth_mb", memory_growth_mb, "growth of a worker", " MB", window_s=3600),
        Rule("requests_per_second_min", requests_per_second_min, "requests per second", floor=True),
    )
    return tuple(rule for rule in found if rule.threshold > 0)


def step(rule: Rule, state: State, value: float | None, at: float) -> tuple[State, str]:
    """One evaluation.

    Args:
        rule: What is watched.
        state: Where it stood.
        value: What was found; None: too little to judge by.
        at: Seconds since the epoch.

    Returns:
        Where it stands now, and what is to be told: ``firing``, ``resolved`` or "".
    """
    value = None if value is None else round(value, 4)
    state = state._replace(value=value, armed=state.armed or (value is not None and not rule.over(value)))
    if state.phase == FIRING:
        if not rule.clear(value):
            return state._replace(held=0), ""
        if state.held + 1 < HOLD:
            return state._replace(held=state.held + 1), ""
        return state._replace(phase=OK, held=0, since=at), RESOLVED
    if not rule.over(value) or (rule.floor and not state.armed):
        return state if state.phase == OK else state._replace(phase=OK, held=0, since=at), ""
    if state.held + 1 < HOLD:
        since = state.since if state.phase == PENDING else at
        return state._replace(phase=PENDING, held=state.held + 1, since=since), ""
    return state._replace(phase=FIRING, held=0, since=at), FIRING


def alert(rule: Rule, told: str, since: float, at: float, value: float | None, host: str) -> Alert:
    """What is told of ``rule``.

    Args:
        rule: Which.
        told: ``firing`` or ``resolved``.
        since: When it began to fire.
        at: Now; both in seconds since the epoch.
        value: What was found; None: too little to judge by.
        host: Whose it is.
    """
    text = f"penstock on {host}: {told}: {_sentence(rule, value)}"
    return Alert(
        f"{host}/{rule.name}/{int(since)}", told, rule.name, value, rule.threshold, rule.window_s, at, host, text
    )


def _sentence(rule: Rule, value: float | None) -> str:
    limit = f"{'at least' if rule.floor else 'at most'} {rule.threshold:g}{rule.unit}"
    if value is None:
        return f"{rule.text}: too little traffic to judge by ({limit})"
    return f"{rule.text} over {rule.window_s} s is {value:g}{rule.unit} ({limit})"


def plain(states: Mapping[str, State]) -> dict[str, Any]:
    """As it can be written down."""
    return {name: state._asdict() for name, state in states.items()}


def restored(written: Mapping[str, Any]) -> dict[str, State]:
    """As it was before it was written down."""
    found = {}
    for name, fields in written.items():
        untold = fields["untold"]
        found[name] = State(**{**fields, "untold": None if untold is None else tuple(untold)})
    return found
