"""Nothing of one caller ever reaches another (B17)."""

from __future__ import annotations

import threading

from app.simulator.running import Running
from tests.e2e.servers import Server
from tests.e2e.wire import VERSION, Raw, ask, message


def _headers(name: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("accept", "*/*"), ("x-api-key", f"sk-{name}"), ("user-agent", f"agent/{name}"), VERSION, *more)


def test_cookies_of_the_upstream_stay_with_their_caller(server: Server, simulator: Running) -> None:
    """Also on one and the same connection; and a caller's own cookies go nowhere."""
    with Raw(server.port) as raw:
        first = raw.ask("/v1/messages", message("repeat"), _headers("a", ("cookie", "mine=1")))
        assert len(first.all("set-cookie")) == 2
        for other in (raw.ask, lambda *rest: ask(server.port, *rest)):
            answer = other("/v1/messages", message("json-0ms"), _headers("b"))
            assert answer.all("set-cookie") == []
            last = simulator.last()
            assert last is not None
            pairs = [(name, value) for name, value in last["headers"] if name != "content-length"]
            assert pairs == list(_headers("b"))


def test_headers_do_not_linger(server: Server, simulator: Running) -> None:
    """facts.md 15: a header set that is shared and changed per request carries betas to the next."""
    beta = ("anthropic-beta", "files-api-2025-04-14")
    ask(server.port, "/v1/messages", message("json-0ms"), _headers("a", beta, ("idempotency-key", "1")))
    ask(server.port, "/v1/messages", message("json-0ms"), _headers("b"))
    last = simulator.last()
    assert last is not None
    assert {name for name, _ in last["headers"]} <= {name for name, _ in _headers("b")} | {"content-length"}


def test_callers_at_once(server: Server) -> None:
    """Twelve callers side by side, each hears its own echo, on connections they share upstream."""
    wrong: list[str] = []

    def call(number: int) -> None:
        with Raw(server.port) as raw:
            for turn in range(15):
                name = f"caller-{number}-{turn}"
                extra = (("anthropic-beta", name),) if turn % 2 else ()
                answer = raw.ask(f"/v1/{name}/echo", name.encode(), _headers(name, *extra))
                seen = answer.json()
                pairs = {(key, value) for key, value in seen["headers"] if key != "content-length"}
                if pairs != set(_headers(name, *extra)) or seen["target"] != f"/v1/{name}/echo":
                    wrong.append(f"{name}: {seen}")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
