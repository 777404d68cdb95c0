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
from typing import Final, Literal

from pydantic import BaseModel, SecretStr, ValidationError

from app import settings_file, settings_rules
from app.errors import ConfigError
from app.settings_fields import GatewayKey, ProviderSettings, Row, UpstreamKey, plain, redacted, row, setting
from app.settings_observe import Observed

__all__ = [
    "PROFILES",
    "GatewayKey",
    "ProviderSettings",
    "Row",
    "Settings",
    "UpstreamKey",
    "environment",
    "live_environment",
    "load",
    "rows",
]


def _shown(value: object) -> object:
    """A value as it may be printed."""
    if isinstance(value, SecretStr):
        return "[hidden]"
    if isinstance(value, ProviderSettings):
        return _public(value)
    if not isinstance(value, tuple):
        return value
    if any(isinstance(one, (UpstreamKey, GatewayKey)) for one in value):
        return f"{len(value)} set"
    return [_shown(one) for one in value]


def _public(model: BaseModel) -> dict[str, object]:
    return {name: _shown(getattr(model, name)) for name in type(model).model_fields}


class Settings(Observed):
    """Everything that can be set, frozen. Secrets never show in ``repr``; ``public()`` is safe to print.

    Built by keyword (``Settings(port=0)``) only single fields are checked; ``load()`` checks all rules.
    The fields of ``Network``, ``Traffic`` and ``Observed`` come first.
    """

    # the whole
    penstock_profile: Literal["production", "development", "loadtest"] = setting(
        "PENSTOCK_PROFILE", "production", "Named set of defaults."
    )
    penstock_config: str | None = setting(
        "PENSTOCK_CONFIG", None, "JSON file with provider settings.", note="a readable JSON file"
    )

    def public(self) -> dict[str, object]:
        """All values by attribute name, JSON-ready; keys as the number of those set, other secrets hidden."""
        return _public(self)


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
    """Every setting that has a variable, in the order of the class."""
    described = (row(name, field) for name, field in Settings.model_fields.items())
    return tuple(one for one in described if one.env)


class _Sources:
    """Raw values by attribute, each with the label it is complained about under."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {name: value.strip() for name, value in environ.items() if value.strip()}
        self.rows = {one.attribute: one for one in rows()}
        self.values: dict[str, object] = {}
        self.labels: dict[str, str] = {one.attribute: one.env[0] for one in self.rows.values()}
        self.faults: list[str] = []
        self.failed: set[str] = set()  # attributes whose faults are known already

    def merge(self) -> None:
        """Fill ``values``: profile first, then the file, then the environment."""
        self.values.update(PROFILES.get(self.environ.get("PENSTOCK_PROFILE", "production"), {}))
        known = [name for one in self.rows.values() for name in one.env]
        if path := self.environ.get("PENSTOCK_CONFIG"):
            found = settings_file.read(path, self.environ)
            self.faults += found.faults
            self.values.update(found.values)
            self.labels.update(found.labels)
            self.failed.update(found.failed)
            known += found.named
        for one in self.rows.values():
            given = [(name, self.environ[name]) for name in one.env if name in self.environ]
            if given:
                self.values[one.attribute] = ",".join(value for _, value in given)
                self.labels[one.attribute] = given[0][0]
                self.failed.discard(one.attribute)
        self.faults += settings_rules.unknown_names(self.environ, known)

    def fault(self, attribute: str) -> str:
        """One sentence: which variable, which value, what is allowed."""
        about, value = self.rows[attribute], self.values.get(attribute)
        shown = "[hidden]" if about.secret else redacted("", plain(value))
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
    faults += settings_rules.across(settings, sources.labels, sources.failed.union(failed))
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
