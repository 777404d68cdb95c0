"""The official SDKs through the gateway, on both mounts, as against the provider itself (B1)."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Iterator

import anthropic
import pytest

from app.simulator.running import Running
from app.simulator.streams import octets
from tests.e2e.servers import Farm, Server
from tests.e2e.wire import KEY

MODEL = "claude-demo"  # any name that asks the simulator for nothing
ASKED = {"max_tokens": 16, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(params=["", "/anthropic"])
def base_url(server: Server, request: pytest.FixtureRequest) -> str:
    return server.url + str(request.param)


@pytest.fixture
def sdk(base_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_message(sdk: anthropic.Anthropic, simulator: Running) -> None:
    beta = {"anthropic-beta": "context-1m-2025-08-07,of-the-future-2031-01-01"}
    message = sdk.messages.create(model=MODEL, extra_headers=beta, **ASKED)  # type: ignore[call-overload]
    assert message.content[0].text.startswith("A penstock is")
    assert message.usage.output_tokens == 21
    assert message._request_id.startswith("req_011SIM")  # the provider's, not the gateway's
    last = simulator.last()
    assert last is not None
    assert (last["method"], last["target"], last["proto"]) == ("POST", "/v1/messages", "h2")
    sent = {name: value for name, value in last["headers"]}
    assert KEY in (sent.get("x-api-key"), sent.get("authorization", "")[len("Bearer ") :])  # by the SDK's version
    assert sent["anthropic-beta"] == beta["anthropic-beta"]
    assert sent["user-agent"].startswith("Anthropic/Python")
    assert sent["x-stainless-lang"] == "python"


def test_a_stream(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(model=MODEL, **ASKED) as stream:  # type: ignore[arg-type]
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "A penstock is the gated pipe that leads water to a turbine."
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 12)


def test_a_stream_of_thinking_and_tool_use(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(model="claude-sim-golden", **ASKED) as stream:  # type: ignore[arg-type]
        message = stream.get_final_message()
    thinking, text, tool = message.content
    assert thinking.type == "thinking"
    assert thinking.signature == "c2ltdWxhdGVk+/=="
    assert text.type == "text"
    assert tool.type == "tool_use"
    assert tool.input == {"z": 2.5, "水": -1000.0}


def test_tokens_and_models(sdk: anthropic.Anthropic) -> None:
    counted = sdk.messages.count_tokens(model=MODEL, messages=ASKED["messages"])  # type: ignore[arg-type]
    assert counted.input_tokens == 2095
    assert "claude-sonnet-4-5" in [model.id for model in sdk.models.list()]
    assert sdk.models.retrieve("claude-opus-4-1").display_name == "Claude Opus 4.1"


@pytest.mark.parametrize("size", [300, 3_000_000])
def test_files_up_and_down(sdk: anthropic.Anthropic, size: int) -> None:
    """Small ones are buffered, large ones streamed (B16)."""
    made = sdk.beta.files.upload(file=("a.bin", io.BytesIO(b"".join(octets(size))), "application/octet-stream"))
    assert (made.filename, made.size_bytes) == ("a.bin", size)
    assert next(iter(sdk.beta.files.list())).id == made.id
    assert sdk.beta.files.download(made.id).read() == b"".join(octets(size))
    assert sdk.beta.files.delete(made.id).id == made.id


def test_batches(base_url: str, server: Server, simulator: Running) -> None:
    """``results()`` follows the absolute ``results_url``, past the gateway, with the caller's key (B18)."""
    context = ssl.create_default_context(cafile=simulator.ca_path)
    http = anthropic.DefaultHttpxClient(verify=context)
    with anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0, http_client=http) as sdk:
        asked = {"custom_id": "one", "params": {"model": MODEL, **ASKED}}
        made = sdk.messages.batches.create(requests=[asked])  # type: ignore[list-item]
        assert made.processing_status == "in_progress"
        ended = sdk.messages.batches.retrieve(made.id)
        results_url = f"{simulator.tls_url}/v1/messages/batches/{made.id}/results"
        assert ended.results_url == results_url
        assert [row.custom_id for row in sdk.messages.batches.results(made.id)] == ["one"]
        assert simulator.requests()[-1]["protocol"] == "http/1.1-tls"  # not from the gateway, which speaks h2
        assert KEY in str(simulator.last())
        assert made.id in [batch.id for batch in sdk.messages.batches.list()]
        assert sdk.messages.batches.delete(made.id).id == made.id
    assert not [row for row in server.lines() if row["path"].endswith("/results")]


@pytest.mark.parametrize(
    ("scenario", "error"),
    [
        ("status-400", anthropic.BadRequestError),
        ("status-401", anthropic.AuthenticationError),
        ("status-403", anthropic.PermissionDeniedError),
        ("status-404", anthropic.NotFoundError),
        ("status-413", anthropic.APIStatusError),
        ("status-429-ra7", anthropic.RateLimitError),
        ("status-500", anthropic.InternalServerError),
        ("status-529-ra3", anthropic.InternalServerError),
        ("status-502-html", anthropic.InternalServerError),
    ],
)
def test_errors_arrive_as_they_are(
    sdk: anthropic.Anthropic, scenario: str, error: type[anthropic.APIStatusError]
) -> None:
    """B15, and the headers that tell an SDK when to come back."""
    with pytest.raises(error) as caught:
        sdk.messages.create(model=f"claude-sim-{scenario}", **ASKED)  # type: ignore[call-overload]
    response = caught.value.response
    status = int(scenario.split("-")[1])
    assert caught.value.status_code == status
    assert "x-penstock-error" not in response.headers
    if "html" in scenario:
        assert response.text.startswith("<html>")
        return
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_011SIM")
    assert response.headers.get("retry-after") == {429: "7", 529: "3"}.get(status)
    assert response.headers.get("x-should-retry") == ("true" if status == 429 or status >= 500 else None)


def test_the_sdk_retries_as_against_the_provider(base_url: str) -> None:
    with anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=1) as sdk:
        user = {"user_id": f"retry-{base_url}"}
        message = sdk.messages.create(model="claude-sim-flaky-1-529-ra0.1", metadata=user, **ASKED)  # type: ignore[call-overload]
    assert message.type == "message"


@pytest.mark.parametrize("scenario", ["streamerror-2", "overloaded"])
def test_an_error_event_in_a_stream(sdk: anthropic.Anthropic, scenario: str) -> None:
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        sdk.messages.stream(model=f"claude-sim-{scenario}", **ASKED) as stream,  # type: ignore[arg-type]
    ):
        stream.get_final_message()
    assert "overloaded_error" in str(caught.value.body)


def test_a_broken_stream_is_an_error_not_an_end(sdk: anthropic.Anthropic) -> None:
    """B22: without the terminal event the SDK would take a cut for a finished message."""
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        sdk.messages.stream(model="claude-sim-reset-3", **ASKED) as stream,  # type: ignore[arg-type]
    ):
        stream.get_final_message()
    assert "api_error" in str(caught.value.body)


def test_the_asynchronous_client(base_url: str) -> None:
    async def main() -> None:
        async with anthropic.AsyncAnthropic(base_url=base_url, api_key=KEY, max_retries=0) as sdk:

            async def one(number: int) -> str:
                if number % 2:
                    message = await sdk.messages.create(model=MODEL, **ASKED)  # type: ignore[call-overload]
                    return str(message.content[0].text)
                async with sdk.messages.stream(model=MODEL, **ASKED) as stream:  # type: ignore[arg-type]
                    return await stream.get_final_text()

            texts = await asyncio.gather(*(one(number) for number in range(20)))
            assert len(set(texts)) == 2
            assert all(text.startswith("A penstock is") for text in texts)
            page = await sdk.models.list()
            assert page.data
            with pytest.raises(anthropic.RateLimitError):
                await sdk.messages.create(model="claude-sim-status-429", **ASKED)  # type: ignore[call-overload]

    asyncio.run(main())


def test_a_sync_worker_serves_the_sdk(farm: Farm) -> None:
    with anthropic.Anthropic(base_url=farm.shared("sync").url, api_key=KEY, max_retries=0) as sdk:
        for _ in range(2):
            sdk.messages.create(model=MODEL, **ASKED)  # type: ignore[call-overload]
        with sdk.messages.stream(model=MODEL, **ASKED) as stream:  # type: ignore[arg-type]
            assert stream.get_final_text().endswith("turbine.")
        with pytest.raises(anthropic.RateLimitError):
            sdk.messages.create(model="claude-sim-status-429", **ASKED)  # type: ignore[call-overload]
