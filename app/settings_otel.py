"""Say what is wrong with the ``OTEL_`` variables that spans need, and whether there are to be spans at all.

The SDK reads these variables itself, and takes its default for what it cannot read: here it is told before.
Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter Configuration".
Pure: the environment is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from app.settings_fields import redacted

EXPORTERS: Final = ("otlp", "console", "none")
SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
QUEUE: Final = ("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
BATCH: Final = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)
DELAY_MS: Final = ("OTEL_BSP_SCHEDULE_DELAY", 5000)

_OTLP: Final = ("OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_")
_FILES: Final = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
_MOST: Final = 1_000_000


def off(environ: Mapping[str, str]) -> str:
    """Why there are to be no spans, whatever ``ENABLE_OTEL`` says; "" if there are."""
    if _value(environ, "OTEL_SDK_DISABLED").lower() == "true":
        return "OTEL_SDK_DISABLED=true"
    return "OTEL_TRACES_EXPORTER=none" if exporter(environ) == "none" else ""


def exporter(environ: Mapping[str, str]) -> str:
    """Where spans go: one of EXPORTERS."""
    return _value(environ, "OTEL_TRACES_EXPORTER") or EXPORTERS[0]


def whole(environ: Mapping[str, str], setting: tuple[str, int]) -> int:
    """The value of one of QUEUE, BATCH and DELAY_MS, or its default."""
    name, default = setting
    return int(_value(environ, name) or default)


def faults(environ: Mapping[str, str]) -> Iterator[str]:
    """Sentences that name the variable, its value (never a secret) and what is allowed."""
    if exporter(environ) not in EXPORTERS:
        yield _fault(environ, "OTEL_TRACES_EXPORTER", f"one of {', '.join(EXPORTERS)}")
    if off(environ):
        return
    yield from _sampling(environ)
    yield from _batches(environ)
    if exporter(environ) == "otlp":
        for start in _OTLP:
            yield from _sending(environ, start)


def _sampling(environ: Mapping[str, str]) -> Iterator[str]:
    sampler = _value(environ, "OTEL_TRACES_SAMPLER").lower()
    if sampler and sampler not in SAMPLERS:
        yield _fault(environ, "OTEL_TRACES_SAMPLER", f"one of {', '.join(SAMPLERS)}")
    if sampler.endswith("traceidratio") and not 0.0 <= _number(environ, "OTEL_TRACES_SAMPLER_ARG") <= 1.0:
        yield _fault(environ, "OTEL_TRACES_SAMPLER_ARG", f"a number from 0 to 1, which {sampler} needs")


def _batches(environ: Mapping[str, str]) -> Iterator[str]:
    wrong = False
    for name, _ in (QUEUE, BATCH, DELAY_MS):
        value = _value(environ, name)
        if value and not (value.isascii() and value.isdigit() and 1 <= int(value) <= _MOST):
            wrong = True
            yield _fault(environ, name, f"a whole number from 1 to {_MOST}")
    if not wrong and whole(environ, BATCH) > whole(environ, QUEUE):
        yield f"{BATCH[0]}: is more than {QUEUE[0]} holds ({whole(environ, QUEUE)})."


def _sending(environ: Mapping[str, str], start: str) -> Iterator[str]:
    if _value(environ, f"{start}PROTOCOL") not in ("", "http/protobuf"):
        yield _fault(environ, f"{start}PROTOCOL", "http/protobuf: gRPC's own threads do not go with gevent")
    if _value(environ, f"{start}COMPRESSION").lower() not in ("", "none", "gzip", "deflate"):
        yield _fault(environ, f"{start}COMPRESSION", "one of none, gzip, deflate")
    name = f"{start}TIMEOUT"
    if _value(environ, name) and not 0.0 < _number(environ, name) <= _MOST:
        yield _fault(environ, name, "seconds, above 0")
    name = f"{start}ENDPOINT"
    if _value(environ, name) and not _is_url(_value(environ, name)):
        yield f"{name}=[hidden]: allowed is an http:// or https:// URL with a host."
    name = f"{start}HEADERS"
    if any("=" not in one for one in _value(environ, name).split(",") if one.strip()):
        yield f"{name}=[hidden]: allowed is name=value, and more of them behind commas."
    for kind in _FILES:
        path = _value(environ, f"{start}{kind}")
        if path and not Path(path).is_file():
            yield _fault(environ, f"{start}{kind}", "a file that can be read")


def _value(environ: Mapping[str, str], name: str) -> str:
    """What is set; empty counts as not set, as the specification says."""
    return environ.get(name, "").strip()


def _number(environ: Mapping[str, str], name: str) -> float:
    """As a number; -1 where it is none."""
    try:
        return float(_value(environ, name))
    except ValueError:
        return -1.0


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        return False


def _fault(environ: Mapping[str, str], name: str, allowed: str) -> str:
    return f"{name}={redacted(name, _value(environ, name))}: allowed is {allowed}."
