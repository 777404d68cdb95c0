"""Starting, stopping and the options of a simulator; HTTP/1.1 byte by byte."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyqwest
import pytest

from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from app.simulator.server import Simulator, serve
from app.simulator.thread import running_in_thread


def _tls(simulator: Running, *alpn: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=simulator.ca_path)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    raw = socket.create_connection(("127.0.0.1", int(simulator.tls_url.rsplit(":", 1)[1])), timeout=3)
    return context.wrap_socket(raw, server_hostname="localhost")


def _plain(simulator: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(simulator.plain_url.rsplit(":", 1)[1])), timeout=3)


def _all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65_536):
        data += piece
    return data


def test_a_process_of_its_own(tmp_path: Path) -> None:
    with running(Options(ca_dir=str(tmp_path))) as simulator:
        assert simulator.pid != os.getpid()
        assert simulator.ca_path == str(tmp_path / "ca.pem")
        assert httpx.get(f"{simulator.plain_url}/v1/models").status_code == 200
        assert simulator.stats()["tcp_connections"] >= 1
    with pytest.raises(ProcessLookupError):
        os.kill(simulator.pid, 0)


def test_a_process_that_cannot_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="before it was ready"), running(Options(replay=str(tmp_path / "none"))):
        pass
    assert "none" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="could not start"), running_in_thread(Options(replay="/nowhere")):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "app.simulator"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["pid"] == process.pid
    connection = socket.create_connection(("127.0.0.1", int(told["plain"].rsplit(":", 1)[1])))
    process.send_signal(number)
    out, err = process.communicate(timeout=5)
    connection.close()
    assert (process.returncode, out, err) == (0, "", "")
    assert not Path(told["ca"]).exists()


def test_a_standard_loop_will_do() -> None:
    async def main() -> int:
        simulator = Simulator()
        await simulator.start()
        context = ssl.create_default_context(cafile=simulator.ca_path)
        async with httpx.AsyncClient(verify=context, http2=True) as client:
            answer = await client.get(f"{simulator.tls_url}/v1/models")
        await simulator.stop()
        assert simulator.stats.requests["h2"] == 1
        return answer.status_code

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(main()) == 200


def test_the_certificate_is_no_authority() -> None:
    with running_in_thread() as simulator, _tls(simulator) as connection:
        certificate = connection.getpeercert() or {}
        names = [str(name) for name in certificate["subjectAltName"]]
        assert names == [
            "('DNS', 'localhost')",
            "('IP Address', '127.0.0.1')",
            "('IP Address', '0:0:0:0:0:0:0:1')",
        ]
        assert connection.selected_alpn_protocol() is None
        assert simulator.stats()["open_connections"] == 2
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            socket.create_connection(("127.0.0.1", int(simulator.tls_url.rsplit(":", 1)[1]))) as raw,
        ):
            ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


def test_http2_can_be_switched_off() -> None:
    with running_in_thread(Options(alpn=("http/1.1",))) as simulator:
        with _tls(simulator, "h2", "http/1.1") as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"
        stats = simulator.stats()
        assert (stats["tls_handshakes"], stats["h2_sessions"]) == (1, 0)


def test_handshakes_can_be_slow_and_fail() -> None:
    with running_in_thread(Options(tls_delay_ms=60)) as simulator:
        start = time.monotonic()
        with _tls(simulator, "h2"):
            assert time.monotonic() - start > 0.055
        with socket.create_connection(("127.0.0.1", int(simulator.tls_url.rsplit(":", 1)[1]))) as raw:
            raw.sendall(b"no TLS at all, whatever this is\r\n\r\n")
            raw.settimeout(3)
            _all(raw)
        stats = simulator.stats()
        assert (stats["tls_handshakes"], stats["tcp_connections"]) == (1, 3)
        slow = socket.create_connection(("127.0.0.1", int(simulator.tls_url.rsplit(":", 1)[1])))
    slow.close()


def test_idle_connections_are_closed() -> None:
    with running_in_thread(Options(idle_close_s=0.1)) as simulator:
        with _plain(simulator) as plain, _tls(simulator, "h2") as tls:
            start = time.monotonic()
            plain.sendall(
                b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-sim-scenario: json-150ms\r\ncontent-length: 0\r\n\r\n"
            )
            assert _all(plain).startswith(b"HTTP/1.1 200")
            assert time.monotonic() - start > 0.24
            assert b"\x07\0\0\0\0\0" in _all(tls)  # GOAWAY
        assert simulator.stats()["client_aborts"] == 0


def test_recordings_are_served_as_they_were(tmp_path: Path) -> None:
    body = b"event: a\ndata: 1\n\nevent: b\ndata: \xc3\xa9\n\n"
    rows = [
        {"status": 529, "response_headers": [["x-Recorded", "yes"], ["connection", "close"]], "is_stream": False},
        {"status": 200, "response_headers": [["content-type", "text/event-stream"]], "is_stream": True},
    ]
    for row, data in zip(rows, (b'{"a":1}', body), strict=True):
        row["response_body_b64"] = base64.b64encode(data).decode()
    path = tmp_path / "recorded.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with running_in_thread(Options(replay=str(path))) as simulator:
        context = ssl.create_default_context(cafile=simulator.ca_path)
        with httpx.Client(verify=context, http2=True) as client:
            for base in (simulator.plain_url, simulator.tls_url):

                def get(index: str, base: str = base) -> httpx.Response:
                    return client.post(f"{base}/v1/messages", headers={"x-sim-replay": index}, content=b"{}")

                first, second = get("0"), get("1")
                assert (first.status_code, first.content) == (529, b'{"a":1}')
                assert set(first.headers) - {"connection"} == {"x-recorded", "content-length"}
                assert (second.status_code, second.content) == (200, body)
                assert get("2").status_code == get("x").status_code == 404


def test_a_rust_client_moves_on_after_goaway() -> None:
    async def main(simulator: Running) -> list[str]:
        transport = pyqwest.HTTPTransport(
            tls_ca_cert=Path(simulator.ca_path).read_bytes(),
            http_version=pyqwest.HTTPVersion.HTTP2,
            enable_otel=False,
        )
        client = pyqwest.Client(transport)

        async def post(scenario: str) -> str:
            body = json.dumps({"model": f"claude-sim-{scenario}", "stream": True}).encode()
            return (await client.post(f"{simulator.tls_url}/v1/messages", content=body)).text()

        texts = await asyncio.gather(post("goaway-2"), post("stream-20x5ms"))
        return [*texts, await post("goaway-now"), await post("stream-2x1ms")]

    with running_in_thread() as simulator:
        texts = asyncio.run(main(simulator))
        assert [text.count("message_stop") for text in texts] == [2, 2, 2, 2]
        assert simulator.stats()["goaways_sent"] == 2


def test_pipelined_requests_are_answered_in_order() -> None:
    with running_in_thread() as simulator, _plain(simulator) as connection:
        slow = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-sim-scenario: json-30ms\r\ncontent-length: 2\r\n\r\n{}"
        echo = b"PUT /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        echo += b"2\r\nab\r\n1\r\nc\r\n0\r\nx-trailer: 1\r\n\r\n"
        last = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        connection.sendall(slow + echo)
        connection.sendall(last)
        data = _all(connection)
        places = [data.index(b'"type":"message"'), data.index(b'"body_b64": "YWJj"'), data.index(b'"has_more"')]
        assert places == sorted(places)
        assert data.count(b"HTTP/1.1 200 OK") == 3


def test_an_early_answer_ends_a_plain_connection() -> None:
    with running_in_thread() as simulator, _plain(simulator) as connection:
        connection.sendall(b"POST /files HTTP/1.1\r\nx-sim-scenario: early-413\r\ncontent-length: 99\r\n\r\n")
        assert _all(connection).startswith(b"HTTP/1.1 413")
        assert simulator.stats()["open_streams"] == 0


def test_the_smaller_manners_of_http11() -> None:
    with running_in_thread() as simulator:
        with _plain(simulator) as connection:
            connection.sendall(
                b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(b"ab")
            assert b"YWI=" in connection.recv(10_000)
        with _plain(simulator) as connection:
            body = b'{"model":"claude-sim-burst-3","stream":true}'
            connection.sendall(b"POST /messages HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            head, _, rest = _all(connection).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head
            assert rest.startswith(b"event: message_start")
        with _plain(simulator) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert _all(connection).startswith(b"HTTP/1.1 400")
        with _plain(simulator) as connection:
            connection.sendall(b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
            assert _all(connection).startswith(b"HTTP/1.1 200")
        with _plain(simulator) as connection:
            connection.sendall(b"GET /messages/x HTTP/1.1\r\nhost: x\r\nx-sim-scenario: status-204\r\n\r\n")
            assert b"content-length" not in connection.recv(10_000)


def test_a_slow_reader_pauses_a_plain_upload() -> None:
    with running_in_thread(Options(initial_window_size=20_000)) as simulator, _plain(simulator) as connection:
        head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\nx-sim-scenario: slowread-2000\r\n"
        head += b"content-length: 200000\r\n\r\n"
        start = time.monotonic()
        connection.sendall(head + b"x" * 200_000)
        assert b'"received_bytes": 200000' in connection.recv(10_000)
        assert time.monotonic() - start > 0.08


def test_the_command_in_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start = Simulator.start

    async def start_and_end(simulator: Simulator) -> None:
        await start(simulator)
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Simulator, "start", start_and_end)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    serve(Options(alpn=()))
    told = json.loads(capsys.readouterr().out)
    assert told["pid"] == os.getpid()
    assert not Path(told["ca"]).exists()


def test_the_oldest_of_many_batches_is_forgotten() -> None:
    with running_in_thread() as simulator, httpx.Client(base_url=simulator.plain_url) as client:
        for _ in range(101):
            client.post("/v1/messages/batches", json={"requests": [{"custom_id": "a"}]})
        assert len(client.get("/v1/messages/batches").json()["data"]) == 100


def test_stopping_ends_what_runs() -> None:
    with running_in_thread() as simulator:
        connection = _plain(simulator)
        body = b'{"model":"claude-sim-stream-9x9000ms","stream":true}'
        connection.sendall(b"POST /messages HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(10)
    with connection, pytest.raises(ConnectionResetError):
        _all(connection)


def test_a_recording_with_a_large_head(tmp_path: Path) -> None:
    headers = [["x-large", "v" * 40_000], ["x-more", "w"]]
    row = {"status": 200, "response_headers": headers, "response_body_b64": "", "is_stream": False}
    path = tmp_path / "recorded.jsonl"
    path.write_text(json.dumps(row))
    with running_in_thread(Options(replay=str(path))) as simulator:
        context = ssl.create_default_context(cafile=simulator.ca_path)
        with httpx.Client(verify=context, http2=True) as client:
            answer = client.get(f"{simulator.tls_url}/x", headers={"x-sim-replay": "0"})
            assert (answer.headers["x-large"], answer.headers["x-more"]) == ("v" * 40_000, "w")
