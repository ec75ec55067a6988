"""The simulator's TRTC wire forms: callbacks' bytes and signature, UserSig."""

from __future__ import annotations

import time

import pytest
import TLSSigAPIv2

from simulator import callbacks, usersig

KEY = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e"


def test_tencents_own_callback_example() -> None:
    """The documented message comes out byte for byte, and with the documented key its documented signature."""
    info = {"RoomId": 8489, "EventTs": 1664209748, "EventMsTs": 1664209748180, "UserId": "user_85034614", "Reason": 0}
    body = callbacks.encode(callbacks.MEDIA, callbacks.AUDIO_OFF, 1664209748188, info)
    assert callbacks.sign("123654", body) == "kkoFeO3Oh2ZHnjtg8tEAQhtXK16/KI05W3BQff8IvGA="


def test_unknown_fault_actions_are_refused() -> None:
    """An impossible fault is an error when it is set, not when it applies."""
    with pytest.raises(ValueError, match="drop, delay, double, swap, forge"):
        callbacks.Callbacks().set_faults(callbacks.Fault(action="burn"))


async def test_no_two_events_at_one_time() -> None:
    """Event times are the clock's and unique, since receivers distinguish events by them."""
    sender = callbacks.Callbacks(wall_ms=lambda: 1000)
    assert [sender.next_event_ms() for _ in range(3)] == [1000, 1001, 1002]


async def test_without_an_address_a_message_is_lost() -> None:
    """An application without a callback address loses its messages immediately."""
    sender = callbacks.Callbacks()
    sender.start()
    message = sender.send(callbacks.App(sdk_app_id=1), callbacks.ROOM, callbacks.DISMISSED, {"RoomId": 1})
    await sender.settled()
    assert message.outcome == callbacks.LOST
    await sender.stop()
    await sender.stop()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, usersig.OK),
        ({"user_id": "other"}, usersig.INVALID),
        ({"sdk_app_id": 7}, usersig.INVALID),
        ({"key": "wrong"}, usersig.INVALID),
        ({"now_s": time.time() + 3600}, usersig.EXPIRED),
        ({"now_s": time.time() + 3600, "key": ""}, usersig.EXPIRED),
        ({"user_sig": ""}, usersig.MISSING),
        ({"user_sig": "any"}, usersig.INVALID),
        ({"user_sig": "any", "key": ""}, usersig.OK),
    ],
)
def test_user_sigs_of_the_official_package(change: dict[str, object], verdict: str) -> None:
    """TLSSigAPIv2's UserSig is accepted for its user, application, key and time, and for no other."""
    sig = TLSSigAPIv2.TLSSigAPIv2(1400000000, KEY).gen_sig("xiaojun", 600)
    arguments = {"user_sig": sig, "sdk_app_id": 1400000000, "user_id": "xiaojun", "key": KEY, "now_s": time.time()}
    assert usersig.check(**arguments | change) == verdict  # type: ignore[arg-type]


def test_user_sig_with_a_buffer() -> None:
    """A signature that carries a privilege buffer is accepted too, and covers the buffer."""
    sig = TLSSigAPIv2.TLSSigAPIv2(1400000000, KEY).gen_sig_with_userbuf("u", 600, b"room")
    assert usersig.check(sig, sdk_app_id=1400000000, user_id="u", key=KEY, now_s=time.time()) == usersig.OK
