"""Header blocks against the ``hpack`` library as an independent peer, both ways, and the RFC's own examples.

Pure.
"""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.h2_decode import BAD, ResponseDecoder
from app.wire.h2_encode import TABLE_OFF, RequestEncoder, UnfitHeaderError, header, integer
from app.wire.h2_frames import ConnectionFault
from app.wire.h2_huffman import HuffmanError, decoded

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=20)
VALUES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=200).map(
    lambda text: text.strip(" \t")
)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=12)
NOT_SENT = {
    "connection", "host", "keep-alive", "te", "trailer", "upgrade", "transfer-encoding", "content-length",
    "proxy-authenticate", "proxy-authorization", "proxy-connection",
}  # fmt: skip


def encoder() -> RequestEncoder:
    return RequestEncoder("https", "api.example:8443")


def read(block: bytes | None) -> list[tuple[str, str]]:
    """As the library decodes it."""
    assert block is not None
    fields = hpack.Decoder().decode(block, raw=True)
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in fields]


def test_a_request_block_byte_for_byte() -> None:
    block = encoder().block("POST", "/v1/m", (("X-Api-Key", "k"), ("accept", "*/*")), 2)
    assert block == (
        b"\x83\x87\x01\x10api.example:8443\x04\x05/v1/m"  # indexed method and scheme; names 1 and 4
        b"\x10\x09x-api-key\x01k"  # never indexed
        b"\x0f\x04\x03*/*"  # static name 19
        b"\x0f\x0d\x012"  # static name 28
    )


@given(PAIRS)
def test_every_request_header_arrives_in_order(pairs: list[tuple[str, str]]) -> None:
    one = encoder()
    pairs = [pair for pair in pairs if pair[0] not in NOT_SENT]
    for _ in range(2):  # the second time from memory
        fields = read(one.block("GET", "/a?b=%2F", pairs, None))
        assert fields[:4] == [
            (":method", "GET"), (":scheme", "https"), (":authority", "api.example:8443"), (":path", "/a?b=%2F")
        ]  # fmt: skip
        assert fields[4:] == pairs


def test_blocks_enter_nothing_into_the_peers_table() -> None:
    peer, one = hpack.Decoder(), encoder()
    for number in range(50):
        peer.decode(one.block("POST", f"/{number}", (("x-a", str(number)), ("authorization", "s")), 1) or b"")
    assert peer.header_table.dynamic_entries == type(peer.header_table.dynamic_entries)()


def test_a_table_size_update_satisfies_a_peer_that_shrank_its_table() -> None:
    peer = hpack.Decoder()
    peer.max_allowed_table_size = 100
    block = encoder().block("GET", "/", (), None) or b""
    with pytest.raises(hpack.HPACKError):
        peer.decode(block)
    peer = hpack.Decoder()
    peer.max_allowed_table_size = 100
    assert peer.decode(TABLE_OFF + block)


def test_credentials_are_remembered_nowhere_and_never_indexed() -> None:
    one = encoder()
    secret = "sk-very-secret"
    for name in ("x-api-key", "Authorization", "cookie", "x-goog-api-key", "x-some-token", "X-Client-Secret"):
        block = one.block("GET", "/", ((name, secret),), None) or b""
        *_, marked = hpack.Decoder().decode(block, raw=True)
        assert isinstance(marked, hpack.NeverIndexedHeaderTuple), name
    one.block("GET", f"/x?key={secret}", (), None)
    assert secret not in repr(vars(one))
    assert secret.encode() not in b"".join(one._pieces.values())


def test_memory_is_bounded() -> None:
    one = encoder()
    for number in range(10_000):
        one.block("GET", f"/{number}", (("x-a", str(number)), ("x-b", "v" * 600)), number)
    assert max(len(one._pieces), len(one._starts), len(one._lengths)) <= 2048
    decoder, peer = ResponseDecoder(), hpack.Encoder()
    for number in range(3000):
        decoder.decode(peer.encode([(":status", "200"), ("x-a", f"value {number}")]))
    assert len(decoder._strings) <= 1024


def test_hop_by_hop_and_framing_stay_here() -> None:
    headers = [(name, "x") for name in sorted(NOT_SENT - {"connection", "content-length"})]
    headers += [("Content-Length", "7"), ("x-a", " 1\t")]
    assert read(encoder().block("GET", "/", headers, -1))[4:] == [("x-a", "1")]
    assert read(encoder().block("PUT", "/", headers, 0))[4:] == [("x-a", "1"), ("content-length", "0")]
    assert read(encoder().block("PUT", "/", headers, None))[4:] == [("content-length", "7"), ("x-a", "1")]
    assert encoder().block("GET", "/", (("connection", "x-a"),), None) is None


@pytest.mark.parametrize(
    ("method", "target", "pair"),
    [
        ("GE T", "/", ("a", "1")),
        ("", "/", ("a", "1")),
        ("CONNECT", "/", ("a", "1")),
        ("GET", "/a b", ("a", "1")),
        ("GET", "/a\r\nb", ("a", "1")),
        ("GET", "http://other/", ("a", "1")),
        ("GET", "", ("a", "1")),
        ("GET", "/", ("a b", "1")),
        ("GET", "/", (":path", "/x")),
        ("GET", "/", ("", "1")),
        ("GET", "/", ("a", "sec\nret")),
        ("GET", "/", ("a", "sec\0ret")),
        ("GET", "/", ("a", "secret \u20ac")),
    ],
)
def test_what_cannot_be_sent_is_refused_without_its_value(method: str, target: str, pair: tuple[str, str]) -> None:
    with pytest.raises(UnfitHeaderError) as caught:
        encoder().block(method, target, (pair,), None)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize(("value", "bits", "wanted"), [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")])
def test_integers_of_rfc_7541_appendix_c_1(value: int, bits: int, wanted: str) -> None:
    assert integer(value, bits, 0) == bytes.fromhex(wanted)


def test_responses_of_rfc_7541_appendix_c_6() -> None:
    """With Huffman coding and a table of 256 bytes, so that entries are pushed out."""
    one = ResponseDecoder(table_bytes=256)
    blocks = (
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff"
        "6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960"
        "d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    )
    got = [one.decode(bytes.fromhex(block)) for block in blocks]
    date, location = "Mon, 21 Oct 2013 20:13:21 GMT", "https://www.example.com"
    assert got[0] == [(":status", "302"), ("cache-control", "private"), ("date", date), ("location", location)]
    assert got[1] == [(":status", "307"), ("cache-control", "private"), ("date", date), ("location", location)]
    assert got[2][0] == (":status", "200")
    assert got[2][-1] == ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
    assert one._size == 215


@given(st.lists(PAIRS, max_size=6), st.lists(st.integers(0, 4096), max_size=6), st.booleans())
def test_every_response_header_arrives(
    heads: list[list[tuple[str, str]]], sizes: list[int], huffman: bool
) -> None:
    peer, one = hpack.Encoder(), ResponseDecoder()
    for number, pairs in enumerate(heads):
        if number < len(sizes):
            peer.header_table_size = sizes[number]
        fields = [(b":status", b"200")]
        fields += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        assert one.decode(peer.encode(fields, huffman=huffman)) == [(":status", "200"), *pairs]


@given(st.binary(max_size=60))
def test_any_bytes_decode_as_the_library_does_or_fault(data: bytes) -> None:
    theirs: list[tuple[str, str]] | None
    peer = hpack.Decoder(max_header_list_size=262_144)
    try:
        theirs = [
            (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
            for name, value in peer.decode(data, raw=True)
        ]
    except (hpack.HPACKError, UnicodeDecodeError):
        theirs = None
    try:
        ours = ResponseDecoder().decode(data)
    except ConnectionFault:
        return  # stricter than the library in places (integers beyond 2^28)
    assert theirs is not None
    assert len(ours) == len(theirs)
    assert all(mine in (BAD, other) for mine, other in zip(ours, theirs, strict=True))


@given(st.binary(max_size=80))
def test_huffman_and_back(text: bytes) -> None:
    from hpack.huffman import HuffmanEncoder
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

    assert decoded(HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)) == text


@pytest.mark.parametrize("wrong", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01", b"\xff"])
def test_wrong_padding_is_no_huffman_code(wrong: bytes) -> None:
    with pytest.raises(HuffmanError):
        decoded(wrong)


@pytest.mark.parametrize(
    "pair",
    [("X-Upper", "1"), ("a b", "1"), ("", "1"), ("a", "1\r\nb: 2"), ("a", "1\0"), (":path", "/"), (":new", "1")],
)
def test_what_http_forbids_is_marked_wherever_it_is_referred_to(pair: tuple[str, str]) -> None:
    peer, one = hpack.Encoder(), ResponseDecoder()
    for _ in range(2):  # spelt out, then out of the table
        fields = one.decode(peer.encode([(":status", "200"), pair, ("b", "2")]))
        assert fields == [(":status", "200"), BAD, ("b", "2")]


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\x00",  # beyond the table
        b"\x40\x05ab",  # cut string
        b"\x7f",  # cut integer
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # endless integer
        b"\x88\x20",  # size update behind a header
        b"\x3f\xe2\x1f",  # size update beyond what was announced
        b"\x40\x81\x00\x00",  # no Huffman code
    ],
)
def test_no_hpack_ends_the_connection(block: bytes) -> None:
    with pytest.raises(ConnectionFault):
        ResponseDecoder().decode(block)


def test_a_small_block_cannot_stand_for_a_huge_list() -> None:
    one = ResponseDecoder(list_bytes=10_000)
    one.decode(b"\x40" + header("a" * 100, "b" * 3000)[1:])
    with pytest.raises(ConnectionFault):
        one.decode(b"\xbe" * 10)
