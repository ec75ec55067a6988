"""The pull URL: TRTC's form by default, and untrusted values that stay in their place."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from machine import errors
from tencent import pull_url

HOSTILE = ["..", ".", "a/../b", "%2F", "a&usersig=x", "a?b#c", "a b\r\n", "{room}", "-i", "|cat", "房间", "\x00", "x" * 4096]


def address(template: str = pull_url.DEFAULT_TEMPLATE, **more: Any) -> str:
    values: dict[str, Any] = {
        "sdk_app_id": 1400000001,
        "room_id": 8489,
        "str_room_id": "",
        "user_id": "recorder_1",
        "user_sig": "eJw*abc-def_",
        "speaker": "alice",
    }
    return pull_url.pull_address(template, **values | more)


def test_default_is_trtcs_form_for_an_integer_room() -> None:
    """use_number_room_id marks an integer room, and a UserSig is written as Tencent made it."""
    assert address() == (
        "rtmp://rtmp.rtc.qq.com/pull/8489?sdkappid=1400000001&userid=recorder_1&usersig=eJw*abc-def_"
        "&remoteuserid=alice&use_number_room_id=1"
    )


def test_string_room_of_the_same_digits_is_another_room() -> None:
    """A string room gets no use_number_room_id, digits or not."""
    made = address(room_id=None, str_room_id="8489")
    assert made.startswith("rtmp://rtmp.rtc.qq.com/pull/8489?")
    assert "use_number_room_id" not in made


def test_integer_room_wins() -> None:
    """If both rooms are given, the integer one is pulled."""
    assert "/8489?" in address(str_room_id="other")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_values_stay_in_their_place(hostile: str) -> None:
    """No value can end its part of the URL, add a parameter or leave the path; decoded, it is the given value."""
    made = address(room_id=None, str_room_id=hostile, user_id=hostile, user_sig=hostile, speaker=hostile)
    parts = urlsplit(made)
    assert made.isascii()
    assert made.isprintable()
    assert (parts.scheme, parts.netloc, parts.fragment) == ("rtmp", "rtmp.rtc.qq.com", "")
    folders = parts.path.split("/")
    assert len(folders) == 3
    assert folders[2] not in (".", "..")
    assert unquote(folders[2]) == hostile
    query = parse_qs(parts.query, keep_blank_values=True)
    assert set(query) == {"sdkappid", "userid", "usersig", "remoteuserid"}
    assert query["remoteuserid"] == query["userid"] == query["usersig"] == [hostile]


def test_template_of_the_operator() -> None:
    """The operator may choose another host, scheme and order; doubled braces mean a brace."""
    made = address("http://127.0.0.1:8080/pull/{room}.flv?who={speaker}&brace={{x}}{number_room}")
    assert made == "http://127.0.0.1:8080/pull/8489.flv?who=alice&brace={x}&use_number_room_id=1"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "file:///etc/passwd",
        "{room}",
        "concat:rtmp://x/{room}",
        "rtmp://h/{unknown}",
        "rtmp://h/{}",
        "rtmp://h/{0}",
        "rtmp://h/{room",
        "rtmp://h/room}",
        "rtmp://h/{room.__class__}",
        "rtmp://h/{room!r}",
        "rtmp://h/{room:>99999999}",
    ],
)
def test_wrong_template_names_the_setting(template: str) -> None:
    """An unknown scheme or placeholder is refused, at the start and when used, naming the setting."""
    with pytest.raises(errors.InvalidParameter) as caught:
        pull_url.check_template(template)
    assert caught.value.field == "PULL_ADDRESS"
    with pytest.raises(errors.InvalidParameter):
        address(template)


def test_default_template_is_right() -> None:
    """The default passes its own check."""
    pull_url.check_template(pull_url.DEFAULT_TEMPLATE)


def test_no_room_and_no_text_are_refused() -> None:
    """Without a room there is no URL, and text that cannot be encoded names its field."""
    with pytest.raises(errors.InvalidParameter, match="RoomId"):
        address(room_id=None)
    with pytest.raises(errors.InvalidParameter) as caught:
        address(user_id="\ud800")
    assert caught.value.field == "UserId"
