from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from app.bench.peers_scripts import KEY, PEERS, SCRIPTS, headers
from app.simulator.running import Running

SHELL = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.bash")])


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_peer_has_a_script_and_every_script_a_peer() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.sh")} == set(PEERS)


@pytest.mark.parametrize("name", PEERS)
def test_a_script_says_how_it_is_called_and_stops_at_a_fault(name: str) -> None:
    path = SCRIPTS / f"{name}.sh"
    text = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert f"{name}.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE" in text
    assert "\nset -euo pipefail\n" in text
    assert "exec " in text, "its process has to become the server, or its pid is not the server's"


@pytest.mark.parametrize("path", [*SHELL, *sorted(SCRIPTS.glob("*.py"))], ids=lambda path: path.name)
def test_peers_listen_on_this_host_only_and_are_not_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "0.0.0.0" not in text
    assert not re.search(r"^(from|import) app\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", PEERS)
def test_a_wrong_verb_is_refused(name: str) -> None:
    done = subprocess.run([SCRIPTS / f"{name}.sh", "dance", "folder"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "setup, version or run, not dance" in done.stderr


@pytest.mark.parametrize("name", [name for name in PEERS if name in ("starlette", "flask", "litellm")])
def test_what_is_installed_has_a_bound(name: str) -> None:
    text = (SCRIPTS / f"{name}.sh").read_text(encoding="utf-8")
    (line,) = re.findall(r'^  make_venv "\$dir" (.+)$', text, re.MULTILINE)
    pins = re.findall(r"'([^']*)'", line)
    assert all(re.fullmatch(r"[a-z\[\]0-9-]+>=[0-9.]+,<[0-9.]+", pin) for pin in pins)


def test_what_callers_send() -> None:
    upstream = Running("http://127.0.0.1:1", "https://localhost:2", "ca.pem", 1)
    assert headers("litellm", upstream) == {"x-api-key": KEY}
    found = headers("portkey", upstream)
    assert (found["x-portkey-provider"], found["x-portkey-custom-host"]) == ("anthropic", "https://localhost:2/v1")
