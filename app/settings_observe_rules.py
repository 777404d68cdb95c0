"""Rules of what is observed: admin key, webhook, log directory, prices, the extra for spans.

Each returns sentences that name the variable, its value (never a secret) and what is allowed.
Runs on: start-up.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app import settings_otel, settings_prices
from app.settings_fields import redacted, split_url

if TYPE_CHECKING:
    from app.settings import Settings

ADMIN_KEY: Final = re.compile(r"[!-~]{16,}")


def admin_key(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """It travels in a header, opens what every caller did, and must not be what a caller presents."""
    key = settings.gateway_admin_key
    if key is None:
        return
    start = f"{labels['gateway_admin_key']}=[hidden]: "
    if not ADMIN_KEY.fullmatch(key.get_secret_value()):
        yield start + "allowed are at least 16 printable ASCII characters without spaces."
    taken = {one.get_secret_value() for one in (*settings.gateway_api_keys, *settings.anthropic_api_keys)}
    if key.get_secret_value() in taken:
        yield start + "is one of the callers' or upstream keys; it must be one of its own."


def webhook(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """An address that can be posted to; its path may be a secret, so it is never shown."""
    if settings.alert_webhook_url is None:
        return
    if split_url(settings.alert_webhook_url.get_secret_value()) is None:
        yield f"{labels['alert_webhook_url']}=[hidden]: allowed is an http:// or https:// URL with a host."


def log_dir(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """It must be there, or have a parent in which it can be made."""
    if settings.log_dir is None:
        return
    path = Path(settings.log_dir)
    start = f"{labels['log_dir']}={redacted('', settings.log_dir)}: "
    if path.exists() and not path.is_dir():
        yield start + "is not a directory."
        return
    there = next((one for one in (path, *path.absolute().parents) if one.exists()), path)
    if not os.access(there, os.W_OK | os.X_OK):
        yield start + "cannot be written to; allowed is a directory that can be written to."


def prices(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """The operator's prices, every fault in them; a key's path stands behind the file's."""
    path = settings.penstock_prices
    if path is None:
        return
    start = f"{labels['penstock_prices']}={redacted('', path)}: "
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        yield start + f"cannot be read ({error.strerror}); allowed is a readable JSON file."
        return
    for fault in settings_prices.parse(text)[1]:
        yield start + fault


def otel(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """Spans take the extra, and ``OTEL_`` variables that can be read."""
    if not settings.enable_otel:
        return
    from app.settings import environment  # which imports these rules; the SDK, too, reads the process's own

    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ModuleNotFoundError:
        found = None
    if found is None:
        yield f"{labels['enable_otel']}=true: takes pip install 'penstock[otel]'."
    yield from settings_otel.faults(environment())
