"""Share facts with the workers of all nodes through a Redis stream, and go on alone while Redis is gone (B33-B35).

    starting --answer--> fine --no answer, on a new connection either--> degraded --answer--> fine
                                  (``degraded`` says why; tried again after 0.25, 0.5, then every 1 s)

An entry of the stream says how long its fact still holds; its number is the instant Redis took it at. With Redis's
own time, asked for in the same round trip, a reader knows how much is left without comparing clocks of machines.
Whoever comes new reads the whole stream (about ``KEPT`` entries) and takes what still holds; so does whoever finds
that the entry read last is gone, for then Redis has lost the stream, or has cut it.

Context: nodes share nothing but REDIS_URL. A fact has to cross in under a second and must never cost a request
    anything, whatever state Redis is in.
Choice: redis-py, because ``limits`` speaks to Redis through it too, and its blocking client: it is called from the
    worker's keeper, where gevent makes it yield, not from the loop, whose only business is the upstream. A stream
    that is polled, not publish/subscribe: what was said while one was away can be read afterwards.
Price: one small round trip per worker and pump. A name is looked up without a time limit (gevent and threads let
    others run meanwhile). Nodes that share a Redis database must mean the same key by the same label.

Runs on: worker.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote

import certifi

from app.errors import ConfigError
from app.store.facts import KINDS, TAKES_BACK, Fact, in_force, merged

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import Connection, ConnectionPool, SSLConnection, parse_url
    from redis.retry import Retry
except ImportError as missing:
    raise ConfigError(
        ("REDIS_URL is set, but the package redis is not installed: pip install 'penstock[redis]'.",)
    ) from missing

Verify = Literal["auto", "true", "false"]

STREAM: Final = "penstock:facts:1"
KEPT: Final = 1000
"""Entries the stream is cut to, about; also the most facts that wait here for Redis to come back."""
TIMEOUT_S: Final = 0.25
BACKOFF_S: Final = (0.25, 0.5, 1.0)
CALLERS_CONNECTIONS: Final = 4
"""Most connections of ``client()``; small plans allow 20 in all."""
_LONGEST_S: Final = 86_400.0
_NAME_BYTES: Final = 200
_SELF_SIGNED: Final = (18, 19)  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, …_SELF_SIGNED_CERT_IN_CHAIN
_FROM_URL: Final = frozenset({"host", "port", "path", "db", "username", "password", "client_name"})
_FAULTS: Final = (redis.RedisError, OSError, ValueError)


class _SelfSigned(SSLConnection):
    """Verifies the certificate; takes a self-signed one all the same, says so, and takes no other."""

    def __init__(self, accepted: Callable[[str], None], **options: Any) -> None:
        self._accepted = accepted
        super().__init__(**options)

    def _connect(self) -> Any:
        try:
            return super()._connect()  # type: ignore[no-untyped-call]
        except ssl.SSLCertVerificationError as error:
            if error.verify_code not in _SELF_SIGNED:
                raise
        wanted = self.cert_reqs, self.check_hostname
        self.cert_reqs, self.check_hostname = ssl.CERT_NONE, False
        try:
            sock = super()._connect()  # type: ignore[no-untyped-call]
        finally:
            self.cert_reqs, self.check_hostname = wanted
        self._accepted(hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest())
        return sock


class RedisLink:
    """One worker's link to the other nodes. Not for two threads at once.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``. ``?ssl_cert_reqs=none`` in it is obeyed.
        verify: Redis's certificate: ``true`` verifies it, ``auto`` also takes a self-signed one, ``false`` any.
        ca_file: PEM file of authorities trusted besides the system's.
        outbox: Facts to send; others append, only this takes.
        deliver: Takes facts of others, in the order they were said.
        tell: Takes events: ``shared_state_degraded``, ``…_recovered``, ``redis_certificate_unverified``.
        clock: Monotonic seconds.

    Attributes:
        degraded: Why other nodes are out of reach: ``redis_starting``, ``redis_unreachable``, ``redis_timeout``,
            ``redis_certificate``, ``redis_login``, ``redis_refused``; "" when all is well.

    Raises:
        ConfigError: ``url`` is none.
    """

    def __init__(
        self,
        url: str,
        verify: Verify,
        ca_file: str | None,
        outbox: deque[Fact],
        deliver: Callable[[list[Fact]], None],
        tell: Callable[[dict[str, object]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.degraded = "redis_starting"
        self._outbox = outbox
        self._deliver = deliver
        self._tell = tell
        self._clock = clock
        self._me = secrets.token_hex(8).encode()
        self._pending: list[Fact] = []
        self._last = b""  # newest entry read; none: read everything
        self._fresh = True
        self._closed = False
        self._failures = 0
        self._try_at = -math.inf
        self._failed_at = 0.0
        self._accepted: set[str] = set()
        self._hidden: tuple[str, ...] = tuple(_passwords(url))
        kind, options = _connections(url, verify, ca_file, self._unverified)
        self._where = str(options.get("path") or f"{options['host']}:{options['port']}")
        self._own = redis.Redis(connection_pool=ConnectionPool(kind, **options))
        waiting: type[Any] = redis.BlockingConnectionPool
        self._callers = redis.Redis(connection_pool=waiting(CALLERS_CONNECTIONS, TIMEOUT_S, kind, **options))

    def __repr__(self) -> str:
        return f"RedisLink({self._where}, degraded={self.degraded!r})"

    def pump(self) -> None:
        """Send what waits and take what has come; while Redis is gone mostly nothing. Never raises.

        It takes a round trip; in trouble a few times ``TIMEOUT_S`` at most, not counting a slow name look-up.
        """
        if self._closed:
            return
        self._collect()
        if self._clock() < self._try_at:
            return
        error = self._try()
        if error is not None and not self.degraded:
            error = self._try()  # the connection may merely have been closed: once more, on a new one
        if error is None:
            self._recover()
        else:
            self._degrade(error)

    def client(self) -> Any:
        """A ``redis.Redis`` with the same certificates and time limits for other uses; None while degraded.

        Its commands may raise ``redis.RedisError``: Redis may be gone before the next ``pump`` notices.
        """
        return None if self.degraded or self._closed else self._callers

    def close(self) -> None:
        """Close the connections; ``pump`` does nothing from now on."""
        self._closed = True
        for one in (self._own, self._callers):
            one.connection_pool.disconnect()

    def _collect(self) -> None:
        """Take over what was appended since, without what has been replaced or has run out."""
        while self._outbox:
            self._pending.append(self._outbox.popleft())
        if self._pending:
            now = self._clock()
            self._pending = [one for one in merged(self._pending) if _matters(one, now)][-KEPT:]

    def _try(self) -> Exception | None:
        """One exchange; what went wrong with it."""
        try:
            return self._exchange()
        except _FAULTS as error:  # redis-py has closed the connection
            return error

    def _exchange(self) -> Exception | None:
        """One round trip. Raises what concerns all of it, returns what concerns writing alone."""
        pipe = self._own.pipeline(transaction=False)
        for fact in self._pending:
            pipe.xadd(STREAM, _fields(fact, self._me, self._clock()), maxlen=KEPT, approximate=True)
        if self._pending:
            pipe.expire(STREAM, int(_LONGEST_S))
        pipe.time()
        if self._last:
            pipe.xrange(STREAM, min=self._last, count=KEPT)  # from our place on, to see that it is still there
        else:
            pipe.xrevrange(STREAM, count=KEPT)
        *written, now, read = pipe.execute(raise_on_error=False)
        arrived_at = self._clock()
        for answer in (now, read):
            if isinstance(answer, Exception):
                raise answer
        self._take(read, arrived_at - now[0] - now[1] / 1e6, arrived_at)
        refused = next((answer for answer in written if isinstance(answer, Exception)), None)
        if refused is None:
            self._pending = []
        return refused

    def _take(self, read: Any, offset_s: float, now: float) -> None:
        """Hand on what others said. ``offset_s`` turns Redis's seconds into ours."""
        news: list[Fact] = []
        if not self._last:
            news = self._all(list(_said(reversed(read), offset_s)), now)
            self._last = read[0][0] if read else b""
        elif not read or read[0][0] != self._last:
            self._last = b""  # not the stream it was, or cut past our place: all of it the next time
        else:
            said = _said(read[1:], offset_s)
            news = [fact for author, fact in said if author != self._me and _matters(fact, now)]
            self._last = read[-1][0]
        if news:
            self._deliver(news)

    def _all(self, said: list[tuple[bytes, Fact]], now: float) -> list[Fact]:
        """What the whole stream amounts to. Our own words stay among others' about the same credential: something
        taken back before our last word must not be the last that is heard."""
        others = {fact.key[:2] for author, fact in said if author != self._me}
        facts = [fact for _, fact in said if fact.key[:2] in others]
        fresh, self._fresh = self._fresh, False
        return in_force(facts, now) if fresh else [fact for fact in merged(facts) if _matters(fact, now)]

    def _recover(self) -> None:
        if self._failures:
            self._tell({"event": "shared_state_recovered", "after_s": round(self._clock() - self._failed_at, 3)})
        self.degraded = ""
        self._failures = 0
        self._try_at = -math.inf

    def _degrade(self, error: Exception) -> None:
        reason = _reason(error)
        if not self._failures:
            self._failed_at = self._clock()
        if reason != self.degraded:
            self.degraded = reason
            self._tell({"event": "shared_state_degraded", "reason": reason, "error": self._shown(error)})
        self._try_at = self._clock() + BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1

    def _shown(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}"
        for secret in self._hidden:
            text = text.replace(secret, "[hidden]")
        return text

    def _unverified(self, fingerprint: str) -> None:
        """A self-signed certificate was taken: said once for each."""
        if fingerprint not in self._accepted:
            self._accepted.add(fingerprint)
            self._tell({"event": "redis_certificate_unverified", "server": self._where, "sha256": fingerprint})


def _matters(fact: Fact, now: float) -> bool:
    return fact.kind in TAKES_BACK or fact.holds(now)


def _fields(fact: Fact, author: bytes, now: float) -> dict[Any, Any]:
    left_s = min(max(0.0, fact.until_at - now), _LONGEST_S)
    return {
        "kind": fact.kind,
        "provider": fact.provider.encode("utf-8", "surrogateescape"),
        "credential": fact.credential.encode("utf-8", "surrogateescape"),
        "left_ms": math.ceil(left_s * 1000),
        "author": author,
    }


def _said(entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]], offset_s: float) -> Iterator[tuple[bytes, Fact]]:
    """Authors and facts of the entries that can be read; others may write to this database too."""
    kinds = {kind.encode(): kind for kind in KINDS}
    for number, fields in entries:
        kind = kinds.get(fields.get(b"kind", b""))
        names = [fields.get(name, b"") for name in (b"provider", b"credential")]
        left_ms = fields.get(b"left_ms", b"")
        if kind is None or max(map(len, names)) > _NAME_BYTES or not left_ms.isdigit() or len(left_ms) > 9:
            continue
        ends_ms = int(number.partition(b"-")[0]) + 1 + min(int(left_ms), int(_LONGEST_S * 1000))  # 1: never early
        provider, credential = (name.decode("utf-8", "surrogateescape") for name in names)
        yield fields.get(b"author", b""), Fact(kind, provider, credential, ends_ms / 1000 + offset_s)


def _reason(error: BaseException | None) -> str:
    """The word for ``degraded``: low in number, without particulars."""
    outermost = error
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return "redis_certificate"
        error = error.__cause__ or error.__context__
    if isinstance(outermost, (redis.AuthenticationError, redis.exceptions.NoPermissionError)):
        return "redis_login"
    if isinstance(outermost, (redis.TimeoutError, TimeoutError)):
        return "redis_timeout"
    return "redis_refused" if isinstance(outermost, redis.ResponseError) else "redis_unreachable"


def _connections(
    url: str, verify: Verify, ca_file: str | None, accepted: Callable[[str], None]
) -> tuple[type[Any], dict[str, Any]]:
    """Class and options of all connections. What is ours (time limits, protocol, tries) the URL cannot change."""
    try:
        given: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        kind: type[Any] = given.pop("connection_class", Connection)
        options = {name: value for name, value in given.items() if name in _FROM_URL or name.startswith("ssl_")}
        options |= {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "protocol": 2}
        options["retry"] = Retry(NoBackoff(), 0)
        if login := {name: options.pop(name) for name in ("username", "password") if name in options}:
            options["credential_provider"] = redis.UsernamePasswordCredentialProvider(
                **login
            )  # kept out of repr()
        if "path" not in options:
            options = {"host": "localhost", "port": 6379, "socket_keepalive": True} | options
        if kind is SSLConnection:
            kind = _certificates(options, verify, ca_file, accepted)
        kind(**options)  # connects later; what it cannot be made of is said now
    except (ValueError, TypeError, redis.RedisError):  # their texts quote the URL
        raise ConfigError(
            ("REDIS_URL=[hidden]: allowed is redis://, rediss:// or unix:// with a host, a port and a database.",)
        ) from None
    return kind, options


def _certificates(
    options: dict[str, Any], verify: Verify, ca_file: str | None, accepted: Callable[[str], None]
) -> type[Any]:
    """Add to ``options`` whom to trust; the class that does it."""
    for name, value in _system_store().items():  # SSL_CERT_FILE in the environment hides it from OpenSSL
        options.setdefault(name, value)
    if ca_file:
        options["ssl_ca_data"] = Path(ca_file).read_text(encoding="ascii", errors="replace")
    asked = options.get("ssl_cert_reqs") or ("none" if verify == "false" else "")
    wanted = str(asked).lower().removeprefix("cert_")  # others write CERT_NONE
    options["ssl_cert_reqs"] = wanted or "required"
    options.setdefault("ssl_check_hostname", True)
    if wanted == "none":
        options["ssl_check_hostname"] = False  # or ssl refuses the pair
    if wanted or verify != "auto":
        return SSLConnection
    options["accepted"] = accepted
    return _SelfSigned


def _system_store() -> dict[str, str]:
    """Where OpenSSL was built to look for certificates, or certifi's where there are none."""
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    if file.is_file() and file.stat().st_size:
        return {"ssl_ca_certs": str(file)}
    if folder.is_dir() and any(folder.iterdir()):
        return {"ssl_ca_path": str(folder)}
    return {"ssl_ca_certs": certifi.where()}


def _passwords(url: str) -> Iterator[str]:
    """The passwords in the URL as they stand there, percent signs and all, and as they are meant."""
    raw = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    query = url.partition("?")[2]
    for part in (raw, *(field.partition("=")[2] for field in query.split("&") if "password" in field)):
        if part:
            yield from {part, unquote(part)}
