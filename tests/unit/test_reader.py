"""The tolerant reader: what a message from outside means, and that what is wrong is still refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import codec, errors, requests
from tests import message_examples as messages

COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p"}
START: dict[str, Any] = {"SdkAppId": 7, "RoomId": 9, "UserId": "rec", "UserSig": "sig", "CosConfig": COS}
KEYS = {"SecretId": "id", "SecretKey": "key", "Token": "token"}


def made(type_: str, **data: Any) -> codec.Data:
    """The data of an event that was made of this."""
    return codec.make(type_, id="1", time_ms=1, data=data).data


@pytest.mark.parametrize(
    "changes",
    [
        {"SdkAppId": "7"},
        {"RoomId": "9"},
        {"RoomId": "009", "SdkAppId": "0007"},
        {"StrRoomId": None, "Mode": None, "Callback": None, "SubscribeUserIds": None, "UnSubscribeUserIds": ""},
        {"Mode": "", "Callback": "", "SubscribeUserIds": "", "StrRoomId": ""},
        {"UserSig": "sig\n"},
        {"UserSig": "\r\n\t sig \r\n"},
        {"UserSig": "\ufeffsig\n"},
        {"CosConfig": COS | {"SecretId": None, "SecretKey": None, "Token": None}},
        {"CosConfig": COS | {"SecretId": "", "SecretKey": " \n", "Token": "\t"}},
        {"CosConfig": {"region": "ap-shanghai", "bucket": "b-12345", "path": "p"}},
        {"CosConfig": {"Region": "ap-shanghai", "bucket": "b-12345", "Path": "p"}},
    ],
)
def test_a_start_means_the_same(changes: dict[str, Any]) -> None:
    """Digits in a string, fields that are not given, white space around a UserSig, and names of CosConfig in lower case change
    nothing."""
    assert made("start", **(START | changes)) == START


@pytest.mark.parametrize("field", KEYS)
def test_white_space_around_each_key_is_dropped(field: str) -> None:
    """Each COS key is used without the white space of the file that it came from; the text of other fields stays."""
    spaced = KEYS | {field: f" {KEYS[field]}\r\n"}
    body = START | {"UserId": " rec ", "CosConfig": COS | spaced}
    _, secrets = requests.start(made("start", **body))
    assert secrets.to_json() == {"UserSig": "sig", **KEYS}
    assert made("start", **body)["UserId"] == " rec "


@pytest.mark.parametrize(
    ("type_", "given_data", "meant"),
    [
        ("stop", {"TaskId": "", "SdkAppId": "7", "RoomId": "9", "UserId": "rec"}, {"SdkAppId": 7, "RoomId": 9, "UserId": "rec"}),
        ("stop", {"TaskId": messages.TASK, "SdkAppId": None, "UserId": ""}, {"TaskId": messages.TASK}),
        ("replay", {"TaskId": messages.TASK, "Speaker": "al", "N": "12"}, {"TaskId": messages.TASK, "Speaker": "al", "N": 12}),
        ("replay", {"TaskId": messages.TASK, "From": None, "DryRun": None, "CosConfig": None}, {"TaskId": messages.TASK}),
        ("user-left", messages.USER | {"EventMs": "5", "Reason": "2"}, messages.USER | {"Reason": 2}),
    ],
)
def test_every_message_from_outside_is_read_so(type_: str, given_data: dict[str, Any], meant: dict[str, Any]) -> None:
    """The same holds for each type that publishers send, as a bare body and inside an event."""
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": type_, "data": given_data, "subject": None, "time": ""}
    for raw in (json.dumps(given_data).encode(), json.dumps(event).encode(), b"\xef\xbb\xbf" + json.dumps(event).encode()):
        read = codec.decode(raw, bare_type=type_, bare_id="1", now_ms=3)
        assert (read.data, read.subject, read.time_ms) == (meant, "", 3)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"SdkAppId": ""}, "SdkAppId"),
        ({"SdkAppId": None}, "SdkAppId"),
        ({"SdkAppId": "7.0"}, "SdkAppId"),
        ({"SdkAppId": "-7"}, "SdkAppId"),
        ({"SdkAppId": "٧"}, "SdkAppId"),
        ({"SdkAppId": "0"}, "SdkAppId"),
        ({"SdkAppId": "4294967296"}, "SdkAppId"),
        ({"SdkAppId": "9" * 5_000}, "SdkAppId"),
        ({"RoomId": "9a"}, "RoomId"),
        ({"RoomId": [9]}, "RoomId"),
        ({"UserId": None}, "UserId"),
        ({"UserId": ""}, "UserId"),
        ({"UserSig": ["sig"]}, "UserSig"),
        ({"Mode": 0}, "Mode"),
        ({"Mode": "04"}, "Mode"),
        ({"Modus": None}, "Modus"),
        ({"CosConfig": None}, "CosConfig"),
        ({"CosConfig": COS | {"Path": None}}, "CosConfig.Path"),
        ({"CosConfig": COS | {"SecretId": "id", "SecretKey": "\n"}}, "CosConfig.SecretKey"),
        ({"SubscribeUserIds": [None]}, "SubscribeUserIds.0"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    """A value that no reading makes right is refused under its field, and a secret is never repeated."""
    with pytest.raises(errors.InvalidEvent) as refused:
        made("start", **(START | changes))
    assert refused.value.field == field


def test_the_recorders_own_messages_are_read_strictly() -> None:
    """An outcome with a number in a string is a fault of the recorder, and no reading hides it."""
    with pytest.raises(errors.InvalidEvent):
        made("capture-started", **(messages.JOB | {"Epoch": "1"}))


@given(st.sampled_from(sorted(codec.types("in"))), st.data())
def test_reading_twice_changes_nothing(type_: str, data: st.DataObject) -> None:
    """What was read once is read as it is: a stored message means the same when it is delivered again."""
    body = dict(data.draw(st.sampled_from(messages.VALID[type_])))
    for name in data.draw(st.lists(st.sampled_from(sorted(body)), max_size=3)):
        body[name] = data.draw(messages.JSON | st.sampled_from(["", None, "12", " x "]))
    try:
        once = codec.read(type_, body)
    except errors.InvalidEvent:
        return
    assert codec.read(type_, once) == once
