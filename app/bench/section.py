"""The README's performance section, made of results files and of nothing else.

    results file of `bench all`, of single benches     -> aims: asked, reached, met or missed
    results file of `bench peers`                      -> side by side; what we lose at
    both                                               -> where it was measured, and the commands

Several files become one, which is what the repository keeps in deploy/peers/results.json: ``{"bench": "section",
"format": 1, "all": <file of bench all>, "peers": <file of bench peers>}``, either of which may be missing. A file
that says of itself that it is incomplete, or whose aims do not follow from its rounds, is refused, and so are
files of several machines.

Pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from app.bench.section_checks import lacks, machines
from app.bench.section_peers import side_by_side

BEGIN: Final = "<!-- performance: begin -->"
END: Final = "<!-- performance: end -->"
FORMAT: Final = 1
# (bench, variant, figure) -> words, unit, digits; anything else is shown by its names.
_WORDS: Final[Mapping[tuple[str, str, str], tuple[str, str, int]]] = {
    ("latency", "gateway", "floor_ratio"): ("JSON: CPU per request over the WSGI floor's", "×", 2),
    ("latency", "gateway", "error_pct"): ("JSON: errors", "%", 2),
    ("streaming", "gateway", "cpu_ms_per_event"): ("Streams: CPU per event", "ms", 3),
    ("streaming", "gateway", "floor_ratio"): ("or: CPU per event over the floor's request", "×", 2),
    ("streaming", "gateway", "added_ttfb_p50_ms"): ("Streams: added to the first byte, p50", "ms", 1),
    ("streaming", "gateway", "added_ttfb_p99_ms"): ("Streams: added to the first byte, p99", "ms", 1),
    ("streaming", "gateway", "added_delay_p99_ms"): ("Streams: added to an event's delay, p99", "ms", 1),
    ("streaming", "gateway", "pss_kib_per_stream"): ("Streams: memory for each (PSS)", "KiB", 1),
    ("streaming", "gateway", "error_pct"): ("Streams: errors", "%", 2),
    ("streaming", "burst", "events_per_core_s"): ("Back to back: events per second of CPU", "", 0),
    ("streaming", "burst", "error_pct"): ("Back to back: errors", "%", 2),
    ("concurrent", "idle_streams", "pss_mib_over_idle"): ("Idle streams: memory over an idle worker", "MiB", 1),
    ("concurrent", "idle_streams", "error_pct"): ("Idle streams: errors", "%", 2),
    ("concurrent", "slow_requests", "error_pct"): ("Slow answers, all at once: errors", "%", 2),
    ("concurrent", "cold_start", "first_answer_s"): ("Cold start to the first answer", "s", 2),
    ("concurrent", "cold_start", "rss_mib"): ("Idle worker (RSS)", "MiB", 1),
    ("concurrent", "two_workers", "rps_ratio"): ("Two workers: requests per second over one's", "×", 2),
    ("concurrent", "two_workers", "cpu_ratio"): ("Two workers: CPU per request over one's", "×", 2),
    ("storm", "gateway", "success_pct"): ("Storm: success seen by clients", "%", 2),
    ("storm", "gateway", "attempts_per_request"): ("Storm: upstream attempts per request", "", 3),
    ("storm", "gateway", "attempts_while_cooling"): ("Storm: attempts to a key known to be cooling", "", 0),
    ("storm", "gateway", "attempts_after_denial"): ("Storm: attempts to a key known to be denied", "", 0),
}
# One of the two is asked for.
_EITHER: Final = (
    ("streaming", "gateway", "cpu_ms_per_event"),
    ("streaming", "gateway", "floor_ratio"),
)


class SectionError(Exception):
    """Files that no section can be made of; the message is for people."""


def collected(files: Mapping[str, Any]) -> dict[str, Any]:
    """One file of several; of two with the same bench, the later one counts.

    Args:
        files: Name, for messages -> content.

    Raises:
        SectionError: One of them is no results file, not whole, or of another machine than the rest.
    """
    found: dict[str, Any] = {"bench": "section", "format": FORMAT}
    for name, data in files.items():
        if not isinstance(data, Mapping) or not isinstance(data.get("bench"), str):
            raise SectionError(f"{name}: this is not a results file of penstock bench.")
        if data["bench"] == "section":
            for key in ("all", "peers"):
                if key in data:
                    _complete(f"{name}: {key}", data[key])
                    found[key] = _elsewhere(data[key])
            continue
        _complete(name, data)
        data = _elsewhere(data)
        if data["bench"] in ("all", "peers"):
            found[data["bench"]] = data
        else:
            parts = {**found.get("all", {}).get("parts", {}), data["bench"]: data}
            head: dict[str, Any] = {"bench": "all", "machine": data.get("machine"), "faults": []}
            found["all"] = {**head, **found.get("all", {}), "parts": parts}
    if len(found) == 2:
        raise SectionError("there is nothing in these files.")
    if len(machines(found)) > 1:
        raise SectionError("these files are of different machines (processor or cores).")
    return found


def _complete(name: str, data: Any) -> None:
    """Raises SectionError if something is missing in the file, or wrong."""
    if not isinstance(data, Mapping):
        raise SectionError(f"{name}: this is not a results file of penstock bench.")
    try:
        lack = next(lacks(data), "")
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        raise SectionError(f"{name}: this results file is not whole: {fault!r}") from fault
    if lack:
        raise SectionError(f"{name}: {lack}")


def _elsewhere(data: Mapping[str, Any]) -> dict[str, Any]:
    """A file without the folder of this machine that its command may name."""
    words = shlex.split(data.get("command") or "")
    while "--cache" in words:
        at = words.index("--cache")
        del words[at : at + 2]
    return {**data, "command": shlex.join(words)} if words else dict(data)


def markdown(results: Mapping[str, Any]) -> str:
    """The section, from its heading to its last line.

    Args:
        results: What ``collected`` made.

    Raises:
        SectionError: Something in it is missing.
    """
    try:
        return "\n\n".join(_parts(results)) + "\n"
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        raise SectionError(f"this results file is not whole: {fault!r}") from fault


def _parts(results: Mapping[str, Any]) -> Iterator[str]:
    """The paragraphs."""
    whole: Mapping[str, Any] | None = results.get("all")
    peers: Mapping[str, Any] | None = results.get("peers")
    yield "## Performance"
    yield (
        "Client, upstream (the simulator, over TLS) and what is measured share the cores of one machine. Medians "
        "over interleaved rounds; in brackets the 95 % bootstrap interval of the median, where there are enough."
    )
    if whole:
        yield "\n".join(_aims(whole))
    if peers:
        yield from side_by_side(peers)
    yield _where((whole or peers or {})["machine"], peers["machine"] if whole and peers else None)
    yield "\n".join(["Again, on a machine of yours:", "", "```sh", *_commands(whole, peers), "```"])


def _aims(whole: Mapping[str, Any]) -> Iterator[str]:
    """The table of aims, all parts in one."""
    yield "| one worker | aim | reached | |"
    yield "|---|---|---|---|"
    rows = {(bench, aim["variant"], aim["figure"]): (aim, part) for bench, aim, part in _judged(whole)}
    if not rows:
        raise ValueError("no aims")
    either = any(rows[key][0]["met"] for key in _EITHER if key in rows)
    for key, (aim, part) in rows.items():
        words, unit, digits = _WORDS.get(key, (f"{key[0]}, {key[1]}: {key[2]}", "", 3))
        sign = "≤" if aim["relation"] == "<=" else "≥"
        asked = f"{sign} {_shown(aim['bound'], unit)}"
        verdict = "met" if aim["met"] else "**missed**"
        if key in _EITHER and not aim["met"] and either:
            verdict = "missed; the other is met"
        yield f"| {words} | {asked} | {_reached(aim, part, unit, digits)} | {verdict} |"


def _judged(whole: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Each aim with its bench and that one's report."""
    for bench, part in whole["parts"].items():
        for aim in part["aims"]:
            yield bench, aim, part


def _reached(aim: Mapping[str, Any], part: Mapping[str, Any], unit: str, digits: int) -> str:
    """The figure, with its interval if it is a median."""
    if aim["value"] is None:
        return "not measured"
    text = _shown(round(aim["value"], digits), unit)
    ends = (part["variants"][aim["variant"]].get("interval") or {}).get(aim["figure"])
    if aim["over"] != "median" or not ends:
        return text
    return f"{text} ({_shown(round(ends[0], digits))} to {_shown(round(ends[1], digits))})"


def _shown(value: float, unit: str = "") -> str:
    text = f"{value:,.10f}".rstrip("0").rstrip(".")
    return f"{text} {unit}" if unit else text


def _where(machine: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    """The machine in one sentence, and when it was used; ``other``: for the side-by-side."""
    memory_gib = round(machine["memory_kib"] / 2**20) if machine.get("memory_kib") else "?"
    packages = machine.get("packages") or {}
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("gunicorn", "gevent", "flask") if packages.get(name)
    )
    also = f" The side-by-side: {_when(other)}." if other else ""
    return (
        f"Measured {_when(machine)}: {machine['cpu'] or 'unknown processor'}, {machine['cores']} cores, "
        f"{memory_gib} GiB, {machine['system']}, Python {machine['python']}"
        f"{', ' if versions else ''}{versions}.{also}"
    )


def _when(machine: Mapping[str, Any]) -> str:
    """The day, and how busy the machine was with other things."""
    return f"on {machine['at'][:10]}, with a load of {machine['load_1m']:g} when it began"


def _commands(whole: Mapping[str, Any] | None, peers: Mapping[str, Any] | None) -> Sequence[str]:
    """What reproduces the files, and this section of them."""
    again = {}
    if whole and "command" in whole:
        again["all"] = whole["command"]
    for name, part in (whole or {}).get("parts", {}).items():
        if "command" in part or "all" not in again:
            again[name] = part.get("command") or f"penstock bench {name}"
    if peers:
        again["peers"] = peers.get("command") or "penstock bench peers"
    lines = [f"{command} --output {name}.json" for name, command in again.items()]
    files = [f"{name}.json" for name in again]
    return [*lines, f"penstock bench section {' '.join(files)}"]


def between(readme: str) -> str | None:
    """What stands between the marks; None without both."""
    _, begin, rest = readme.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    return inside if begin and end else None


def put(readme: str, text: str) -> str:
    """The README with ``text`` between the marks.

    Raises:
        SectionError: It has no marks.
    """
    if between(readme) is None:
        raise SectionError(f"there is no {BEGIN} with {END} after it.")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}{END}{after}"


def stale(readme: str, results: Mapping[str, Any]) -> bool:
    """Whether what stands between the marks, or their absence, is not what ``results`` give.

    Raises:
        SectionError: ``results`` give no section.
    """
    return between(readme) != f"\n{markdown(results)}"
