"""What ``penstock check`` says: findings, each with the line to change.

    probe.*, redis_fault (I/O) -> facts (plain values) -> judge_* (pure) -> Finding

Platform limits, as their vendors document them: Heroku's router keeps idle connections 90 s and the platform
kills 30 s after SIGTERM; nginx (``keepalive_timeout``) and AWS ALB keep 60 s; Cloud Run kills after 10 s.
Runs on: start-up.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from app import probe
from app.errors import ConfigError
from app.settings import Settings, environment, load, rows
from app.settings_chains import Link, chain, links
from app.settings_rules import is_loopback, open_to_strangers

OK: Final = "OK"
WARN: Final = "WARN"
FAIL: Final = "FAIL"

SPARE_FILES: Final = 64  # listening sockets, logs, pipes, epoll: what a worker holds besides its connections


REDIS_PORT: Final = 6379
REDIS_TIMEOUT_S: Final = 2.0


class Finding(NamedTuple):
    """One line of the report. ``change`` is the line to set, empty when there is nothing to do."""

    level: str
    text: str
    change: str = ""

    def line(self) -> str:
        """As printed."""
        return f"{self.level:<5}{self.text}" + (f"\n     -> {self.change}" if self.change else "")


class Platform(NamedTuple):
    """Where this runs. ``idle_s``: how long what stands in front keeps an idle connection; ``kill_s``: how
    long after SIGTERM the process is killed (None: not known)."""

    name: str
    idle_s: int
    kill_s: int | None
    known: bool


def platform(environ: Mapping[str, str]) -> Platform:
    """Tell the platform by the variables it sets."""
    if "DYNO" in environ:
        return Platform("Heroku's router", 90, 30, known=True)
    if "K_SERVICE" in environ:
        return Platform("Cloud Run", 60, 10, known=True)
    return Platform("nginx or an AWS load balancer", 60, None, known=False)


def findings(offline: bool) -> Iterator[Finding]:
    """Everything worth saying, in the order it is found out. Opens sockets unless ``offline``."""
    environ = environment()
    try:
        settings = load(environ)
    except ConfigError as error:
        for fault in error.faults:
            yield Finding(FAIL, fault, "change or unset that variable")
        return
    yield Finding(OK, f"settings are valid (profile {settings.penstock_profile})")
    yield from judge_access(settings)
    yield from judge_limits(settings)
    yield from judge_providers(settings)
    yield from judge_bodies(settings)
    server = probe.server(environ)
    yield from judge_observed(settings, server.hosts or (settings.host,))
    yield from judge_server(settings, server, platform(environ))
    files = probe.open_files()
    yield judge_files(settings, server.worker_connections, files)
    if not offline:
        yield from _online(settings)


def _online(settings: Settings) -> Iterator[Finding]:
    """What shows only by connecting: every provider that may come to serve, and Redis."""
    found = _links(settings)
    for name in chain(found):
        moved = settings.model_copy(update={"anthropic_upstream_url": found[name].url})
        yield from judge_upstream(settings, probe.upstream(moved), found[name].at_url)
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        yield judge_redis(url, redis_fault(url, REDIS_TIMEOUT_S))


def judge_access(settings: Settings) -> Iterator[Finding]:
    """Who may spend the upstream credentials. Shows how many keys there are, never a key."""
    held, asked = len(settings.anthropic_api_keys), len(settings.gateway_api_keys)
    if not held:
        yield Finding(OK, "no upstream credential: every caller's own key passes through")
        if asked:
            yield Finding(
                WARN,
                f"{asked} gateway keys are set, but nothing asks for them without an upstream credential",
                "ANTHROPIC_API_KEYS=<your keys>, or unset GATEWAY_API_KEYS",
            )
        return
    if asked:
        yield Finding(OK, f"upstream credentials: {held}; callers present one of {asked} gateway keys")
        if any(len(key.get_secret_value()) < 16 for key in settings.gateway_api_keys):
            yield Finding(
                WARN,
                "a gateway key is shorter than 16 characters and can be guessed",
                "GATEWAY_API_KEYS=$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')",
            )
    elif is_loopback(settings.host):
        yield Finding(OK, f"upstream credentials: {held}; no caller key needed, only this host can connect")
    else:
        yield Finding(
            WARN, f"anyone who reaches {settings.host} can spend the credentials", "GATEWAY_API_KEYS=<key>"
        )


def judge_limits(settings: Settings) -> Iterator[Finding]:
    """Limits are counted per gateway key: where no caller shows one, they count nothing."""
    if settings.gateway_api_keys and settings.anthropic_api_keys:
        return
    limits = {
        "GATEWAY_REQUESTS_PER_MINUTE": settings.gateway_requests_per_minute,
        "GATEWAY_CONCURRENT_REQUESTS": settings.gateway_concurrent_requests,
        "GATEWAY_TOKENS_PER_DAY": settings.gateway_tokens_per_day,
    }
    own = ("requests_per_minute", "concurrent_requests", "tokens_per_day")
    named = [name for name, value in limits.items() if value]
    if any(getattr(key, name) for key in settings.gateway_api_keys for name in own):
        named.append("limits of gateway keys")
    if named:
        needed = {"ANTHROPIC_API_KEYS": settings.anthropic_api_keys, "GATEWAY_API_KEYS": settings.gateway_api_keys}
        missing = " and ".join(name for name, keys in needed.items() if not keys)
        yield Finding(
            WARN,
            f"{', '.join(named)}: without effect, since no caller is asked for a gateway key",
            f"set {missing}, or unset the limits",
        )


def _links(settings: Settings) -> dict[str, Link]:
    return links(settings, {row.attribute: row.env[0] for row in rows()})


def judge_providers(settings: Settings) -> Iterator[Finding]:
    """Who stands in for whom: at another address, and reached at all; who has no second key to turn to."""
    found = _links(settings)
    order = chain(found)
    if len(order) > 1:
        yield Finding(OK, f"providers in the order they are tried: {', '.join(order)}")
    for place, name in enumerate(order):
        if len(found[name].keys) == 1:
            yield Finding(OK, f"{name} has one key: nothing to turn to while it is rate-limited or refused")
        twin = next((one for one in order[:place] if _origin(found[one]) == _origin(found[name])), None)
        if twin is not None:
            yield Finding(
                WARN,
                f"{name} stands in for {twin} at the same address: what is out for one is out for both",
                f"another {found[name].at_url}, or its keys added to those of {twin}",
            )
    for name in sorted(found.keys() - set(order)):
        yield Finding(WARN, f"no fallbacks lead to {name}: it serves nothing", f"ANTHROPIC_FALLBACKS={name}")


def _origin(one: Link) -> tuple[str, str | None, int | None]:
    parts = urlsplit(one.url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def redis_fault(url: str, timeout_s: float) -> str:
    """Why nothing can be connected to at Redis's address; empty when something can. Nothing is sent."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(timeout_s)
                local.connect(parts.path)
        else:
            socket.create_connection((parts.hostname or "", parts.port or REDIS_PORT), timeout_s).close()
    except OSError as error:
        return str(error)
    return ""


def judge_redis(url: str, fault: str) -> Finding:
    """Without Redis requests go on, each node with what it knows itself. Shows the address, never the password."""
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or REDIS_PORT}"
    if fault:
        return Finding(
            WARN,
            f"Redis at {place} cannot be reached ({fault}): nodes share nothing",
            "REDIS_URL=<reachable address>",
        )
    return Finding(OK, f"Redis at {place} can be connected to")


def judge_bodies(settings: Settings) -> Iterator[Finding]:
    """Body logging writes what users say into the log."""
    for name, is_on in (
        ("ENABLE_REQUEST_BODY_LOGGING", settings.enable_request_body_logging),
        ("ENABLE_RESPONSE_BODY_LOGGING", settings.enable_response_body_logging),
    ):
        if is_on:
            yield Finding(WARN, f"{name} writes conversations into the log", f"{name}=false")


def judge_observed(settings: Settings, hosts: Iterable[str]) -> Iterator[Finding]:
    """Who sees the operator's pages, and what nobody would be told."""
    strangers = [host for host in hosts if not is_loopback(host)]
    if settings.enable_metrics_endpoint and strangers:
        yield Finding(
            WARN,
            f"/metrics and /anthropic/metrics ask for no key: whoever reaches {strangers[0]} can read them",
            "deny both in front of the gateway (deploy/nginx.conf), or ENABLE_METRICS_ENDPOINT=false",
        )
    if settings.gateway_admin_key is None:
        yield Finding(OK, "no GATEWAY_ADMIN_KEY: penstock explain reads log files, it cannot ask the workers")
    if settings.alert_webhook_url is not None and not settings.enable_performance_monitor:
        yield Finding(
            WARN,
            "ALERT_WEBHOOK_URL is set, but without the performance monitor there are no alerts",
            "ENABLE_PERFORMANCE_MONITOR=true, or unset ALERT_WEBHOOK_URL",
        )


def judge_server(settings: Settings, server: probe.Server, place: Platform) -> Iterator[Finding]:
    """gunicorn's effective configuration against the platform, and the order of gevent's patch."""
    if server.fault:
        yield Finding(
            FAIL, f"gunicorn's configuration cannot be loaded: {server.fault}", "gunicorn --check-config wsgi:app"
        )
        return
    if not server.has_config:
        yield Finding(
            WARN,
            "no gunicorn.conf.py here: gunicorn would run with its own defaults",
            "cd to the folder that holds gunicorn.conf.py, or gunicorn -c <path>",
        )
    yield judge_patch(server)
    yield judge_keepalive(server.keepalive_s, place)
    yield judge_grace(settings, server.graceful_timeout_s, place)
    if server.max_requests:
        yield Finding(
            WARN, f"max_requests {server.max_requests} cuts live streams", "GUNICORN_CMD_ARGS='--max-requests 0'"
        )
    for host in server.hosts:
        if open_to_strangers(settings, host):
            yield Finding(
                FAIL,
                f"gunicorn binds {host}, where anyone can spend the upstream credentials",
                "GATEWAY_API_KEYS=<key>",
            )


def judge_patch(server: probe.Server) -> Finding:
    """gevent must patch before anything has taken unpatched parts of ssl and socket."""
    if not server.is_gevent:
        return Finding(OK, f"worker class {server.worker_class}: nothing to patch")
    if server.warnings:
        return Finding(
            FAIL,
            f"gevent patches too late: {server.warnings[0]}",
            "import ssl, httpx and the like in the application, not in gunicorn.conf.py",
        )
    if server.early:
        return Finding(
            WARN,
            f"imported before gevent patches: {', '.join(server.early)}",
            "import them in the application, not in gunicorn.conf.py",
        )
    return Finding(OK, "gevent patches before the application is imported")


def judge_keepalive(keepalive_s: int, place: Platform) -> Finding:
    """The server must keep an idle connection longer than what stands in front, or requests meet a closed one."""
    if keepalive_s > place.idle_s:
        return Finding(OK, f"keepalive {keepalive_s} s is longer than the {place.idle_s} s of {place.name}")
    return Finding(
        FAIL if place.known else WARN,
        f"keepalive {keepalive_s} s is not longer than the {place.idle_s} s of {place.name}: requests get lost",
        f"GUNICORN_CMD_ARGS='--keep-alive {place.idle_s + 10}'",
    )


def judge_grace(settings: Settings, graceful_timeout_s: int, place: Platform) -> Finding:
    """Streams must be ended before gunicorn gives up, and gunicorn must end before the platform kills."""
    drain_s = settings.drain_timeout_s
    if drain_s >= graceful_timeout_s:
        return Finding(
            FAIL,
            f"streams may go on for {drain_s:g} s, but gunicorn cuts them {graceful_timeout_s} s after SIGTERM",
            f"DRAIN_TIMEOUT={max(graceful_timeout_s - 3, 0)}",
        )
    if place.kill_s is not None and graceful_timeout_s >= place.kill_s:
        return Finding(
            FAIL,
            f"{place.name} kills {place.kill_s} s after SIGTERM, gunicorn takes up to {graceful_timeout_s} s",
            f"DRAIN_TIMEOUT={place.kill_s - 5}",
        )
    return Finding(OK, f"streams end {drain_s:g} s after SIGTERM, the process by {graceful_timeout_s} s")


def judge_files(settings: Settings, worker_connections: int, limit: int) -> Finding:
    """Each stream takes a client's socket; upstream connections and the rest come on top."""
    needed = worker_connections + settings.anthropic_max_connections + SPARE_FILES
    if limit >= needed:
        return Finding(OK, f"open-file limit {limit} covers {worker_connections} connections per worker")
    return Finding(
        WARN,
        f"open-file limit {limit} is below the {needed} that {worker_connections} connections per worker may take",
        f"ulimit -n {needed}",
    )


def judge_upstream(
    settings: Settings, peer: probe.Peer, where: str = "ANTHROPIC_UPSTREAM_URL"
) -> Iterator[Finding]:
    """The way to the upstream: reached, trusted, HTTP/2, and how many streams a connection may carry."""
    if peer.fault:
        change = (
            "SSL_CERT_FILE=<PEM file with the authority's certificate>"
            if peer.is_untrusted
            else f"{where}=<reachable address>"
        )
        yield Finding(FAIL, f"{peer.origin}: {peer.fault}", change)
        return
    if not peer.tls:
        yield Finding(WARN, f"{peer.origin} is reached without TLS", f"{where}=https://…")
        return
    yield Finding(OK, f"{peer.origin}: {peer.tls}, certificate chain verified")
    if not settings.production_enable_http2:
        yield Finding(
            WARN, "HTTP/2 is switched off: every stream takes a connection", "PRODUCTION_ENABLE_HTTP2=true"
        )
    elif peer.protocol != "h2":
        yield Finding(
            WARN,
            "the upstream does not offer HTTP/2: every stream takes a connection",
            f"ANTHROPIC_MAX_CONNECTIONS={settings.worker_connections}",
        )
    else:
        yield Finding(OK, "HTTP/2 negotiated by ALPN")
        yield judge_streams(settings.anthropic_streams_per_connection, peer.max_streams)


def judge_streams(ours: int, theirs: int | None) -> Finding:
    """Streams per connection: more than the peer allows would wait, or be refused."""
    if theirs is None:
        return Finding(OK, "the upstream sets no limit of streams per connection")
    if ours > theirs:
        return Finding(
            WARN,
            f"the upstream allows {theirs} streams per connection, ANTHROPIC_STREAMS_PER_CONNECTION is {ours}",
            f"ANTHROPIC_STREAMS_PER_CONNECTION={max(theirs, 1)}",
        )
    return Finding(OK, f"the upstream allows {theirs} streams per connection; {ours} are used")
