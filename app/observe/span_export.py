"""Send ended spans where the standard environment says, and keep count of what did not get there.

What the SDK has to say about it goes to the standard ``logging``, a line or two per batch for as long as a
collector is down; that is kept back here, and what is wrong is told as ``trouble`` to whoever asks.

Runs on: worker, in the batch processor's own thread (a greenlet under gevent).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Final

import requests  # noqa: F401 - what the exporter sends with; it would import it later, while requests are served
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from app.observe.span_bytes import encoded

_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.common.http",
)
_FAILED: Final = "the exporter failed"


def exporter_of(kind: str) -> SpanExporter:
    """The exporter for ``otlp`` or ``console``, with what the environment says of it."""
    return ConsoleSpanExporter() if kind == "console" else Otlp()


class Otlp(OTLPSpanExporter):
    """The SDK's exporter with our encoder in front of its client.

    Attributes:
        trouble: Why the last batch did not get there, "" if it did; without addresses, which may hold secrets.
    """

    trouble = ""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send one batch; tries again for as long as ``OTEL_EXPORTER_OTLP_TIMEOUT`` says."""
        client = getattr(self, "_client", None)
        if client is None:  # an SDK that keeps it elsewhere: the long way
            self.trouble = _FAILED
            return super().export(spans)
        told = client.export(encoded(spans, _give_way))
        if told.success:
            return SpanExportResult.SUCCESS
        if told.status_code is not None:
            self.trouble = f"the collector answers {told.status_code}"
        else:
            kind = type(told.error).__name__ if told.error is not None else "no time left"
            self.trouble = f"the collector cannot be reached ({kind})"
        return SpanExportResult.FAILURE


def _give_way() -> None:
    """Under gevent let other greenlets run."""
    time.sleep(0)


class Accounted(SpanExporter):
    """An exporter whose batches are counted, and whose logging is kept back.

    Args:
        exporter: Does the work.

    Attributes:
        taken: Spans that were handed to it and that it is done with.
        lost: Those of them that did not get there.
        trouble: Why the last batch did not; "" if it did.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._hush = _Hush()
        self.taken = 0
        self.lost = 0
        self.trouble = ""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """One batch."""
        done = SpanExportResult.FAILURE
        self._hush.here = threading.get_ident()
        try:
            done = self._exporter.export(spans)
        except (OSError, ValueError):  # standard output is gone
            pass
        finally:
            self._hush.here = 0
            self.taken += len(spans)
            if done is SpanExportResult.SUCCESS:
                self.trouble = ""
            else:
                self.lost += len(spans)
                self.trouble = getattr(self._exporter, "trouble", "") or _FAILED
        return done

    def shutdown(self) -> None:
        """No more batches will come."""
        self._exporter.shutdown()
        self._hush.end()


class _Hush(logging.Filter):
    """Keeps back what is logged by one thread while it exports; others' exporters go on logging.

    Attributes:
        here: That thread; 0 for none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.here = 0
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.here or record.thread != self.here

    def end(self) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)
