"""What the options about gateways of others mean."""

from __future__ import annotations

import pytest

from app.bench.against import Against, against
from app.bench.servers import BenchError


def test_pids_belong_to_the_urls_in_the_same_place() -> None:
    one, two = against(["http://a:1/", "https://b/x/v1/messages"], [7], ["X-Api-Key: k:1 ", "a:"])
    assert (one.url, one.pid, one.words) == ("http://a:1", 7, "a:1")
    assert (two.url, two.pid, two.words) == ("https://b/x", None, "b")
    assert one.headers == two.headers == {"x-api-key": "k:1", "a": ""}
    assert against([], [], []) == []


@pytest.mark.parametrize(
    "url",
    ["", "localhost:80", "ftp://a", "http://", "http://a:port", "http://a:70000", "http://a?b=c", "http://a#b"],
)
def test_what_is_no_url_of_a_gateway_is_named(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL of a gateway"):
        against([url], [], [])


def test_secrets_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="use --header") as caught:
        against(["http://me:secret@a"], [], [])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["x-api-key", ": secret", "a: b\r\nc: d", "a: ü"])
def test_what_is_no_header_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="a --header is 'name: value'") as caught:
        against(["http://a"], [], [text])
    assert text not in str(caught.value)


def test_pids_and_headers_need_a_url() -> None:
    with pytest.raises(ValueError, match="--against-pid"):
        against(["http://a"], [1, 2], [])
    with pytest.raises(ValueError, match="--header"):
        against([], [], ["a: b"])


def test_a_process_that_does_not_exist_is_named() -> None:
    with pytest.raises(BenchError, match="there is no process 4194305, which should be that of http://a"):
        Against("http://a", 4_194_305).reach()  # above the highest pid_max


def test_without_a_pid_nothing_is_known_of_its_processes() -> None:
    assert Against("http://a").pid is None
