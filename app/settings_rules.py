"""Rules that take more than one field: unknown names, URLs, certificates, who may reach the credentials.

Each returns sentences that name the variable, its value (never a secret) and what is allowed.
Runs on: start-up.
"""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from app import settings_chains, settings_observe_rules
from app.settings_fields import GatewayKey, UpstreamKey, redacted, split_url

if TYPE_CHECKING:
    from app.settings import Settings

# REDIS_ is not among them: platforms set REDIS_TLS_URL, REDIS_HOST and more beside our REDIS_URL.
OWN_PREFIXES: Final = (
    "ANTHROPIC_",
    "PENSTOCK_",
    "GATEWAY_",
    "ROUTER_",
    "PRODUCTION_",
    "STREAM_",
    "RETRY_",
    "BREAKER_",
    "UPSTREAM_",
    "ALERT_",
    "HTTP_POOL_",
    "HTTP_KEEPALIVE_",
)
# Others have variables of these as well: only what is nearly one of ours is a fault.
SHARED_PREFIXES: Final = ("ENABLE_", "LOG_", "METRICS_", "SERVER_", "BODY_", "RECENT_")
_NEARLY: Final = 0.88
# Read by the official SDKs and tools (anthropic 2.11, `grep -rho 'ANTHROPIC_[A-Z_]*'`); not ours to judge.
SDK_NAMES: Final = re.compile(
    r"ANTHROPIC_(BASE_URL|AUTH_TOKEN|API_VERSION|MODEL|SMALL_FAST_MODEL|CUSTOM_|LOG|DEFAULT_|BETAS|PROFILE"
    r"|CONFIG_DIR|ENVIRONMENT_|AWS_|BEDROCK_|VERTEX_|FOUNDRY_|GOOGLE_|ORGANIZATION_ID|IDENTITY_TOKEN"
    r"|WORKSPACE_ID|FEDERATION_|WORK_|WEBHOOK_|SESSION_ID|OPEN_TELEMETRY|SERVICE_ACCOUNT_ID|SCOPE)"
)
# Kubernetes sets these for every service of the namespace; a service called "penstock" is likely.
SERVICE_LINKS: Final = re.compile(
    r"\w+_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
PEM_MARK: Final = re.compile(rb"-----BEGIN (TRUSTED )?CERTIFICATE-----")


def unknown_names(environ: Mapping[str, str], known: Collection[str]) -> Iterator[str]:
    """Variables that look like ours and are not, each with the nearest known name."""
    for name in sorted(environ):
        if name in known or not (name.startswith(OWN_PREFIXES) or _is_nearly(name, known)):
            continue
        if SDK_NAMES.match(name) or SERVICE_LINKS.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "`penstock settings` lists all names."
        yield f"{name}={redacted(name, environ[name])}: unknown setting; {hint}"


def _is_nearly(name: str, known: Collection[str]) -> bool:
    """Whether a name that others might use is most likely one of ours, misspelt."""
    return name.startswith(SHARED_PREFIXES) and bool(difflib.get_close_matches(name, known, n=1, cutoff=_NEARLY))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def across(settings: Settings, labels: Mapping[str, str], failed: Iterable[str]) -> list[str]:
    """All rules that look at more than a single field's range.

    Args:
        settings: Values, with defaults in place of those in ``failed``.
        labels: What each attribute is called in a fault.
        failed: Attributes already complained about; rules that need one of them are skipped.
    """
    bad = set(failed)
    found: list[str] = []
    for needs, rule in (
        ({"anthropic_upstream_url", "allow_plaintext_upstream"}, _upstream),
        ({"public_url", "rewrite_results_url"}, _public),
        ({"ssl_cert_file"}, _certificates),
        ({"anthropic_api_keys", "gateway_api_keys"}, _printable),
        ({"anthropic_concurrency", "anthropic_buffer_size"}, settings_chains.buffers),
        ({"anthropic_concurrency", "web_concurrency"}, settings_chains.slots),
        ({"anthropic_fallbacks"}, settings_chains.names),
        ({"anthropic_fallbacks"}, settings_chains.circles),
        ({"anthropic_fallbacks", "anthropic_api_keys"}, settings_chains.credentials),
        ({"redis_url"}, _redis),
        ({"gateway_admin_key"}, settings_observe_rules.admin_key),
        ({"alert_webhook_url"}, settings_observe_rules.webhook),
        ({"log_dir"}, settings_observe_rules.log_dir),
        ({"penstock_prices"}, settings_observe_rules.prices),
        ({"enable_otel"}, settings_observe_rules.otel),
        ({"retry_429_interval_s", "retry_backoff_max_s"}, _backoff),
        ({"anthropic_api_keys", "gateway_api_keys", "host", "gateway_allow_anonymous"}, _anonymous),
    ):
        if not needs & bad:
            found += rule(settings, labels)
    return found


def _url(label: str, url: str) -> Iterator[str]:
    parts = split_url(url)
    start = f"{label}={redacted('', url)}: "
    if parts is None:
        yield start + "allowed is an http:// or https:// URL with a host."
    elif "@" in parts.netloc:
        yield (
            start
            + "a user or password in the URL is not allowed; credentials belong in ANTHROPIC_API_KEYS or in keys."
        )
    elif "?" in url or "#" in url:
        yield start + "a query or fragment is not allowed."


def _upstream(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """Where each provider is; in clear text only where nobody listens in, or when that was asked for."""
    for one in settings_chains.links(settings, labels).values():
        yield from _url(one.at_url, one.url)
        parts = split_url(one.url)
        plain = parts is not None and parts.scheme == "http" and not is_loopback(parts.hostname or "")
        if plain and not settings.allow_plaintext_upstream:
            yield (
                f"{one.at_url}={redacted('', one.url)}: plain http is allowed to this host only; "
                "use https:// or set ALLOW_PLAINTEXT_UPSTREAM=true."
            )


def _public(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    if settings.public_url is not None:
        yield from _url(labels["public_url"], settings.public_url)
    elif settings.rewrite_results_url:
        yield f"{labels['rewrite_results_url']}=true: needs {labels['public_url']}, where clients reach it."


def _certificates(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """The file must be readable and hold PEM certificates; looked at by marker, since ssl may not be imported."""
    path = settings.ssl_cert_file
    if path is None:
        return
    start = f"{labels['ssl_cert_file']}={redacted('', path)}: "
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        yield start + f"cannot be read ({error.strerror}); allowed is a PEM file with certificates."
        return
    if not PEM_MARK.search(content):
        yield start + "holds no certificate; allowed is a PEM file with certificates."


def _printable(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """A key travels in a header: no spaces, no control characters, ASCII only. Its name tells it from others."""
    providers = settings_chains.links(settings, labels).values()
    groups: list[tuple[str, Sequence[UpstreamKey | GatewayKey]]] = [(one.at_keys, one.keys) for one in providers]
    groups.insert(1, (labels["gateway_api_keys"], settings.gateway_api_keys))
    for label, keys in groups:
        for place, key in enumerate(keys, 1):
            if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
                yield f"{label}=[hidden]: key {place} must be printable ASCII without spaces."
        names = [key.name for key in keys]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{label}=[hidden]: two keys are named {name!r}; names must differ."


def _backoff(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    if settings.retry_backoff_max_s < settings.retry_429_interval_s:
        yield (
            f"{labels['retry_backoff_max_s']}={settings.retry_backoff_max_s:g}: must be at least "
            f"{labels['retry_429_interval_s']}={settings.retry_429_interval_s:g} s."
        )


def _redis(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """The URL must lead somewhere, and its client be installed; looked for without importing it."""
    if settings.redis_url is None:
        return
    start = f"{labels['redis_url']}=[hidden]: "
    if not _leads_to_redis(settings.redis_url.get_secret_value()):
        yield start + "allowed is redis://host:port/db, rediss://host:port/db or unix:///path."
    if importlib.util.find_spec("redis") is None:
        yield start + "needs the Redis client; pip install 'penstock[redis]', or unset it."


def _leads_to_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    if url.startswith("unix://"):
        return bool(parts.path)
    return url.startswith(("redis://", "rediss://")) and bool(parts.hostname) and port_is_valid


def _anonymous(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    if open_to_strangers(settings, settings.host):
        yield f"{labels['host']}={settings.host}: " + STRANGERS


STRANGERS: Final = (
    "upstream credentials are configured and no caller has to present a key, so this address would let anyone "
    "spend them; set GATEWAY_API_KEYS, listen on 127.0.0.1, or set GATEWAY_ALLOW_ANONYMOUS=true."
)


def open_to_strangers(settings: Settings, host: str) -> bool:
    """Whether listening on ``host`` would let anyone who can reach it spend the upstream credentials."""
    guarded = not settings.anthropic_api_keys or settings.gateway_api_keys or settings.gateway_allow_anonymous
    return not guarded and not is_loopback(host)
