"""The simulator over real sockets: every protocol gives the same answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator

import anthropic
import httpx
import pytest

from app.simulator import golden
from app.simulator.options import Options
from app.simulator.running import Running
from app.simulator.streams import octets
from app.simulator.thread import running_in_thread

PROTOCOLS = ("http/1.1-plain", "http/1.1-tls", "h2")


@pytest.fixture(scope="module")
def simulator() -> Iterator[Running]:
    with running_in_thread(Options(max_concurrent_streams=256)) as running:
        yield running


def _client(simulator: Running, protocol: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=simulator.ca_path)
    base = simulator.plain_url if protocol == "http/1.1-plain" else simulator.tls_url
    return httpx.Client(base_url=base, verify=context, http2=protocol == "h2", timeout=5)


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(simulator: Running, protocol: str) -> Iterator[httpx.Client]:
    simulator.reset()
    with _client(simulator, protocol) as client:
        yield client


def _body(scenario: str, *, stream: bool = False, user: str = "") -> dict[str, object]:
    model = scenario if scenario.startswith("claude-") else f"claude-sim-{scenario}"
    body: dict[str, object] = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    if stream:
        body["stream"] = True
    if user:
        body["metadata"] = {"user_id": user}
    return body


def _post(
    client: httpx.Client, scenario: str, *, stream: bool = False, user: str = "", **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/v1/messages", json=_body(scenario, stream=stream, user=user), headers=named)


def _until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


def test_json(client: httpx.Client, simulator: Running, protocol: str) -> None:
    answer = _post(client, "json-0ms")
    assert answer.status_code == 200
    assert answer.http_version == ("HTTP/2" if protocol == "h2" else "HTTP/1.1")
    assert answer.json()["model"] == "claude-sim-json-0ms"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["request-id"].startswith("req_")
    assert "anthropic-ratelimit-requests-remaining" in answer.headers
    assert simulator.stats()["requests"][protocol] == 1


def test_delays_and_sizes(client: httpx.Client) -> None:
    start = time.monotonic()
    assert len(_post(client, "json-30ms-4k").json()["content"][0]["text"]) == 4096
    assert time.monotonic() - start >= 0.028
    start = time.monotonic()
    assert _post(client, "slowhead-30", stream=True).text.count("@T:") == 10
    assert time.monotonic() - start >= 0.028


def test_events_come_when_they_are_written(client: httpx.Client, simulator: Running) -> None:
    late = []
    with client.stream("POST", "/v1/messages", json=_body("stream-10x10ms-50b", stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for piece in answer.iter_raw():
            late += [time.monotonic_ns() - int(at) for at in re.findall(rb"@T:(\d+);y{50}", piece)]
    assert len(late) == 10
    assert sorted(late)[5] < 50_000_000
    assert simulator.stats()["events_sent"] == 10


def test_streams_without_a_gap_and_bursts(client: httpx.Client) -> None:
    for scenario in ("stream-50x0ms", "burst-50"):
        text = _post(client, scenario, stream=True).text
        assert text.count("event: content_block_delta") == 50
        assert text.endswith('data: {"type":"message_stop"          }\n\n')
        assert _post(client, scenario).json()["type"] == "message"


def test_a_live_model_talks(client: httpx.Client) -> None:
    text = _post(client, "claude-sonnet-4-5", stream=True).text
    assert text.count("text_delta") == 12
    assert " turbine." in text
    assert "turbine" in _post(client, "claude-sonnet-4-5").json()["content"][0]["text"]


@pytest.mark.parametrize(
    ("scenario", "status", "kind", "retry_after"),
    [
        ("status-400", 400, "invalid_request_error", None),
        ("status-401", 401, "authentication_error", None),
        ("status-429", 429, "rate_limit_error", "1"),
        ("status-529-ra7", 529, "overloaded_error", "7"),
        ("status-503", 503, "api_error", None),
        ("overloaded", 529, "overloaded_error", None),
    ],
)
def test_errors(client: httpx.Client, scenario: str, status: int, kind: str, retry_after: str | None) -> None:
    answer = _post(client, scenario)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.json()["request_id"] == answer.headers["request-id"]
    assert answer.headers.get("retry-after") == retry_after
    assert _post(client, "json-0ms", x_lab_scenario=scenario).status_code == status


def test_an_edges_html(client: httpx.Client) -> None:
    answer = _post(client, "status-502-html")
    assert answer.status_code == 502
    assert answer.text.startswith("<html>")
    assert "request-id" not in answer.headers


def test_errors_inside_a_stream(client: httpx.Client) -> None:
    first = _post(client, "overloaded", stream=True)
    assert (first.status_code, first.text.count("event:")) == (200, 1)
    assert "overloaded_error" in first.text
    later = _post(client, "streamerror-2", stream=True).text
    assert later.count("content_block_delta\n") == 2
    assert later.rstrip().endswith('"Overloaded"}        }')


def test_golden_bytes(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/messages", json=_body("golden")) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert b"".join(answer.iter_raw()) == golden.GOLDEN_GZIP
    assert _post(client, "golden", accept_encoding="identity").content == golden.GOLDEN_JSON
    assert _post(client, "golden", stream=True).content == golden.GOLDEN_SSE


def test_repeated_headers(client: httpx.Client) -> None:
    headers = _post(client, "repeat").headers
    assert headers.get_list("x-repeat") == ["one", "two"]
    assert len(headers.get_list("set-cookie")) == 2


def test_a_flaky_caller_succeeds_in_the_end(client: httpx.Client) -> None:
    codes = [_post(client, "flaky-2-529", user="one").status_code for _ in range(4)]
    assert codes == [529, 529, 200, 200]
    assert _post(client, "flaky-1-503", user="two", stream=True).status_code == 503
    assert "message_stop" in _post(client, "flaky-1-503", user="two", stream=True).text


def test_an_overload_passes(client: httpx.Client) -> None:
    texts = [_post(client, "overloaded-2", user="o", stream=True).text for _ in range(3)]
    assert [text.startswith("event: error\n") for text in texts] == [True, True, False]
    assert "overloaded_error" in texts[1]
    assert "message_stop" in texts[2]
    assert [_post(client, "overloaded-1", user="p").status_code for _ in range(2)] == [529, 200]


def test_a_key_has_its_program(client: httpx.Client, simulator: Running) -> None:
    simulator.set_keys(
        {
            "one": [
                {"status": 429, "retry_after": "2", "times": 1},
                {"status": 401, "body": {"no": 1}},
            ],
            "two": [{"rate": {"limit": 1, "window_s": 60}}],
        }
    )
    first = _post(client, "json-0ms", x_api_key="one")
    assert (first.status_code, first.headers["retry-after"]) == (429, "2")
    assert first.json()["error"]["type"] == "rate_limit_error"
    assert _post(client, "json-0ms", authorization="Bearer one", stream=True).json() == {"no": 1}
    let_in, refused = (_post(client, "burst-1", x_api_key="two", stream=True) for _ in range(2))
    assert [one.status_code for one in (let_in, refused)] == [200, 429]
    for answer in (let_in, refused):
        limits = {
            name: answer.headers.get_list(f"anthropic-ratelimit-requests-{name}")
            for name in ("limit", "remaining")
        }
        assert limits == {"limit": ["1"], "remaining": ["0"]}
    assert refused.headers["retry-after"] == "60"
    assert _post(client, "status-503", x_api_key="three").status_code == 503
    assert client.get("/v1/models", headers={"x-api-key": "one"}).status_code == 200
    record = simulator.keys()
    assert {key: [status for _, status in rows] for key, rows in record.items()} == {
        "one": [429, 401],
        "two": [200, 429],
        "three": [503],
    }
    times = [t_s for rows in record.values() for t_s, _ in rows]
    assert times == sorted(times)
    assert times[0] > 0


def test_a_program_goes_before_a_replay_and_a_reset_ends_it(client: httpx.Client, simulator: Running) -> None:
    simulator.set_keys({"one": [{"status": 418}]})
    assert _post(client, "json-0ms", x_api_key="one", x_sim_replay="0").status_code == 418
    with pytest.raises(ValueError, match="list of rules"):
        simulator.set_keys({"one": {}})  # type: ignore[dict-item]
    assert client.post("/__keys", content=b"{").status_code == 400
    simulator.reset()
    assert simulator.keys() == {}
    assert _post(client, "json-0ms", x_api_key="one").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("scenario", ["reset-2", "close-2", "refused"])
def test_broken_answers_raise(client: httpx.Client, simulator: Running, scenario: str, stream: bool) -> None:
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        _post(client, scenario, stream=stream)
    stats = simulator.stats()
    assert stats["resets_sent"] == (scenario == "reset-2")
    assert stats["refused_sent"] == (scenario == "refused")
    assert stats["client_aborts"] == 0
    assert stats["open_streams"] == 0


@pytest.mark.parametrize(("scenario", "deltas"), [("stall-2", 2), ("halfevent-2", 3)])
def test_silence(client: httpx.Client, simulator: Running, scenario: str, deltas: int) -> None:
    timeout = httpx.Timeout(5, read=0.1)
    got = b""
    with (
        pytest.raises(httpx.ReadTimeout),
        client.stream("POST", "/v1/messages", json=_body(scenario, stream=True), timeout=timeout) as answer,
    ):
        for piece in answer.iter_raw():
            got += piece
    assert got.count(b"event: content_block_delta") == deltas
    assert got.endswith(b"\n\n") == (scenario == "stall-2")
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/messages", json=_body(scenario), timeout=timeout)
    client.close()
    _until(lambda: simulator.stats()["open_streams"] == 0)


def test_hanging_requests_end_with_their_client(client: httpx.Client, simulator: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/messages", json=_body("hang"), timeout=httpx.Timeout(5, read=0.1))
    client.close()
    _until(lambda: simulator.stats()["client_aborts"] == 1)
    stats = simulator.stats()
    assert stats["aborts"][0]["model"] == "claude-sim-hang"
    assert 0 < time.monotonic_ns() - stats["aborts"][0]["at_ns"] < 5e9


def test_nothing_is_generated_after_an_abort(client: httpx.Client, simulator: Running) -> None:
    with client.stream("POST", "/v1/messages", json=_body("stream-1000x2ms", stream=True)) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        (stream,) = simulator.stats()["streams"]
        assert stream["model"] == "claude-sim-stream-1000x2ms"
        assert stream["bytes_sent"] > 400
    client.close()
    _until(lambda: simulator.stats()["client_aborts"] == 1)
    sent = simulator.stats()["events_sent"]
    time.sleep(0.02)
    assert simulator.stats()["events_sent"] == sent < 500


def test_large_answers_wait_for_a_slow_reader(client: httpx.Client, simulator: Running) -> None:
    size = 64 * 1024 * 1024
    with client.stream("POST", "/v1/messages", json=_body("big-65536k")) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        sizes = [-1, 0]

        def settled() -> bool:
            sizes.append(simulator.stats()["streams"][0]["bytes_sent"])
            return sizes[-1] == sizes[-2]

        _until(settled)
        assert sizes[-1] < size / 2
    client.close()
    _until(lambda: simulator.stats()["client_aborts"] == 1)
    with _client(simulator, "http/1.1-plain") as other:
        assert _post(other, "big-3000k").content == b"".join(octets(3000 * 1024))


def test_files(client: httpx.Client) -> None:
    made = client.post("/v1/files", files={"file": ("a.txt", b"z" * 300_000, "text/plain")}).json()
    assert (made["filename"], made["mime_type"], made["size_bytes"]) == ("a.txt", "text/plain", 300_000)
    raw = client.post("/v1/files", content=b"raw", headers={"content-type": "text/csv"}).json()
    assert (raw["mime_type"], raw["size_bytes"]) == ("text/csv", 3)
    assert client.get("/v1/files").json()["first_id"] == raw["id"]
    assert client.get(f"/v1/files/{made['id']}").json()["filename"] == "a.txt"
    assert client.get("/v1/files/file_sim_9").json()["size_bytes"] == 9
    assert client.get("/v1/files/file_sim_1000000/content").content == b"".join(octets(1_000_000))
    assert client.delete("/v1/files/file_sim_9").json()["type"] == "file_deleted"
    assert client.get("/v1/files/unknown").status_code == 404
    assert client.get("/v1/files/unknown/content").status_code == 404


def test_uploads_are_counted_not_kept(client: httpx.Client, simulator: Running) -> None:
    piece, count = b"u" * 65_536, 320
    answer = client.post("/v1/files", content=(piece for _ in range(count))).json()
    wanted = hashlib.sha256(piece * count).hexdigest()
    assert (answer["received_bytes"], answer["received_sha256"]) == (len(piece) * count, wanted)
    last = simulator.last()
    assert last is not None
    assert last["body_sha256"] == wanted
    assert len(base64.b64decode(last["body_b64"])) == 65_536


def test_batches_and_models(client: httpx.Client) -> None:
    made = client.post("/v1/messages/batches", json={"requests": [{"custom_id": "a"}, {"custom_id": "b"}]}).json()
    assert made["processing_status"] == "in_progress"
    ended = client.get(f"/v1/messages/batches/{made['id']}").json()
    lines = client.get(ended["results_url"]).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]
    assert client.get("/v1/messages/batches").json()["data"][0]["id"] == made["id"]
    assert client.delete(f"/v1/messages/batches/{made['id']}").json()["type"] == "message_batch_deleted"
    assert client.get("/v1/messages/batches").json()["data"] == []
    assert len(client.get("/v1/messages/batches/other/results").text.splitlines()) == 2
    assert client.get("/v1/models").json()["data"][0]["type"] == "model"
    assert client.get("/v1/models/claude-sim-anything").json()["id"] == "claude-sim-anything"
    assert client.get("/v1/models/none").status_code == 404
    assert client.post("/v1/messages/count_tokens", json={}).json() == {"input_tokens": 2095}


def test_echo_shows_what_was_received(client: httpx.Client, simulator: Running, protocol: str) -> None:
    headers = [("x-one", "1"), ("x-Two", "a"), ("x-two", "b")]
    seen = client.request("PATCH", "/p%2Fq/echo?a=%20&b", content=b"\0hi", headers=headers).json()
    assert (seen["method"], seen["target"], seen["protocol"]) == ("PATCH", "/p%2Fq/echo?a=%20&b", protocol)
    assert [pair for pair in seen["headers"] if pair[0].lower() == "x-two"] == [
        ["x-two" if protocol == "h2" else "x-Two", "a"],
        ["x-two", "b"],
    ]
    assert (seen["body_bytes"], base64.b64decode(seen["body_b64"])) == (3, b"\0hi")
    assert seen["body_sha256"] == hashlib.sha256(b"\0hi").hexdigest()
    assert seen["authority"].rsplit(":", 1)[1] in simulator.plain_url + simulator.tls_url
    assert client.post("/echo", content=b"x" * 65_537).json()["body_b64"] is None
    assert client.head("/echo").content == b""


def test_unknown_paths_and_bad_requests(client: httpx.Client, simulator: Running) -> None:
    assert client.get("/v1/none").json()["error"]["type"] == "not_found_error"
    assert client.get("/__none").status_code == 404
    assert client.post("/v1/messages", json={}).json()["error"]["message"] == "model: Field required"
    assert simulator.stats()["by_path"] == {"/v1/none": 1, "/__none": 1, "/v1/messages": 1}


def test_headers_script_other_endpoints_too(client: httpx.Client) -> None:
    def get(scenario: str) -> httpx.Response:
        return client.get("/v1/models", headers={"x-sim-scenario": scenario})

    assert get("status-529").status_code == 529
    assert get("json-5ms").json()["has_more"] is False
    assert get("golden").json()["has_more"] is False
    assert [get("flaky-1-500").status_code, get("flaky-1-500").status_code] == [500, 200]


def test_slow_uploads(client: httpx.Client) -> None:
    start = time.monotonic()
    data = b"x" * 20_000
    answer = client.post("/v1/files", content=data, headers={"x-sim-scenario": "slowread-200"})
    assert answer.json()["received_bytes"] == len(data)
    assert time.monotonic() - start > 0.08
    start = time.monotonic()
    assert _post(client, "slowread-1").status_code == 200
    assert time.monotonic() - start > 0.08


def test_what_was_asked(client: httpx.Client, simulator: Running, protocol: str) -> None:
    _post(client, "json-0ms", x_api_key="k1")
    _post(client, "status-400", x_api_key="k2")
    rows = [(row["model"], row["x-api-key"], row["protocol"]) for row in simulator.requests()]
    assert rows == [("claude-sim-json-0ms", "k1", protocol), ("claude-sim-status-400", "k2", protocol)]
    last = simulator.last()
    assert last is not None
    assert ["x-api-key", "k2"] in last["headers"]
    simulator.reset()
    assert simulator.last() is None
    assert simulator.requests() == []


def test_goaway_over_http11_ends_the_connection(simulator: Running) -> None:
    simulator.reset()

    def ask(scenario: str, *, stream: bool = False) -> httpx.Response:
        with _client(simulator, "http/1.1-plain") as client:  # a pooled connection could be met while it closes
            return _post(client, scenario, stream=stream, user="g")

    assert "message_stop" in ask("goaway-1", stream=True).text
    assert ask("goaway-1").headers["connection"] == "close"
    with pytest.raises(httpx.RemoteProtocolError):
        ask("goaway-now")
    assert ask("goaway-now").status_code == 200


def test_the_sdk_understands_it(simulator: Running) -> None:
    with anthropic.Anthropic(base_url=simulator.plain_url, api_key="k", max_retries=0) as sdk:
        message = sdk.messages.create(
            model="claude-made-up", max_tokens=5, messages=[{"role": "user", "content": "x"}]
        )
        assert message.content[0].type == "text"
        with sdk.messages.stream(
            model="claude-sim-golden", max_tokens=5, messages=[{"role": "user", "content": "x"}]
        ) as stream:
            assert stream.get_final_message().stop_reason == "tool_use"


@pytest.mark.parametrize("http2", [True, False])
def test_200_streams_at_once(simulator: Running, http2: bool) -> None:
    simulator.reset()

    async def main() -> list[int]:
        context = ssl.create_default_context(cafile=simulator.ca_path)
        base = simulator.tls_url if http2 else simulator.plain_url
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            verify=context, http2=http2, base_url=base, limits=limits, timeout=20
        ) as client:

            async def one() -> int:
                answer = await client.post("/v1/messages", json=_body("stream-5x5ms", stream=True))
                return answer.text.count("@T:")

            return await asyncio.gather(*(one() for _ in range(200)))

    assert asyncio.run(main()) == [5] * 200
    stats = simulator.stats()
    assert stats["events_sent"] == 1000
    assert stats["open_streams"] == 0
    assert stats["max_open_streams"] > 50
