"""Read and write ``traceparent``, by which an exchange's span hangs together with its caller's and its callee's.

    caller ── traceparent: 00-T-A-ff ──> gateway: span B of trace T, child of A ── 00-T-B-ff ──> upstream

Source: W3C Trace Context, levels 1 and 2. ``tracestate`` is nobody's business here: it goes on as it came.
Pure: where random bits come from is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

NAME: Final = "traceparent"
SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""Level 2: the trace id's last 56 bits are random."""

_LENGTH = len(NAME)
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


class Parent(NamedTuple):
    """What a ``traceparent`` says.

    Attributes:
        trace_id: 32 digits of lower-case hex, not all 0.
        span_id: 16 of them.
        flags: SAMPLED and RANDOM; others mean nothing yet and are left out, as the standard asks.
    """

    trace_id: str
    span_id: str
    flags: int

    def __str__(self) -> str:
        """As a header's value, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


class Trace(NamedTuple):
    """An exchange's place in its trace; header values.

    Attributes:
        own: Its own span. Where there is no parent nobody has decided yet whether it is sampled.
        parent: The caller's, as received; "" where there was none that is valid: the trace begins here.
    """

    own: str
    parent: str


NO_TRACE: Final = Trace("", "")
"""No spans are made."""


def parse(value: str) -> Parent | None:
    """What a header value says; None where it is not valid.

    Version ff is not valid; what follows the flags is allowed in versions above 00 only, behind a ``-``, and of
    their flags only SAMPLED is known to keep its meaning (level 1 section 3.2.4).
    """
    found = _FORM.fullmatch(value)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (more is not None and version == "00"):
        return None
    known = SAMPLED | RANDOM if version == "00" else SAMPLED
    return Parent(trace_id, span_id, int(flags, 16) & known)


def begin(headers: Iterable[tuple[str, str]], bits: Callable[[int], int]) -> Trace:
    """The place of the exchange that came with these headers; more than one ``traceparent`` counts as none.

    Args:
        headers: As received; names in any case.
        bits: Gives so many random bits.
    """
    given = [value for name, value in headers if len(name) == _LENGTH and name.lower() == NAME]
    parent = parse(given[0]) if len(given) == 1 else None
    span_id = _id(64, bits)
    if parent is None:
        return Trace(str(Parent(_id(128, bits), span_id, RANDOM)), "")
    return Trace(str(parent._replace(span_id=span_id)), given[0])


def _id(size_bits: int, bits: Callable[[int], int]) -> str:
    """An id of that size in hex, not all 0."""
    value = bits(size_bits)
    while not value:
        value = bits(size_bits)
    return f"{value:0{size_bits // 4}x}"


def handed_on(pairs: Iterable[tuple[str, str]], trace: Trace) -> list[tuple[str, str]]:
    """A request's pairs with its own ``traceparent`` in place of a valid one; else as they are.

    Args:
        pairs: Names in lower case.
        trace: Of the exchange.
    """
    if not trace.parent:  # nothing is injected (B12), and what is not valid is not ours to mend
        return list(pairs)
    return [(NAME, trace.own) if pair[0] == NAME else pair for pair in pairs]
