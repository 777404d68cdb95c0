"""Typed settings from the environment, one JSON file and a named profile.

    environment  >  PENSTOCK_CONFIG (JSON)  >  PENSTOCK_PROFILE  >  default

``load()`` is the only reader of ``os.environ`` and reports every fault at once; an empty variable counts as
unset. Every field carries its environment name, unit, allowed range and help; ``rows()`` lists them.

Context: gunicorn.conf.py needs these values before gevent patches, so this module may import neither ssl nor
    httpx (gevent wants to patch first).
Choice: plain pydantic models. ``pydantic_settings`` imports asyncio, hence ssl, merely by being imported, and
    stops at the first list it cannot read as JSON instead of reporting all faults.
Price: the three sources are merged here, in twenty lines.
Runs on: start-up.
"""

from __future__ import annotations

import os
import types
from collections.abc import Mapping, MutableMapping
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from app import settings_file, settings_rules
from app.errors import ConfigError
from app.settings_fields import (
    Keys,
    Row,
    Secrets,
    UpstreamKey,
    Url,
    count,
    off_or_a_second,
    plain,
    row,
    seconds,
    setting,
)

__all__ = ["PROFILES", "Row", "Settings", "UpstreamKey", "environment", "load", "rows"]


def _cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shown(value: object) -> object:
    """A value as it may be printed."""
    if isinstance(value, tuple):
        return f"{len(value)} set"
    return value


class Settings(BaseModel):
    """Everything that can be set, frozen. Secrets never show in ``repr``; ``public()`` is safe to print.

    Built by keyword (``Settings(port=0)``) only single fields are checked; ``load()`` checks all rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    # where it listens
    host: str = setting(
        "HOST", "127.0.0.1", "Address to listen on.", pattern=r"^[^\s/]+$", note="an address or host name"
    )
    port: int = count("PORT", 8000, 0, 65535, "Port to listen on; 0 takes a free one.")
    web_concurrency: int = setting(
        "WEB_CONCURRENCY", _cores, "Worker processes.", "processes", ge=1, le=512, shown="cores"
    )
    worker_connections: int = count(
        "WORKER_CONNECTIONS", 1000, 1, 100_000, "Hard cap of concurrent requests per gevent worker.", "requests"
    )
    threads: int = count("THREADS", 32, 1, 1024, "Threads per worker under gthread.", "threads")
    public_url: Url | None = setting(
        "PUBLIC_URL",
        None,
        "This gateway's own address as clients see it; used to rewrite results_url.",
        note="an http or https URL without query",
    )

    # upstream and credentials
    anthropic_upstream_url: Url = setting(
        "ANTHROPIC_UPSTREAM_URL",
        "https://api.anthropic.com",
        "Where native traffic goes.",
        note="an http or https URL without userinfo, query or fragment",
    )
    anthropic_api_keys: Keys = setting(
        "ANTHROPIC_API_KEYS ANTHROPIC_API_KEY",
        (),
        "Upstream credentials, comma-separated; none: the caller's own key passes through.",
        shown="none",
        note="printable ASCII without spaces, separated by commas",
    )
    gateway_api_keys: Secrets = setting(
        "GATEWAY_API_KEYS",
        (),
        "What callers must present (x-api-key or Bearer) when the gateway holds upstream credentials.",
        shown="none",
        note="printable ASCII without spaces, separated by commas",
    )
    gateway_allow_anonymous: bool = setting(
        "GATEWAY_ALLOW_ANONYMOUS",
        False,
        "Allow callers without a key to spend the upstream credentials, also from other hosts.",
    )
    allow_plaintext_upstream: bool = setting(
        "ALLOW_PLAINTEXT_UPSTREAM", False, "Allow an http:// upstream that is not on this host."
    )
    anthropic_version: str = setting(
        "ANTHROPIC_VERSION",
        "2023-06-01",
        "anthropic-version sent when the caller names none.",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        note="a date like 2023-06-01",
    )
    ssl_cert_file: str | None = setting(
        "SSL_CERT_FILE",
        None,
        "PEM file of certificate authorities trusted besides the system's.",
        note="a readable PEM file with certificates",
    )

    # connections
    upstream_transport: Literal["auto", "h2", "reqwest", "httpcore"] = setting(
        "UPSTREAM_TRANSPORT",
        "auto",
        "Client towards the upstream: our own HTTP/2 (auto, over TLS), the Rust one, or httpcore.",
    )
    anthropic_max_connections: int = count(
        "ANTHROPIC_MAX_CONNECTIONS", 200, 1, 10_000, "Most connections to Anthropic per worker.", "connections"
    )
    anthropic_max_keepalive: int = count(
        "ANTHROPIC_MAX_KEEPALIVE", 100, 0, 10_000, "Most idle connections kept per worker.", "connections"
    )
    anthropic_keepalive_expiry_s: float = seconds(
        "ANTHROPIC_KEEPALIVE_EXPIRY", 30.0, 0, 3600, "Idle connections are closed after this long."
    )
    anthropic_streams_per_connection: int = count(
        "ANTHROPIC_STREAMS_PER_CONNECTION",
        100,
        1,
        1000,
        "Streams one HTTP/2 connection carries before another is opened.",
        "streams",
    )
    http_pool_connections: int = count(
        "HTTP_POOL_CONNECTIONS",
        20,
        1,
        10_000,
        "Hosts pooled for providers without settings of their own.",
        "hosts",
    )
    http_pool_maxsize: int = count(
        "HTTP_POOL_MAXSIZE",
        100,
        1,
        10_000,
        "Most connections per provider without settings of its own.",
        "connections",
    )
    http_keepalive_connections: int = count(
        "HTTP_KEEPALIVE_CONNECTIONS", 15, 0, 10_000, "Most idle connections for such a provider.", "connections"
    )
    anthropic_chunk_size_bytes: int = count(
        "ANTHROPIC_CHUNK_SIZE",
        8192,
        4096,
        65536,
        "Largest piece handed to WSGI at once; never holds bytes back.",
        "bytes",
    )
    router_thread_pool_size: int = count(
        "ROUTER_THREAD_POOL_SIZE", 4, 1, 64, "Fallback threads of the bridge.", "threads"
    )
    production_enable_http2: bool = setting("PRODUCTION_ENABLE_HTTP2", True, "Offer HTTP/2 to the upstream.")
    production_warmup_connections: bool = setting(
        "PRODUCTION_WARMUP_CONNECTIONS", True, "Open a connection when a worker starts."
    )
    initial_pool_size: int = count(
        "INITIAL_POOL_SIZE", 0, 0, 10_000, "Stream slots warmed at start; 0 warms one connection.", "streams"
    )

    # time
    connect_timeout_s: float = seconds(
        "CONNECT_TIMEOUT", 5.0, 0.1, 120, "Longest connect, TLS handshake included."
    )
    request_timeout_s: float = seconds(
        "REQUEST_TIMEOUT", 600.0, 1, 7200, "Longest exchange that is not a stream, tries included."
    )
    stream_timeout_s: float = seconds(
        "STREAM_TIMEOUT", 300.0, 1, 3600, "Longest silence of the upstream inside a stream."
    )
    write_timeout_s: float = seconds(
        "WRITE_TIMEOUT", 15.0, 0.1, 600, "Longest time the upstream may not take bytes."
    )
    pool_timeout_s: float = seconds("POOL_TIMEOUT", 2.0, 0.1, 120, "Longest wait for a pooled connection.")
    body_timeout_s: float = seconds(
        "BODY_TIMEOUT", 30.0, 0.1, 600, "Longest silence while a client sends its body."
    )
    drain_timeout_s: float = seconds("DRAIN_TIMEOUT", 22.0, 0, 600, "How long streams may go on after SIGTERM.")
    stream_heartbeat_s: Annotated[float, AfterValidator(off_or_a_second)] = setting(
        "STREAM_HEARTBEAT",
        0.0,
        "A sign of life to the client after this much silence; 0 is off.",
        "s",
        ge=0,
        le=60,
        allow_inf_nan=False,
        note="0, or 1 to 60",
    )
    stream_heartbeat_kind: Literal["comment", "ping"] = setting(
        "STREAM_HEARTBEAT_KIND", "comment", "What is sent: an SSE comment or an Anthropic ping event."
    )

    # limits and tries
    max_body_bytes: int = count(
        "MAX_BODY_BYTES", 33_554_432, 1024, 1_073_741_824, "Largest request body; over it 413.", "bytes"
    )
    max_file_bytes: int = count(
        "MAX_FILE_BYTES", 524_288_000, 1024, 10_737_418_240, "Largest file upload; over it 413.", "bytes"
    )
    rewrite_results_url: bool = setting(
        "REWRITE_RESULTS_URL", False, "Rewrite results_url of batches to lead through this gateway."
    )
    anthropic_concurrency: int = count(
        "ANTHROPIC_CONCURRENCY", 1000, 1, 1_000_000, "Exchanges with Anthropic at once, per node.", "exchanges"
    )
    anthropic_buffer_size: int = count(
        "ANTHROPIC_BUFFER_SIZE",
        5000,
        1,
        10_000_000,
        "Exchanges running and waiting together, per node.",
        "exchanges",
    )
    drop_excess_requests: bool = setting(
        "DROP_EXCESS_REQUESTS", False, "Refuse with 503 at once what would have to wait."
    )
    retry_max_attempts: int = count(
        "RETRY_MAX_ATTEMPTS", 3, 1, 10, "Tries per exchange, the first included; 1 never retries.", "tries"
    )
    retry_429_interval_s: float = seconds(
        "RETRY_429_INTERVAL", 1.0, 0.01, 60, "Base of the backoff when the answer names no time."
    )
    retry_backoff_max_s: float = seconds(
        "RETRY_BACKOFF_MAX", 12.0, 0.01, 600, "Longest backoff between two tries."
    )

    # what it says
    enable_metrics_endpoint: bool = setting(
        "ENABLE_METRICS_ENDPOINT", True, "Serve /metrics and /anthropic/metrics."
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "LOG_LEVEL", "info", "Least severe line that is logged."
    )
    log_format: Literal["json", "console"] = setting(
        "LOG_FORMAT", "json", "One JSON object a line, or text for people."
    )
    debug: bool = setting("DEBUG", False, "Tracebacks in the log.")
    enable_request_body_logging: bool = setting("ENABLE_REQUEST_BODY_LOGGING", False, "Log request bodies.")
    enable_response_body_logging: bool = setting("ENABLE_RESPONSE_BODY_LOGGING", False, "Log response bodies.")
    penstock_profile: Literal["production", "development", "loadtest"] = setting(
        "PENSTOCK_PROFILE", "production", "Named set of defaults."
    )
    penstock_config: str | None = setting(
        "PENSTOCK_CONFIG", None, "JSON file with provider settings.", note="a readable JSON file"
    )

    def public(self) -> dict[str, object]:
        """All values by attribute name, JSON-ready; secrets as the number of those set."""
        return {name: _shown(getattr(self, name)) for name in type(self).model_fields}


PROFILES: Final[Mapping[str, Mapping[str, object]]] = types.MappingProxyType(
    {
        "production": {},
        "development": {
            "web_concurrency": 1,
            "log_level": "debug",
            "log_format": "console",
            "debug": True,
            "production_warmup_connections": False,
        },
        "loadtest": {
            "log_level": "warning",
            "worker_connections": 10_000,
            "anthropic_max_connections": 1000,
            "anthropic_max_keepalive": 1000,
            "anthropic_concurrency": 10_000,
            "anthropic_buffer_size": 50_000,
            "retry_max_attempts": 1,
        },
    }
)


def rows() -> tuple[Row, ...]:
    """Every setting in the order of the class."""
    return tuple(row(name, field) for name, field in Settings.model_fields.items())


class _Sources:
    """Raw values by attribute, each with the label it is complained about under."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {name: value.strip() for name, value in environ.items() if value.strip()}
        self.rows = {one.attribute: one for one in rows()}
        self.values: dict[str, object] = {}
        self.labels: dict[str, str] = {one.attribute: one.env[0] for one in self.rows.values()}
        self.faults: list[str] = []

    def merge(self) -> None:
        """Fill ``values``: profile first, then the file, then the environment."""
        self.values.update(PROFILES.get(self.environ.get("PENSTOCK_PROFILE", "production"), {}))
        known = [name for one in self.rows.values() for name in one.env]
        if path := self.environ.get("PENSTOCK_CONFIG"):
            found = settings_file.read(path, self.environ)
            self.faults += found.faults
            self.values.update(found.values)
            self.labels.update(found.labels)
            known += found.named
        for one in self.rows.values():
            given = [(name, self.environ[name]) for name in one.env if name in self.environ]
            if given:
                self.values[one.attribute] = ",".join(value for _, value in given)
                self.labels[one.attribute] = given[0][0]
        self.faults += settings_rules.unknown_names(self.environ, known)

    def fault(self, attribute: str) -> str:
        """One sentence: which variable, which value, what is allowed."""
        about, value = self.rows[attribute], self.values.get(attribute)
        shown = settings_rules.redacted(about.env[0] if about.secret else "", plain(value))
        return f"{self.labels[attribute]}={shown}: allowed is {about.allowed}."


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read, merge and check all settings.

    Args:
        environ: What to read instead of the process environment.

    Raises:
        ConfigError: With every fault found, one sentence each; secrets are not in them.
    """
    sources = _Sources(os.environ if environ is None else environ)
    sources.merge()
    settings, failed = _validated(sources.values)
    faults = sources.faults + [sources.fault(name) for name in failed]
    faults += settings_rules.across(settings, sources.labels, failed)
    if faults:
        raise ConfigError(faults)
    return settings


def environment() -> dict[str, str]:
    """A copy of the process environment, for whoever starts a process or asks for the platform."""
    return dict(os.environ)


def live_environment() -> MutableMapping[str, str]:
    """The process environment itself, for what has to be set in it before a library is imported."""
    return os.environ


def _validated(values: Mapping[str, object]) -> tuple[Settings, tuple[str, ...]]:
    """The settings without the fields that failed, and the names of those, in the order of the class."""
    try:
        return Settings.model_validate(values), ()
    except ValidationError as error:
        failed = tuple(dict.fromkeys(str(fault["loc"][0]) for fault in error.errors(include_input=False)))
        rest = {name: value for name, value in values.items() if name not in failed}
        return Settings.model_validate(rest), failed
