"""The link without a Redis: what it may be made of, what it says of faults, how it waits. No sockets."""

from __future__ import annotations

import importlib
import ssl
import sys
from collections import deque
from pathlib import Path
from typing import Any

import certifi
import pytest
import redis as library

from app.errors import ConfigError
from app.store import redis
from app.store.facts import Fact

SECRET = "hunter-2-and-more"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted(redis.RedisLink):
    """Its round trips end as told."""

    def __init__(self, clock: Clock, events: list[dict[str, object]]) -> None:
        url = f"redis://:{SECRET}@127.0.0.1:1/0"
        super().__init__(url, "auto", None, deque(), lambda facts: None, events.append, clock=clock)
        self.ends: list[Exception | None] = []
        self.tries = 0

    def _exchange(self) -> Exception | None:
        self.tries += 1
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end
        return None


def link(url: str, verify: redis.Verify = "auto", ca_file: str | None = None) -> redis.RedisLink:
    return redis.RedisLink(url, verify, ca_file, deque(), lambda facts: None, lambda event: None)


def options(made: redis.RedisLink) -> dict[str, Any]:
    found: dict[str, Any] = made._own.connection_pool.connection_kwargs
    return found


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host",
        f"redis://:{SECRET}/x@host:6379",
        f"redis://:{SECRET}@host:port",
        f"rediss://:{SECRET}@host?ssl_cert_reqs={SECRET}",
        f"redis://host?db={SECRET}",
        f"rediss://host?ssl_verify={SECRET}",
        SECRET,
        "",
    ],
)
def test_a_url_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        link(url)
    assert "REDIS_URL" in caught.value.faults[0]
    error: BaseException | None = caught.value
    assert error is not None
    assert SECRET not in repr(error) + str(error)
    assert error.__suppress_context__, "its cause quotes the URL"


def test_what_the_url_cannot_change() -> None:
    made = link("redis://host/2?socket_timeout=60&protocol=3&decode_responses=true&retry_on_timeout=true&what=x")
    found = options(made)
    assert (found["host"], found["db"]) == ("host", 2)
    assert (found["socket_timeout"], found["socket_connect_timeout"], found["protocol"]) == (0.25, 0.25, 2)
    assert found["retry"]._retries == 0
    assert not {"decode_responses", "retry_on_timeout", "what"} & set(found)


@pytest.mark.parametrize("url", [f"rediss://user:{SECRET}@host:1234/0", f"redis://host:1234/0?password={SECRET}"])
def test_no_repr_holds_a_password(url: str) -> None:
    made = link(url)
    assert SECRET not in repr([made, vars(made)["_own"], vars(made)["_callers"], made._own.connection_pool])
    assert "host:1234" in repr(made)
    login = options(made)["credential_provider"].get_credentials()
    assert login[-1] == SECRET
    assert made._shown(ValueError(f"AUTH {SECRET}")) == "ValueError: AUTH [hidden]"


def test_a_password_is_hidden_as_written_and_as_meant() -> None:
    made = link("redis://:two%2Fparts@host")
    assert made._shown(ValueError("two%2Fparts two/parts")) == "ValueError: [hidden] [hidden]"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "app.store.redis")
    with pytest.raises(ConfigError, match=r"pip install 'penstock\[redis\]'"):
        importlib.import_module("app.store.redis")


def test_it_waits_longer_between_tries_up_to_a_second() -> None:
    clock, events = Clock(), list[dict[str, object]]()
    made = Scripted(clock, events)
    made.ends = [library.ConnectionError("gone")] * 100
    waits = []
    for _ in range(6):
        made.pump()
        began, tries = clock.now, made.tries
        while made.tries == tries:
            clock.now += 0.01
            made.pump()
        waits.append(round(clock.now - began, 2))
    assert waits == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0, 1.0], abs=0.02)
    assert [event["event"] for event in events] == ["shared_state_degraded"]


def test_a_used_connection_that_fails_is_followed_by_a_new_one() -> None:
    clock, events = Clock(), list[dict[str, object]]()
    made = Scripted(clock, events)
    made.pump()
    made.ends = [library.ConnectionError("closed")]
    made.pump()
    assert (made.tries, made.degraded, events) == (3, "", [])
    made.ends = [library.ConnectionError("closed"), library.TimeoutError("slow")]
    made.pump()
    assert (made.tries, made.degraded) == (5, "redis_timeout")


def test_recovery_is_said_once_with_its_length_and_another_reason_at_once() -> None:
    clock, events = Clock(), list[dict[str, object]]()
    made = Scripted(clock, events)
    made.pump()
    assert (made.degraded, events) == ("", []), "the start is no recovery"
    made.ends = [
        library.ConnectionError("gone"),
        library.ConnectionError("gone"),
        library.AuthenticationError("x"),
    ]
    made.pump()
    for _ in range(3):
        clock.now += 1.25
        made.pump()
    assert [(event["event"], event.get("reason", event.get("after_s"))) for event in events] == [
        ("shared_state_degraded", "redis_unreachable"),
        ("shared_state_degraded", "redis_login"),
        ("shared_state_recovered", 2.5),
    ]


def test_no_error_shows_the_password() -> None:
    clock, events = Clock(), list[dict[str, object]]()
    made = Scripted(clock, events)
    made.ends = [library.ResponseError(f"unknown command AUTH {SECRET}")]
    made.pump()
    assert events[0]["error"] == "ResponseError: unknown command AUTH [hidden]"


def _caused(outer: Exception, inner: Exception) -> Exception:
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (library.ConnectionError("refused"), "redis_unreachable"),
        (ConnectionResetError(), "redis_unreachable"),
        (UnicodeError("label too long"), "redis_unreachable"),
        (library.BusyLoadingError(), "redis_unreachable"),
        (library.TimeoutError(), "redis_timeout"),
        (TimeoutError(), "redis_timeout"),
        (library.AuthenticationError(), "redis_login"),
        (library.exceptions.NoPermissionError(), "redis_login"),
        (library.ResponseError(), "redis_refused"),
        (_caused(library.ConnectionError(), ssl.SSLCertVerificationError()), "redis_certificate"),
    ],
)
def test_reasons_are_few(error: Exception, reason: str) -> None:
    clock, events = Clock(), list[dict[str, object]]()
    made = Scripted(clock, events)
    made.ends = [error]
    made.pump()
    assert made.degraded == events[0]["reason"] == reason


def test_a_fault_of_our_own_is_not_hidden() -> None:
    made = Scripted(Clock(), [])
    made.ends = [AttributeError("a bug")]
    with pytest.raises(AttributeError):
        made.pump()


def test_nothing_to_hand_out_before_the_first_answer_and_after_the_end() -> None:
    made = Scripted(Clock(), [])
    assert (made.degraded, made.client()) == ("redis_starting", None)
    made.pump()
    assert made.client() is not None
    made.close()
    made.pump()
    assert (made.tries, made.client()) == (1, None)


def test_what_waits_is_merged_and_dropped_when_it_ran_out() -> None:
    clock = Clock()
    made = Scripted(clock, [])
    made.ends = [library.ConnectionError()] * 9
    said = [
        Fact("cooling", "p", "a", 101.0),
        Fact("benched", "p", "b", 200.0),
        Fact("open", "p", "c", 300.0),
        Fact("closed", "p", "c", 0.0),
    ]
    made._outbox.extend(said)
    made.pump()
    clock.now = 102.0
    made.pump()
    assert made._pending == [said[1], said[3]]


def test_certificates_by_setting(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("a certificate")
    assert "ssl_cert_reqs" not in options(link("redis://host", "true"))
    strict = options(link("rediss://host", "true", str(ca)))
    assert (strict["ssl_cert_reqs"], strict["ssl_check_hostname"]) == ("required", True)
    assert strict["ssl_ca_data"] == "a certificate"
    for loose in (link("rediss://host", "false"), link("rediss://host?ssl_cert_reqs=CERT_NONE")):
        found = options(loose)
        assert (found["ssl_cert_reqs"], found["ssl_check_hostname"]) == ("none", False), "redis-py 6 refuses True"
    own = options(link("rediss://host?ssl_ca_certs=/own.pem&ssl_check_hostname=false", "auto"))
    assert (own["ssl_ca_certs"], own["ssl_check_hostname"]) == ("/own.pem", False)


@pytest.mark.parametrize(
    ("file", "folder", "found"),
    [
        (True, True, "ssl_ca_certs"),
        (False, True, "ssl_ca_path"),
        (False, False, certifi.where()),
    ],
)
def test_the_systems_authorities_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bool, folder: bool, found: str
) -> None:
    """Also where SSL_CERT_FILE in the environment makes OpenSSL forget them."""
    paths = ssl.get_default_verify_paths()
    place = tmp_path / "certs"
    place.mkdir()
    (tmp_path / "cert.pem").write_text("x" if file else "")
    if folder:
        (place / "one.0").touch()
    made = paths._replace(openssl_cafile=str(tmp_path / "cert.pem"), openssl_capath=str(place))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: made)
    given = options(link("rediss://host"))
    assert found in (*given, given.get("ssl_ca_certs"))
    assert not {"ssl_ca_certs", "ssl_ca_path"} <= set(given)
