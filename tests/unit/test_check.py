"""``penstock check``: every decision on plain values, and the probes against a local peer.

Runs on: start-up.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.settings
import pytest
import trustme
from pydantic import SecretStr

from app import check, probe
from app.check import FAIL, OK, WARN, Finding, Platform, findings, platform
from app.settings import GatewayKey, ProviderSettings, Settings, UpstreamKey, load

HEROKU = platform({"DYNO": "web.1"})
CLOUD_RUN = platform({"K_SERVICE": "x"})
UNKNOWN = platform({})
FINE = probe.Server(keepalive_s=100, graceful_timeout_s=25, worker_connections=1000, hosts=("127.0.0.1",))
GUARDED = {"ANTHROPIC_API_KEY": "sk-hush", "GATEWAY_API_KEYS": "hush-hush-hush-hush"}


def _levels(found: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in found]


def test_line_shows_level_text_and_change() -> None:
    assert Finding(OK, "fine").line() == "OK   fine"
    assert Finding(FAIL, "bad", "X=1").line() == "FAIL bad\n     -> X=1"


def test_platforms_are_told_by_their_variables() -> None:
    assert (HEROKU.idle_s, HEROKU.kill_s, HEROKU.known) == (90, 30, True)
    assert (CLOUD_RUN.kill_s, CLOUD_RUN.known) == (10, True)
    assert (UNKNOWN.idle_s, UNKNOWN.kill_s, UNKNOWN.known) == (60, None, False)


@pytest.mark.parametrize(
    ("environ", "levels", "text"),
    [
        ({}, [OK], "own key passes through"),
        ({"GATEWAY_API_KEYS": "g"}, [OK, WARN], "nothing asks for them"),
        (GUARDED, [OK], "upstream credentials: 1; callers present one of 1"),
        (GUARDED | {"GATEWAY_API_KEYS": "short,hush-hush-hush-hush"}, [OK, WARN], "shorter than 16"),
        ({"ANTHROPIC_API_KEY": "sk-hush"}, [OK], "only this host can connect"),
        (
            {"ANTHROPIC_API_KEY": "sk-hush", "HOST": "0.0.0.0", "GATEWAY_ALLOW_ANONYMOUS": "1"},
            [WARN],
            "anyone who reaches 0.0.0.0",
        ),
    ],
)
def test_access(environ: Mapping[str, str], levels: list[str], text: str) -> None:
    found = list(check.judge_access(load(environ)))
    assert [finding.level for finding in found] == levels
    assert text in found[-1].text
    assert "hush" not in "".join(finding.line() for finding in found)


@pytest.mark.parametrize(
    ("environ", "text", "change"),
    [
        (
            {"GATEWAY_TOKENS_PER_DAY": "5"},
            "GATEWAY_TOKENS_PER_DAY: without effect",
            "ANTHROPIC_API_KEYS and GATEWAY_A",
        ),
        (
            {
                "GATEWAY_REQUESTS_PER_MINUTE": "5",
                "GATEWAY_CONCURRENT_REQUESTS": "5",
                "ANTHROPIC_API_KEY": "sk-hush",
            },
            "GATEWAY_REQUESTS_PER_MINUTE, GATEWAY_CONCURRENT_REQUESTS: without effect",
            "set GATEWAY_API_KEYS,",
        ),
        ({"GATEWAY_TOKENS_PER_DAY": "5", "GATEWAY_API_KEYS": "hush"}, "TOKENS_PER_DAY", "set ANTHROPIC_API_KEYS,"),
    ],
)
def test_limits_without_keys_do_nothing(environ: dict[str, str], text: str, change: str) -> None:
    (found,) = check.judge_limits(load(environ))
    assert found.level == WARN
    assert text in found.text
    assert change in found.change
    assert not list(check.judge_limits(load(GUARDED | environ)))


def test_limits_of_single_keys_are_looked_at_too() -> None:
    limited = GatewayKey(value=SecretStr("hush"), name="batch", tokens_per_day=5)
    (found,) = check.judge_limits(Settings(gateway_api_keys=(limited,)))
    assert found.text.startswith("limits of gateway keys: ")
    assert not list(check.judge_limits(Settings(gateway_api_keys=(GatewayKey(value=SecretStr("hush")),))))
    assert not list(check.judge_limits(Settings()))


def _with_fallback(url: str, keys: int = 0) -> Settings:
    held = tuple(UpstreamKey(value=SecretStr(f"hush-{place}")) for place in range(keys))
    return Settings(
        anthropic_upstream_url="https://a.example.com/base",
        anthropic_api_keys=held,
        anthropic_fallbacks=("eu",),
        providers=(ProviderSettings(name="eu", upstream_url=url, api_keys=held),),
    )


def test_a_fallback_elsewhere_is_fine() -> None:
    (found,) = check.judge_providers(_with_fallback("https://eu.example.com", keys=2))
    assert found == Finding(OK, "providers in the order they are tried: anthropic, eu")
    assert not list(check.judge_providers(Settings()))


@pytest.mark.parametrize("url", ["https://a.example.com", "https://A.example.com:443/other"])
def test_a_fallback_at_the_same_address_is_pointless(url: str) -> None:
    warned = [finding for finding in check.judge_providers(_with_fallback(url)) if finding.level == WARN]
    (found,) = warned
    assert found.text.startswith("eu stands in for anthropic at the same address")
    assert "providers.eu.network_config.base_url" in found.change


@pytest.mark.parametrize(
    "url", ["http://a.example.com:443", "https://a.example.com:8443", "https://b.example.com"]
)
def test_another_scheme_port_or_host_is_another_address(url: str) -> None:
    assert WARN not in _levels(check.judge_providers(_with_fallback(url)))


def test_a_single_key_is_mentioned() -> None:
    found = list(check.judge_providers(_with_fallback("https://eu.example.com", keys=1)))
    assert [finding.level for finding in found] == [OK, OK, OK]
    assert [finding.text.split(":")[0] for finding in found[1:]] == ["anthropic has one key", "eu has one key"]
    assert "hush" not in "".join(finding.line() for finding in found)


def test_providers_that_nothing_leads_to() -> None:
    settings = _with_fallback("https://eu.example.com").model_copy(update={"anthropic_fallbacks": ()})
    (found,) = check.judge_providers(settings)
    assert (found.level, found.change) == (WARN, "ANTHROPIC_FALLBACKS=eu")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://:hush@h.example.com:7000/0", "h.example.com:7000"),
        ("rediss://hush:hush@h", "h:6379"),
        ("unix:///run/redis.sock?password=hush", "/run/redis.sock"),
    ],
)
def test_redis_is_named_without_its_password(url: str, place: str) -> None:
    assert check.judge_redis(url, "") == Finding(OK, f"Redis at {place} can be connected to")
    found = check.judge_redis(url, "refused")
    assert (found.level, found.change) == (WARN, "REDIS_URL=<reachable address>")
    assert f"Redis at {place} cannot be reached (refused)" in found.text
    assert "hush" not in found.line()


def test_redis_is_connected_to(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert check.redis_fault(f"redis://:hush@127.0.0.1:{port}/0", 2.0) == ""
    refused = check.redis_fault(f"rediss://:hush@127.0.0.1:{port}/0", 2.0)
    assert refused
    assert "hush" not in refused
    path = tmp_path / "redis.sock"
    assert check.redis_fault(f"unix://{path}", 2.0)
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(path))
        local.listen()
        assert check.redis_fault(f"unix://{path}?password=hush", 2.0) == ""


def test_redis_without_a_port_is_looked_for_at_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def connect(address: object, timeout: float) -> None:
        asked.append((address, timeout))
        raise OSError("no")

    monkeypatch.setattr(socket, "create_connection", connect)
    assert check.redis_fault("redis://h", 2.0) == "no"
    assert asked == [(("h", 6379), 2.0)]


def test_online_every_provider_of_the_chain_and_redis_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def upstream(settings: Settings) -> probe.Peer:
        asked.append(settings.anthropic_upstream_url)
        return probe.Peer(settings.anthropic_upstream_url, fault="down")

    def redis_fault(url: str, timeout_s: float) -> str:
        asked.append(url)
        return "down"

    settings = _with_fallback("https://eu.example.com").model_copy(update={"redis_url": SecretStr("redis://h")})
    alone = ProviderSettings(name="alone", upstream_url="https://alone.example.com")
    settings = settings.model_copy(update={"providers": (*settings.providers, alone)})
    monkeypatch.setattr(probe, "server", lambda environ: FINE)
    monkeypatch.setattr(probe, "upstream", upstream)
    monkeypatch.setattr(check, "redis_fault", redis_fault)
    monkeypatch.setattr(check, "load", lambda environ: settings)
    found = list(findings(offline=False))
    assert asked == ["https://a.example.com/base", "https://eu.example.com", "redis://h"]
    assert [(finding.level, finding.change.split("=")[0]) for finding in found[-3:]] == [
        (FAIL, "ANTHROPIC_UPSTREAM_URL"),
        (FAIL, "PENSTOCK_CONFIG providers.eu.network_config.base_url"),
        (WARN, "REDIS_URL"),
    ]
    asked.clear()
    list(findings(offline=True))
    assert not asked


def test_body_logging_is_warned_of() -> None:
    assert not list(check.judge_bodies(Settings()))
    found = list(check.judge_bodies(Settings(enable_request_body_logging=True, enable_response_body_logging=True)))
    assert [finding.change for finding in found] == [
        "ENABLE_REQUEST_BODY_LOGGING=false",
        "ENABLE_RESPONSE_BODY_LOGGING=false",
    ]


def test_a_fine_server_is_all_ok() -> None:
    assert _levels(check.judge_server(Settings(), FINE, HEROKU)) == [OK, OK, OK]


@pytest.mark.parametrize(
    ("changed", "level", "text"),
    [
        ({"fault": "NameError: x"}, FAIL, "NameError: x"),
        ({"has_config": False}, WARN, "no gunicorn.conf.py"),
        ({"max_requests": 100}, WARN, "max_requests 100"),
    ],
)
def test_server_oddities(changed: dict[str, object], level: str, text: str) -> None:
    found = list(check.judge_server(Settings(), FINE._replace(**changed), HEROKU))  # type: ignore[arg-type]
    assert any(finding.level == level and text in finding.text and finding.change for finding in found)


def test_a_bind_address_open_to_strangers_fails() -> None:
    server = FINE._replace(hosts=("0.0.0.0",))
    assert FAIL in _levels(check.judge_server(load({"ANTHROPIC_API_KEY": "k"}), server, UNKNOWN))
    assert FAIL not in _levels(check.judge_server(load(GUARDED), server, UNKNOWN))


@pytest.mark.parametrize(
    ("environ", "hosts", "level", "text", "change"),
    [
        ({}, ("127.0.0.1", "::1"), OK, "penstock explain reads log files", ""),
        ({}, ("::1", "0.0.0.0"), WARN, "whoever reaches 0.0.0.0 can read them", "ENABLE_METRICS_ENDPOINT=false"),
        (
            {"ALERT_WEBHOOK_URL": "https://h.example/hush", "ENABLE_PERFORMANCE_MONITOR": "false"},
            (),
            WARN,
            "there are no alerts",
            "ENABLE_PERFORMANCE_MONITOR=true",
        ),
    ],
)
def test_observed(environ: dict[str, str], hosts: tuple[str, ...], level: str, text: str, change: str) -> None:
    found = list(check.judge_observed(load(environ), hosts))
    assert any(one.level == level and text in one.text and change in one.change for one in found)
    assert [one.level for one in found].count(WARN) == (level == WARN)
    quiet = {"ENABLE_METRICS_ENDPOINT": "false", "ENABLE_PERFORMANCE_MONITOR": "true"}
    assert not list(check.judge_observed(load(environ | quiet | {"GATEWAY_ADMIN_KEY": "hush" * 4}), hosts))
    assert "hush" not in "".join(one.line() for one in found)


def test_patch_order() -> None:
    assert check.judge_patch(FINE).level == OK
    assert check.judge_patch(FINE._replace(early=("httpx",))).level == WARN
    late = check.judge_patch(FINE._replace(warnings=("Monkey-patching ssl after ssl",), early=("httpx",)))
    assert late.level == FAIL
    assert "Monkey-patching ssl" in late.text
    threads = FINE._replace(is_gevent=False, worker_class="gthread", early=("httpx",))
    assert check.judge_patch(threads).level == OK


@pytest.mark.parametrize(
    ("keepalive_s", "place", "level"),
    [
        (100, HEROKU, OK),
        (91, HEROKU, OK),
        (90, HEROKU, FAIL),
        (2, UNKNOWN, WARN),
        (60, UNKNOWN, WARN),
        (61, UNKNOWN, OK),
    ],
)
def test_keepalive_against_the_router(keepalive_s: int, place: Platform, level: str) -> None:
    finding = check.judge_keepalive(keepalive_s, place)
    assert finding.level == level
    assert level == OK or f"--keep-alive {place.idle_s + 10}" in finding.change


@pytest.mark.parametrize(
    ("drain_s", "graceful_s", "place", "level", "change"),
    [
        (22, 25, HEROKU, OK, ""),
        (22, 25, UNKNOWN, OK, ""),
        (22, 29, HEROKU, OK, ""),
        (22, 30, HEROKU, FAIL, "DRAIN_TIMEOUT=25"),
        (22, 25, CLOUD_RUN, FAIL, "DRAIN_TIMEOUT=5"),
        (5, 8, CLOUD_RUN, OK, ""),
        (22, 22, UNKNOWN, FAIL, "DRAIN_TIMEOUT=19"),
    ],
)
def test_grace(drain_s: float, graceful_s: int, place: Platform, level: str, change: str) -> None:
    finding = check.judge_grace(Settings(drain_timeout_s=drain_s), graceful_s, place)
    assert (finding.level, finding.change) == (level, change)


def test_file_limit() -> None:
    settings = Settings(anthropic_max_connections=200)
    assert check.judge_files(settings, 1000, 1264).level == OK
    short = check.judge_files(settings, 1000, 1263)
    assert (short.level, short.change) == (WARN, "ulimit -n 1264")


def test_upstream_findings() -> None:
    peer = probe.Peer("https://h", tls="TLSv1.3", protocol="h2", max_streams=100)
    assert _levels(check.judge_upstream(Settings(), peer)) == [OK, OK, OK]
    assert _levels(check.judge_upstream(Settings(), peer._replace(protocol="http/1.1"))) == [OK, WARN]
    assert _levels(check.judge_upstream(Settings(production_enable_http2=False), peer)) == [OK, WARN]
    assert _levels(check.judge_upstream(Settings(), probe.Peer("http://127.0.0.1"))) == [WARN]
    (untrusted,) = check.judge_upstream(Settings(), probe.Peer("https://h", fault="no", is_untrusted=True))
    assert untrusted.level == FAIL
    assert untrusted.change.startswith("SSL_CERT_FILE=")
    (unreachable,) = check.judge_upstream(Settings(), probe.Peer("https://h", fault="no"))
    assert unreachable.change.startswith("ANTHROPIC_UPSTREAM_URL=")


@pytest.mark.parametrize(
    ("ours", "theirs", "level", "change"),
    [
        (100, 100, OK, ""),
        (100, 128, OK, ""),
        (100, None, OK, ""),
        (100, 64, WARN, "ANTHROPIC_STREAMS_PER_CONNECTION=64"),
        (100, 0, WARN, "ANTHROPIC_STREAMS_PER_CONNECTION=1"),
    ],
)
def test_streams_per_connection(ours: int, theirs: int | None, level: str, change: str) -> None:
    finding = check.judge_streams(ours, theirs)
    assert (finding.level, finding.change) == (level, change)


def test_settings_frame_is_read_cut_at_every_byte() -> None:
    payload = struct.pack(">HIHI", 1, 4096, 3, 250)
    frame = len(payload).to_bytes(3) + b"\x04\x00\x00\x00\x00\x00" + payload
    for cut in range(len(frame)):
        assert probe.settings_of(frame[:cut]) is None
    assert probe.settings_of(frame + b"more") == {1: 4096, 3: 250}
    with pytest.raises(ValueError, match="not SETTINGS"):
        probe.settings_of(b"HTTP/1.1 400 Bad Request\r\n")


def test_findings_stop_at_faulty_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("THREADS", "y")
    found = list(findings(offline=True))
    assert [finding.level for finding in found] == [FAIL, FAIL]


def test_findings_go_online_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []

    def upstream(settings: Settings) -> probe.Peer:
        asked.append(settings)
        return probe.Peer("https://h", fault="down")

    monkeypatch.setattr(probe, "server", lambda environ: FINE)
    monkeypatch.setattr(probe, "upstream", upstream)
    assert FAIL not in _levels(findings(offline=True))
    assert not asked
    assert _levels(findings(offline=False))[-1] == FAIL
    assert len(asked) == 1


ENVIRON = {"PATH": "/usr/bin:/bin"}


def test_our_gunicorn_configuration_passes() -> None:
    server = probe.server(ENVIRON | {"DRAIN_TIMEOUT": "10.5", "HOST": "::1"})
    assert server == probe.Server(
        keepalive_s=100, graceful_timeout_s=14, worker_connections=1000, hosts=("::1",), worker_class="gevent"
    )


def test_gunicorn_arguments_win() -> None:
    arguments = {"GUNICORN_CMD_ARGS": "--keep-alive 7 -k gthread --bind 127.0.0.1:0"}
    server = probe.server(ENVIRON | arguments)
    assert (server.keepalive_s, server.worker_class, server.is_gevent) == (7, "gthread", False)
    assert check.judge_keepalive(server.keepalive_s, HEROKU).level == FAIL


def test_a_configuration_that_imports_httpx_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("import httpx\nworker_class = 'gevent'\n")
    server = probe.server(ENVIRON | {"GUNICORN_CMD_ARGS": f"-c {tmp_path / 'conf.py'}"})
    assert "httpx" in server.early
    assert check.judge_patch(server).level in (WARN, FAIL)


def test_a_configuration_that_does_not_load_is_noticed(tmp_path: Path) -> None:
    server = probe.server(ENVIRON | {"GUNICORN_CMD_ARGS": f"-c {tmp_path / 'none.py'}"})
    assert "doesn't exist" in server.fault


def test_open_file_limit_is_positive() -> None:
    assert probe.open_files() > 0


@contextmanager
def _peer(talk: Callable[[ssl.SSLSocket], None], alpn: list[str], trusted: Path | None) -> Iterator[Settings]:
    """A TLS server on a free port for one connection; yields settings that lead to it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.set_alpn_protocols(alpn)
    if trusted is not None:
        authority.cert_pem.write_to_path(str(trusted))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, context, talk))
        thread.start()
        yield Settings(
            anthropic_upstream_url=f"https://localhost:{listener.getsockname()[1]}",
            ssl_cert_file=str(trusted) if trusted else None,
            connect_timeout_s=5,
        )
        thread.join(10)


def _serve(listener: socket.socket, context: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], None]) -> None:
    plain, _ = listener.accept()
    with plain:
        plain.settimeout(5)
        try:
            with context.wrap_socket(plain, server_side=True) as secure:
                talk(secure)
        except OSError:
            return  # the client did not trust us, or left


def _speak_h2(secure: ssl.SSLSocket) -> None:
    """A conforming peer (hyper-h2): raises ProtocolError on a malformed preface, ACK or GOAWAY."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    limit = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 42}
    connection.local_settings = h2.settings.Settings(client=False, initial_values=limit)
    connection.initiate_connection()
    secure.sendall(connection.data_to_send())
    while piece := secure.recv(65536):
        names = {type(event).__name__ for event in connection.receive_data(piece)}
        if "ConnectionTerminated" in names:
            return


def test_probe_reads_the_stream_limit_of_an_h2_peer(tmp_path: Path) -> None:
    with _peer(_speak_h2, ["h2", "http/1.1"], tmp_path / "ca.pem") as settings:
        peer = probe.upstream(settings)
    assert (peer.fault, peer.tls, peer.protocol, peer.max_streams) == ("", "TLSv1.3", "h2", 42)


def test_probe_of_a_peer_without_h2(tmp_path: Path) -> None:
    with _peer(lambda secure: None, ["http/1.1"], tmp_path / "ca.pem") as settings:
        peer = probe.upstream(settings)
    assert (peer.fault, peer.protocol, peer.max_streams) == ("", "http/1.1", None)


def test_probe_offers_no_h2_when_it_is_switched_off(tmp_path: Path) -> None:
    with _peer(_speak_h2, ["h2", "http/1.1"], tmp_path / "ca.pem") as settings:
        peer = probe.upstream(settings.model_copy(update={"production_enable_http2": False}))
    assert peer.protocol == "http/1.1"


def test_probe_of_an_untrusted_peer() -> None:
    with _peer(_speak_h2, ["h2"], None) as settings:
        peer = probe.upstream(settings)
    assert peer.is_untrusted
    assert "not trusted" in peer.fault


def test_probe_of_a_peer_that_hangs_up(tmp_path: Path) -> None:
    with _peer(lambda secure: None, ["h2"], tmp_path / "ca.pem") as settings:
        peer = probe.upstream(settings)
    assert "cannot be reached" in peer.fault
    assert not peer.is_untrusted


def test_probe_of_a_closed_port_and_of_plain_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        plain = probe.upstream(Settings(anthropic_upstream_url=f"http://127.0.0.1:{port}"))
    assert (plain.fault, plain.tls) == ("", "")
    closed = probe.upstream(Settings(anthropic_upstream_url=f"https://127.0.0.1:{port}", connect_timeout_s=1))
    assert "cannot be reached" in closed.fault
