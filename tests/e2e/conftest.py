"""Fixtures of the end-to-end tests: one simulator, gunicorns shared by their settings, their output on failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from tests.e2e.servers import Farm, Measured, Server

_TAIL = 6000
_farms: list[Farm] = []


@pytest.fixture(scope="session")
def upstream() -> Iterator[Running]:
    """The simulator, in a process of its own, for the whole session."""
    with running(Options(max_concurrent_streams=100)) as simulator:
        yield simulator


@pytest.fixture
def simulator(upstream: Running) -> Running:
    """The simulator with its counters at zero."""
    upstream.reset()
    return upstream


@pytest.fixture(scope="session")
def farm(upstream: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Servers under test."""
    made = Farm(upstream, tmp_path_factory.mktemp("servers"))
    _farms.append(made)
    yield made
    made.close()


@pytest.fixture(params=["gevent", "gthread"])
def kind(request: pytest.FixtureRequest) -> str:
    """Worker class."""
    return str(request.param)


@pytest.fixture
def server(farm: Farm, kind: str, simulator: Running) -> Server:
    """A gunicorn with default settings, shared."""
    return farm.shared(kind)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes what was measured, to be shown at the end of the run."""

    def note(name: str, value: object) -> None:
        request.node.user_properties.append(("measured", f"{request.node.name}: {name} {value}"))

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put the tail of every used server's output into the report of a failed test."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        for farm in _farms:
            for server in farm.servers[-3:]:
                if server.log.exists():
                    report.sections.append((f"output of {server.log.name}", server.output[-_TAIL:]))
    return report  # type: ignore[return-value]
