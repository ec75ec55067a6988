"""Supplemental enhancement information (SEI) of AVC packets. Pure. Source: ITU-T H.264, 7.3.2.3.

TRTC reserves payload type 244 for a timestamp of its own, whose layout is documented nowhere. Its first bytes are logged.
"""

from __future__ import annotations

_SEI_UNIT = 6
_TRTC = 244
_SHOWN_BYTES = 32
_MOST_UNITS = 16
_AVC_PACKET = 7
_LENGTH_BYTES = 4


def reserved_by_trtc(payload: bytes) -> bytes | None:
    """The first bytes of TRTC's SEI in an FLV video tag with AVC pictures, or None if it has none."""
    if len(payload) < 5 or payload[0] & 0x8F != _AVC_PACKET or payload[1] != 1:
        return None
    at = 5
    for _ in range(_MOST_UNITS):
        begin = at + _LENGTH_BYTES
        if begin + 2 > len(payload):
            return None
        if payload[begin] & 0x1F == _SEI_UNIT and payload[begin + 1] == _TRTC:
            return payload[begin + 2 : begin + 2 + _SHOWN_BYTES]
        at = begin + int.from_bytes(payload[at:begin], "big")
    return None
