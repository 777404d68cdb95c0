"""The ``explain`` command: where it looks, what it says, what it exits with.

Runs on: start-up.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app import explain
from app.cli import main
from app.exchange import Record
from app.observe.log_line import fields, line

ID = "req-0123456789abcdef"
KEY = "admin-key-of-these-tests"
Asked = list[tuple[str, str, str]]
Run = Callable[..., Result]


def told(request_id: str = ID, **more: Any) -> dict[str, Any]:
    found = fields(Record(request_id, "messages", "POST", "/v1/messages", 200, ""))
    return {**found, "event": "exchange", "time": "2026-11-21T09:30:00.123456Z", **more}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Nobody is asked but for the record; nothing of the surrounding environment."""
    noted: Asked = []

    def ask(url: str, key: str, request_id: str) -> dict[str, Any]:
        noted.append((url, key, request_id))
        rows = [told(worker=7)] if request_id == ID else []
        return {"records": rows, "workers_asked": 2, "workers_answered": 2}

    monkeypatch.setattr(explain, "asked", ask)
    for name in ("GATEWAY_ADMIN_KEY", "LOG_DIR", "PORT", "PENSTOCK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return noted


@pytest.fixture
def run() -> Run:
    """The command, as it is called."""

    def call(*arguments: str, stdin: bytes = b"", **environ: str) -> Result:
        return CliRunner().invoke(main, ["explain", *arguments], input=stdin, env=environ)

    return call


def test_a_log_file_and_what_was_rotated(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "performance.json"
    path.write_bytes(line(told("id-now", status=201)))
    (tmp_path / "performance.json.1").write_bytes(line(told("id-one", status=202)))
    with gzip.open(tmp_path / "performance.json.12.gz", "wb") as packed:
        packed.write(line(told("id-old", status=203)))
    for name in ("performance.json.lock", "performance.json.x1", "performance.jsonl", "performance.json.1.bak"):
        (tmp_path / name).write_bytes(line(told("id-strange")))
    for request_id, status in (("id-now", 201), ("id-one", 202), ("id-old", 203)):
        found = run(request_id, "--log", str(path))
        assert (found.exit_code, found.stdout.splitlines()[0]) == (0, f"POST /v1/messages: {status}")
    lost = run("id-strange", "--log", str(path))
    assert (lost.exit_code, lost.stdout) == (1, "")
    places = "; ".join(str(tmp_path / name) for name in ("performance.json", "performance.json.1"))
    assert f"No exchange with the id id-strange was found. Looked in: {places}; " in lost.stderr


def test_a_directory_has_the_files_that_tell_of_exchanges(run: Run, tmp_path: Path) -> None:
    (tmp_path / "requests.json").write_bytes(line(told("id-a", request_headers={"x": "y"})))
    (tmp_path / "requests.json.1").write_bytes(line(told("id-b")))
    (tmp_path / "performance.json").write_bytes(line(told("id-a")))
    (tmp_path / "other.json").write_bytes(line(told("id-c")))
    assert [run(name, "--log", str(tmp_path)).exit_code for name in ("id-a", "id-b", "id-c")] == [0, 0, 1]
    shown = run("id-a", "--log", str(tmp_path), "--json").stdout
    assert json.loads(shown)["request_headers"] == {"x": "y"}


def test_standard_input_as_a_platform_prints_it(run: Run, asked: Asked) -> None:
    lines = b"starting up\n2026-11-21T09:30:00+00:00 app[web.1]: " + line(told())
    assert run(ID, "--log", "-", stdin=lines).exit_code == 0
    lost = run(ID, "--log", "-", stdin=b"nothing\n")
    assert (lost.exit_code, lost.stderr) == (
        1,
        f"No exchange with the id {ID} was found. Looked in: standard input.\n",
    )
    assert asked == []


def test_several_exchanges_of_one_id(run: Run) -> None:
    lines = line(told(status=500)) + line(told(status=200, time="2026-11-21T09:31:00.000000Z"))
    shown = run(ID, "--log", "-", stdin=lines).stdout
    assert shown.startswith(f"2 exchanges have the id {ID}, the newest first.\n\nPOST /v1/messages: 200\n")
    assert "\n\n\nPOST /v1/messages: 500\n" in shown
    rows = run(ID, "--log", "-", "--json", stdin=lines).stdout.splitlines()
    assert [json.loads(row)["status"] for row in rows] == [200, 500]


def test_the_workers_are_asked_with_the_key_of_the_environment(run: Run, asked: Asked) -> None:
    found = run(ID, GATEWAY_ADMIN_KEY=KEY, PORT="9123")
    assert (found.exit_code, found.stderr) == (0, "")
    assert "  worker         7\n" in found.stdout
    assert run(ID, "--url", "https://gateway.example/llm/", GATEWAY_ADMIN_KEY=KEY).exit_code == 0
    assert asked == [("http://127.0.0.1:9123", KEY, ID), ("https://gateway.example/llm", KEY, ID)]
    lost = run("id-lost", GATEWAY_ADMIN_KEY=KEY)
    assert lost.exit_code == 1
    assert "Looked in: http://127.0.0.1:" in lost.stderr and " (2 of 2 workers answered)." in lost.stderr


def test_without_a_key_nobody_can_be_asked(run: Run, asked: Asked) -> None:
    for arguments in ([ID], [ID, "--url", "http://127.0.0.1:1"]):
        found = run(*arguments)
        assert (found.exit_code, found.stdout) == (2, "")
        assert found.stderr.startswith(
            "GATEWAY_ADMIN_KEY is not set here, so the workers cannot be asked. Set it, or"
        )
    assert asked == []


def test_log_dir_is_looked_at_too(run: Run, tmp_path: Path, asked: Asked) -> None:
    (tmp_path / "performance.json").write_bytes(line(told("id-old")))
    assert run("id-old", LOG_DIR=str(tmp_path)).exit_code == 0
    assert run("id-lost", LOG_DIR=str(tmp_path)).exit_code == 1
    assert asked == []
    assert run("id-old", LOG_DIR=str(tmp_path), GATEWAY_ADMIN_KEY=KEY).exit_code == 0
    assert (
        run("id-old", "--url", "http://127.0.0.1:1", LOG_DIR=str(tmp_path), GATEWAY_ADMIN_KEY=KEY).exit_code == 1
    )
    both = run(ID, "--log", str(tmp_path), "--url", "http://127.0.0.1:1", GATEWAY_ADMIN_KEY=KEY)
    assert both.exit_code == 0


def test_a_port_that_is_not_known_has_to_be_named(run: Run, asked: Asked) -> None:
    found = run(ID, GATEWAY_ADMIN_KEY=KEY, PORT="0")
    assert (found.exit_code, asked) == (2, [])
    assert "--url" in found.stderr


def test_a_key_in_plain_text_is_warned_of(run: Run) -> None:
    for url, warns in (
        ("http://10.0.0.1:80", True),
        ("https://10.0.0.1", False),
        ("http://127.0.0.1:1", False),
        ("http://[::1]:1", False),
    ):
        assert ("in plain text" in run(ID, "--url", url, GATEWAY_ADMIN_KEY=KEY).stderr) == warns


def test_who_did_not_answer_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {"workers_asked": 3, "workers_answered": 2}
    monkeypatch.setattr(explain, "asked", lambda *_: {"records": [told()], **some})
    found = run(ID, GATEWAY_ADMIN_KEY=KEY)
    assert (found.exit_code, found.stdout[:4]) == (0, "POST")
    assert "only 2 of 3 workers answered." in found.stderr
    monkeypatch.setattr(explain, "asked", lambda *_: {"message": "None is kept."})
    assert "(None is kept.)" in run(ID, GATEWAY_ADMIN_KEY=KEY).stderr


def test_a_place_that_cannot_be_looked_at(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "x.json.gz"
    broken.write_bytes(b"no gzip")
    found = run(ID, "--log", str(broken))
    assert (found.exit_code, f"{broken} cannot be read: " in found.stderr) == (2, True)
    good = gzip.compress(line(told()) * 1000)
    broken.write_bytes(good[: len(good) // 2])
    assert "cannot be read: Compressed file ended" in run("id-lost", "--log", str(broken)).stderr
    assert run(ID, "--log", str(tmp_path / "missing")).exit_code == 2

    def refuse(*_: object) -> dict[str, Any]:
        raise explain.Unseen("It refuses.")

    monkeypatch.setattr(explain, "asked", refuse)
    found = run(ID, GATEWAY_ADMIN_KEY=KEY)
    assert (found.exit_code, found.stderr.splitlines()[0]) == (2, "It refuses.")
    found = run(ID, "--url", "http://127.0.0.1:1", "--log", "-", stdin=line(told()), GATEWAY_ADMIN_KEY=KEY)
    assert (found.exit_code, found.stderr) == (0, "It refuses.\n")


@pytest.mark.parametrize("hostile", ["../../etc/passwd", "a b", "x" * 10_000, "é", "a\nb", "", "%2e"])
def test_what_is_no_id_is_refused(run: Run, hostile: str, asked: Asked) -> None:
    found = run(hostile, GATEWAY_ADMIN_KEY=KEY)
    assert (found.exit_code, asked) == (2, [])
    assert "1 to 200 characters" in found.stderr


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://x",
        "127.0.0.1:8000",
        "http://",
        "http://user:secret@host",
        "http://host:99999",
        "http://host:0",
        "http://host/?a=b",
        "http://host/#x",
        "http://ho\nst",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused(run: Run, url: str, asked: Asked) -> None:
    found = run(ID, "--url", url, GATEWAY_ADMIN_KEY=KEY)
    assert (found.exit_code, asked) == (2, [])
    assert "Invalid value for '--url'" in found.stderr


def test_faulty_settings_are_told_like_everywhere(run: Run) -> None:
    found = run(ID, PORT="no-port")
    assert (found.exit_code, "PORT" in found.stderr) == (2, True)
