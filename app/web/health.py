"""Know how this worker is: its bridge, its connections, whether the upstream can be reached.

    ready --connect_failed--> unreachable --a connection succeeds--> ready
    ready --every target's breaker open, or all its keys benched--> unavailable --one usable--> ready
    ready --some of that, or Redis gone--> degraded (still serves)
    any   --SIGTERM---------> draining
    any   --bridge check----> degraded (still serves, through the thread pool)

Runs on: worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from app.bridge.call import Bridge
from app.errors import GatewayError
from app.exchange import Record
from app.gateway.life import Life
from app.observe.logs import ExchangeLog
from app.upstream.dispatch import Dispatcher, Traffic, warming
from app.web.figures import Figures

_CONNECT_FAILED = "connect_failed"
_WARM_UP_FAILED = "warm_up_failed"
_UNREACHABLE = "the upstream cannot be reached"


def _nothing() -> None:
    """There is nothing more to come."""


def _never() -> None:
    """Nothing ends this wait but its own time."""


class Health:
    """One per process.

    Args:
        bridge: Gives the process's bridge.
        dispatcher: Gives a loop's dispatcher; called on that loop.
        life: State of this worker.
        log: Where events go.
        warm_slots: Exchanges for which connections are opened ahead.
        shared: Why other nodes cannot be told what this one learns, or "".
        figures: Where what is counted goes; None: nothing is.
        spans: Why spans do not arrive, or "".
        monitored: What the performance monitor has to complain of.
        unshared: Why others do not see what this worker counts.
    """

    def __init__(
        self,
        bridge: Callable[[], Bridge],
        dispatcher: Callable[[Any], Dispatcher],
        life: Life,
        log: ExchangeLog,
        warm_slots: int,
        shared: Callable[[], str],
        figures: Figures | None = None,
        spans: Callable[[], str] = str,
        monitored: Callable[[], Sequence[str]] = tuple,
        unshared: Callable[[], Sequence[str]] = tuple,
        settle: Callable[[], None] = _nothing,
    ) -> None:
        self._settle = settle
        self._monitored = monitored
        self._unshared = unshared
        self._spans = spans
        self.bridge = bridge
        self.life = life
        self._dispatcher = dispatcher
        self._log = log
        self._warm_slots = warm_slots
        self._shared = shared
        self._figures = figures
        self._unreachable = ""

    def observe(self, records: Sequence[Record]) -> None:
        """Learn from finished exchanges whether the upstream can be reached."""
        for record in records:
            if record.slug == _CONNECT_FAILED:
                self._unreachable = _UNREACHABLE
            elif self._unreachable and record.upstream_head_ms is not None:
                self._unreachable = ""

    def warm_up(self) -> None:
        """Open the first upstream connections, in the background."""
        self.bridge().open(warming(self._dispatcher, self._warm_slots))

    def probe(self, timeout_s: float = 2.0) -> None:
        """Try the upstream again after it could not be reached; notes what came of it."""
        crossing = self.bridge().open(warming(self._dispatcher))
        try:
            if crossing.head(_never, timeout_s):
                self._unreachable = ""
        except (TimeoutError, GatewayError):
            return
        finally:
            crossing.close()

    def traffic(self) -> Traffic:
        """Slots, breakers, keys and pools of the background loop; nothing where the loop does not answer."""
        found = self._ask()
        return found[1] if found is not None else Traffic((), 0)

    def _ask(self) -> tuple[Dispatcher, Traffic] | None:
        """The loop's dispatcher and what it says; None where the loop does not answer."""
        try:
            found: tuple[Dispatcher, Traffic] = self.bridge().call(self._look)
        except TimeoutError:
            return None
        return found

    def _look(self, loop: Any) -> tuple[Dispatcher, Traffic]:
        """The same, on ``loop``."""
        dispatcher = self._dispatcher(loop)
        return dispatcher, dispatcher.traffic()

    def state(self, traffic: Traffic | None = None) -> dict[str, Any]:
        """What ``/ready`` says: ``status`` and why."""
        self._settle()
        degraded = self.bridge().check()
        if self._unreachable and not self.life.draining:
            self.probe()
        traffic = self.traffic() if traffic is None else traffic
        reasons = [*_troubles(traffic), *self._monitored(), *self._unshared()]
        reasons += self._log.troubles
        if spans := self._spans():
            reasons.append(spans)
        status = "degraded" if degraded or reasons or self._shared() else "ready"
        if degraded:
            reasons.append(degraded)
        if self._shared():
            reasons.append(self._shared())
        if self._unreachable:
            reasons.append(self._unreachable)
        if self._unreachable or (traffic.targets and not any(target.usable for target in traffic.targets)):
            status = "unavailable"
        if self.life.draining:
            status = "draining"
            reasons.append("draining")
        return {
            "status": status,
            "reasons": reasons,
            "in_flight": self.life.in_flight,
            "upstreams": [
                {
                    "provider": target.name,
                    "transport": target.pool.transport,
                    "open_connections": target.pool.open_connections,
                    "handshakes": target.pool.handshakes,
                    "unresponsive": target.pool.unresponsive,
                }
                for target in traffic.targets
            ],
        }

    def publish(self) -> None:
        """Bring this worker's metrics up to date and write out what the loop had to say."""
        self._settle()
        bridge, figures = self.bridge(), self._figures
        degraded = bridge.check()
        self._tell(bridge)
        if figures is not None:
            alone = bool(self._shared())
            figures.worker(self.life, self._log.lost, degraded=bool(degraded), alone=alone)
            figures.bridge(bridge)
            found = self._ask()
            if found is not None:
                figures.traffic(*found)

    def last_words(self) -> Callable[[], None]:
        """Have the loop say what it has counted, before it is stopped.

        Nothing waits here: whoever ends a worker may be in a signal's handler.

        Returns:
            Call it once the loop is stopped: counts that and writes out what there was to say.
        """
        bridge, figures = self.bridge(), self._figures
        found: list[tuple[Dispatcher, Traffic]] = []
        if figures is not None and bridge.main.alive:
            bridge.main.post(lambda: found.append(self._look(bridge.main)))

        def publish() -> None:
            self._settle()
            self._tell(bridge)
            if figures is not None:
                figures.bridge(bridge)
                for words in found:
                    figures.traffic(*words)

        return publish

    def _tell(self, bridge: Bridge) -> None:
        """Write out and count what the loop had to say."""
        for name in self._log.drain(bridge.events):
            if self._figures is not None:
                self._figures.happened(name)
            if name == _WARM_UP_FAILED:
                self._unreachable = _UNREACHABLE

    def overslept(self, late_s: float) -> None:
        """The keeper woke so many seconds later than it wanted."""
        if self._figures is not None:
            self._figures.overslept(late_s)


def _troubles(traffic: Traffic) -> list[str]:
    """What is wrong with the targets, for people."""
    found = []
    for target in traffic.targets:
        if target.breaker != "closed":
            found.append(f"{target.name}: the breaker is {target.breaker}")
        found += [
            f"{target.name}: credential {one.label} is {one.state}"
            for one in target.credentials
            if one.state in ("benched", "open") or (one.state == "cooling" and not target.usable)
        ]
    return found
