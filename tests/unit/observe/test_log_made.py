"""observe/log_made: the log that the settings ask for; none of their secrets in it; the keeper writes it out.

Runs on: the test's thread.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.assembly import Assembly
from app.exchange import Captured, Record
from app.observe.log_made import exchange_log, shows_headers
from app.settings import Settings, load

SECRETS = {
    "ANTHROPIC_API_KEY": "upstream-secret-1,upstream-secret-2",
    "GATEWAY_API_KEYS": "gateway-secret-3",
    "GATEWAY_ADMIN_KEY": "admin-secret-4-long-enough",
    "ALERT_WEBHOOK_URL": "https://hooks.example.com/secret-5",
    "REDIS_URL": "redis://:secret%2D6@localhost:6379/0",
}
SPELLED = [
    "upstream-secret-1",
    "upstream-secret-2",
    "gateway-secret-3",
    "admin-secret-4-long-enough",
    "https://hooks.example.com/secret-5",
    "secret%2D6",
    "secret-6",
]


def settings(**more: object) -> Settings:
    environ = {name: str(value) for name, value in more.items()}
    return load({"ANTHROPIC_UPSTREAM_URL": "https://127.0.0.1:9", **environ})


@pytest.mark.parametrize(
    ("folder", "level", "names", "headers"),
    [
        (True, "debug", {"performance.json", "requests.json"}, True),
        (True, "info", {"performance.json"}, False),
        (False, "debug", set(), False),
    ],
)
def test_files_and_headers_by_level(
    tmp_path: Path, folder: bool, level: str, names: set[str], headers: bool
) -> None:
    more = {"LOG_DIR": tmp_path / "logs"} if folder else {}
    found = settings(LOG_LEVEL=level, **more)
    assert shows_headers(found) is headers
    log = exchange_log(found)
    log.observe([Record("r", "messages", "POST", "/v1/messages", 200, "", captured=Captured())])
    log.look()
    log.close()
    assert {one.name for one in tmp_path.glob("logs/*")} == names


@pytest.mark.parametrize("secret", SPELLED)
def test_no_secret_of_the_settings_is_written(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = exchange_log(settings(ENABLE_REQUEST_BODY_LOGGING="true", **SECRETS))
    body = f'{{"text":"it is {secret}, they say"}}'.encode()
    log.observe(
        [Record("r", "m", "POST", "/", 200, "", request_bytes=len(body), captured=Captured(request_body=body))]
    )
    log.look()
    written = capsys.readouterr().out
    assert json.loads(written)["request_body"] == '{"text":"it is [redacted], they say"}'
    assert secret not in written


def test_the_keeper_writes_out_what_waits() -> None:
    """Last of its errands: what the others have to say goes with it."""
    assembly = Assembly(settings())
    assert assembly._pumps()[-1] == assembly.log.pump
    assert assembly.log.observe in assembly._observers()
