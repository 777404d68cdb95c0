"""The ``explain`` command: what happened in one exchange, from log files or from the workers that remember it.

    --log           files, those rotated beside them, directories, or ``-``
    --url           the gateway's admin page, with GATEWAY_ADMIN_KEY
    neither         the gateway on this machine, and LOG_DIR if that is set

Exit code 0: found; 1: looked everywhere and found nothing; 2: there was a place that could not be looked at.

Runs on: start-up.
"""

from __future__ import annotations

import gzip
import http
import http.client
import json
import re
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import click

from app.observe.explained import explained
from app.observe.lookup import ID, NO_ID, Lookup
from app.settings import Settings, load
from app.settings_rules import is_loopback

_FILES: Final = ("performance.json", "requests.json")
_ROTATED: Final = re.compile(r"\.[0-9]+(\.gz)?")
_TIMEOUT_S: Final = 10.0
_MOST_BYTES: Final = 32 << 20
_NO_KEY: Final = (
    "GATEWAY_ADMIN_KEY is not set here, so the workers cannot be asked. Set it, or name a log with --log."
)


class Unseen(Exception):
    """A place could not be looked at; says which, and why."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for one address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the redirect is the answer."""


class Search:
    """Looks in one place after the other.

    Args:
        request_id: What for.

    Attributes:
        lookup: What was found.
        places: Where it was looked for, for people.
        troubles: What could not be looked at, and what may be missing.
    """

    def __init__(self, request_id: str) -> None:
        self._id = request_id
        self.lookup = Lookup(request_id)
        self.places: list[str] = []
        self.troubles: list[str] = []

    def log(self, name: str) -> None:
        """A file and those rotated beside it, a directory of ours, or ``-``."""
        if name == "-":
            self.places.append("standard input")
            self.lookup.read(sys.stdin.buffer)
            return
        for path in _files(Path(name)):
            self.places.append(str(path))
            try:
                with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
                    self.lookup.read(lines)
            except (OSError, EOFError, zlib.error) as error:
                self.troubles.append(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.")

    def ask(self, url: str, key: str) -> None:
        """The workers behind ``url``."""
        try:
            found = asked(url, key, self._id)
        except Unseen as error:
            self.troubles.append(str(error))
            return
        self.places.append(f"{url} ({found.get('message') or _who(found)})")
        for row in found.get("records", ()):
            self.lookup.add(row)
        if found.get("workers_answered") != found.get("workers_asked"):
            self.troubles.append(f"{url}: only {_who(found)}.")


def _who(found: dict[str, Any]) -> str:
    return f"{found.get('workers_answered')} of {found.get('workers_asked')} workers answered"


def asked(url: str, key: str, request_id: str) -> dict[str, Any]:
    """What the admin page at ``url`` has.

    Returns:
        The page's JSON; of an exchange that is not kept its ``message`` only.

    Raises:
        Unseen: It cannot be asked, refuses, or has no such page.
    """
    request = urllib.request.Request(f"{url}/admin/records/{quote(request_id, safe='')}")  # noqa: S310 - checked
    request.add_unredirected_header("x-api-key", key)
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return _refused(url, error)
    except urllib.error.URLError as error:
        raise Unseen(
            f"{url} cannot be asked: {getattr(error.reason, 'strerror', None) or error.reason}."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unseen(f"{url} did not answer as a gateway does: {type(error).__name__}.") from error
    if not isinstance(found, dict):
        raise Unseen(f"{url} did not answer as a gateway does.")
    return found


def _refused(url: str, error: urllib.error.HTTPError) -> dict[str, Any]:
    """An answer that is none."""
    slug = error.headers.get("x-penstock-error", "")
    if slug == "unknown_record":
        return {"message": _message(error)}
    if error.code == http.HTTPStatus.UNAUTHORIZED:
        raise Unseen(f"{url} refuses the key (401): its GATEWAY_ADMIN_KEY is another one.")
    if error.code == http.HTTPStatus.NOT_FOUND:
        raise Unseen(f"{url} has no such page (404): is GATEWAY_ADMIN_KEY set for that gateway?")
    if 300 <= error.code < 400:
        raise Unseen(f"{url} sends us elsewhere ({error.code}), which is not followed: the key would go along.")
    raise Unseen(f"{url} answers {error.code}. {_message(error)}".strip())


def _message(error: urllib.error.HTTPError) -> str:
    """What an error of the gateway's own says."""
    try:
        return str(json.loads(error.read(_MOST_BYTES))["error"]["message"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""


def _files(path: Path) -> Iterator[Path]:
    """Of a directory the files that tell of exchanges; of each the rotated ones, too."""
    for file in [path / name for name in _FILES] if path.is_dir() else [path]:
        if file.exists() or not path.is_dir():
            yield file
        rotated = [one for one in file.parent.glob("*") if _ROTATED.fullmatch(one.name.removeprefix(file.name))]
        yield from sorted(rotated, key=lambda one: (len(one.name), one.name))


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An address that a key may be sent to.

    Raises:
        click.BadParameter: It is none.
    """
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or "@" in value or "?" in value or "#" in value or not value.isascii() or not value.isprintable():
        raise click.BadParameter("allowed is an http:// or https:// URL, a mount's prefix included.", ctx, param)
    return value.rstrip("/")


def _id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A request id.

    Raises:
        click.BadParameter: It is none.
    """
    if not ID.fullmatch(value):
        raise click.BadParameter(NO_ID, ctx, param)
    return value


@click.command("explain")
@click.argument("request_id", callback=_id)
@click.option("--url", callback=_address, help="The gateway to ask.  [default: http://127.0.0.1:PORT]")
@click.option(
    "--log",
    "logs",
    type=click.Path(exists=True, allow_dash=True),
    multiple=True,
    help="Log file (its rotated ones are read, too), LOG_DIR, or - for standard input; several may be given.",
)
@click.option("--json", "wants_json", is_flag=True, help="As JSON, one line an exchange.")
def command(request_id: str, url: str | None, logs: tuple[str, ...], wants_json: bool) -> None:
    """Tell what happened in one exchange: its waits, tries, times, tokens and cost.

    REQUEST_ID is the gateway's x-request-id or the upstream's request-id. It is looked for in the logs that are
    named, or among what the workers remember (GATEWAY_ADMIN_KEY opens that) and in LOG_DIR.
    """
    search = Search(request_id)
    for name in logs:
        search.log(name)
    if url is not None or not logs:
        _ask(search, url, load())
    found = search.lookup.exchanges
    for trouble in search.troubles:
        click.echo(trouble, err=True)
    if not found:
        looked = f" Looked in: {'; '.join(search.places)}." if search.places else ""
        click.echo(f"No exchange with the id {request_id} was found.{looked}", err=True)
        sys.exit(2 if search.troubles else 1)
    if wants_json:
        click.echo("\n".join(json.dumps(one) for one in found))
        return
    if len(found) > 1:
        click.echo(f"{len(found)} exchanges have the id {request_id}, the newest first.\n")
    click.echo("\n\n\n".join(explained(one) for one in found))


def _ask(search: Search, url: str | None, settings: Settings) -> None:
    """Ask the workers; without an address of theirs look into our own LOG_DIR, too."""
    secret, own_logs = settings.gateway_admin_key, url is None and settings.log_dir is not None
    if own_logs:
        search.log(str(settings.log_dir))
    if secret is None:
        if not own_logs:
            search.troubles.append(_NO_KEY)
        return
    if url is None and settings.port == 0:
        search.troubles.append("PORT is 0: name the gateway's address with --url.")
        return
    url = url or f"http://127.0.0.1:{settings.port}"
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        click.echo(
            f"Warning: the admin key goes to {parts.hostname} in plain text; https:// would hide it.", err=True
        )
    search.ask(url, secret.get_secret_value())
