"""Try: gates, credential, send, judge, again? The only place where anything is sent twice (B30).

    enter a target's room -> admitted (breaker, key) -> send -> head -> judged
       ^  refused: the next target                                |
       |                                                          +-- good, or to be passed on: handed up
       +------------- again: same, other key, next target --------+

Until the next try is admitted, the answer of the last one is kept: where nobody admits it, the client gets that
answer as it came. What a failure means is decided by exception type and status, never by text.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import httpx

from app.errors import DeadlinePassed, GatewayError, NoCredential, QueueTimeout, Refused, UnservedModel
from app.exchange import Attempt, Headers, Journey, Outbound, Plan
from app.policy.retry import (
    Again,
    Budget,
    Chances,
    Failure,
    Rules,
    State,
    decide,
    retry_after_s,
    should_retry,
)
from app.upstream.failures import before_head, kind_of
from app.upstream.opened import Opened
from app.upstream.slots import Slot
from app.upstream.target import Target, Ticket
from app.wire.sse import complete, is_overloaded

PEEK_BYTES = 65536
PEEK_S = 2.0
TIME_TO_SEND_S = 0.1
OVERLOADED = "overloaded_error"
pause = asyncio.sleep
_NO_KEYS: frozenset[int] = frozenset()
_NO_RIGHT = frozenset({401, 403})
_NO_CONNECTION = frozenset({"connect", "pool"})
_LATER = frozenset({401, 403, 408, 409, 429})


_Try = tuple[Opened | None, GatewayError | None, Failure | None]
"""What one try came to: an answer or an error, and how it is judged."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, and how often, an exchange may be tried; from the settings, one for all exchanges.

    Attributes:
        rules: Of the retry policy.
        rnd: Random numbers in [0, 1).
    """

    rules: Rules
    rnd: Callable[[], float]


class Attempts:
    """The tries of one exchange.

    Args:
        targets: Where it may go, in order.
        plan: What to send.
        upload: The body where it is streamed; ``plan.body`` otherwise.
        patience: How often, how long.
        budget: Of retries, shared by the worker.

    Attributes:
        sent_at: Instant at which the last try went to the transport.
        head_at: Instant at which its head came.
        judged_at: Instant at which it was judged: ``head_at``, or later where its first event was waited for.
        connect_ms: What went into getting a connection for it.
        kept: The answer of the last try, while it may yet be handed up; let go by ``drop_kept``.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        plan: Plan,
        upload: AsyncIterator[bytes] | None,
        patience: Patience,
        budget: Budget,
    ) -> None:
        self._left = list(targets)
        self._plan = plan
        self._upload = upload
        self._patience = patience
        self._budget = budget
        self._target = targets[0]
        self._slot: Slot | None = None
        self._ticket: Ticket | None = None
        self.kept: Opened | None = None
        self._tried: frozenset[int] = _NO_KEYS
        self._forbidden: frozenset[int] = _NO_KEYS
        self._queue_s = 0.0
        self._waited_s = 0.0
        self._credential = ""
        self._stage = "queue"
        self._made: list[Attempt] = []
        self.sent_at = self.head_at = self.judged_at = 0.0
        self.connect_ms = 0.0

    @property
    def request_id(self) -> str:
        """Of the exchange."""
        return self._plan.request_id

    async def send(self) -> Opened:
        """Send the plan until it is answered well or nothing more may be done; returns once a head is there.

        Raises:
            GatewayError: What failed, and by its branch whether anything may have been sent.
        """
        now = time.monotonic()
        if not self._walk_in(now):
            await self._enter()
            now = time.monotonic()
        self._budget.on_request(now)  # not before: what is refused earns no retries
        while True:
            opened, error, failure = await self._try()
            again = None if failure is None else self._again(failure)
            if again is None:
                if error is not None:
                    raise error
                assert opened is not None  # noqa: S101 - one of the two
                return opened
            self.kept = opened
            try:
                await self._prepare(again)
            except (Refused, UnservedModel):
                if error is not None:
                    raise error from None
                if opened is None:
                    raise
                self.kept = None
                return opened
            await self.drop_kept()

    def journey(self) -> Journey:
        """How far it has come; who made the last try, or would have made the first one."""
        provider = self._made[-1].provider if self._made else self._target.name
        return Journey(provider, self._credential, self._queue_s * 1000.0, tuple(self._made))

    def out_of_time(self) -> GatewayError:
        """The deadline struck before there was a head."""
        if self._stage == "queue":
            return QueueTimeout()
        if self._stage == "wait":
            return QueueTimeout("The request waited too long for a usable upstream credential.")
        error, now = DeadlinePassed(), time.monotonic()
        self._note(error.slug, now)
        self._judge(Failure("broken"), 0, (), now)
        return error

    def broke(self) -> None:
        """The answer's body broke off."""
        if self._ticket is not None:
            self._target.broke(self._ticket)

    def leave(self) -> None:
        """The exchange is over, whatever happened: its key and its slot are let go. Idempotent."""
        self._end_ticket()
        self._leave_room()

    async def drop_kept(self) -> None:
        """Let go of an answer that is not handed up."""
        kept, self.kept = self.kept, None
        if kept is not None:
            await kept.aclose()

    # --- getting in

    def _walk_in(self, now: float) -> bool:
        """A slot and a ticket of the first target, where neither has to be waited for; ``_enter`` otherwise."""
        target = self._target
        if not target.breaker.would_admit(now):
            return False
        self._slot = target.slots.take()
        if self._slot is None:
            return False
        try:
            ticket = target.admit(self._plan, self._tried, now)
        except (Refused, UnservedModel):
            return False  # the slot stays: this is where ``_enter`` goes on
        self._take(ticket)
        return True

    async def _enter(self) -> None:
        """A slot and a ticket of the first target that gives them.

        Raises:
            Refused, UnservedModel: None does; the reason of the first one that may do so later, if any.
        """
        reason: Refused | UnservedModel | None = None
        refusing = self._target
        while self._left:
            target = self._target = self._left[0]
            try:
                await self._admitted(target)
            except (Refused, UnservedModel) as refusal:
                self._go_on()
                if reason is None or not isinstance(reason, Refused):
                    reason, refusing = refusal, target
            else:
                return
        self._target = refusing
        raise reason or Refused()

    async def _admitted(self, target: Target) -> None:
        """A slot (unless one is held) and a ticket of this target."""
        patience_s = self._wait_for_key_s() if len(self._left) == 1 else 0.0
        until = time.monotonic() + patience_s
        while True:
            if self._slot is None:
                now = time.monotonic()
                if not target.breaker.would_admit(now):
                    target.admit(self._plan, self._tried, now)  # raises: no use in queueing for it
                self._stage = "queue"
                self._slot = await target.slots.enter(self._plan.caller)
                self._queue_s += self._slot.waited_s
            self._stage = "wait"
            try:
                ticket = target.admit(self._plan, self._tried, time.monotonic())
                break
            except NoCredential:
                if patience_s <= 0.0:
                    raise
            self._leave_room()  # whoever waits for a key holds no slot of those who have one
            began = time.monotonic()
            await target.rest(self._plan, self._tried, until)
            self._waited_s += time.monotonic() - began
        self._take(ticket)

    def _take(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._credential = ticket.lease.label if ticket.lease is not None else ""

    def _go_on(self) -> None:
        """Be done with the first of the targets that are left; what is known of keys was known of its keys."""
        self._leave_room()
        self._left.pop(0)
        self._tried = self._forbidden = _NO_KEYS

    def _wait_for_key_s(self) -> float:
        """Longest wait for a key: as long as a ``retry-after`` is waited for, and so that time is left."""
        left_s = self._plan.deadline_at - time.monotonic() - TIME_TO_SEND_S
        return max(0.0, min(self._patience.rules.cap_s, left_s))

    async def _prepare(self, again: Again) -> None:
        """What has to be before the next try: its pause, its target, its key.

        Raises:
            Refused: There will be no next try.
        """
        if again.where == "fallback":
            self._go_on()
        elif again.after_s > 0.0:
            self._stage = "wait"
            await pause(again.after_s)
            self._waited_s += again.after_s
        await self._enter()

    # --- one try

    async def _try(self) -> _Try:
        plan, target, ticket = self._plan, self._target, self._ticket
        assert ticket is not None  # noqa: S101 - _enter came first
        pair = target.pair(ticket)
        outbound = Outbound(
            plan.method,
            target.options.origin,
            target.options.base_path + plan.target,
            plan.headers if pair is None else (*plan.headers, pair),
            plan.body if self._upload is None else self._upload,
        )
        self._stage = "try"
        self.sent_at = time.monotonic()
        try:
            inbound = await target.pool.send(
                outbound, streaming=plan.may_stream, download=not plan.whole, asker=self
            )
        except httpx.TransportError as exc:
            return self._failed(exc)
        self.head_at = time.monotonic()
        opened = Opened(inbound)
        try:
            return await self._answered(opened)
        except BaseException:
            await opened.aclose()
            raise

    def _failed(self, exc: httpx.TransportError) -> _Try:
        error, kind, now = before_head(exc), kind_of(exc), time.monotonic()
        if kind in _NO_CONNECTION:
            self.connect_ms = (now - self.sent_at) * 1000.0  # also where the library does not tell
        self._note(error.slug, now)
        failure = Failure(kind) if kind is not None else None
        self._judge(failure, 0, (), now)
        return None, error, failure

    async def _answered(self, opened: Opened) -> _Try:
        status, now = opened.status, self.head_at
        failure = None
        if status == 200 and opened.stream and _is_plain(opened):  # at the last try, too: breaker and key learn
            ahead = await opened.read_ahead(_whole_event, PEEK_BYTES, PEEK_S)
            now = time.monotonic()
            if is_overloaded(ahead):
                failure = Failure("overloaded")
        elif status >= 500 or status in _LATER or (status >= 400 and should_retry(opened.headers)):
            failure = Failure(
                "status", status, retry_after_s(opened.headers, time.time()), should_retry(opened.headers)
            )
        self.judged_at = now
        outcome = str(status) if failure is None or failure.kind == "status" else OVERLOADED
        self._note(outcome, now, opened.inbound.connection)
        self._judge(failure, status, opened.headers, now)
        return opened, None, failure

    def _judge(self, failure: Failure | None, status: int, headers: Headers, now: float) -> None:
        ticket = self._ticket
        assert ticket is not None  # noqa: S101 - a try has one
        proves = self._plan.proves_key or status not in _NO_RIGHT
        self._target.judge(ticket, failure if proves else None, status, headers, now)
        if failure is not None and ticket.lease is not None:
            self._tried |= {ticket.lease.index}
            if status == 403:
                self._forbidden |= {ticket.lease.index}
                if len(self._forbidden) > 1:  # two keys say so: it is the request
                    self._target.exonerate(self._forbidden)

    # --- what next

    def _again(self, failure: Failure) -> Again | None:
        """What the policy says; None: hand up what there is."""
        now = time.monotonic()
        ticket = self._ticket
        assert ticket is not None  # noqa: S101 - a try has one
        chances = Chances(
            repeatable=self._plan.repeatable,
            resendable=self._upload is None or failure.kind == "connect",
            another=len(self._forbidden) < 2 and self._target.has_another(self._plan, ticket, self._tried, now),
            fallback=len(self._left) > 1,
            time_left_s=self._plan.deadline_at - now,
        )
        patience = self._patience
        state = State.after(len(self._made), patience.rules, self._plan.client_retries)
        found = decide(state, failure, chances, patience.rules, lambda: self._budget.take(now), patience.rnd)
        if not isinstance(found, Again):
            return None
        self._end_ticket()
        return found

    def _note(self, outcome: str, now: float, connection: str = "") -> None:
        self._made.append(
            Attempt(
                outcome,
                (now - self.sent_at) * 1000.0,
                connection,
                self._target.name,
                self._credential,
                self._waited_s * 1000.0,
                self.connect_ms,
            )
        )
        self._waited_s = self.connect_ms = 0.0

    # --- letting go

    def _end_ticket(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._target.end(ticket)

    def _leave_room(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()


def _whole_event(data: bytes) -> bool:
    return complete(data) > 0


def _is_plain(opened: Opened) -> bool:
    return opened.inbound.field("content-encoding") in (None, "identity")
