"""Write one JSON line per exchange, and a line for each event of the bridge and the pools (B40).

    records, event ──queue──> flush ──> stdout, performance.json, errors.json, requests.json
                                ^ at once: if nothing was written for 50 ms, for an error, when 16 wait
                                | else:    the keeper's next tick, a quarter second at most

Lines wait unformatted, for a write costs more than a line does. A worker that is killed (SIGKILL, out of memory)
takes with it what was not written yet: a quarter second at most, and never an error. Under gunicorn SIGTERM,
SIGINT and a worker's regular end lose nothing. Where no keeper runs (yet, or any more), every line is written at
once.

An exchange's line is msgspec's struct, written by its encoder, thirty at a time: half the time of a dict through
orjson, a sixth of json's. structlog renders the lines for people (``LOG_FORMAT=console``); its
chain and the standard ``logging`` with its handlers and locks take several times as long, and are left to the
surrounding application.

Runs on: worker. Never on the loop thread: its lock is gevent's (facts 3).
"""

from __future__ import annotations

import atexit
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from msgspec import to_builtins

from app.exchange import Record
from app.observe.log_files import LogFile, LogFiles
from app.observe.log_line import ERROR, INFO, LEVELS, WARNING, Clock, Line, level_of, line, lines, named, told
from app.observe.log_shown import Shown, bodies, headers
from app.observe.log_stdout import Stdout
from app.observe.redact import Redactor

QUIET_S: Final = 0.05
_URGENT_S: Final = 0.005  # a storm of refusals must not cost a write each
_MOST_LINES: Final = 16  # of 64 the C library gives the memory back each time: measured, twice the time a line
_MOST_BYTES: Final = 65_536
_MOST_WAITING: Final = 20_000  # lines, where stdout takes nothing and other threads go on
_MOST_TURNS: Final = 3  # then somebody else's request may write
_PUMP_WAIT_S: Final = 0.001
_LAST_WAIT_S: Final = 1.0
_SEVERE: Final = frozenset({named(WARNING), named(ERROR)})
_DEBUGS: Final = frozenset({"connection_opened", "connection_reused", "connection_closed"})
_ERRORS: Final = frozenset({"unexpected_error"})
_WARNINGS: Final = frozenset(
    {
        "loop_died",
        "loop_exception",
        "bridge_degraded",
        "task_failed",
        "transport_fallback",
        "warm_up_failed",
        "connection_unresponsive",
        "setting_without_effect",
        "breaker_opened",
        "credential_benched",
        "shared_state_degraded",
        "spans_lost",
        "caller_limits_degraded",
        "caller_counters_unavailable",
        "board_unavailable",
        "board_full",
        "board_names_too_long",
        "redis_certificate_unverified",
        "log_file_failed",
        "alert_firing",
        "alert_resolved",
        "alert_undelivered",
        "asking_unavailable",
        "alert_callback_failed",
        "performance_not_shared",
        "metrics_not_shared",
    }
)
_Told = dict[str, object]
_all: Final[weakref.WeakSet[ExchangeLog]] = weakref.WeakSet()


class ExchangeLog:
    """Writes Records and events, each once and in order. From any thread or greenlet.

    Args:
        level: Least level that is written: ``debug``, ``info``, ``warning`` or ``error``.
        style: Of stdout: ``json`` or ``console``.
        files: Where lines go besides stdout.
        shown: What is shown of bodies: in ``requests.json`` where there is one, else in stdout's lines.
        redactor: Takes secrets out of headers and bodies.
        poll: As ``Stdout`` has it.
    """

    def __init__(
        self,
        level: str,
        style: str,
        files: LogFiles | None = None,
        shown: Shown | None = None,
        redactor: Redactor | None = None,
        poll: Callable[[], Any] = select.poll,
    ) -> None:
        self._least = LEVELS[level]
        self._console = structlog.dev.ConsoleRenderer(colors=False) if style == "console" else None
        self._stdout = Stdout(poll)
        self._files = files
        self._shown = shown or Shown()
        self._redactor = redactor or Redactor()
        self._clock = Clock()
        self._waiting: deque[tuple[int, Record | _Told]] = deque()
        self._waiting_bytes = 0  # of bodies
        self._worst = 0
        self._written_at = 0.0
        self._pumped = False
        self._dropped = 0
        self._lock = threading.Lock()
        self._troubled: frozenset[str] = frozenset()
        atexit.register(_flush_last, weakref.ref(self))
        _all.add(self)

    def _forget(self) -> None:
        """In a child: what waits is the parent's to write, and whoever holds the lock is not here."""
        self._waiting.clear()
        self._stdout.forget()
        self._pumped = False
        self._lock = threading.Lock()

    def observe(self, records: Sequence[Record]) -> None:
        """One line for each exchange; ``look`` then says when."""
        waiting, least = self._waiting, self._least
        if len(waiting) >= _MOST_WAITING:
            self._dropped += sum(level_of(record) >= least for record in records)
            return
        for record in records:
            level = level_of(record)
            if level < least:
                continue
            waiting.append((level, record))
            if level > self._worst:
                self._worst = level
            if record.captured is not None:
                self._waiting_bytes += len(record.captured.request_body) + len(record.captured.response_body)

    def look(self) -> None:
        """Write what waits, if it is time to."""
        quiet_s = time.monotonic() - self._written_at
        if (
            quiet_s >= (QUIET_S if self._worst < WARNING else _URGENT_S)
            or not self._pumped
            or self._worst >= ERROR
            or len(self._waiting) >= _MOST_LINES
            or self._waiting_bytes >= _MOST_BYTES
        ):
            self.flush()

    def event(self, name: str, **facts: object) -> None:
        """One line for something that happened to this worker."""
        level = INFO
        if name in _DEBUGS:
            level = LEVELS["debug"]
        elif name in _WARNINGS:
            level = WARNING
        elif name in _ERRORS:
            level = ERROR
        if level >= self._least:
            self._tell(level, name, facts)
            self.look()

    def drain(self, events: deque[dict[str, object]]) -> list[str]:
        """Write what the loop thread had to say; returns the names of the events."""
        names = []
        while events:
            facts = dict(events.popleft())
            name = str(facts.pop("event", "event"))
            names.append(name)
            self.event(name, **facts)
        return names

    @property
    def lost(self) -> int:
        """Lines that could not be written, on stdout or to a file."""
        return self._dropped + self._stdout.lost + sum(file.lost for file in self._every)

    @property
    def troubles(self) -> list[str]:
        """What is wrong with the log, for people."""
        found = [f"{file.name} cannot be written to: {file.trouble}" for file in self._every if file.trouble]
        found += [f"{file.lost} lines could not be written to {file.name}" for file in self._every if file.lost]
        if self._stdout.waiting_bytes:
            found.insert(0, f"stdout is not read: {self._stdout.waiting_bytes} bytes of lines wait for its reader")
        if self._dropped + self._stdout.lost:
            found.insert(0, f"{self._dropped + self._stdout.lost} lines could not be written to stdout")
        return [f"log: {one}" for one in found]

    def pump(self) -> None:
        """Write what waits; the keeper calls it every quarter second."""
        self._pumped = True
        self.flush(_PUMP_WAIT_S)

    def flush(self, wait_s: float = 0.0) -> None:
        """Write what waits. Whoever is writing already takes it along, so nobody waits for another.

        Args:
            wait_s: How long a file may be waited for that another worker is writing to.
        """
        turns = 0
        while self._waiting or (wait_s and (self._files is not None or self._stdout.waiting_bytes)):
            if not self._lock.acquire(blocking=False):
                return
            try:
                self._write(wait_s)
            finally:
                self._lock.release()
            turns += 1
            if not self._waiting or (self._pumped and turns == _MOST_TURNS):
                return

    def close(self) -> None:
        """Write all that waits; from now on lines are written as they come."""
        self._pumped = False
        # not with a timeout at once: in a signal handler under gevent nobody may wait
        if self._lock.acquire(blocking=False) or self._lock.acquire(timeout=_LAST_WAIT_S):
            try:
                self._write(_LAST_WAIT_S)
                self._stdout.end(_LAST_WAIT_S)
                for file in self._every:
                    file.close()
            finally:
                self._lock.release()

    @property
    def _every(self) -> tuple[LogFile, ...]:
        return self._files.every if self._files is not None else ()

    def _tell(self, level: int, name: str, facts: _Told) -> None:
        facts["event"], facts["level"], facts["time"] = name, named(level), self._clock.text(time.time())
        self._waiting.append((level, facts))
        self._worst = max(self._worst, level)

    def _write(self, wait_s: float) -> None:
        """Format and write what waits; by whoever holds the lock."""
        written: list[bytes] = []
        plain: list[Line] = []
        self._waiting_bytes = self._worst = 0
        while self._waiting:
            level, what = self._waiting.popleft()
            if isinstance(what, Record):
                found = told(what, level, self._clock.text(what.at))
                if what.captured is None and self._console is None:
                    plain.append(found)
                    continue
                one = self._special(level, what, found)
            else:
                one = self._event(level, what)
            written += (self._plain(plain), one)
        if plain:
            written.append(self._plain(plain))
        for file in self._every:  # before stdout, which may be a pipe that nobody reads
            file.flush(wait_s)
        if written:
            self._written_at = time.monotonic()
        if written or self._stdout.waiting_bytes:
            self._stdout.write(b"".join(written))
        if self._files is not None:
            self._tell_troubles()

    def _plain(self, found: list[Line]) -> bytes:
        """The lines of exchanges of which no bodies are shown; ``found`` is empty afterwards."""
        made = lines(found)
        files = self._files
        if files is not None:
            files.performance.add(made)
            for one, written in zip(found, made.splitlines(keepends=True), strict=True):
                if one.level in _SEVERE:
                    files.errors.add(written)
        found.clear()
        return made

    def _event(self, level: int, facts: _Told) -> bytes:
        written = line(facts)
        if self._files is not None and level >= WARNING:
            self._files.errors.add(written)
        return written if self._console is None else self._for_people(facts)

    def _special(self, level: int, record: Record, found: Line) -> bytes:
        """The line of an exchange of which more is shown, or that people read."""
        facts: _Told = to_builtins(found)
        written = line(facts)
        files, kept = self._files, record.captured
        if files is not None:
            files.performance.add(written)
            if level >= WARNING:
                files.errors.add(written)
        if kept is not None:
            seen = bodies(record, self._shown, self._redactor)
            if files is not None and files.requests is not None:
                files.requests.add(line({**facts, **headers(kept, self._redactor), **seen}))
            elif seen:
                facts |= seen
                written = line(facts)
        return written if self._console is None else self._for_people(facts)

    def _for_people(self, facts: _Told) -> bytes:
        assert self._console is not None  # noqa: S101 - asked only then
        return f"{self._console(None, '', facts)}\n".encode(errors="backslashreplace")

    def _tell_troubles(self) -> None:
        """Each file that can no longer be written to, or can again, is told of once."""
        troubled = {file.name: file.trouble for file in self._every if file.trouble}
        for name in sorted(troubled.keys() - self._troubled):
            self._tell_here("log_file_failed", {"file": name, "error": troubled[name]})
        for name in sorted(self._troubled - troubled.keys()):
            self._tell_here("log_file_restored", {"file": name})
        self._troubled = frozenset(troubled)

    def _tell_here(self, name: str, facts: _Told) -> None:
        level = WARNING if name in _WARNINGS else INFO
        if level >= self._least:
            self._tell(level, name, facts)


def _flush_last(ref: weakref.ref[ExchangeLog]) -> None:
    """Under servers that have no hook for it: at the interpreter's end."""
    log = ref()
    if log is not None:
        log.close()


def _forget_all() -> None:
    for log in list(_all):
        log._forget()


os.register_at_fork(after_in_child=_forget_all)
