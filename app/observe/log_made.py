"""Make the log that the settings ask for.

Runs on: start-up.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from app.observe.log_files import LogFiles
from app.observe.log_shown import Shown
from app.observe.logs import ExchangeLog
from app.observe.redact import Redactor
from app.settings import Settings


def exchange_log(settings: Settings, poll: Callable[[], Any] = select.poll) -> ExchangeLog:
    """The log of one set of settings.

    Args:
        settings: The settings.
        poll: As ``Stdout`` has it.
    """
    files = None
    if settings.log_dir is not None:
        files = LogFiles(
            Path(settings.log_dir).absolute(),
            settings.log_file_max_bytes,
            settings.log_files_kept,
            with_requests=settings.log_level == "debug",
        )
    shown = Shown(
        settings.enable_request_body_logging, settings.enable_response_body_logging, settings.body_log_bytes
    )
    return ExchangeLog(settings.log_level, settings.log_format, files, shown, redactor(settings), poll)


def redactor(settings: Settings) -> Redactor:
    """What takes the gateway's own secrets, and what looks like one, out of a text."""
    return Redactor(_secrets(settings))


def shows_headers(settings: Settings) -> bool:
    """Whether anything is written that shows headers: ``requests.json`` alone does."""
    return settings.log_dir is not None and settings.log_level == "debug"


def _secrets(settings: Settings) -> Iterator[str]:
    """What the gateway itself was trusted with."""
    others = (provider.api_keys for provider in settings.providers)
    for keys in (settings.anthropic_api_keys, settings.gateway_api_keys, *others):
        yield from (key.get_secret_value() for key in keys)
    for one in (settings.gateway_admin_key, settings.alert_webhook_url, settings.redis_url):
        if one is not None:
            yield one.get_secret_value()
    if settings.redis_url is not None:
        password = urlsplit(settings.redis_url.get_secret_value()).password
        yield from (password, unquote(password)) if password else ()
