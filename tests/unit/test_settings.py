"""Settings: sources and their order, every fault at once, secrets never shown, no ssl on import.

Pure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.errors import ConfigError
from app.settings import (
    PROFILES,
    GatewayKey,
    ProviderSettings,
    Settings,
    UpstreamKey,
    _Sources,
    environment,
    load,
    rows,
)
from app.settings_fields import redacted
from app.settings_rules import is_loopback, open_to_strangers, unknown_names

# behaviour.md section 1 and the build brief: name -> default as written there.
DEFAULTS = {
    "HOST": "127.0.0.1",
    "PORT": 8000,
    "WORKER_CONNECTIONS": 1000,
    "THREADS": 32,
    "PUBLIC_URL": None,
    "ANTHROPIC_UPSTREAM_URL": "https://api.anthropic.com",
    "ANTHROPIC_API_KEYS": (),
    "GATEWAY_API_KEYS": (),
    "GATEWAY_ALLOW_ANONYMOUS": False,
    "ALLOW_PLAINTEXT_UPSTREAM": False,
    "ANTHROPIC_VERSION": "2023-06-01",
    "SSL_CERT_FILE": None,
    "UPSTREAM_TRANSPORT": "auto",
    "ANTHROPIC_MAX_CONNECTIONS": 200,
    "ANTHROPIC_MAX_KEEPALIVE": 100,
    "ANTHROPIC_KEEPALIVE_EXPIRY": 30.0,
    "ANTHROPIC_STREAMS_PER_CONNECTION": 100,
    "HTTP_POOL_CONNECTIONS": 20,
    "HTTP_POOL_MAXSIZE": 100,
    "HTTP_KEEPALIVE_CONNECTIONS": 15,
    "ANTHROPIC_CHUNK_SIZE": 8192,
    "ROUTER_THREAD_POOL_SIZE": 4,
    "SWITCH_INTERVAL_MS": 5.0,
    "PRODUCTION_ENABLE_HTTP2": True,
    "PRODUCTION_WARMUP_CONNECTIONS": True,
    "INITIAL_POOL_SIZE": 0,
    "CONNECT_TIMEOUT": 5.0,
    "REQUEST_TIMEOUT": 600.0,
    "STREAM_TIMEOUT": 300.0,
    "WRITE_TIMEOUT": 15.0,
    "POOL_TIMEOUT": 2.0,
    "BODY_TIMEOUT": 30.0,
    "DRAIN_TIMEOUT": 22.0,
    "STREAM_HEARTBEAT": 0.0,
    "STREAM_HEARTBEAT_KIND": "comment",
    "MAX_BODY_BYTES": 32 * 1024 * 1024,
    "MAX_FILE_BYTES": 500 * 1024 * 1024,
    "REWRITE_RESULTS_URL": False,
    "ANTHROPIC_CONCURRENCY": 1000,
    "ANTHROPIC_BUFFER_SIZE": 5000,
    "DROP_EXCESS_REQUESTS": False,
    "RETRY_MAX_ATTEMPTS": 3,
    "RETRY_429_INTERVAL": 1.0,
    "RETRY_BACKOFF_MAX": 12.0,
    "RETRY_BUDGET_RATIO": 0.1,
    "RETRY_BUDGET_FLOOR": 10,
    "BREAKER_WINDOW": 10.0,
    "BREAKER_MIN_CALLS": 30,
    "BREAKER_FAILURE_RATE": 0.5,
    "BREAKER_OPEN": 5.0,
    "ANTHROPIC_FALLBACKS": (),
    "GATEWAY_REQUESTS_PER_MINUTE": 0,
    "GATEWAY_CONCURRENT_REQUESTS": 0,
    "GATEWAY_TOKENS_PER_DAY": 0,
    "REDIS_URL": None,
    "REDIS_TLS_VERIFY": "auto",
    "UPSTREAM_PING_INTERVAL": 15,
    "UPSTREAM_PING_TIMEOUT": 10,
    "METRICS_MODELS": 50,
    "SERVER_TIMING": True,
    "ENABLE_USAGE": True,
    "PENSTOCK_PRICES": None,
    "GATEWAY_ADMIN_KEY": None,
    "RECENT_RECORDS": 1000,
    "LOG_DIR": None,
    "LOG_FILE_MAX_BYTES": 52_428_800,
    "LOG_FILES_KEPT": 5,
    "BODY_LOG_BYTES": 8192,
    "ENABLE_PERFORMANCE_MONITOR": True,
    "ALERT_P95_LATENCY_MS": 500,
    "ALERT_P99_LATENCY_MS": 1000,
    "ALERT_ERROR_RATE": 0.05,
    "ALERT_MEMORY_GROWTH_MB": 50,
    "ALERT_REQUESTS_PER_SECOND_MIN": 1,
    "ALERT_WEBHOOK_URL": None,
    "ENABLE_OTEL": False,
    "ENABLE_METRICS_ENDPOINT": True,
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "json",
    "DEBUG": False,
    "ENABLE_REQUEST_BODY_LOGGING": False,
    "ENABLE_RESPONSE_BODY_LOGGING": False,
    "PENSTOCK_PROFILE": "production",
    "PENSTOCK_CONFIG": None,
}
RANGES = [
    ("PORT", "0", "65535", "-1", "65536"),
    ("WEB_CONCURRENCY", "1", "512", "0", "513"),
    ("ANTHROPIC_CHUNK_SIZE", "4096", "65536", "4095", "65537"),
    ("ANTHROPIC_STREAMS_PER_CONNECTION", "1", "1000", "0", "1001"),
    ("STREAM_HEARTBEAT", "1", "60", "0.5", "60.1"),
    ("SWITCH_INTERVAL_MS", "0.05", "100", "0.04", "100.1"),
    ("ROUTER_THREAD_POOL_SIZE", "1", "64", "0", "65"),
    ("RETRY_MAX_ATTEMPTS", "1", "10", "0", "11"),
    ("RETRY_BUDGET_RATIO", "0", "1", "-0.1", "1.1"),
    ("RETRY_BUDGET_FLOOR", "0", "10000", "-1", "10001"),
    ("BREAKER_WINDOW", "1", "600", "0.9", "601"),
    ("BREAKER_MIN_CALLS", "1", "1000000", "0", "1000001"),
    ("BREAKER_FAILURE_RATE", "0.01", "1", "0", "1.01"),
    ("BREAKER_OPEN", "0.1", "600", "0", "nan"),
    ("GATEWAY_REQUESTS_PER_MINUTE", "0", "1000000", "-1", "1000001"),
    ("GATEWAY_CONCURRENT_REQUESTS", "0", "1000000", "-1", "1000001"),
    ("GATEWAY_TOKENS_PER_DAY", "0", "1000000000000", "-1", "1000000000001"),
    ("INITIAL_POOL_SIZE", "0", "1000000", "-1", "1000001"),
    ("REDIS_TLS_VERIFY", "auto", "false", "maybe", "1"),
    ("CONNECT_TIMEOUT", "0.1", "120", "nan", "inf"),
    ("LOG_LEVEL", "debug", "error", "loud", "INFO!"),
    ("DEBUG", "1", "off", "maybe", "2"),
    ("ANTHROPIC_VERSION", "2023-06-01", "2030-01-01", "latest", "2023-6-1"),
    ("HOST", "::1", "localhost", "a b", "http://x"),
]


def _faults(environ: Mapping[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    return caught.value.faults


def _file(tmp_path: Path, content: object) -> dict[str, str]:
    path = tmp_path / "penstock.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return {"PENSTOCK_CONFIG": str(path)}


def test_defaults_are_the_documented_ones() -> None:
    settings = load({})
    named = {row.env[0]: getattr(settings, row.attribute) for row in rows()}
    assert named.pop("WEB_CONCURRENCY") >= 1
    assert named == DEFAULTS


def test_every_setting_is_described() -> None:
    for row in rows():
        assert row.help.endswith("."), row
        assert row.allowed, row
        for suffix, unit in (("_s", "s"), ("_bytes", "bytes")):
            assert row.attribute.endswith(suffix) == (row.unit == unit), f"{row.attribute} and unit {row.unit!r}"


@pytest.mark.parametrize(("name", "low", "high", "under", "over"), RANGES)
def test_ranges_include_their_ends_and_nothing_beyond(
    name: str, low: str, high: str, under: str, over: str
) -> None:
    for fine in (low, high):
        load({name: fine})
    for wrong in (under, over):
        (fault,) = _faults({name: wrong})
        assert fault.startswith(f"{name}={wrong}: allowed is ")


def test_importing_settings_leaves_ssl_to_gevent() -> None:
    code = (
        "import sys, app.settings; print([m for m in ('ssl', 'httpx', 'gevent', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_environment_wins_over_file_over_profile_over_default(tmp_path: Path) -> None:
    environ = {"PENSTOCK_PROFILE": "loadtest", "WEB_CONCURRENCY": "1"}
    assert load(environ).anthropic_concurrency == PROFILES["loadtest"]["anthropic_concurrency"] == 10_000
    assert load(environ).retry_max_attempts == 1
    limits = {"concurrency_and_buffer_size": {"concurrency": 7, "buffer_size": 70}}
    environ |= _file(tmp_path, {"providers": {"anthropic": limits}})
    assert load(environ).anthropic_concurrency == 7
    assert load(environ).retry_max_attempts == 1
    assert load(environ | {"ANTHROPIC_CONCURRENCY": "9"}).anthropic_concurrency == 9
    assert load(environ | {"ANTHROPIC_CONCURRENCY": "9"}).anthropic_buffer_size == 70


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_known_settings_in_range(profile: str) -> None:
    settings = load({"PENSTOCK_PROFILE": profile})
    assert settings.penstock_profile == profile
    for name, value in PROFILES[profile].items():
        assert getattr(settings, name) == value


def test_empty_is_unset_and_spaces_are_trimmed() -> None:
    assert load({"PORT": "", "THREADS": "  ", "REQUEST_TIMEOUT": " 7 "}).request_timeout_s == 7
    assert load({"PORT": ""}).port == 8000


def test_process_environment_is_the_default_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUEST_TIMEOUT", "77")
    assert load().request_timeout_s == 77
    assert environment()["REQUEST_TIMEOUT"] == "77"


def test_keys_merge_in_order_without_duplicates() -> None:
    settings = load({"ANTHROPIC_API_KEY": "two", "ANTHROPIC_API_KEYS": "one, two,,three,one"})
    assert [key.get_secret_value() for key in settings.anthropic_api_keys] == ["one", "two", "three"]
    assert [key.name for key in settings.anthropic_api_keys] == ["key-1", "key-2", "key-3"]
    assert [key.get_secret_value() for key in load({"GATEWAY_API_KEYS": "a,b,a"}).gateway_api_keys] == ["a", "b"]


def test_secrets_show_nowhere() -> None:
    settings = load({"ANTHROPIC_API_KEY": "hush-upstream", "GATEWAY_API_KEYS": "hush-a,hush-b"})
    shown = repr(settings) + str(settings) + json.dumps(settings.public()) + settings.model_dump_json()
    assert "hush" not in shown
    assert settings.public()["gateway_api_keys"] == "2 set"
    assert settings.public()["port"] == 8000


def test_public_is_json_with_fallbacks_and_a_hidden_redis(tmp_path: Path) -> None:
    content = {
        "providers": {"eu": {"keys": ["hush-eu"], "network_config": {"base_url": "https://eu.example.com"}}}
    }
    environ = {
        "ANTHROPIC_API_KEY": "hush",
        "ANTHROPIC_FALLBACKS": "eu",
        "REDIS_URL": "redis://:hush@127.0.0.1:1/0",
    }
    settings = load(_file(tmp_path, content) | environ)
    public = json.loads(json.dumps(settings.public()))
    assert "hush" not in json.dumps(public) + repr(settings) + settings.model_dump_json()
    assert public["redis_url"] == "[hidden]"
    assert public["anthropic_fallbacks"] == ["eu"]
    assert public["providers"] == [
        {
            "name": "eu",
            "upstream_url": "https://eu.example.com",
            "api_keys": "1 set",
            "concurrency": 1000,
            "buffer_size": 5000,
            "fallbacks": [],
        }
    ]
    assert load({}).public()["redis_url"] is None


def test_gateway_keys_of_the_environment_have_names_and_the_default_limits() -> None:
    keys = load({"GATEWAY_API_KEYS": "a,b"}).gateway_api_keys
    assert keys == (GatewayKey(value=SecretStr("a"), name="key-1"), GatewayKey(value=SecretStr("b"), name="key-2"))
    assert (keys[0].requests_per_minute, keys[0].concurrent_requests, keys[0].tokens_per_day) == (None, None, None)
    assert not load({}).gateway_api_keys


def test_keys_of_any_other_type_are_refused() -> None:
    with pytest.raises(ValueError, match="valid tuple"):
        Settings.model_validate({"anthropic_api_keys": 5})


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1
    with pytest.raises(ValueError, match="Extra inputs"):
        Settings(prot=1)  # type: ignore[call-arg]
    keys = (UpstreamKey(value=SecretStr("b")),)
    assert Settings(port=0, anthropic_api_keys=keys).anthropic_api_keys[0].get_secret_value() == "b"


def test_all_faults_at_once(tmp_path: Path) -> None:
    environ = {
        "PORT": "99999",
        "CONNECT_TIMEOUT": "soon",
        "ANTHROPIC_APY_KEY": "sk-ant-hush",
        "PENSTOCK_PROFIL": "x",
        "ANTHROPIC_UPSTREAM_URL": "http://user:hush@example.com",
        "HOST": "0.0.0.0",
        "ANTHROPIC_API_KEYS": "hush 1",
        "SSL_CERT_FILE": str(tmp_path / "none.pem"),
        "ANTHROPIC_BUFFER_SIZE": "5",
    } | _file(tmp_path, {"confg": {}})
    faults = _faults(environ)
    starts = [fault.split("=")[0].split(":")[0] for fault in faults]
    assert starts == [
        "PENSTOCK_CONFIG confg",
        "ANTHROPIC_APY_KEY",
        "PENSTOCK_PROFIL",
        "PORT",
        "CONNECT_TIMEOUT",
        "ANTHROPIC_UPSTREAM_URL",
        "ANTHROPIC_UPSTREAM_URL",
        "SSL_CERT_FILE",
        "ANTHROPIC_API_KEYS",
        "ANTHROPIC_BUFFER_SIZE",
        "HOST",
    ]
    assert "hush" not in "".join(faults)
    assert "did you mean config?" in faults[0]
    assert "did you mean ANTHROPIC_API_KEY?" in faults[1]
    assert "did you mean PENSTOCK_PROFILE?" in faults[2]
    assert faults[3] == "PORT=99999: allowed is 0 to 65535."


@pytest.mark.parametrize(
    "name",
    [
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_MODEL",
        "ANTHROPIC_SMALL_FAST_MODEL",
        "ANTHROPIC_CUSTOM_HEADERS",
        "ANTHROPIC_LOG",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "PENSTOCK_SERVICE_HOST",
        "PENSTOCK_SERVICE_PORT_HTTP",
        "PENSTOCK_PORT",
        "BREAKER_SERVICE_HOST",
        "REDIS_TLS_URL",
        "REDIS_HOST",
        "REDIS_SERVICE_HOST",
        "REDIS_PORT_6379_TCP",
        "GATEWAY_PORT_80_TCP_ADDR",
        "PATH",
        "CONECT_TIMEOUT",
    ],
)
def test_names_of_others_are_none_of_our_business(name: str) -> None:
    load({name: "x"})


@pytest.mark.parametrize(
    "name",
    ["PENSTOCK_X", "GATEWAY_X", "ROUTER_X", "PRODUCTION_X", "STREAM_X", "RETRY_X", "BREAKER_X", "UPSTREAM_X",
     "HTTP_POOL_X", "HTTP_KEEPALIVE_X", "ANTHROPIC_X"],
)  # fmt: skip
def test_unknown_names_of_ours_are_faults(name: str) -> None:
    (fault,) = _faults({name: "1"})
    assert fault.startswith(f"{name}=1: unknown setting; ")


def test_unknown_name_without_a_near_one_points_to_the_list() -> None:
    (fault,) = unknown_names({"PENSTOCK_QQQQQQ": "1"}, ["PORT"])
    assert "penstock settings" in fault


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("ftp://example.com", "http:// or https://"),
        ("https://", "with a host"),
        ("https://exa mple.com", "with a host"),
        ("https://example.com:99999", "with a host"),
        ("https://example.com:0", "with a host"),
        ("https://exämple.com", "with a host"),
        ("https://example.com\\@evil", "with a host"),
        ("https://key@example.com", "credentials belong in"),
        ("https://example.com/?a=1", "query or fragment"),
        ("https://example.com/#a", "query or fragment"),
        ("http://example.com", "ALLOW_PLAINTEXT_UPSTREAM=true"),
    ],
)
def test_upstream_urls_that_are_refused(url: str, complaint: str) -> None:
    (fault,) = _faults({"ANTHROPIC_UPSTREAM_URL": url})
    assert complaint in fault


def test_upstream_urls_that_are_taken() -> None:
    taken = {
        "https://example.com/": "https://example.com",
        "https://example.com:8443/base/": "https://example.com:8443/base",
        "http://127.0.0.1:9": "http://127.0.0.1:9",
        "http://[::1]:9": "http://[::1]:9",
        "http://localhost:9": "http://localhost:9",
    }
    for url, kept in taken.items():
        assert load({"ANTHROPIC_UPSTREAM_URL": url}).anthropic_upstream_url == kept
    plain = {"ANTHROPIC_UPSTREAM_URL": "http://example.com", "ALLOW_PLAINTEXT_UPSTREAM": "true"}
    assert load(plain).anthropic_upstream_url == "http://example.com"


def test_public_url_is_checked_too() -> None:
    (fault,) = _faults({"PUBLIC_URL": "llm.example.com"})
    assert fault.startswith("PUBLIC_URL=llm.example.com: ")
    assert load({"PUBLIC_URL": "http://llm.example.com/"}).public_url == "http://llm.example.com"


def test_certificate_files(tmp_path: Path) -> None:
    empty, good = tmp_path / "empty.pem", tmp_path / "ca.pem"
    empty.write_text("-----BEGIN PRIVATE KEY-----")
    good.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    assert load({"SSL_CERT_FILE": str(good)}).ssl_cert_file == str(good)
    assert "holds no certificate" in _faults({"SSL_CERT_FILE": str(empty)})[0]
    assert "No such file" in _faults({"SSL_CERT_FILE": str(tmp_path / "none")})[0]
    assert "directory" in _faults({"SSL_CERT_FILE": str(tmp_path)})[0]


def test_credentials_are_not_open_to_strangers() -> None:
    exposed = {"HOST": "0.0.0.0", "ANTHROPIC_API_KEY": "k"}
    (fault,) = _faults(exposed)
    assert "GATEWAY_ALLOW_ANONYMOUS=true" in fault
    load({"HOST": "0.0.0.0"})
    load(exposed | {"HOST": "127.0.0.1"})
    load(exposed | {"GATEWAY_API_KEYS": "g"})
    load(exposed | {"GATEWAY_ALLOW_ANONYMOUS": "true"})
    assert open_to_strangers(load({"ANTHROPIC_API_KEY": "k"}), "::")


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:6379/0", "rediss://:pass@h.example.com:6380", "redis://h", "unix:///run/redis.sock?db=1"],
)
def test_redis_urls_that_are_taken(url: str) -> None:
    found = load({"REDIS_URL": url}).redis_url
    assert found is not None
    assert found.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "hush",
        "http://hush",
        "redis://",
        "redis://hush:99999",
        "redis://h:0",
        "redis://[hush",
        "unix://",
        "REDIS://hush",
    ],
)
def test_redis_urls_that_are_refused(url: str) -> None:
    (fault,) = _faults({"REDIS_URL": url})
    assert fault == "REDIS_URL=[hidden]: allowed is redis://host:port/db, rediss://host:port/db or unix:///path."


def test_redis_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = _faults({"REDIS_URL": "redis://:hush@127.0.0.1:6379"})
    assert fault.startswith("REDIS_URL=[hidden]: needs the Redis client; pip install 'penstock[redis]'")
    load({})


def test_looking_for_the_redis_client_does_not_import_it() -> None:
    code = (
        "import sys; from app.settings import load; load({'REDIS_URL': 'redis://127.0.0.1'}); "
        "print([m for m in ('redis', 'ssl', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_keys_must_fit_into_a_header() -> None:
    for name in ("ANTHROPIC_API_KEYS", "GATEWAY_API_KEYS"):
        (fault,) = _faults({name: "fine,clé"})
        assert fault == f"{name}=[hidden]: key 2 must be printable ASCII without spaces."
    assert _faults({"GATEWAY_API_KEYS": "a\r\nb"})


def test_backoff_cap_is_not_below_its_base() -> None:
    (fault,) = _faults({"RETRY_429_INTERVAL": "20"})
    assert fault == "RETRY_BACKOFF_MAX=12: must be at least RETRY_429_INTERVAL=20 s."


def test_a_rule_is_silent_when_one_of_its_fields_is_faulty() -> None:
    (fault,) = _faults({"ANTHROPIC_BUFFER_SIZE": "many", "ANTHROPIC_CONCURRENCY": "6000"})
    assert fault.startswith("ANTHROPIC_BUFFER_SIZE=many")


@given(st.text(min_size=1, max_size=40))
def test_redaction_hides_what_looks_secret(text: str) -> None:
    assert redacted("GATEWAY_API_KEYS", text) == "[hidden]"
    assert text not in redacted("X", f"sk-ant-{text}") or text in "[hidden]"


def test_long_values_are_cut() -> None:
    assert redacted("X", "y" * 80) == "y" * 80
    assert redacted("X", "y" * 81) == "y" * 77 + "..."


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("a.localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.com", False),
     ("127.0.0.1.example.com", False)],
)  # fmt: skip
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_file_in_full(tmp_path: Path) -> None:
    content = {
        "providers": {
            "anthropic": {
                "keys": [
                    "plain-key",
                    "env.FIRST",
                    {"name": "blue", "value": "env.SECOND", "weight": 2, "models": ["claude-*"]},
                ],
                "concurrency_and_buffer_size": {"concurrency": 100, "buffer_size": 500},
                "network_config": {
                    "base_url": "https://edge.example.com/",
                    "default_request_timeout_in_seconds": 60,
                    "max_retries": 4,
                    "retry_backoff_initial": 500,
                    "retry_backoff_max": 8000,
                },
            }
        },
        "config": {"initial_pool_size": 300, "drop_excess_requests": True},
    }
    settings = load(_file(tmp_path, content) | {"FIRST": "one", "SECOND": "two"})
    keys = [(key.get_secret_value(), key.name, key.weight, key.models) for key in settings.anthropic_api_keys]
    assert keys == [
        ("plain-key", "key-1", 1.0, ()),
        ("one", "key-2", 1.0, ()),
        ("two", "blue", 2.0, ("claude-*",)),
    ]
    assert (settings.anthropic_concurrency, settings.anthropic_buffer_size) == (100, 500)
    assert settings.anthropic_upstream_url == "https://edge.example.com"
    assert (settings.request_timeout_s, settings.retry_max_attempts) == (60, 5)
    assert (settings.retry_429_interval_s, settings.retry_backoff_max_s) == (0.5, 8)
    assert (settings.initial_pool_size, settings.drop_excess_requests) == (300, True)


def test_gateway_keys_of_the_file_and_of_the_environment(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 60, "concurrent_requests": 10, "tokens_per_day": 0}
    keys = ["env.WEB", {"name": "batch", "value": "env.BATCH"} | limits, {"value": "w", "name": "again"}]
    environ = _file(tmp_path, {"gateway": {"keys": keys}}) | {"WEB": "w", "BATCH": "b"}
    web, batch = load(environ).gateway_api_keys
    assert (web.get_secret_value(), web.name, web.requests_per_minute) == ("w", "key-1", None)
    assert batch == GatewayKey(value=SecretStr("b"), name="batch", **limits)
    (only,) = load(environ | {"GATEWAY_API_KEYS": "c"}).gateway_api_keys
    assert (only.get_secret_value(), only.name) == ("c", "key-1")


def test_other_providers_in_full(tmp_path: Path) -> None:
    content = {
        "providers": {
            "anthropic": {"keys": ["k"], "fallbacks": ["anthropic-eu", "anthropic-eu"]},
            "anthropic-eu": {
                "keys": ["env.EU", {"value": "l", "name": "spare", "weight": 0.5, "models": ["claude-*"]}],
                "concurrency_and_buffer_size": {"concurrency": 20, "buffer_size": 30},
                "network_config": {"base_url": "https://eu.example.com/base/"},
                "fallbacks": ["last"],
            },
            "last": {"keys": ["m"], "network_config": {"base_url": "http://127.0.0.1:9"}},
        }
    }
    settings = load(_file(tmp_path, content) | {"EU": "e", "WEB_CONCURRENCY": "1"})
    assert settings.anthropic_fallbacks == ("anthropic-eu",)
    spare = UpstreamKey(value=SecretStr("l"), name="spare", weight=0.5, models=("claude-*",))
    assert settings.providers == (
        ProviderSettings(
            name="anthropic-eu",
            upstream_url="https://eu.example.com/base",
            api_keys=(UpstreamKey(value=SecretStr("e"), name="key-1"), spare),
            concurrency=20,
            buffer_size=30,
            fallbacks=("last",),
        ),
        ProviderSettings(
            name="last",
            upstream_url="http://127.0.0.1:9",
            api_keys=(UpstreamKey(value=SecretStr("m"), name="key-1"),),
        ),
    )
    with pytest.raises(ValueError, match="frozen"):
        settings.providers[0].concurrency = 1


def test_a_provider_that_is_faulty_causes_no_faults_elsewhere(tmp_path: Path) -> None:
    content = {
        "providers": {"anthropic": {"fallbacks": ["eu"], "keys": ["env.NONE"]}, "eu": {"keys": ["env.NIL"]}}
    }
    assert _faults(_file(tmp_path, content)) == (
        "PENSTOCK_CONFIG providers.anthropic.keys[0]: env.NONE names a variable that is not set.",
        "PENSTOCK_CONFIG providers.eu.keys[0]: env.NIL names a variable that is not set.",
        "PENSTOCK_CONFIG providers.eu.network_config.base_url: is required, an http or https URL.",
    )


def test_faults_of_keys_cause_no_faults_along_the_chain(tmp_path: Path) -> None:
    def said(first: list[str], second: list[str], **environ: str) -> tuple[str, ...]:
        eu = {"keys": second, "network_config": {"base_url": "https://eu.example.com"}}
        content = {"providers": {"anthropic": {"keys": first, "fallbacks": ["eu"]}, "eu": eu}}
        return _faults(_file(tmp_path, content) | environ)

    not_set = "names a variable that is not set."
    assert said(["env.NONE"], ["k"]) == (f"PENSTOCK_CONFIG providers.anthropic.keys[0]: env.NONE {not_set}",)
    assert said(["k"], ["env.NIL"]) == (f"PENSTOCK_CONFIG providers.eu.keys[0]: env.NIL {not_set}",)
    assert said(["env.NONE"], ["k"], ANTHROPIC_API_KEY="cl\u00e9")[1:] == (
        "ANTHROPIC_API_KEY=[hidden]: key 1 must be printable ASCII without spaces.",
    )


def test_secrets_are_hidden_in_faults_of_any_kind() -> None:
    assert {row.attribute for row in rows() if row.secret} == {
        "anthropic_api_keys",
        "gateway_api_keys",
        "redis_url",
        "gateway_admin_key",
        "alert_webhook_url",
    }
    sources = _Sources({})
    sources.values["redis_url"] = "hush"
    assert sources.fault("redis_url") == "REDIS_URL=[hidden]: allowed is a redis://, rediss:// or unix:// URL."


def _anthropic(part: object) -> dict[str, object]:
    return {"providers": {"anthropic": part}}


def _eu(part: dict[str, object]) -> dict[str, object]:
    return {"providers": {"eu": {"network_config": {"base_url": "https://eu.example.com"}} | part}}


def _gateway(keys: object) -> dict[str, object]:
    return {"gateway": {"keys": keys}}


@pytest.mark.parametrize("name", ["Eu", "-eu", "a.b", "e" * 42, "", "*"])
def test_names_of_providers(tmp_path: Path, name: str) -> None:
    (fault,) = _faults(
        _file(tmp_path, {"providers": {name: {"network_config": {"base_url": "https://eu.example.com"}}}})
    )
    assert "a name of at most 41 of a-z, 0-9, - and _" in fault
    load(_file(tmp_path, {"providers": {"e" * 41: {"network_config": {"base_url": "https://eu.example.com"}}}}))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not JSON at line 1"),
        ("[]", "PENSTOCK_CONFIG file: must be an object."),
        ({"providers": []}, "PENSTOCK_CONFIG providers: must be an object."),
        (
            {"providers": {"antropic": {}}},
            "antropic.network_config.base_url: is required, an http or https URL; did you mean anthropic?",
        ),
        ({"q": 1}, "PENSTOCK_CONFIG q: unknown key; allowed are providers, gateway, config."),
        (_anthropic({"keys": "k"}), "providers.anthropic.keys: must be a list"),
        (_anthropic({"keys": [5]}), "providers.anthropic.keys[0]: must be a string or an object"),
        (_anthropic({"keys": [{"name": "a"}]}), "providers.anthropic.keys[0]: must be a string or an object"),
        (_anthropic({"keys": ["env.NONE"]}), "keys[0]: env.NONE names a variable that is not set"),
        (_anthropic({"keys": [{"value": "k", "wieght": 1}]}), "keys[0].wieght: unknown key; did you mean weight?"),
        (_anthropic({"keys": [{"value": "k", "weight": 0}]}), "keys[0].weight=0: allowed is a number above 0"),
        (_anthropic({"keys": [{"value": "k", "weight": True}]}), "keys[0].weight=True: allowed is a number"),
        (_anthropic({"keys": [{"value": "k", "models": "m"}]}), "keys[0].models: allowed is a list"),
        (
            _anthropic({"network_config": {"max_retries": "x"}}),
            "network_config.max_retries + 1=x: allowed is 1 to 10",
        ),
        (
            _anthropic({"network_config": {"max_retries": 10}}),
            "network_config.max_retries + 1=11: allowed is 1 to 10",
        ),
        (_anthropic({"keys": [{"value": "k", "name": 5}]}), "keys[0].name: allowed is text."),
        (_anthropic({"fallbacks": "eu"}), "providers.anthropic.fallbacks: must be a list of provider names."),
        (_anthropic({"fallbacks": [5]}), "providers.anthropic.fallbacks: must be a list of provider names."),
        (_eu({"fallbacks": {}}), "providers.eu.fallbacks: must be a list of provider names."),
        ({"providers": {"eu": []}}, "PENSTOCK_CONFIG providers.eu: must be an object."),
        ({"providers": {"eu": {"keys": []}}}, "providers.eu.network_config.base_url: is required"),
        (
            _eu({"network_config": {"base_url": "https://a", "max_retries": 1}}),
            "max_retries: unknown key; allowed",
        ),
        (_eu({"network_config": {"base_url": 5}}), "providers.eu.network_config.base_url=5: allowed is an http"),
        (_eu({"concurrency_and_buffer_size": {"concurrency": 0}}), "concurrency=0: allowed is 1 to 1000000 exch"),
        (_eu({"concurrency_and_buffer_size": {"buffer_size": "x"}}), "buffer_size=x: allowed is 1 to 10000000"),
        (_eu({"keys": "k"}), "providers.eu.keys: must be a list"),
        (_eu({"keys": ["cl\u00e9"]}), "providers.eu.keys=[hidden]: key 1 must be printable ASCII"),
        (_eu({"keys": [{"value": "a", "name": "n"}, {"value": "b", "name": "n"}]}), "eu.keys=[hidden]: two keys"),
        (
            _gateway("k"),
            "PENSTOCK_CONFIG gateway.keys: must be a list of strings or objects with value, name, req",
        ),
        (_gateway(["env.NONE"]), "gateway.keys[0]: env.NONE names a variable that is not set"),
        (_gateway([{"value": "k", "weight": 1}]), "gateway.keys[0].weight: unknown key; allowed are value, name"),
        (_gateway([{"value": "k", "requests_per_minute": -1}]), "requests_per_minute=-1: allowed is 0 (no limit)"),
        (
            _gateway([{"value": "k", "concurrent_requests": 0.5}]),
            "concurrent_requests=0.5: allowed is 0 (no limit)",
        ),
        (
            _gateway([{"value": "k", "tokens_per_day": True}]),
            "keys[0].tokens_per_day=True: allowed is 0 (no limit)",
        ),
        (_gateway([{"value": "k", "tokens_per_day": 10**13}]), "to 1000000000000, or null for the default."),
        (
            _gateway([{"value": "a", "name": "n"}, {"value": "b", "name": "n"}]),
            "gateway.keys=[hidden]: two keys are",
        ),
        (_gateway(["cl\u00e9"]), "gateway.keys=[hidden]: key 1 must be printable ASCII"),
        ("[" * 200_000, "is not JSON"),
        (
            {"config": {"drop_excess_requests": "perhaps"}},
            "drop_excess_requests=perhaps: allowed is true or false",
        ),
    ],
)
def test_file_faults_name_the_place(tmp_path: Path, content: object, fault: str) -> None:
    (said,) = _faults(_file(tmp_path, content))
    assert fault in said


def test_one_key_given_twice_in_the_file_counts_once(tmp_path: Path) -> None:
    settings = load(
        _file(tmp_path, _anthropic({"keys": ["k", {"value": "env.K", "name": "again"}, "l"]})) | {"K": "k"}
    )
    assert [(key.get_secret_value(), key.name) for key in settings.anthropic_api_keys] == [
        ("k", "key-1"),
        ("l", "key-2"),
    ]


def test_two_keys_of_one_name(tmp_path: Path) -> None:
    keys = [{"value": "hush-a", "name": "n"}, {"value": "hush-b", "name": "n"}]
    (fault,) = _faults(_file(tmp_path, _anthropic({"keys": keys})))
    assert "two keys are named 'n'" in fault
    assert "hush" not in fault


def test_buffer_below_concurrency_names_both(tmp_path: Path) -> None:
    limits = {"concurrency_and_buffer_size": {"concurrency": 100, "buffer_size": 50}}
    for content in (_anthropic(limits), _eu(dict(limits))):
        (fault,) = _faults(_file(tmp_path, content) | {"WEB_CONCURRENCY": "1"})
        assert "buffer_size=50" in fault
        assert ".concurrency (concurrency)=100" in fault


def test_unreadable_files() -> None:
    assert _faults({"PENSTOCK_CONFIG": "/nonexistent"}) == (
        "PENSTOCK_CONFIG=/nonexistent: cannot be read (No such file or directory).",
    )


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "penstock.json"
    path.write_bytes(b"\xff\xfe{}")
    assert "is not JSON" in _faults({"PENSTOCK_CONFIG": str(path)})[0]


def test_variables_the_file_names_are_known(tmp_path: Path) -> None:
    environ = _file(tmp_path, _anthropic({"keys": ["env.ANTHROPIC_BLUE"]})) | {"ANTHROPIC_BLUE": "k"}
    assert len(load(environ).anthropic_api_keys) == 1
    environ = _file(tmp_path, _eu({"keys": ["env.ANTHROPIC_BLUE"]})) | {"ANTHROPIC_BLUE": "k"}
    assert len(load(environ).providers[0].api_keys) == 1
    assert _faults({"ANTHROPIC_BLUE": "k"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ENABLE_REQUEST_BODY_LOGING", "ENABLE_REQUEST_BODY_LOGGING"),
        ("ENABLE_OTLP", "ENABLE_OTEL"),
        ("LOG_LEVELS", "LOG_LEVEL"),
        ("LOG_FILES_KEEP", "LOG_FILES_KEPT"),
        ("METRICS_MODEL", "METRICS_MODELS"),
        ("SERVER_TIMINGS", "SERVER_TIMING"),
    ],
)
def test_names_that_are_nearly_ours_are_misspelt(name: str, meant: str) -> None:
    assert _faults({name: "true"}) == (f"{name}=true: unknown setting; did you mean {meant}?",)


@pytest.mark.parametrize("name", ["LOGLEVEL", "LOG_LEVEL_ROOT", "ENABLE_METRICS", "SERVER_PORT", "METRICS_PORT"])
def test_names_of_others_are_left_alone(name: str) -> None:
    load({name: "true"})
