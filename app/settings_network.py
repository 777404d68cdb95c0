"""Settings of the network: where it listens, the upstream and its credentials, connections and times.

Pure.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from app.settings_fields import GatewayKeys, UpstreamKeys, Url, count, off_or_a_second, seconds, setting


def _cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Network(BaseModel):
    """The first half of the settings; see ``app.settings.Settings``."""

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
    anthropic_api_keys: UpstreamKeys = setting(
        "ANTHROPIC_API_KEYS ANTHROPIC_API_KEY",
        (),
        "Upstream credentials, comma-separated; none: the caller's own key passes through.",
        shown="none",
        note="printable ASCII without spaces, separated by commas",
    )
    gateway_api_keys: GatewayKeys = setting(
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
    switch_interval_ms: float = setting(
        "SWITCH_INTERVAL_MS",
        5.0,
        "How long a thread of a gunicorn worker may keep the interpreter while another one waits for it.",
        "ms",
        ge=0.05,
        le=100.0,
    )
    upstream_ping_interval_s: Annotated[float, AfterValidator(off_or_a_second)] = setting(
        "UPSTREAM_PING_INTERVAL",
        15.0,
        "HTTP/2: a connection in use that is silent for this long is asked for a sign of life; 0 is off.",
        "s",
        note="0, or 1 to 600",
        ge=0,
        le=600,
        allow_inf_nan=False,
    )
    upstream_ping_timeout_s: float = seconds(
        "UPSTREAM_PING_TIMEOUT", 10, 0.1, 120, "A connection that owes it for longer is replaced."
    )
    production_enable_http2: bool = setting("PRODUCTION_ENABLE_HTTP2", True, "Offer HTTP/2 to the upstream.")
    production_warmup_connections: bool = setting(
        "PRODUCTION_WARMUP_CONNECTIONS", True, "Open a connection when a worker starts."
    )
    initial_pool_size: int = count(
        "INITIAL_POOL_SIZE",
        0,
        0,
        1_000_000,
        "Stream slots warmed at start, per node; 0 warms one connection per worker.",
        "streams",
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
