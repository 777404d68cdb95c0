"""The README, .env.example and the Procfile say what is true.

Pure.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.cli import markdown_table
from app.exchange import Attempt, Record
from app.observe.explained import explained
from app.observe.log_line import INFO, fields, lines, told
from app.observe.monitor import PerformanceMonitor
from app.settings import PROFILES, load, rows

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/penstock demo",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_quick_start_commands_stand_alone_on_a_line(command: str) -> None:
    assert command in README.splitlines()


def test_settings_table_is_the_one_penstock_prints() -> None:
    found = re.search(r"<!-- settings: .* -->\n(.*?)\n<!-- /settings -->", README, re.DOTALL)
    assert found
    assert found[1] == markdown_table(), "run `penstock settings --markdown` and paste it between the marks"


def test_the_json_example_loads(tmp_path: Path) -> None:
    found = re.search(r"```json\n(\{\n  \"providers\".*?)\n```", README, re.DOTALL)
    assert found
    path = tmp_path / "penstock.json"
    path.write_text(found[1])
    keys = {"ANTHROPIC_KEY_ONE": "sk-one", "ANTHROPIC_KEY_TWO": "sk-two"}
    settings = load({"PENSTOCK_CONFIG": str(path), **keys})
    assert [key.name for key in settings.anthropic_api_keys] == ["key-1", "batch"]
    assert json.loads(found[1])["config"]["initial_pool_size"] == settings.initial_pool_size


def _logged() -> dict[str, Any]:
    found = re.search(r"```json\n(\{\"request_id\".*?)\n```", README, re.DOTALL)
    assert found
    row: dict[str, Any] = json.loads(found[1])
    return row


def test_the_log_line_has_the_fields_that_are_logged() -> None:
    row = _logged()
    attempts = tuple(Attempt(**attempt) for attempt in row["attempts"])
    known = {name: value for name, value in row.items() if name in Record.__struct_fields__} | {
        "attempts": attempts
    }
    logged = json.loads(lines([told(Record(**known), INFO, row["time"])]))
    assert list(logged.items()) == list(row.items())
    failed = Record(**known)._replace(stream_error="overloaded_error")
    for name in re.findall(r"^\| (`[^|]+`) \| ", README.partition("| field | meaning |")[2], re.MULTILINE)[:12]:
        assert set(re.findall(r"`(\w+)`", name)) <= {*row, *fields(failed)}, name


def test_explain_prints_what_is_shown() -> None:
    found = re.search(r"```text\n\$ penstock explain (\S+)\n(.*?)\n```", README, re.DOTALL)
    assert found
    row = _logged()
    assert found[1] == row["request_id"]
    shown = [line for line in found[2].splitlines() if line and line != "  ..."]
    printed = [line for line in explained(row).splitlines() if line in shown]
    assert printed == shown


def test_the_windows_are_named_as_shown() -> None:
    (name,) = re.findall(r'get_current_metrics\(\)\["windows"\]\["(\w+)"\]', README)
    assert name in PerformanceMonitor().snapshot()["windows"]


def test_variables_named_in_the_prose_exist() -> None:
    prose = re.sub(r"<!-- settings:.*?<!-- /settings -->", "", README, flags=re.DOTALL)
    known = {name for row in rows() for name in row.env} | {"GUNICORN_CMD_ARGS", "PROMETHEUS_MULTIPROC_DIR"}
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", prose))
    assert named
    assert named <= known


def test_env_example_shows_each_profile() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^# ---- (\w+)[^\n]*\n(.*?)(?=^# ----|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(PROFILES)
    for name in ("development", "loadtest"):
        lines = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", sections[name], re.MULTILINE))
        assert load(lines).model_copy(update={"penstock_profile": name}) == load({"PENSTOCK_PROFILE": name})


def test_env_example_works_with_every_line_switched_on_in_production() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    production = text.split("# ---- development")[0]
    lines = dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", production, re.MULTILINE))
    settings = load(lines)
    assert len(settings.anthropic_api_keys) == 2
    assert settings.stream_heartbeat_s == 15


def test_procfile_starts_the_documented_server() -> None:
    line = (ROOT / "Procfile").read_text(encoding="utf-8").strip()
    assert line == "web: HOST=0.0.0.0 gunicorn wsgi:app"
    assert "gunicorn wsgi:app" in README
