"""Take secrets out of text that is about to be logged: by what they are called, by how they look, and by value.

    by name      "api_key": "…", password=…, x-api-key: …, \\"token\\": \\"…\\" in a string; objects, lists
    by look      sk-…, Bearer …, AKIA…, ghp_…, eyJ… (JWT), private keys in PEM, user:password@ in URLs, and others
    by value     the secrets this gateway was configured with, as they are, JSON-escaped or percent-encoded

The text may be anything: JSON, an event stream, a form, prose, and cut anywhere. It is never parsed; each of the
passes goes over it once. Time is linear: a pattern either has bounded repeats only, or ends in a possessive one
that consumes what it looked at (a test holds them to that), and the rest counts forward.

What it cannot see: a secret of the caller's that an event stream brings in several pieces.
Pure.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

MARK: Final = "[redacted]"
_LEAST = 4  # a shorter secret is in every other word; nor is so little of one at the end of a cut text

_STARTS = (
    "authorization",
    "cookie",
    "credential",
    *("api", "private", "secret", "access", "signing", "encryption", "account", "master", "admin"),
    "pass",
    "pwd",
    "token",
)
_NAME = (
    r"authorization|cookies?|credentials?"
    r"|(?:api|private|secret|access|signing|encryption|account|master|admin)[_-]?keys?"
    r"|pass(?:word|wd|phrase)\w{0,32}|pwd|secrets?|token"
)
NAME: Final = re.compile(rf"(?:{_NAME})\Z", re.IGNORECASE)
"""What the names of secrets end in: ``x-api-key``, ``dbPassword``, ``refresh_token``; not ``max_tokens``."""
KEY: Final = re.compile(
    rf"(?P<name>{_NAME})(?P<close>\\{{0,15}}[\"'])?\s{{0,8}}(?P<is>=>|:=|[:=])\s{{0,8}}(?P<open>\\{{0,15}}[\"'])?"
)
"""Such a name in small letters, what stands between it and its value, and the quote that opens that."""
QUOTES: Final = re.compile(r"[\"']")
PLAIN_JSON: Final = re.compile(r"[^\s,}\]\"'&]*+")
PLAIN: Final = re.compile(r"(?:[^\s&\"'\\]|\\[^nrt\"'\\])*+")
LINE: Final = re.compile(r"(?:[^\r\n\"'\\]|\\[^nr\"'\\])*+")
FORM: Final = re.compile(r"(?:[^\r\n&\"'\\]|\\[^nr\"'\\])*+")
BRACKETS: Final = re.compile(r"[\[\]{}\"']")

LOOKS: Final = tuple(
    (needle, re.compile(pattern))
    for needle, pattern in (
        ("sk-", r"sk-(?<![A-Za-z0-9]sk-)(?:ant-[\w-]*+|[\w-]{8,}+)"),  # Anthropic, OpenAI and their like
        ("earer", r"(?:Bearer|bearer)[ +]{1,4}[\w.~+/=-]{8,}+"),
        ("EARER", r"BEARER[ +]{1,4}[\w.~+/=-]{8,}+"),
        ("AKIA", r"AKIA(?<![A-Z0-9]AKIA)[A-Z0-9]{16}(?![A-Z0-9])"),  # AWS
        ("ASIA", r"ASIA(?<![A-Z0-9]ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
        ("gh", r"gh[opsru]_(?<![A-Za-z0-9]gh._)\w{16,}+"),
        ("github_pat_", r"github_pat_\w{16,}+"),
        ("glpat-", r"glpat-[\w-]{16,}+"),
        ("xox", r"xox[abeoprs]-[\w-]{10,}+"),  # Slack
        ("AIza", r"AIza[\w-]{30,}+"),  # Google
        ("hvs.", r"hvs\.[\w-]{16,}+"),  # Vault
        ("eyJ", r"eyJ(?<![\w-]eyJ)[\w-]{10,}+(?:\.[\w-]*+){0,4}+"),  # a JWT, or one that is cut
        ("://", r"://[^\s/?#\"'\\<>]{1,512}@"),  # user and password of a URL
    )
)
"""What secrets look like, whatever they are called: what stands in each of a kind, and the kind."""
_SMALL: Final = {ord(big): ord(big.lower()) for big in string.ascii_uppercase}
PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_PEM_END: Final = "-----END"


def is_secret(name: str) -> bool:
    """Whether a header, key or field of that name holds a secret."""
    return NAME.search(name) is not None


class Redactor:
    """Takes secrets out.

    Args:
        secrets: Values that must not be seen anywhere; those under four characters are left to their names.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {one for one in secrets if len(one) >= _LEAST}
        forms = {form for one in known for form in (one, json.dumps(one)[1:-1], quote(one, safe=""))}
        self._forms = sorted(forms, key=len, reverse=True)  # one may be the beginning of another

    def text(self, text: str, *, cut: bool = False) -> str:
        """``text`` without secrets.

        Args:
            text: Anything.
            cut: It may end within a secret.
        """
        for form in self._forms:
            text = text.replace(form, MARK)
        if cut:
            text = self._without_tail(text)
        text = _without_pem(text)
        for needle, pattern in LOOKS:
            if needle in text:
                text = pattern.sub(_blank, text)
        return _without_values(text)

    def header(self, name: str, value: str) -> str:
        """The value of a header, or what may be shown of it."""
        return MARK if is_secret(name) else self.text(value)

    def _without_tail(self, text: str) -> str:
        """``text`` without the beginning of a known secret at its end."""
        longest = max((_overlap(text, form) for form in self._forms), default=0)
        return text[:-longest] + MARK if longest else text


def _overlap(text: str, form: str) -> int:
    """How much of the beginning of ``form`` is the end of ``text``; 0 if hardly any."""
    for length in range(min(len(form) - 1, len(text)), _LEAST - 1, -1):
        if text.endswith(form[:length]):
            return length
    return 0


def _blank(found: re.Match[str]) -> str:
    return f"://{MARK}@" if found[0].endswith("@") else MARK


def _without_values(text: str) -> str:
    """``text`` with the values of what is called like a secret blanked, up to their ends or the text's."""
    parts: list[str] = []
    small = _small(text)
    kept_to = position = 0
    for at in _places(small):
        if at < position or (found := KEY.match(small, at)) is None:
            continue
        start, end = _value(text, found)
        parts += (text[kept_to:start], MARK if end > start else "")
        kept_to, position = end, max(end, found.end())
    parts.append(text[kept_to:])
    return "".join(parts)


def _small(text: str) -> str:
    """``text`` in small letters, each where it was."""
    small = text.lower()
    return small if len(small) == len(text) else text.translate(_SMALL)


def _places(small: str) -> list[int]:
    """Where the name of a secret may begin, in order."""
    places = []
    for start in _STARTS:
        at = small.find(start)
        while at >= 0:
            places.append(at)
            at = small.find(start, at + len(start))
    places.sort()
    return places


def _value(text: str, found: re.Match[str]) -> tuple[int, int]:
    """From where to where the value of ``found`` stands, without its quotes."""
    start = found.end()
    opening = found["open"]
    if opening is not None:
        return start, _string_end(text, start, opening)
    if text[start : start + 1] in ("[", "{"):
        return start, _bracket_end(text, start, found["close"] or '"')
    plain = PLAIN_JSON if found["close"] is not None else PLAIN
    if found["close"] is None and found["name"].lower().startswith(("authorization", "cookie")):
        plain = LINE if ":" in found["is"] else FORM
    match = plain.match(text, start)
    return start, match.end() if match is not None else start


def _string_end(text: str, start: int, opening: str) -> int:
    """Where the string ends that was opened just before ``start``: at its closing quote, or with the text.

    A string in JSON in a string (and so on) is opened by ``\\"``: there ``\\\\\\"`` is a quote within it.
    """
    depth = len(opening).bit_length() - 1  # no, one, three, seven backslashes
    for found in QUOTES.finditer(text, start):
        at = found.start()
        first = _first_backslash(text, at, start)
        if found[0] != opening[-1] and (found[0] == "'" or first < at):
            continue  # the other kind does not close it; a bare " closes whatever it was in
        closed = _closed(at - first, depth)
        if closed is not None:
            return at - (1 << closed) + 1  # its quote has that many backslashes less one; others are the value's
    return len(text)


def _first_backslash(text: str, at: int, start: int) -> int:
    """Where the backslashes begin that stand in front of ``at``, ``start`` or later."""
    while at > start and text[at - 1] == "\\":
        at -= 1
    return at


def _closed(backslashes: int, depth: int) -> int | None:
    """How deep the string is that a quote behind so many backslashes closes, which is ``depth`` or less deep.

    None: it closes nothing, it belongs to the string.
    """
    for level in range(depth + 1):
        if backslashes % 2 == 0:
            return level
        backslashes //= 2
    return None


def _bracket_end(text: str, start: int, quote_mark: str) -> int:
    """Where the object or list ends that begins at ``start``: closed, or with the string or text it is in."""
    depth, position = 0, start
    while (found := BRACKETS.search(text, position)) is not None:
        position = found.end()
        if found[0] in "[{":
            depth += 1
        elif found[0] in "]}":
            depth -= 1
        else:
            first = _first_backslash(text, found.start(), start)
            backslashes = found.start() - first
            if found[0] == quote_mark[-1] and backslashes == len(quote_mark) - 1:
                position = min(_string_end(text, position, quote_mark) + len(quote_mark), len(text))
            elif found[0] == '"' and backslashes < len(quote_mark) - 1:
                return first
        if depth == 0:
            return position
    return len(text)


def _without_pem(text: str) -> str:
    """``text`` without private keys in PEM, whole or cut."""
    parts: list[str] = []
    position = 0
    while (found := PEM.search(text, position)) is not None:
        parts += (text[position : found.start()], MARK)
        end = text.find(_PEM_END, found.end())
        closed = text.find("-----", end + len(_PEM_END), end + 80) if end >= 0 else -1
        position = closed + 5 if closed >= 0 else len(text)
    parts.append(text[position:])
    return "".join(parts)
