"""``penstock demo``: comes up, answers, shows the trace, leaves nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from app import demo
from app.cli import main
from tests.e2e.servers import ROOT, answers, free_port, until

TRACE = re.compile(
    r"\[status 200 · tries 1 \(200\) · HTTP/2 connection (new|reused) · upstream head [\d.]+ ms · "
    r"gateway added [\d.]+ ms · total \d+ ms\]"
)


def environ(tmp_path: Path) -> dict[str, str]:
    """An operator's environment: none of these may find its way into the demo."""
    mine = {
        "ANTHROPIC_API_KEY": "sk-ant-operators-own",
        "GATEWAY_API_KEYS": "other",
        "PORT": "1",
        "HOST": "0.0.0.0",
    }
    return dict(os.environ) | mine | {"GUNICORN_CMD_ARGS": "--bind 0.0.0.0:1", "TMPDIR": str(tmp_path)}


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app", "demo", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environ(tmp_path), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def in_session(leader: int) -> list[str]:
    """Command lines of the processes that are still in the session of ``leader``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
    return found


def test_it_shows_both_answers_and_their_traces(tmp_path: Path) -> None:
    process = started(tmp_path)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.count("A penstock is the gated pipe") == 2
    traces = TRACE.findall(output)
    assert len(traces) == 2
    assert traces[1] == "reused"
    assert "curl -N http://127.0.0.1:8000/v1/messages" in output
    assert 'Anthropic(base_url="http://127.0.0.1:8000"' in output
    assert "sk-ant-operators-own" not in output
    assert not in_session(process.pid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(tmp_path: Path, number: int) -> None:
    port = free_port()
    process = started(tmp_path, "--serve", "--port", str(port))
    assert process.stdout is not None
    output = ""
    try:
        while "Serving until" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        curl = next(line for line in output.splitlines() if line.startswith("  curl"))
        assert f"http://127.0.0.1:{port}/" in curl
        told = subprocess.run(shlex.split(curl), capture_output=True, text=True, timeout=20)
        assert told.stdout.count("text_delta") == 12
        assert process.stdout.readline().startswith("POST /v1/messages  [status 200")
    finally:
        process.send_signal(number)  # to the demo alone: it has to end the others itself
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "Stopped." in rest
    until(lambda: not in_session(process.pid), 5, "the end of its processes")
    assert not answers(port)
    assert not list(tmp_path.iterdir())


def test_the_python_snippet_runs(tmp_path: Path) -> None:
    port = free_port()
    process = started(tmp_path, "--serve", "--port", str(port))
    try:
        until(lambda: answers(port), 30, "the demo")
        text = demo.to_copy(f"http://127.0.0.1:{port}").partition("  from anthropic")[2]
        snippet = "\n".join(line[2:] for line in ("  from anthropic" + text).splitlines())
        command = [sys.executable, "-W", "error", "-c", snippet]
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert told.stderr == ""
        assert told.stdout.endswith("turbine.")
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        result = CliRunner().invoke(main, ["demo", "--port", str(sock.getsockname()[1])])
    assert result.exit_code == 1
    assert "cannot be used" in result.output


def test_a_gateway_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own words are shown, and the simulator is ended."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1
    assert "the gateway ended with exit code" in result.output
    assert "wsgi" in result.output


def test_a_simulator_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(options: object) -> object:
        raise RuntimeError("no certificate")

    monkeypatch.setattr(demo, "running", fails)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1
    assert "the simulator did not come up: no certificate" in result.output


def test_a_trace_of_a_failed_exchange() -> None:
    row = {"status": 502, "attempts": [], "http_version": "", "upstream_head_ms": None, "gateway_ms": None}
    assert demo.trace(row | {"total_ms": 12.3}, "") == "[status 502 · tries 0 (none) · total 12 ms]"
