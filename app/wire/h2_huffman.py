"""HPACK's Huffman code, decoded a byte at a time (RFC 7541 section 5.2 and appendix B).

The nibble automaton is the ``hpack`` library's table. Two of its steps are one step here, worked out when a
(state, byte) pair is first met: at most 65,536 of them, some hundreds in practice.
Pure.
"""

from __future__ import annotations

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

_FINAL = frozenset(
    {0} | {state for state, flags, _ in HUFFMAN_TABLE if flags & HUFFMAN_COMPLETE and not flags & HUFFMAN_FAIL}
)


class HuffmanError(ValueError):
    """Bytes that are no Huffman code, or end in other than up to seven one-bits."""


class _Steps(dict[int, tuple[int, bytes]]):
    """The state after, and the text of, one byte: the key is ``state << 8 | byte``."""

    def __missing__(self, key: int) -> tuple[int, bytes]:
        state, out = key >> 8, bytearray()
        for nibble in (key >> 4 & 15, key & 15):
            state, flags, symbol = HUFFMAN_TABLE[state << 4 | nibble]
            if flags & HUFFMAN_FAIL:
                raise HuffmanError("Not a Huffman code.")
            if flags & HUFFMAN_EMIT_SYMBOL:
                out.append(symbol)
        found = self[key] = (state, bytes(out))
        return found


_steps = _Steps()


def decoded(data: bytes) -> bytes:
    """The text that ``data`` stands for.

    Raises:
        HuffmanError: It stands for none.
    """
    state = 0
    out = []
    steps = _steps
    for byte in data:
        state, text = steps[state << 8 | byte]
        out.append(text)
    if state not in _FINAL:
        raise HuffmanError("The padding is wrong.")
    return b"".join(out)
