"""TRTC's server API of the simulator, called by Tencent's official SDK and, where the SDK hides too much, by plain requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tencentcloud.common import credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.trtc.v20190722 import models, trtc_client

from simulator import server, tc3
from simulator.cos import signature
from tests import waiting

APP = 1400000001
SECRET_ID, SECRET_KEY = "AKIDone", "key-one"
Client = Callable[..., Any]


@pytest.fixture
async def simulator(tmp_path: Path, loops: Path) -> AsyncIterator[server.Simulator]:
    accounts = [
        signature.Account(secret_id=SECRET_ID, secret_key=SECRET_KEY),
        signature.Account(secret_id="AKIDtemporary", secret_key="key-two", token="token-two"),
    ]
    running = server.Simulator(folder=tmp_path, content_folder=loops, accounts=accounts)
    await running.start()
    running.configure_app(APP, callback_url=running.receiver_url("trtc"))
    yield running
    await running.stop()


@pytest.fixture
def client(simulator: server.Simulator) -> Client:
    def make(secret_id: str = SECRET_ID, secret_key: str = SECRET_KEY, token: str | None = None, **profile: Any) -> Any:
        http = HttpProfile(endpoint=f"127.0.0.1:{simulator.port}", protocol="http", reqTimeout=10)
        keys = credential.Credential(secret_id, secret_key, token)
        made = ClientProfile(httpProfile=http)
        for name, value in profile.items():
            setattr(made, name, value)
        return trtc_client.TrtcClient(keys, "ap-guangzhou", made)

    return make


async def call(api: Any, action: str, **fields: Any) -> Any:
    request = getattr(models, f"{action}Request")()
    for name, value in fields.items():
        setattr(request, name, value)
    return await asyncio.to_thread(getattr(api, action), request)


async def refused(api: Any, action: str, **fields: Any) -> str:
    with pytest.raises(TencentCloudSDKException) as caught:
        await call(api, action, **fields)
    assert caught.value.get_request_id()
    assert caught.value.get_message()
    return str(caught.value.get_code())


def events(simulator: server.Simulator) -> list[tuple[int, Any, Any]]:
    messages = [json.loads(received.body) for received in simulator.receiver.received["trtc"]]
    return [(m["EventType"], m["EventInfo"].get("UserId"), m["EventInfo"].get("Reason")) for m in messages]


@pytest.mark.parametrize(("room", "suffix"), [(8489, ""), ("8489", "ByStrRoomId"), ("a room/..%2F", "ByStrRoomId")])
async def test_users_are_removed_and_rooms_dismissed(
    simulator: server.Simulator, client: Client, room: int | str, suffix: str
) -> None:
    """RemoveUser gives 104 with Reason 3 for each named user, DismissRoom gives 102, and afterwards the room does not exist."""
    opened = simulator.create_room(APP, room)
    for name in ("alice", "bob", "carol"):
        await opened.join(name)
    response = await call(client(), f"RemoveUser{suffix}", SdkAppId=APP, RoomId=room, UserIds=["alice", "bob", "nobody"])
    assert response.RequestId
    assert list(opened.speakers) == ["carol"]
    await call(client(), f"DismissRoom{suffix}", SdkAppId=APP, RoomId=room)
    await waiting.until(lambda: events(simulator) and events(simulator)[-1][0] == 102, what="the dismissal")
    assert events(simulator)[-3:] == [(104, "alice", 3), (104, "bob", 3), (102, None, None)]
    assert await refused(client(), f"DismissRoom{suffix}", SdkAppId=APP, RoomId=room) == "FailedOperation.RoomNotExist"


async def test_the_recording_user_is_removed(simulator: server.Simulator, client: Client) -> None:
    """A user who only pulls can be removed: their pulls end, and the speaker goes on."""
    alice = await simulator.create_room(APP, 1).join("alice")
    values = {"room": "1", "sdkappid": str(APP), "userid": "recorder", "usersig": "any", "speaker": "alice"}
    address = simulator.pull_template.format(**values, number_room="&use_number_room_id=1")
    async with aiohttp.ClientSession() as http, http.get(address) as answer:
        await answer.content.readany()
        await call(client(), "RemoveUser", SdkAppId=APP, RoomId=1, UserIds=["recorder"])
        async with waiting.at_most(5):
            await answer.content.read()
    assert alice.publishing
    await waiting.until(lambda: (104, "recorder", 3) in events(simulator), what="the callback")


async def test_integer_and_string_rooms_are_kept_apart(simulator: server.Simulator, client: Client) -> None:
    """A string room is not found by its digits as a number, and each API accepts only its own kind of id."""
    await simulator.create_room(APP, "8489").join("alice")
    missing = "FailedOperation.RoomNotExist"
    assert await refused(client(), "DismissRoom", SdkAppId=APP, RoomId=8489) == missing
    assert await refused(client(), "DismissRoom", SdkAppId=APP, RoomId="8489") == "InvalidParameter.RoomId"
    assert await refused(client(), "DismissRoomByStrRoomId", SdkAppId=APP, RoomId=8489) == "InvalidParameter.RoomId"
    assert await refused(client(), "DismissRoomByStrRoomId", SdkAppId=APP + 1, RoomId="8489") == missing


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"RoomId": 1, "UserIds": ["a"]}, "MissingParameter.SdkAppId"),
        ({"SdkAppId": APP, "UserIds": ["a"]}, "MissingParameter.RoomId"),
        ({"SdkAppId": APP, "RoomId": 1}, "MissingParameter.UserIds"),
        ({"SdkAppId": APP, "RoomId": 1, "UserIds": []}, "InvalidParameter.UserIds"),
        ({"SdkAppId": APP, "RoomId": 1, "UserIds": [f"u{n}" for n in range(11)]}, "InvalidParameter.UserIds"),
        ({"SdkAppId": APP, "RoomId": 2**32, "UserIds": ["a"]}, "InvalidParameter.RoomId"),
        ({"SdkAppId": "x", "RoomId": 1, "UserIds": ["a"]}, "InvalidParameter.SdkAppId"),
    ],
)
async def test_wrong_parameters(simulator: server.Simulator, client: Client, fields: dict[str, Any], code: str) -> None:
    """A missing or wrong parameter is refused by name, and no user is removed."""
    await simulator.create_room(APP, 1).join("a")
    assert await refused(client(), "RemoveUser", **fields) == code
    assert "a" in simulator.create_room(APP, 1).speakers


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"secret_key": "wrong"}, "AuthFailure.SignatureFailure"),
        ({"secret_id": "AKIDnobody"}, "AuthFailure.SecretIdNotFound"),
        ({"secret_id": "AKIDtemporary", "secret_key": "key-two"}, "AuthFailure.TokenFailure"),
        ({"secret_id": "AKIDtemporary", "secret_key": "key-two", "token": "other"}, "AuthFailure.TokenFailure"),
        ({"signMethod": "HmacSHA256"}, "AuthFailure.InvalidAuthorization"),
    ],
)
async def test_wrong_keys_are_refused(simulator: server.Simulator, client: Client, keys: dict[str, Any], code: str) -> None:
    """The signature is verified against COS's accounts before anything else."""
    room = simulator.create_room(APP, 1)
    await room.join("alice")
    assert await refused(client(**keys), "DismissRoom", SdkAppId=APP, RoomId=1) == code
    assert room.exists


async def test_good_keys_of_other_kinds(simulator: server.Simulator, client: Client) -> None:
    """Temporary keys with their token, and a payload that is not signed, are accepted."""
    for profile in ({"secret_id": "AKIDtemporary", "secret_key": "key-two", "token": "token-two"}, {"unsignedPayload": True}):
        await simulator.create_room(APP, 1).join("alice")
        await call(client(**profile), "DismissRoom", SdkAppId=APP, RoomId=1)
    assert [(served.action, served.code) for served in simulator.rest.served] == [("DismissRoom", "")] * 2


async def post(
    simulator: server.Simulator, headers: dict[str, str] | None = None, *, age_s: int = 0, body: bytes = b"{}"
) -> tuple[str, str]:
    """Send a request signed by hand; returns its Content-Type and error code."""
    now = int(time.time()) - age_s
    sent = {
        "Host": f"127.0.0.1:{simulator.port}",
        "Content-Type": "application/json",
        "X-TC-Action": "DismissRoom",
        "X-TC-Version": "2019-07-22",
        "X-TC-Timestamp": str(now),
    } | (headers or {})
    date = time.strftime("%Y-%m-%d", time.gmtime(now))
    signed = tc3.parse("POST", "/", sent, body)
    names = "content-type;host"
    sign = tc3.sign(signed, SECRET_KEY, date, "trtc", names)
    scope = f"{SECRET_ID}/{date}/trtc/tc3_request"
    sent |= {"Authorization": f"TC3-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={sign}"} | (headers or {})
    async with aiohttp.ClientSession() as http, http.post(f"{simulator.url}/", data=body, headers=sent) as answer:
        assert answer.status == 200
        response = json.loads(await answer.read())["Response"]
        assert response["RequestId"]
        return answer.headers["Content-Type"], response.get("Error", {}).get("Code", "")


async def test_requests_that_the_sdk_never_sends(simulator: server.Simulator) -> None:
    """An old or future request, an unknown action or version, and a body that is no object are refused, always as plain JSON."""
    plain = "application/json"
    await simulator.create_room(APP, 1).join("alice")
    assert await post(simulator, age_s=301) == (plain, "AuthFailure.SignatureExpire")
    assert await post(simulator, age_s=-302) == (plain, "AuthFailure.SignatureExpire")
    assert await post(simulator, {"X-TC-Action": "DescribeUsers"}) == (plain, "InvalidAction")
    assert await post(simulator, {"X-TC-Version": "2017-03-12"}) == (plain, "NoSuchVersion")
    assert await post(simulator, {"Authorization": "SKIP"}) == (plain, "AuthFailure.InvalidAuthorization")
    assert await post(simulator, {"Content-Type": "text/plain"}) == (plain, "UnsupportedProtocol")
    for body in (b"[]", b"\xff", b""):
        assert await post(simulator, body=body) == (plain, "InvalidParameter")
    assert await post(simulator, body=json.dumps({"SdkAppId": APP, "RoomId": 1}).encode()) == (plain, "")


async def test_a_room_that_ends_with_its_last_speaker(simulator: server.Simulator, client: Client) -> None:
    """Removing the last speaker of a room in live mode ends the room, as a speaker who leaves does."""
    room = simulator.create_room(APP, 1)
    room.ends_when_empty = True
    await room.join("alice")
    await call(client(), "RemoveUser", SdkAppId=APP, RoomId=1, UserIds=["alice"])
    await waiting.until(lambda: events(simulator) and events(simulator)[-1][0] == 102, what="the dismissal")


def test_the_documented_signature() -> None:
    """The example request of Tencent's documentation gets the documented signature."""
    body = rb'{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}'
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Host": "cvm.tencentcloudapi.com",
        "X-TC-Timestamp": "1551113065",
    }
    signed = tc3.parse("POST", "/", headers, body)
    found = tc3.sign(signed, "Gu5t9xGARNpq86cd98joQYCN3EXAMPLE", "2019-02-25", "cvm", "content-type;host")
    assert found == "72e494ea809ad7a8c8f7a4507b9bddcbaa8e581f516e8da2f66e2c5a96525168"
