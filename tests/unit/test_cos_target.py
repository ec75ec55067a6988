"""Object key, URL and target: the contract's form, and names that lead nowhere else."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from assembly import object_places
from events import requests
from machine import errors, model
from tencent import cos, cos_target

TASK = "01JD0000000000000000000000"


@pytest.mark.parametrize(
    ("path", "speaker", "mode", "key"),
    [
        ("room", "alice", "02", f"room/{TASK}/alice_1.mp4"),
        ("/room/day/", "alice", "01", f"room/day/{TASK}/alice_1.mp4"),
        ("///room//", "alice", "00", f"room/{TASK}/alice_1.mp3"),
        ("/", "alice", "00", f"{TASK}/alice_1.mp3"),
        ("", "alice", "00", f"{TASK}/alice_1.mp3"),
        ("录制", "user_A-9", "00", f"录制/{TASK}/user_A-9_1.mp3"),
    ],
)
def test_key_has_the_contracts_form(path: str, speaker: str, mode: str, key: str) -> None:
    """Path without outer slashes, TaskId, speaker and number; MP3 for audio and MP4 for the rest."""
    assert cos.object_key(path, TASK, speaker, 1, mode) == key


@pytest.mark.parametrize("speaker", ["张三", "a b", "../x", "a/b", "a.b", "b64-YQ", "", "x\n", "%2F", "\ud800"])
def test_unsafe_speaker_is_base64url(speaker: str) -> None:
    """A speaker with other characters, or one that looks encoded, is written as base64url that decodes to it."""
    safe = cos_target.safe_speaker(speaker)
    assert safe.startswith("b64-")
    assert set(safe) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
    encoded = safe.removeprefix("b64-")
    decoded = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    assert decoded.decode("utf-8", "surrogatepass") == speaker


def test_no_two_speakers_share_a_name() -> None:
    """The encoding cannot be imitated: a speaker whose id looks encoded is encoded as well."""
    speakers = ["a b", cos_target.safe_speaker("a b"), cos_target.safe_speaker(cos_target.safe_speaker("a b")), "a_b", "a-b"]
    assert len({cos_target.safe_speaker(speaker) for speaker in speakers}) == len(speakers)


def test_url_is_percent_encoded() -> None:
    """The URL names bucket and region in its host and encodes everything in the key but slashes."""
    key = cos.object_key("录 制/a+b&c?d#e", TASK, "alice", 2, "00")
    target = cos.CosTarget(region="ap-guangzhou", bucket="recordings-1250000000", key=key)
    assert cos.url(target) == (
        f"https://recordings-1250000000.cos.ap-guangzhou.myqcloud.com/%E5%BD%95%20%E5%88%B6/a%2Bb%26c%3Fd%23e/{TASK}/alice_2.mp3"
    )


@pytest.mark.parametrize("path", ["..", "a/../b", ".", "a/./b", "a\\b", "a\nb", "a\0", "\x7f", "\ud800", "x" * 900])
def test_hostile_path_is_refused(path: str) -> None:
    """A Path with dot folders, control characters, backslashes or too many bytes is refused by name."""
    with pytest.raises(errors.InvalidParameter) as caught:
        cos.object_key(path, TASK, "alice", 1, "00")
    assert caught.value.field == "CosConfig.Path"
    with pytest.raises(errors.InvalidParameter):
        cos_target.check_path(path)


def test_unknown_mode_is_refused() -> None:
    """A mode outside the contract has no extension."""
    with pytest.raises(errors.InvalidParameter) as caught:
        cos.object_key("room", TASK, "alice", 1, "03")
    assert caught.value.field == "Mode"


def target(**more: Any) -> cos.CosTarget:
    return cos.CosTarget(**{"region": "ap-guangzhou", "bucket": "recordings-1250000000", "key": "a/b.mp4"} | more)


@pytest.mark.parametrize(
    "region",
    ["ap-guangzhou", "ap-beijing-1", "ap-shanghai-fsi", "ap-hongkong", "na-siliconvalley", "eu-frankfurt", "accelerate"],
)
def test_real_regions_are_accepted(region: str) -> None:
    """COS's own region names are regions."""
    assert target(region=region).region == region


@pytest.mark.parametrize(
    "region",
    [
        "",
        "guangzhou",
        "AP-GUANGZHOU",
        "ap-guangzhou.evil.example",
        "ap-guangzhou/",
        "ap-guangzhou#",
        "ap-guangzhou\n",
        "cos.ap-guangzhou",
        "ap-guangzhou@evil.example",
        "evil.example:80/",
        "127.0.0.1",
        "cn-north",
        "cn-south-2",
        "ap-" + "x" * 60,
        "ap-广州",
    ],
)
def test_region_cannot_lead_elsewhere(region: str) -> None:
    """A region with anything of a host name, a path or an old generation's name in it makes no target."""
    with pytest.raises(errors.InvalidParameter) as caught:
        target(region=region)
    assert caught.value.field == "CosConfig.Region"


@pytest.mark.parametrize(
    "bucket",
    [
        "",
        "recordings",
        "-1250000000",
        "Recordings-1250000000",
        "rec.ordings-1250000000",
        "evil.example/recordings-1250000000",
        "evil.example#-1250000000",
        "recordings-1250000000\n",
        "recordings-1250000000@x",
        "-recordings-1250000000",
        "x" * 51 + "-1250000000",
        "录制-1250000000",
        "recordings-１２５００００",
    ],
)
def test_bucket_cannot_lead_elsewhere(bucket: str) -> None:
    """A bucket is its name with the APPID and nothing that could be another host."""
    with pytest.raises(errors.InvalidParameter) as caught:
        target(bucket=bucket)
    assert caught.value.field == "CosConfig.Bucket"


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "a\nb", "x" * 851])
def test_illegal_key_makes_no_target(key: str) -> None:
    """A key that COS does not take, or that climbs, makes no target."""
    with pytest.raises(errors.InvalidParameter):
        target(key=key)


@pytest.mark.parametrize(
    "endpoint",
    [("ftp", "127.0.0.1", 1), ("http", "evil.example", 80), ("http", "127.0.0.1", 0), ("http", "127.0.0.1/x", 80)],
)
def test_endpoint_is_an_address(endpoint: tuple[str, str, int]) -> None:
    """The operator's endpoint is a scheme, an IP address and a port."""
    with pytest.raises(errors.InvalidParameter) as caught:
        target(endpoint=endpoint)
    assert caught.value.field == "COS_ENDPOINT"


def test_a_recording_whose_object_was_delivered_gets_another() -> None:
    """The address has the number of the object, which is that of the recording unless a replay made another file."""
    room = requests.Room(sdk_app_id=1, room_id=7)
    request = requests.StartRequest(room=room, user_id="rec", region="ap-shanghai", bucket="b-12345", path="/a/")
    first = model.Recording(task_id="T", speaker="al", n=1, mode="02")
    before = "https://b-12345.cos.ap-shanghai.myqcloud.com/a/T/"
    assert object_places.url(request, first) == f"{before}al_1.mp4"
    assert object_places.url(request, model.changed(first, object_n=3)) == f"{before}al_3.mp4"
