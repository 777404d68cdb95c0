"""The one retry layer, end to end: the simulator counts how often anything was really sent (B30 to B33)."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial

import anthropic
import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, free_port, until
from tests.e2e.wire import KEY, USUAL, Answer, Raw, ask, message, opened, post, request, terminal_error

RETRIED = (408, 409, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
MANY = 10_000
ASKED = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def patient(farm: Farm, kind: str, simulator: Running) -> Server:
    """Three tries, short pauses, a budget that never ends; signs of life after a second, 2.5 seconds in all."""
    return farm.shared(
        kind,
        RETRY_MAX_ATTEMPTS=3,
        RETRY_429_INTERVAL=0.05,
        RETRY_BUDGET_FLOOR=MANY,
        STREAM_HEARTBEAT=1,
        REQUEST_TIMEOUT=2.5,
    )


def heard(simulator: Running, path: str = "/v1/messages") -> int:
    """Requests that reached the simulator."""
    return int(simulator.stats()["by_path"].get(path, 0))


def at_once(*calls: Callable[[], Answer]) -> list[Answer]:
    """All of them at the same time; their answers in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def outcomes(server: Server, answer: Answer) -> list[str]:
    """What the log says came of each try."""
    found: list[list[str]] = []

    def logged() -> bool:
        for row in server.lines():
            if row["request_id"] == answer.get("x-request-id"):
                found.append([attempt["outcome"] for attempt in row["attempts"]])
        return bool(found)

    until(logged, what="the log line")
    return found[0]


def test_b30_what_is_worth_another_try_gets_it(patient: Server, simulator: Running) -> None:
    for number, status in enumerate((*RETRIED, 429), 1):
        answer = post(patient.port, f"flaky-1-{status}-ra0.05")
        assert answer.status == 200, status
        assert heard(simulator) == 2 * number, status
        assert outcomes(patient, answer) == [str(status), "200"]
        assert f'desc="{status}"' in answer.get("server-timing")
        assert answer.get("x-penstock-provider") == "anthropic"


def test_b30_three_tries_and_the_last_answer_as_it_came(patient: Server, simulator: Running) -> None:
    answer = post(patient.port, "status-529")
    assert (answer.status, answer.error) == (529, "overloaded_error")
    assert answer.get("request-id").startswith("req_011SIM") and not answer.get("x-penstock-error")
    assert heard(simulator) == 3
    html = post(patient.port, "status-502-html")
    assert html.status == 502 and html.body.startswith(b"<html>")
    assert heard(simulator) == 6


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_b30_a_clients_own_fault_is_never_tried_again(patient: Server, simulator: Running, status: int) -> None:
    assert post(patient.port, f"status-{status}").status == status
    assert heard(simulator) == 1


@pytest.mark.parametrize(("scenario", "tries", "status"), [("refused", 3, 502), ("goaway-now", 2, 200)])
def test_b30_what_was_not_processed_is_sent_again(
    patient: Server, simulator: Running, scenario: str, tries: int, status: int
) -> None:
    answer = post(patient.port, scenario)
    assert answer.status == status
    assert outcomes(patient, answer) == ["protocol_broken"] * (tries - (status == 200)) + ["200"] * (status == 200)
    assert heard(simulator) == tries


def test_b30_an_overloaded_first_event_is_never_seen(patient: Server, simulator: Running) -> None:
    with (
        anthropic.Anthropic(base_url=patient.url, api_key=KEY, max_retries=0) as sdk,
        sdk.messages.stream(model="claude-sim-overloaded-1", **ASKED) as stream,  # type: ignore[arg-type]
    ):
        assert stream.get_final_message().stop_reason == "end_turn"
    assert heard(simulator) == 2
    last = post(patient.port, "overloaded", stream=True)
    assert heard(simulator) == 5
    assert last.status == 200 and terminal_error(last.body)["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("scenario", ["reset-3", "close-3", "streamerror-2"])
def test_b30_nothing_is_sent_again_after_the_first_byte(
    patient: Server, simulator: Running, scenario: str
) -> None:
    raw, head = opened(patient.port, scenario)
    with raw:
        assert head.status == 200
        terminal_error(raw.body(head))
    time.sleep(0.2)
    assert heard(simulator) == 1


def test_b32_the_sdks_retries_and_ours_do_not_multiply(patient: Server, simulator: Running) -> None:
    with anthropic.Anthropic(base_url=patient.url, api_key=KEY, max_retries=2) as sdk:
        with pytest.raises(anthropic.InternalServerError) as caught:
            sdk.messages.create(model="claude-sim-status-529-ra0.05", **ASKED)  # type: ignore[call-overload]
        assert caught.value.status_code == 529
        assert heard(simulator) == 3 + 2 + 1
        simulator.reset()
        user = {"user_id": "once-more"}
        message = sdk.messages.create(model="claude-sim-flaky-4-529-ra0.05", metadata=user, **ASKED)  # type: ignore[call-overload]
        assert message.type == "message"
        assert heard(simulator) == 5


@pytest.fixture
def frugal(farm: Farm, simulator: Running) -> Server:
    """Three retries in ten seconds, and a tenth of the traffic; all the time in the world."""
    return farm.shared("gevent", RETRY_MAX_ATTEMPTS=3, RETRY_429_INTERVAL=0.01, RETRY_BUDGET_FLOOR=3)


def test_b31_a_long_retry_after_is_passed_on_at_once(frugal: Server, simulator: Running) -> None:
    for status in (429, 529):
        began = time.monotonic()
        answer = post(frugal.port, f"status-{status}-ra13")
        assert (answer.status, answer.get("retry-after")) == (status, "13")
        assert answer.get("request-id").startswith("req_011SIM")
        assert time.monotonic() - began < 5
    assert heard(simulator) == 2


def test_b32_the_budget_ends_them(frugal: Server, simulator: Running) -> None:
    for _ in range(20):
        assert post(frugal.port, "status-500").status == 500
    assert 20 + 3 <= heard(simulator) <= 20 + 3 + 2
    assert "penstock_retry_budget_left 0.0" in ask(frugal.port, "/metrics").body.decode()


def test_b31_it_is_obeyed_in_every_form(patient: Server, simulator: Running) -> None:
    """One caller each; milliseconds win over seconds, and a date has whole seconds."""
    in_ms = {"status": 429, "times": 1, "retry_after": "60", "headers": {"retry-after-ms": "400"}}
    in_s = {"status": 429, "times": 1, "retry_after": "0.4"}
    as_date = {"status": 429, "times": 1, "retry_after": formatdate(time.time() + 1.5, usegmt=True)}
    simulator.set_keys({"ms": [in_ms], "s": [in_s], "date": [as_date]})
    headers = [[*USUAL[:3], ("x-api-key", key)] for key in ("ms", "s", "date")]
    answers = at_once(*(partial(ask, patient.port, "/v1/messages", message("json-0ms"), (*h,)) for h in headers))
    assert [answer.status for answer in answers] == [200] * 3
    gaps = {key: rows[1][0] - rows[0][0] for key, rows in simulator.keys().items()}
    assert 0.4 <= gaps["ms"] <= 1.4 and 0.4 <= gaps["s"] <= 1.4 and 0.45 <= gaps["date"] <= 2.4, gaps


def test_b31_x_should_retry_decides(patient: Server, simulator: Running) -> None:
    simulator.set_keys({KEY: [{"status": 500, "headers": {"x-should-retry": "false"}}]})
    assert post(patient.port, "json-0ms").status == 500
    simulator.set_keys({KEY: [{"status": 400, "times": 1, "headers": {"x-should-retry": "true"}}]})
    assert post(patient.port, "json-0ms").status == 200
    assert heard(simulator) == 1 + 2


@pytest.mark.parametrize("kind", ["gevent"])
def test_b31_all_of_it_inside_the_deadline(patient: Server, simulator: Running) -> None:
    began = time.monotonic()
    assert post(patient.port, "status-529-ra5").status == 529  # a pause that would end after it is not begun
    assert time.monotonic() - began < 2
    assert heard(simulator) == 1
    answer = post(patient.port, "hang")
    assert (answer.status, answer.get("x-penstock-error")) == (504, "deadline_passed")
    assert outcomes(patient, answer) == ["deadline_passed"]
    assert heard(simulator) == 2


def test_b23_a_retry_in_a_stream_that_has_begun(patient: Server, simulator: Running) -> None:
    """Status 200 and signs of life are out already; the stream ends well, or with one error event."""
    good, bad = at_once(
        partial(post, patient.port, "flaky-1-529-ra1.3", stream=True),
        partial(post, patient.port, "status-529-ra0.7", stream=True),
    )
    assert good.status == bad.status == 200
    assert good.body.startswith(b":") and b"message_stop" in good.body and b"event: error" not in good.body
    assert bad.body.startswith(b":") and b"message_start" not in bad.body
    assert terminal_error(bad.body)["error"]["type"] == "overloaded_error"
    assert heard(simulator) == 2 + 3


@pytest.mark.parametrize(("size", "tries"), [(300, 2), (3_000_000, 1)])
def test_a_streamed_upload_is_sent_once(patient: Server, simulator: Running, size: int, tries: int) -> None:
    """What was buffered can be sent again; of what was streamed nothing is left."""
    scenario = {"x-sim-scenario": "flaky-1-503-ra0.05"}
    with anthropic.Anthropic(base_url=patient.url, api_key=KEY, max_retries=0) as sdk:
        file = ("a.bin", io.BytesIO(b"x" * size), "application/octet-stream")
        if tries == 1:
            with pytest.raises(anthropic.InternalServerError) as caught:
                sdk.beta.files.upload(file=file, extra_headers=scenario)
            assert caught.value.status_code == 503
        else:
            sdk.beta.files.upload(file=file, extra_headers=scenario)
    assert heard(simulator, "/v1/files") == tries


def test_b21_who_leaves_during_a_pause_is_not_tried_for_again(patient: Server, simulator: Running) -> None:
    raws = [Raw(patient.port) for _ in range(2)]
    for raw, stream in zip(raws, (False, True), strict=True):
        raw.send(request("/v1/messages", message("status-529-ra1.5", stream=stream), USUAL))
    until(lambda: heard(simulator) == 2)
    for raw in raws:
        raw.close()
    until(lambda: [row["client_left"] for row in patient.lines()[-2:]] == [True, True], what="their log lines")
    time.sleep(1.6)
    assert heard(simulator) == 2


class Door:
    """An upstream of plain HTTP/1.1 that is shut, breaks off, or answers.

    Args:
        port: Where.
        broken: So many connections are closed once the request's head is there, without an answer.
    """

    def __init__(self, port: int, broken: int = 0) -> None:
        self.bodies: list[int] = []
        self.heads = 0
        self._broken = broken
        self._listener = socket.create_server(("127.0.0.1", port), reuse_port=True)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head, _, body = self._read_head(connection).partition(b"\r\n\r\n")
        if not head:
            return
        self.heads += 1
        if self.heads <= self._broken:
            return
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.bodies.append(len(body))
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    @staticmethod
    def _read_head(connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            got = connection.recv(65536)
            if not got:
                return b""
            data += got
        return data

    def shut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


_PORTS: dict[str, int] = {}


@pytest.fixture
def behind_a_door(farm: Farm, kind: str) -> tuple[Server, int]:
    """A gateway whose upstream is for the test to open, and its port."""
    port = _PORTS.setdefault(kind, free_port())
    settings = {"RETRY_MAX_ATTEMPTS": 10, "RETRY_429_INTERVAL": 0.1, "RETRY_BACKOFF_MAX": 0.3}
    found = farm.shared(kind, upstream=f"http://127.0.0.1:{port}", RETRY_BUDGET_FLOOR=MANY, **settings)
    with door(port):  # the first exchange of a worker prepares much
        assert post(found.port, "json-0ms").status == 200
    return found, port


@contextmanager
def door(port: int, broken: int = 0) -> Iterator[Door]:
    made = Door(port, broken)
    try:
        yield made
    finally:
        made.shut()


@pytest.mark.parametrize("size", [0, 2_000_000], ids=["message", "upload"])
def test_b30_an_upstream_that_refuses_connections_for_a_while(
    behind_a_door: tuple[Server, int], size: int
) -> None:
    """Nothing was sent, so this holds for uploads too, whose body has not been touched."""
    server, port = behind_a_door
    answers: list[Answer] = []
    target, body = ("/v1/files", b"x" * size) if size else ("/v1/messages", message("json-0ms"))
    thread = threading.Thread(target=lambda: answers.append(ask(server.port, target, body, USUAL)))
    thread.start()
    until(lambda: ask(server.port, "/ready").json()["in_flight"] == 1, what="the request")
    time.sleep(0.2)
    with door(port) as upstream:
        thread.join(10)
        assert [answer.status for answer in answers] == [200]
        assert upstream.bodies == [len(body)]
        tried = outcomes(server, answers[0])
        assert tried[-1] == "200" and set(tried[:-1]) == {"connect_failed"}


def test_b30_a_connection_that_breaks_before_the_head(behind_a_door: tuple[Server, int]) -> None:
    """Perhaps it was processed: a message may be sent again, a batch, which would cost twice, may not."""
    server, port = behind_a_door
    with door(port, broken=2) as upstream:
        answer = post(server.port, "json-0ms")
        assert answer.status == 200
        assert outcomes(server, answer) == ["protocol_broken", "protocol_broken", "200"]
        assert upstream.heads == 3
    with door(port, broken=9) as upstream:
        answer = ask(server.port, "/v1/messages/batches", b'{"requests":[]}', USUAL)
        assert (answer.status, answer.get("x-penstock-error")) == (502, "protocol_broken")
        assert upstream.heads == 1
