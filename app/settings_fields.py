"""What a setting is made of: name, unit, range and help; the types lists and keys are read into; what may show.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeGuard, get_args, get_origin
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

SECRET_NAMES: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH", re.IGNORECASE)
_SECRET: Final = frozenset(
    {"anthropic_api_keys", "gateway_api_keys", "redis_url", "gateway_admin_key", "alert_webhook_url"}
)
SECRET_VALUES: Final = re.compile(r"sk-|//[^/]*@")
# Most that a limit of a gateway key can be set to.
MOST_REQUESTS: Final = 1_000_000
MOST_TOKENS: Final = 1_000_000_000_000


def redacted(name: str, value: str) -> str:
    """``value`` as a fault may show it: hidden when its name or its look says secret, cut at 80 characters."""
    if SECRET_NAMES.search(name) or SECRET_VALUES.search(value):
        return "[hidden]"
    return value if len(value) <= 80 else value[:77] + "..."


def _split(value: object) -> object:
    """``"a, b,,b"`` -> ``("a", "b")``; lists lose what they hold twice; anything else passes as it is."""
    if isinstance(value, str):
        return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    return tuple(dict.fromkeys(value)) if _are_names(value) else value


def _are_names(value: object) -> TypeGuard[list[str] | tuple[str, ...]]:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


class _Key(BaseModel):
    """A secret and the label it has in logs and metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    value: SecretStr
    name: str = ""

    def get_secret_value(self) -> str:
        """The credential in clear text; never log it."""
        return self.value.get_secret_value()


class UpstreamKey(_Key):
    """One upstream credential: its secret, its label in logs, its share of traffic and its models."""

    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    models: tuple[str, ...] = ()


class GatewayKey(_Key):
    """What one caller presents, and what it may take: None is the ``gateway_*`` default, 0 is no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, le=MOST_REQUESTS)
    concurrent_requests: int | None = Field(default=None, ge=0, le=MOST_REQUESTS)
    tokens_per_day: int | None = Field(default=None, ge=0, le=MOST_TOKENS)


def _keys(value: object) -> object:
    """Turn text, secrets and mappings into labelled key mappings, without duplicates, in order."""
    parts = _split(value)
    if not isinstance(parts, (list, tuple)):
        return parts
    keys: dict[str, object] = {}
    for part in parts:
        given = part.model_dump() if isinstance(part, _Key) else part
        entry = dict(given) if isinstance(given, Mapping) else {"value": given}
        secret = entry.get("value")
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else str(secret)
        entry["name"] = entry.get("name") or f"key-{len(keys) + 1}"
        keys.setdefault(text, entry)
    return tuple(keys.values())


def off_or_a_second(value: float) -> float:
    """Zero (off) or at least one second."""
    if 0 < value < 1:
        raise ValueError("between off and one second")
    return value


def _without_slash(url: str) -> str:
    """A base URL to which a path that starts with a slash can be appended."""
    return url.rstrip("/")


def split_url(url: str) -> SplitResult | None:
    """The parts of an http(s) URL that has a host and a valid port, or None."""
    if not url.isascii() or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname and port_is_valid else None


Url = Annotated[str, AfterValidator(_without_slash)]
UpstreamKeys = Annotated[tuple[UpstreamKey, ...], BeforeValidator(_keys)]
GatewayKeys = Annotated[tuple[GatewayKey, ...], BeforeValidator(_keys)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


def setting(env: str, default: object, help_text: str, unit: str = "", **more: Any) -> Any:
    """A pydantic field that also knows its environment names (by spaces; none: only in the file) and its unit."""
    extra = {"env": env.split(), "unit": unit, "shown": more.pop("shown", None), "note": more.pop("note", None)}
    if callable(default):
        more["default_factory"] = default
    else:
        more["default"] = default
    return Field(description=help_text, json_schema_extra=extra, **more)


def seconds(env: str, default: float, low: float, high: float, help_text: str) -> Any:
    return setting(env, default, help_text, "s", ge=low, le=high, allow_inf_nan=False)


def count(env: str, default: int, low: int, high: int, help_text: str, unit: str = "") -> Any:
    return setting(env, default, help_text, unit, ge=low, le=high)


class ProviderSettings(BaseModel):
    """A provider besides Anthropic's own address: where it is, its credentials, its slots, who stands in."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    name: str = setting(
        "",
        ...,
        "What fallbacks and logs call it.",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$",
        note="a name of at most 41 of a-z, 0-9, - and _, the first a letter or digit",
    )
    upstream_url: Url = setting(
        "", ..., "Its address.", note="an http or https URL without userinfo, query or fragment"
    )
    api_keys: UpstreamKeys = setting("", (), "Its credentials.", note="a list of keys")
    concurrency: int = count("", 1000, 1, 1_000_000, "Exchanges with it at once, per node.", "exchanges")
    buffer_size: int = count("", 5000, 1, 10_000_000, "Exchanges running and waiting, per node.", "exchanges")
    fallbacks: Names = setting("", (), "Providers tried when it cannot serve.", note="a list of provider names")


class Row(NamedTuple):
    """One line of the settings table: how a field is called, what it takes, what it means."""

    attribute: str
    env: tuple[str, ...]
    default: str
    unit: str
    allowed: str
    help: str
    secret: bool


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def plain(value: object) -> str:
    """A default as one writes it in the environment."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(field: FieldInfo) -> Iterator[str]:
    for sign, name in ((">", "gt"), ("", "ge"), ("to ", "le")):
        for rule in field.metadata:
            if getattr(rule, name, None) is not None:
                yield f"{sign}{plain(getattr(rule, name))}"


def _allowed(field: FieldInfo) -> str:
    """The allowed range in words: ``1 to 64 threads``, ``true or false``, ``json or console``."""
    extra = _extra(field)
    if extra["note"]:
        return f"{extra['note']} {extra['unit']}".strip()
    if get_origin(field.annotation) is Literal:
        return " or ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    return f"{' '.join(_bounds(field))} {extra['unit']}".strip()


def row(name: str, field: FieldInfo) -> Row:
    """Describe one field of the settings class."""
    extra = _extra(field)
    default = extra["shown"] or plain(None if field.default is PydanticUndefined else field.default)
    secret = name in _SECRET
    return Row(name, tuple(extra["env"]), default, extra["unit"], _allowed(field), field.description or "", secret)
