"""Lists of keys in the JSON settings file: ``env.NAME`` looked up, every entry checked, faults by place.

Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from app.settings_fields import MOST_REQUESTS, MOST_TOKENS


@dataclass
class Found:
    """What a file says: values and labels by settings attribute, the variables it names, and its faults.

    ``failed`` are attributes whose value is not whole for a fault; ``others`` holds what stands beside the known
    providers, by name and unread.
    """

    values: dict[str, object] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    others: dict[str, object] = field(default_factory=dict)


def number(value: object) -> float | None:
    """``value`` if JSON wrote it as a number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def unknown(here: str, key: str, known: Collection[str]) -> str:
    """The fault of a key that means nothing, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
    return f"PENSTOCK_CONFIG {here}: unknown key; {hint}"


def _weight(value: object) -> str:
    found = number(value)
    fine = found is not None and 0 < found <= 1000
    return "" if fine else f"={value}: allowed is a number above 0, to 1000."


def _models(value: object) -> str:
    fine = isinstance(value, list) and all(isinstance(model, str) for model in value)
    return "" if fine else ": allowed is a list of model names or patterns."


def _name(value: object) -> str:
    return "" if value is None or isinstance(value, str) else ": allowed is text."


def _up_to(most: int) -> Callable[[object], str]:
    def limit(value: object) -> str:
        fine = value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most)
        return "" if fine else f"={value}: allowed is 0 (no limit) to {most}, or null for the default."

    return limit


# What an entry may hold besides its value, and the check of each: the rest of a fault's sentence, or nothing.
Checks = Mapping[str, Callable[[object], str]]
UPSTREAM: Final[Checks] = {"name": _name, "weight": _weight, "models": _models}
GATEWAY: Final[Checks] = {
    "name": _name,
    "requests_per_minute": _up_to(MOST_REQUESTS),
    "concurrent_requests": _up_to(MOST_REQUESTS),
    "tokens_per_day": _up_to(MOST_TOKENS),
}


def resolve(found: Found, attribute: str, checks: Checks, environ: Mapping[str, str]) -> None:
    """Replace ``env.NAME`` by what the environment holds; drop keys that are not usable, with a fault each."""
    if attribute not in found.values:
        return
    given, place = found.values.pop(attribute), found.labels[attribute]
    if not isinstance(given, list):
        names = ", ".join(("value", *checks))
        found.failed.append(attribute)
        found.faults.append(f"{place}: must be a list of strings or objects with {names}.")
        return
    keys = [_key(entry, f"{place}[{index}]", checks, environ, found) for index, entry in enumerate(given)]
    found.values[attribute] = [key for key in keys if key is not None]
    if None in keys:
        found.failed.append(attribute)


def _key(
    entry: object, place: str, checks: Checks, environ: Mapping[str, str], found: Found
) -> dict[str, object] | None:
    key = {"value": entry} if isinstance(entry, str) else entry
    if not isinstance(key, dict) or not isinstance(key.get("value"), str) or not key["value"].strip():
        found.faults.append(f"{place}: must be a string or an object with a value (and {', '.join(checks)}).")
        return None
    known = ("value", *checks)
    where = place.removeprefix("PENSTOCK_CONFIG ")
    found.faults += [unknown(f"{where}.{name}", name, known) for name in key if name not in known]
    wrong = {name: said for name, check in checks.items() if name in key and (said := check(key[name]))}
    found.faults += [f"{place}.{name}{said}" for name, said in wrong.items()]
    secret = key["value"].strip()
    if secret.startswith("env."):
        variable = secret.removeprefix("env.")
        found.named.append(variable)
        if variable not in environ:
            found.faults.append(f"{place}: env.{variable} names a variable that is not set.")
            return None
        secret = environ[variable]
    kept = {name: key[name] for name in checks if name in key and name not in wrong and key[name] is not None}
    return {**kept, "value": secret}
