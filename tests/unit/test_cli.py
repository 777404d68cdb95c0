"""The ``penstock`` command: what it lists, prints, exits with, and what it leaves unimported.

Runs on: start-up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from app import check, cli
from app.check import FAIL, OK, WARN, Finding
from app.errors import ConfigError
from app.settings import rows
from app.simulator.options import Options

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, list(arguments))
    return result.exit_code, result.output


def test_help_lists_the_commands() -> None:
    code, output = _run("--help")
    assert code == 0
    for name in ("assert-latency", "bench", "check", "demo", "rollout-guard", "settings", "simulator", "size"):
        assert f"\n  {name} " in output


def test_version_is_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", lambda name: f"1.2.3 of {name}")
    assert _run("--version") == (0, "penstock 1.2.3 of penstock\n")
    monkeypatch.setattr(metadata, "version", missing)
    assert _run("--version") == (0, "penstock, not installed\n")


def test_commands_that_are_not_installed_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ELSEWHERE", {"nothing": "app.nothing", "lost": "app.bench.nowhere:command"})
    listed = _run("--help")[1]
    for name in ("nothing", "lost"):
        assert f"  {name} " not in listed
        assert _run(name)[0] == 2


def test_commands_elsewhere_are_imported_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    @click.command()
    def command() -> None:
        click.echo("found")

    module = types.ModuleType("app.errors_command")
    module.command = module.other = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app.errors_command", module)
    elsewhere = {
        "extra": "app.errors_command",
        "named": "app.errors_command:other",
        "odd": "app.errors_command:click",
    }
    module.click = click  # type: ignore[attr-defined]
    monkeypatch.setattr(cli, "ELSEWHERE", elsewhere)
    monkeypatch.setattr(cli, "_exists", lambda name: True)
    assert _run("extra") == _run("named") == (0, "found\n")
    assert "extra" in _run("extra", "--help")[1]
    assert _run("odd")[0] == 2


@pytest.mark.parametrize(("levels", "code"), [([OK], 0), ([OK, WARN], 0), ([OK, FAIL, OK], 1), ([], 0)])
def test_check_exits_with_1_when_something_fails(
    monkeypatch: pytest.MonkeyPatch, levels: list[str], code: int
) -> None:
    monkeypatch.setattr(check, "findings", lambda offline: iter(Finding(one, f"says {offline}") for one in levels))
    exit_code, output = _run("check", "--offline")
    assert exit_code == code
    assert output == "".join(f"{one:<5}says True\n" for one in levels)


def test_check_runs_for_real_offline() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "check", "--offline"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK   gevent patches before the application is imported" in done.stdout


def test_settings_lists_every_name() -> None:
    plain, table = _run("settings")[1], _run("settings", "--markdown")[1]
    for row in rows():
        for name in row.env:
            assert name in plain
            assert f"`{name}`" in table
    assert table.count("\n") == len(rows()) + 2
    assert "    default 8000; allowed 0 to 65535" in plain


def test_simulator_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Options] = []
    module = types.ModuleType("app.simulator.server")
    module.serve = given.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app.simulator.server", module)
    assert _run("simulator")[0] == 0
    assert _run("simulator", "--plain", "1", "--tls", "2", "--dir", str(tmp_path), "--max-streams", "7")[0] == 0
    named = Options(plain_port=1, tls_port=2, ca_dir=str(tmp_path), max_concurrent_streams=7)
    assert given == [Options(), named]


def test_faulty_settings_of_any_command_end_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(offline: bool) -> None:
        raise ConfigError(["A=1: wrong.", "B=2: wrong."])

    monkeypatch.setattr(check, "findings", fail)
    result = CliRunner().invoke(cli.main, ["check"])
    assert result.exit_code == 2
    assert result.stderr == "A=1: wrong.\nB=2: wrong.\n"


def test_the_command_line_itself_imports_little() -> None:
    code = "import sys, app.cli; print([m for m in ('ssl', 'httpx', 'flask', 'gevent') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _gunicorn(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC_", "GATEWAY_"))}
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", *arguments, "wsgi:app"],
        cwd=ROOT, env=clean | environ, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def test_gunicorn_stops_with_2_and_all_faults_before_it_listens() -> None:
    done = _gunicorn(PORT="x", THREADS="y")
    assert done.returncode == 2
    assert done.stderr == "PORT=x: allowed is 0 to 65535.\nTHREADS=y: allowed is 1 to 1024 threads.\n"


def test_gunicorn_refuses_a_bind_argument_open_to_strangers() -> None:
    done = _gunicorn("--bind", "0.0.0.0:0", ANTHROPIC_API_KEY="sk-hush")
    assert done.returncode == 2
    assert "bind=0.0.0.0:0: upstream credentials are configured" in done.stderr
    assert "Listening" not in done.stderr
    assert "hush" not in done.stderr


def test_wsgi_stops_with_2_outside_gunicorn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import wsgi"],
        cwd=ROOT, env=os.environ | {"PORT": "x", "THREADS": "y"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "PORT=x: allowed is 0 to 65535.",
        "THREADS=y: allowed is 1 to 1024 threads.",
    ]
