"""``penstock assert-latency`` and ``penstock rollout-guard``: two results files in, an exit code out.

    0   passes; PROMOTE
    1   nothing can be decided: data is missing, broken, not comparable, or scatters too far (UNDECIDED)
    2   usage
    3   fails; HOLD
    4   ROLLBACK

Runs on: start-up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from app.bench.gates import Bound, Claim, Finding, claimed, improved, judge, more_errors
from app.bench.results import Results, ResultsError, read, same_terms
from app.bench.rollout import RULE, STAGES, Decision, Limits, decide

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FAILS: Final = 3
_CLAIMS: Final = {Claim.MET: 0, Claim.UNDECIDED: 1, Claim.MISSED: _FAILS}
_CODES: Final = {Decision.PROMOTE: 0, Decision.HOLD: _FAILS, Decision.ROLLBACK: 4}


class _Number(click.FloatRange):
    """A number within a range, the upper end left out; a range alone would let nan pass."""

    name = "number"

    def __init__(self, low: float, high: float, *, low_open: bool = False) -> None:
        super().__init__(min=low, max=high, min_open=low_open, max_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number.

        Raises:
            click.BadParameter: It is none, or out of range.
        """
        number = float(super().convert(value, param, ctx))
        return self.fail(f"{value!r} is not a number.", param, ctx) if isnan(number) else number


class _Improvement(_Number):
    """Percent by which something has to be lower; negative: by which it may be higher."""

    def __init__(self) -> None:
        super().__init__(-1000, 100)


_FILE = click.Path(dir_okay=False, path_type=Path)
_SHARED = (
    click.option("--before", type=_FILE, required=True, help="Results file of what is compared with."),
    click.option("--after", type=_FILE, required=True, help="Results file of what is judged."),
    click.option("--part", default="latency", show_default=True, help="Bench, of the several in one file."),
    click.option("--variant", default="gateway", show_default=True, help="Column of the bench."),
    click.option("--allow-other-machine", is_flag=True, help="Compare though processor or cores differ."),
    click.option(
        "--margin-pct",
        type=_Number(0, 100),
        default=25.0,
        show_default=True,
        help="What is undecided counts as kept only if to break a limit by more than this is ruled out.",
    ),
    click.option("--output", type=_FILE, help="File for the decision, JSON; written also when refused."),
)


def _on_two_files(wrapped: _Command) -> _Command:
    """Adds the options that both gates have."""
    for option in reversed(_SHARED):
        wrapped = option(wrapped)
    return wrapped


@click.command("assert-latency")
@_on_two_files
@click.option(
    "--ttfb-p95-improve", type=_Improvement(), help="Percent that the first byte has to be faster (p95)."
)
@click.option(
    "--full-p95-improve", type=_Improvement(), help="Percent that the whole answer has to be faster (p95)."
)
@click.option(
    "--cpu-per-request-max-ratio", type=_Number(0, 1000, low_open=True), help="CPU per request, after / before."
)
def assert_latency(
    before: Path,
    after: Path,
    ttfb_p95_improve: float | None,
    full_p95_improve: float | None,
    cpu_per_request_max_ratio: float | None,
    margin_pct: float,
    **shared: Any,
) -> None:
    """Fail when a build is slower, or costs more CPU, than the one before.

    0 percent asks for no worse, 10 for a tenth less, -5 allows a twentieth more. Decided on the 95 % interval of
    after / before over the rounds: "no worse" fails when worse is certain, and passes when worse by more than
    --margin-pct is ruled out; 0 there asks for certainty. A gain passes when it is certain. A build with errors,
    and more of them than before, fails whatever its speed.

    Exit codes: 0 PASS, 1 UNDECIDED or refused (data missing, broken or not comparable), 2 usage, 3 FAIL.
    """
    bounds = []
    if ttfb_p95_improve is not None:
        bounds.append(improved("ttfb_p95_ms", ttfb_p95_improve))
    if full_p95_improve is not None:
        bounds.append(improved("full_p95_ms", full_p95_improve))
    if cpu_per_request_max_ratio is not None:
        bounds.append(Bound("cpu_ms_per_request", "<=", cpu_per_request_max_ratio))
    if not bounds:
        raise click.UsageError(
            "Ask for something: --ttfb-p95-improve, --full-p95-improve, --cpu-per-request-max-ratio."
        )

    def verdict(findings: Sequence[Finding]) -> tuple[str, int]:
        claim = claimed(findings, margin_pct)
        return claim.value, _CLAIMS[claim]

    about = {"gate": "assert-latency", "margin_pct": margin_pct}
    _decided(about, (before, after), lambda _: bounds, verdict, unasked=more_errors, **shared)


@click.command(
    "rollout-guard",
    help=f"""Say whether a build goes to --stage percent of the traffic: PROMOTE, HOLD or ROLLBACK.

    Decided on 95 % intervals over the rounds (at least 3 a file). ROLLBACK: a limit is broken for certain.
    PROMOTE: all limits are kept for certain; these may be undecided if what was measured keeps the limit and
    to break it by more than --margin-pct is ruled out:

    \b
    {RULE.replace(chr(10), chr(10) + "    ")}

    HOLD: anything else; it says how many rounds would settle it. Missing data is never a HOLD.

    Exit codes: 0 PROMOTE, 1 refused (data missing, broken or not comparable), 2 usage, 3 HOLD, 4 ROLLBACK.
    """,
)
@_on_two_files
@click.option(
    "--stage",
    type=click.Choice([str(stage) for stage in STAGES]),
    required=True,
    help="Percentage of the traffic it is to get.",
)
@click.option(
    "--latency-p95-improve-pct",
    type=_Improvement(),
    required=True,
    help="Percent that p95 of first byte and whole answer has to be faster; -5 allows 5 % slower.",
)
@click.option(
    "--throughput-drop-pct", type=_Number(0, 100), required=True, help="Percent that throughput may be lower."
)
@click.option(
    "--error-rate-max",
    type=_Number(0, 1),
    required=True,
    help="Share of requests that may fail: 0.01 is 1 %. No error in n requests shows a rate below 3/n; 0 asks for "
    "none among those measured.",
)
def rollout_guard(
    before: Path,
    after: Path,
    stage: str,
    latency_p95_improve_pct: float,
    throughput_drop_pct: float,
    error_rate_max: float,
    margin_pct: float,
    **shared: Any,
) -> None:
    """Promote, hold or roll back; the help that is shown stands above."""
    limits = Limits(latency_p95_improve_pct, throughput_drop_pct, error_rate_max)

    def verdict(findings: Sequence[Finding]) -> tuple[str, int]:
        decision = decide(findings, int(stage), margin_pct)
        return decision.value, _CODES[decision]

    about = {"gate": "rollout-guard", "stage": int(stage), "margin_pct": margin_pct}
    _decided(about, (before, after), limits.bounds, verdict, **shared)


def _decided(
    about: dict[str, Any],
    files: tuple[Path, Path],
    bounds: Callable[[str], Sequence[Bound]],
    verdict: Callable[[Sequence[Finding]], tuple[str, int]],
    *,
    part: str,
    variant: str,
    allow_other_machine: bool,
    output: Path | None,
    unasked: Callable[[Results, Results, str], list[Finding]] = lambda *_: [],
) -> None:
    """Reads, judges, writes, shows and exits; what was decided before does not stay in the file."""
    if output is not None and output.resolve() in [file.resolve() for file in files]:
        raise click.UsageError("--output would overwrite what is compared.")
    about |= {"part": part, "variant": variant}
    try:
        _different(files)
        before, after = (read(file, part) for file in files)
        same_terms(before, after, allow_other_machine=allow_other_machine)
        findings = judge(before, after, variant, bounds(part)) + unasked(before, after, variant)
    except ResultsError as error:
        _write(output, {**about, "decision": None, "refused": str(error).splitlines(), "criteria": []})
        raise click.ClickException(str(error)) from error
    word, code = verdict(findings)
    rounds = {"before": _side(before, variant), "after": _side(after, variant)}
    _write(output, {**about, **rounds, "decision": word, "criteria": [one.row() for one in findings]})
    click.echo("\n".join([word, *(one.line() for one in findings)]))
    sys.exit(code)


def _different(files: tuple[Path, Path]) -> None:
    """Refuses one measurement in two places: it is as good as itself, whatever it is worth.

    Raises:
        ResultsError: The files are one, or have the same content.
    """
    before, after = files
    try:
        same = before.resolve() == after.resolve() or before.read_bytes() == after.read_bytes()
    except OSError:
        return  # reading them as results says what is wrong
    if same:
        raise ResultsError(f"{before} and {after} are the same measurement.")


def _side(results: Results, variant: str) -> dict[str, Any]:
    """What was compared."""
    return {"file": results.file, "at": results.machine.get("at"), "rounds": len(results.rounds(variant))}


def _write(output: Path | None, decision: dict[str, Any]) -> None:
    """Raises click.ClickException if it cannot be written: whoever reads it would act on an older one."""
    if output is None:
        return
    try:
        output.write_text(json.dumps(decision, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror or error}.") from error
