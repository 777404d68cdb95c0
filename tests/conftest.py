"""How the suite runs: side by side in a few processes, what was measured shown at the end.

Tests wait more than they work, so there are more processes than cores. Each file runs in one process from its
first test to its last; a session's fixtures exist once in each process. Files start in their order, so that the
long ones, end to end, are not the last. ``-n 0`` runs everything in one process.

Runs on: the test's thread.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

PROCESSES = 4
_LARGE = {"tests", "tests/e2e", "tests/integration", "tests/unit"}
_figures: list[str] = []

# How long an example takes says how busy the machine is, nothing about what is tested.
settings.register_profile("steady", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """``-n auto``: the whole suite is shared out, and its large parts; for less it is not worth it."""
    return PROCESSES if any(argument.rstrip("/") in _LARGE for argument in config.args) else 0


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test measured; under xdist this comes from the process the test ran in."""
    if report.when == "teardown":
        _figures.extend(str(value) for name, value in report.user_properties if name == "measured")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured."""
    for figure in _figures:
        terminalreporter.write_line(figure)
