"""Who is missing is named."""

from __future__ import annotations

import http.client
from typing import NoReturn

import pytest

from app.bench import servers
from app.bench.servers import BenchError, Upstream, named


@pytest.mark.parametrize("fault", [ConnectionRefusedError(111, "refused"), http.client.BadStatusLine("x")])
def test_a_simulator_that_went_away_says_who_it_was(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def request(*_: object, **__: object) -> NoReturn:
        raise fault

    monkeypatch.setattr(http.client.HTTPConnection, "request", request)
    upstream = Upstream("http://127.0.0.1:9", "https://localhost:9", "", 77)
    for ask in (upstream.stats, upstream.reset, upstream.requests):
        with pytest.raises(BenchError, match=r"the simulator at http://127.0.0.1:9 \(process 77\) went away: "):
            ask()


def test_a_server_that_takes_no_connection_is_named() -> None:
    words = r"gateway at http://a does not take connections: .*refused"
    with pytest.raises(BenchError, match=words), named("gateway", "http://a"):
        raise ConnectionRefusedError(111, "refused")
    with pytest.raises(ValueError, match="other"), named("gateway", "http://a"):
        raise ValueError("other")


def test_simulators_of_a_bench_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started:
        plain_url, tls_url, ca_path, pid = "http://a", "https://a", "ca", 5

        def __enter__(self) -> Started:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(servers, "running", lambda options: Started())
    with servers.simulator() as found:
        assert found == Upstream("http://a", "https://a", "ca", 5)
        assert isinstance(found, Upstream)
