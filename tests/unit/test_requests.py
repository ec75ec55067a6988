"""The meaning of a validated start: one room, one mode, and the secrets in a value of their own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import codec, errors, requests

COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p"}
KEYS = {"SecretId": "MARK-id", "SecretKey": "MARK-key", "Token": "MARK-token"}
START: dict[str, Any] = {"SdkAppId": 1, "RoomId": 8, "UserId": "rec", "UserSig": "MARK-sig", "CosConfig": COS | KEYS}


def _start(**changes: Any) -> tuple[requests.StartRequest, requests.Secrets]:
    data = {k: v for k, v in (START | changes).items() if v is not None}
    return requests.start(codec.check("start", data))


@pytest.mark.parametrize(
    ("room_id", "str_room_id", "kind", "name"),
    [
        (8, None, "integer", "8"),
        (8, "r", "integer", "8"),
        (8, "", "integer", "8"),
        (0, "8", "string", "8"),
        ("", "r .%2F~", "string", "r .%2F~"),
        (None, "..", "string", ".."),
        (None, "房" * 21 + "x", "string", "房" * 21 + "x"),
        (4294967295, None, "integer", "4294967295"),
    ],
)
def test_a_room_is_one_of_two_kinds(room_id: Any, str_room_id: Any, kind: str, name: str) -> None:
    """The integer room wins if both are given; 0 and "" mean not given; digits alone do not make an integer room."""
    request, _ = _start(RoomId=room_id, StrRoomId=str_room_id)
    assert (request.room.kind, request.room.name) == (kind, name)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"RoomId": None}, "RoomId"),
        ({"RoomId": 0, "StrRoomId": ""}, "RoomId"),
        ({"RoomId": None, "StrRoomId": "房" * 22}, "StrRoomId"),
        ({"SubscribeUserIds": ["a"], "UnSubscribeUserIds": ["b"]}, "UnSubscribeUserIds"),
        ({"CosConfig": COS | {"Path": "a/../b"}}, "CosConfig.Path"),
        ({"CosConfig": COS | {"Path": "a//b"}}, "CosConfig.Path"),
        ({"CosConfig": COS | {"Path": "/./"}}, "CosConfig.Path"),
        ({"CallbackEvents": ["recording-started"]}, "CallbackEvents"),
        ({"UserData": "x" * 1023}, "UserData"),
        ({"UserData": "房" * 341}, "UserData"),
        ({"UserData": [[[[[[[[[]]]]]]]]]}, "UserData"),
        ({"UserData": {"large": 1e308 * 10}}, "UserData"),
        ({"CosConfig": COS | {"SSEKMSKeyId": "k-1"}}, "CosConfig.SSEKMSKeyId"),
        ({"CosConfig": COS | {"SSEKMSKeyId": "k-1", "ServerSideEncryption": "AES256"}}, "CosConfig.SSEKMSKeyId"),
        ({"CosConfig": COS | {"Tagging": "a=1&a=2"}}, "CosConfig.Tagging"),
        ({"CosConfig": COS | {"Tagging": "=1"}}, "CosConfig.Tagging"),
        ({"CosConfig": COS | {"Tagging": "a=1&"}}, "CosConfig.Tagging"),
        ({"CosConfig": COS | {"Tagging": "a=" + "%61" * 256}}, "CosConfig.Tagging"),
        ({"CosConfig": COS | {"Tagging": "&".join(f"k{n}=1" for n in range(11))}}, "CosConfig.Tagging"),
    ],
)
def test_what_no_schema_can_say_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """No room, two lists of speakers, a name of too many bytes, a path that climbs, UserData that is too
    long, too deep or no JSON, attributes that COS does not take: refused, naming the field."""
    with pytest.raises(errors.InvalidEvent) as refused:
        _start(**changes)
    assert refused.value.field == field
    assert "MARK" not in str(refused.value)


@pytest.mark.parametrize(("path", "kept"), [("", ""), ("/", ""), ("/a/b/", "a/b"), ("a", "a"), ("日本/x y", "日本/x y")])
def test_the_path_loses_its_outer_slashes(path: str, kept: str) -> None:
    """Every spelling of a folder in the bucket becomes one."""
    assert _start(CosConfig=COS | {"Path": path})[0].path == kept


def test_attributes_of_the_objects() -> None:
    """The attributes are read as given, a repeat with others differs in them, and none is the default."""
    given = {"StorageClass": "MAZ_STANDARD", "ServerSideEncryption": "cos/kms", "SSEKMSKeyId": "k-1", "Tagging": "a=%E6%95%B0&b="}
    request = _start(CosConfig=COS | given)[0]
    assert request.attributes.given() == given
    plain = _start()[0]
    assert plain.attributes.given() == {}
    assert requests.differing(request, plain) == tuple(f"CosConfig.{field}" for field in given)


def test_defaults() -> None:
    """The defaults are mode 00, no callback, all speakers, no credentials."""
    request, secrets = _start(CosConfig=COS, UserSig=None)
    assert (request.mode, request.callback, request.subscribe, request.unsubscribe) == ("00", "", (), ())
    assert secrets == requests.Secrets()


def test_secrets_stand_apart_and_are_not_printed() -> None:
    """The request contains no secret, and neither value prints any."""
    request, secrets = _start()
    assert secrets.to_json() == {"UserSig": "MARK-sig", **KEYS}
    assert requests.Secrets.from_json(secrets.to_json()) == secrets
    assert "MARK" not in json.dumps(dataclasses.asdict(request))
    assert "MARK" not in repr((request, secrets))


def test_a_replay_brings_what_it_brings() -> None:
    """A replay has only the secrets that it names; the others are empty."""
    assert requests.secrets({"TaskId": "x"}) == requests.Secrets()
    assert requests.secrets({"UserSig": "s"}) == requests.Secrets(user_sig="s")


FRESH = st.sampled_from(("", "new"))


@given(st.builds(requests.Secrets, user_sig=FRESH, secret_id=FRESH, secret_key=FRESH, token=FRESH))
def test_fresh_secrets_replace_as_a_whole(fresh: requests.Secrets) -> None:
    """A fresh UserSig replaces the old one; COS credentials are replaced together, so that no token outlives its key."""
    old = requests.Secrets(user_sig="old", secret_id="old", secret_key="old", token="old")
    now = old.renewed_by(fresh)
    assert now.user_sig == (fresh.user_sig or "old")
    credentials = (now.secret_id, now.secret_key, now.token)
    if fresh.secret_id:
        assert credentials == (fresh.secret_id, fresh.secret_key, fresh.token)
    else:
        assert credentials == ("old", "old", "old")
