"""Turn finished exchanges into OpenTelemetry spans and hand them to the SDK, at the end and off the hot path.

    observe(record)   any thread; one append
    pump()            the keeper, every quarter second: Records -> ended spans -> the SDK's batch processor
    stop()            the end of the worker: what there is goes out, for 1.5 s at most

What an exporter could not deliver, or what there was no room for while it did not keep up, is lost, counted
(``penstock_spans_lost``), told in the log once a minute, and a reason in ``/ready`` until spans arrive again. No
exchange ever waits for any of it.

The processor, its thread and the exporter are made by the first pump: in the worker, after gunicorn's fork and
gevent's patches. Where the extra ``[otel]`` is not installed nothing imports this module.

Runs on: worker.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, set_span_in_context

from app import settings_otel
from app.exchange import Record
from app.observe import metrics
from app.observe.span_export import Accounted, exporter_of
from app.observe.span_shape import Sampled, Shape

STOP_S: Final = 1.5
"""Longest wait for the collector at the end."""

_TOLD_EVERY_S = 60.0
_PIECE = 64
Tell = Callable[[dict[str, object]], None]


class Spans:
    """Of one worker.

    Args:
        vendor: ``gen_ai.provider.name`` of the spans.
        addresses: Host and port of every target, by its name.
        tell: Takes events for the log.
        environ: The environment; the SDK reads the process's own besides.
        make: Gives the exporter instead of the environment.
    """

    def __init__(
        self,
        vendor: str,
        addresses: Mapping[str, tuple[str, int]],
        tell: Tell,
        environ: Mapping[str, str],
        make: Callable[[], SpanExporter] | None = None,
    ) -> None:
        self._vendor = vendor
        self._addresses = addresses
        self._tell = tell
        self._environ = environ
        self._make = make or (lambda: exporter_of(settings_otel.exporter(environ)))
        self._waiting: deque[Record] = deque()
        self.observe: Final = self._waiting.extend
        self._sending: _Sending | None = None
        self._pid = 0
        self._stopped = False

    def pump(self) -> None:
        """Hand on what has come since the last time."""
        if self._stopped:
            return
        sending = self._open()
        for count in range(1, len(self._waiting) + 1):
            sending.take(self._waiting.popleft(), time.time())
            if not count % _PIECE:
                time.sleep(0)  # under gevent let other greenlets run
        sending.report(time.monotonic())

    def _open(self) -> _Sending:
        """What this process sends with; after a fork another one."""
        if self._sending is None or self._pid != os.getpid():
            self._pid = os.getpid()
            shape = Shape(self._vendor, self._addresses, *_maker())
            self._sending = _Sending(shape, Accounted(self._make()), self._environ, self._tell)
        return self._sending

    @property
    def lost(self) -> int:
        """Spans of this worker that did not get where they should."""
        return self._sending.lost if self._sending is not None else 0

    @property
    def trouble(self) -> str:
        """Why spans do not arrive, for people; "" if they do."""
        return self._sending.trouble if self._sending is not None else ""

    def stop(self) -> None:
        """Send what there is, for STOP_S at most; once."""
        if self._stopped or (not self._waiting and (self._sending is None or self._pid != os.getpid())):
            return
        self.pump()
        self._stopped = True
        self._open().end(STOP_S)


class _Sending:
    """The SDK's batch processor of one process, and the count of what goes through it."""

    def __init__(self, shape: Shape, exporter: Accounted, environ: Mapping[str, str], tell: Tell) -> None:
        self._shape = shape
        self._exporter = exporter
        self._tell = tell
        self._room = settings_otel.whole(environ, settings_otel.QUEUE)
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=self._room,
            max_export_batch_size=settings_otel.whole(environ, settings_otel.BATCH),
            schedule_delay_millis=settings_otel.whole(environ, settings_otel.DELAY_MS),
        )
        self._handed = 0
        self._dropped = 0
        self._behind = False
        self._losing = False
        self._told = 0
        self._told_at = -_TOLD_EVERY_S

    @property
    def lost(self) -> int:
        return self._dropped + self._exporter.lost

    @property
    def trouble(self) -> str:
        why = self._exporter.trouble or ("the collector does not keep up" if self._behind else "")
        return f"spans: {why}; {self.lost} lost so far" if why else ""

    def take(self, record: Record, now_s: float) -> None:
        """Make its span and put it in line; the processor's own queue would lose the oldest without a word."""
        span = self._shape.span(record, now_s)
        if span is None:
            return
        waiting = self._handed - self._exporter.taken
        if waiting >= self._room:
            self._dropped += 1
            self._behind = True
            return
        if self._behind and waiting < self._room // 2:
            self._behind = False
        self._handed += 1
        self._processor.on_end(span)

    def report(self, now: float, *, last: bool = False) -> None:
        """Count what was lost, and tell it now and then; also when it is over."""
        lost = self.lost
        if lost != self._told:
            metrics.SPANS_LOST.set(lost)
            if last or now - self._told_at >= _TOLD_EVERY_S:
                event = {"event": "spans_lost", "count": lost - self._told, "reason": self.trouble}
                self._told, self._told_at, self._losing = lost, now, True
                self._tell(event)
        elif self._losing and not self.trouble:
            self._losing = False
            self._tell({"event": "spans_arrive_again", "lost": lost})

    def end(self, limit_s: float) -> None:
        """Send the rest; what has not arrived by then counts as lost."""
        ending = threading.Thread(target=self._processor.shutdown, name="penstock-spans-end", daemon=True)
        ending.start()
        ending.join(limit_s)
        if left := self._handed - self._exporter.taken:
            self._dropped += left
            self._behind = True
        self.report(time.monotonic(), last=True)


def _maker() -> tuple[Resource, InstrumentationScope, Sampled]:
    """Who makes the spans, and which of them are kept: both as the environment says."""
    try:
        version = metadata.version("penstock")
    except metadata.PackageNotFoundError:
        version = ""
    own = {"service.name": "penstock", "service.version": version, "service.instance.id": str(uuid.uuid4())}
    resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
    sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler

    def sampled(parent: SpanContext | None, trace_id: int, name: str) -> bool:
        if sampler is DEFAULT_ON:  # most are: the parent has decided, at no cost
            return parent is None or parent.trace_flags.sampled
        context = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())
        found = sampler.should_sample(context, trace_id, name, SpanKind.CLIENT)
        return found.decision is Decision.RECORD_AND_SAMPLE

    return resource, InstrumentationScope("penstock", version), sampled
