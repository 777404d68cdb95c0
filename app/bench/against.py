"""Gateways that somebody runs already: where they are, whose processes they are, whether they answer.

Runs on: start-up.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from app.bench import procs
from app.bench.servers import BenchError

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Against:
    """One of them.

    Attributes:
        url: ``http://`` or ``https://``, host, port, and what stands before ``/v1/messages``.
        pid: Of the process that its processes descend from; None: not known, so that it has no CPU figures.
        headers: Added to each request to it.
    """

    url: str
    pid: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def reach(self) -> None:
        """Returns if somebody speaks HTTP there, and its process, if one is named, exists.

        Raises:
            BenchError: Nobody does, or it does not.
        """
        try:
            procs.cpu_s([self.pid] if self.pid else [])
        except OSError as fault:
            raise BenchError(f"there is no process {self.pid}, which should be that of {self.url}") from fault
        where = urlsplit(self.url)
        kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", where.path or "/", headers={"connection": "close"})
            connection.getresponse().read(1)
        except (OSError, http.client.HTTPException) as fault:
            raise BenchError(f"{self.url} does not answer: {fault!r}") from fault
        finally:
            connection.close()


def against(urls: Sequence[str], pids: Sequence[int], headers: Sequence[str]) -> list[Against]:
    """What the options of that name mean: pids belong to the URLs in the same place, headers to all.

    Raises:
        ValueError: They mean nothing.
    """
    if len(pids) > len(urls):
        raise ValueError("--against-pid belongs to an --against: there are more of the former")
    if headers and not urls:
        raise ValueError("--header is for requests to --against, and there is none")
    pairs = dict(_pair(text) for text in headers)
    owners = [*pids, *[None] * (len(urls) - len(pids))]
    return [Against(_checked(url), pid, pairs) for url, pid in zip(urls, owners, strict=True)]


def _checked(url: str) -> str:
    """``url`` without a slash or /v1/messages at its end."""
    where = urlsplit(url)
    try:
        usable = where.scheme in ("http", "https") and where.hostname and (where.port or 1)
    except ValueError:
        usable = None
    if not usable or where.query or where.fragment:
        raise ValueError(f"{url!r} is no URL of a gateway: http(s)://host[:port][/path]")
    if "@" in where.netloc:
        raise ValueError("a user or password in the URL is not allowed; use --header")
    return url.rstrip("/").removesuffix("/v1/messages")


def _pair(text: str) -> tuple[str, str]:
    """``name: value``; in lower case the name, so that it replaces one of ours."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or "\r" in text or "\n" in text or not text.isascii():
        raise ValueError("a --header is 'name: value', in ASCII and on one line")
    return name.strip().lower(), value.strip()
