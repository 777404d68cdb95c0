"""Fixed bytes that are legal but awkward: what passes them unchanged changes nothing.

Odd spacing and key order, escapes and raw multi-byte text, numbers no float can hold, unknown fields and
events, comments, a data line without a space, ``id`` and ``retry`` fields, thinking with a signature, tool
input in fragments.

Pure.
"""

from __future__ import annotations

import gzip

_MESSAGE = (
    '{ "type":"message",\n\t"id": "msg_01SIMGOLDEN", "role":"assistant" , "model":"claude-sim-golden",'
    '"content":[{"type":"thinking","thinking":"caf\\u00e9 🎏 <i>&\\/","signature":"c2ltdWxhdGVk+/=="},'
    '{"text":"déjà \\u2029 水門","type":"text","citations":null},'
    '{"type":"tool_use","id":"toolu_01SIMGOLDEN","name":"gate","input":{"z":2.50,"a":-1E+3,"n":98765432109876543210}}],'
    '"stop_reason":"tool_use","stop_sequence":null,"container":null,"not_yet_known":{"list":[1 ,2,  3],"on":true},'
    '"usage":{"output_tokens":6,"input_tokens":5,"service_tier":"standard","not_yet_known":{"k":[ ]}}}\n'
)
_EVENTS = (
    'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_01SIMGOLDEN","type":"message",'
    '"role":"assistant","model":"claude-sim-golden","content":[],"stop_reason":null,"stop_sequence":null,'
    '"usage":{"input_tokens":5,"output_tokens":1,"service_tier":"standard"}}   }\n\n',
    ": a comment, then an empty one\n:\n\n",
    'event:ping\ndata:{"type": "ping"}\n\n',
    'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    '"content_block":{"type":"thinking","thinking":"","signature":""}     }\n\n',
    'event: content_block_delta\ndata: {"index":0,"type":"content_block_delta",'
    '"delta":{"type":"thinking_delta","thinking":"caf\\u00e9 🎏 "}}\n\n',
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    '"delta":{"type":"signature_delta","signature":"c2ltdWxhdGVk+/=="}  }\n\n',
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
    'event: content_block_start\ndata:{"type":"content_block_start","index":1,'
    '"content_block":{"type":"text","text":""}}\n\n',
    'id: 7\nevent: content_block_delta\nretry: 3000\ndata: {"type":"content_block_delta","index":1,'
    '"delta":{"type":"text_delta","text":"déjà \\u2029 水門 \\"q\\" \\\\ \\n"}         }\n\n',
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":1 }\n\n',
    'event: event_of_the_future\ndata: {"type":"event_of_the_future","payload":{"k":[1 , 2]}}\n\n',
    'event: content_block_start\ndata: {"type":"content_block_start","index":2,'
    '"content_block":{"type":"tool_use","id":"toolu_01SIMGOLDEN","name":"gate","input":{}}}\n\n',
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":2,'
    '"delta":{"type":"input_json_delta","partial_json":""}}\n\n',
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":2,'
    '"delta":{"type":"input_json_delta","partial_json":"{\\"z\\": 2.50, \\"水"}}\n\n',
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":2,'
    '"delta":{"type":"input_json_delta","partial_json":"\\": -1E+3}"}      }\n\n',
    'event: content_block_stop\ndata: {"type":"content_block_stop","index":2}\n\n',
    'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},'
    '"usage":{"output_tokens":66,"not_yet_known":9}}\n\n',
    'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)

GOLDEN_JSON = _MESSAGE.encode()
GOLDEN_GZIP = gzip.compress(GOLDEN_JSON, mtime=0)
GOLDEN_SSE = "".join(_EVENTS).encode()
PIECE_BYTES = 37  # cuts events and multi-byte characters across writes


def golden_pieces() -> list[bytes]:
    """The event stream in writes of 37 bytes."""
    return [GOLDEN_SSE[at : at + PIECE_BYTES] for at in range(0, len(GOLDEN_SSE), PIECE_BYTES)]
