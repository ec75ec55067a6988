"""The contract of results: every field, code and message of a file's entry, a recording's result and a session's result."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from events import codec, requests
from machine import alignment, model, published, results

TASK = "01" + "0" * 24
OUTPUT = model.Output(
    duration_ms=61_250,
    size_bytes=1_234,
    crc64="18446744073709551615",
    start_ms=1_785_542_400_123,
    end_ms=1_785_542_470_000,
    gaps=((1_500, 2_250), (30_000, 7_500)),
    anchors=alignment.Anchors(((0, 1_785_542_400_123), (1_500, 1_785_542_403_873))),
    error_ms=120,
    live=(
        (1_785_542_400_123, 1_785_542_401_623),
        (1_785_542_403_873, 1_785_542_432_373),
        (1_785_542_439_873, 1_785_542_470_000),
    ),
)
PUBLISHED = published.UNKNOWN.switched_on(1_785_542_399_246, 0).left(1_785_542_470_200)
DONE = model.Recording(
    task_id=TASK,
    speaker="al",
    n=1,
    state="Done",
    code="Success",
    url="https://b.cos/x_1.mp4",
    output=OUTPUT,
    replays=1,
    published=PUBLISHED,
)
REQUEST = requests.StartRequest(
    room=requests.Room(sdk_app_id=1_400_000_001, room_id=88), user_id="rec", region="ap-shanghai", bucket="b-12345", path="p"
)
SESSION = model.Session(task_id=TASK, request=REQUEST, state="Finished", revision=1, end_reason="RoomDestroyed")
FIELDS = {
    *("UserId", "RecordFile", "Status", "Message"),
    *("Code", "Detail", "StartTime", "EndTime", "Duration", "Size", "Crc64", "Gaps"),
    *("PublishedTime", "LeftTime", "Missing", "Anchors", "ErrorMs"),
}


def _failed(state_left: str, **changes: Any) -> model.Recording:
    code = {"Joining": "FailedRecording", "Transcoding": "FailedTranscode", "Uploading": "FailedCosWrite"}[state_left]
    plain = dataclasses.replace(DONE, state="Failed", code=code, url="", detail="because", output=None)
    return dataclasses.replace(plain, **changes)


def test_a_file_that_was_written() -> None:
    """Every field of an entry: times in ISO 8601 UTC, seconds of media, gaps cut and reported, CRC as a decimal string."""
    assert results.file_entry(DONE) == {
        "UserId": "al",
        "RecordFile": "https://b.cos/x_1.mp4",
        "Status": 1,
        "Message": "录制成功",
        "Code": "Success",
        "Detail": "",
        "StartTime": "2026-08-01T00:00:00.123Z",
        "EndTime": "2026-08-01T00:01:10.000Z",
        "Duration": 61.25,
        "Size": 1_234,
        "Crc64": "18446744073709551615",
        "Gaps": [{"At": 0.0, "Duration": 0.877}, {"At": 1.5, "Duration": 2.25}, {"At": 30.0, "Duration": 7.5}],
        "PublishedTime": "2026-07-31T23:59:59.246Z",
        "LeftTime": "2026-08-01T00:01:10.200Z",
        "Missing": 10.627,
        "Anchors": [{"At": 0.0, "Time": "2026-08-01T00:00:00.123Z"}, {"At": 1.5, "Time": "2026-08-01T00:00:03.873Z"}],
        "ErrorMs": 120,
    }


@pytest.mark.parametrize(
    ("left", "type_", "code", "message"),
    [
        ("Joining", "failed-recording", "FailedRecording", "录制失败"),
        ("Transcoding", "failed-transcode", "FailedTranscode", "转码失败"),
        ("Uploading", "failed-cos-write", "FailedCosWrite", "写cos失败"),
    ],
)
def test_a_file_that_was_not(left: str, type_: str, code: str, message: str) -> None:
    """Each failure has its event, Code, Message, Status 0, no file, and the reason in English."""
    said, data = results.recording_result(SESSION, _failed(left))
    entry = data["File"]
    assert said == type_
    assert (entry["Code"], entry["Message"], entry["Status"], entry["Detail"]) == (code, message, 0, "because")
    assert (entry["RecordFile"], entry["Size"], entry["Crc64"], entry["Duration"], entry["Gaps"]) == ("", 0, "", 0, [])
    codec.check(said, data)


@pytest.mark.parametrize("output", [None, OUTPUT])
def test_a_failed_upload_tells_of_no_object(output: model.Output | None) -> None:
    """A finished file that is not in the bucket is no RecordFile, has no Size and no Crc64 there."""
    entry = results.file_entry(_failed("Uploading", output=output))
    assert (entry["RecordFile"], entry["Size"], entry["Crc64"]) == ("", 0, "")


@pytest.mark.parametrize("state", ["Uploading", "Transcoding", "Recording", "Joining"])
def test_what_is_not_final_is_pending(state: str) -> None:
    """A recording that is not final when the result is due is UploadPending, Status 0, and announces a later revision."""
    entry = results.file_entry(dataclasses.replace(DONE, state=state, code="", url="", detail="503"))
    assert (entry["Code"], entry["Message"], entry["Status"], entry["RecordFile"]) == ("UploadPending", "写cos失败", 0, "")
    assert "revision" in entry["Detail"]
    assert "503" in entry["Detail"]


def test_times_of_what_has_no_file() -> None:
    """Without a file the times are those of the first and last packet; without media they are empty."""
    seen = results.file_entry(_failed("Transcoding", first_packet_ms=1_785_542_400_000, last_packet_ms=1_785_542_401_000))
    assert (seen["StartTime"], seen["EndTime"]) == ("2026-08-01T00:00:00.000Z", "2026-08-01T00:00:01.000Z")
    never = results.file_entry(_failed("Joining"))
    assert (never["StartTime"], never["EndTime"]) == ("", "")


def test_a_recording_s_result() -> None:
    """TaskId, the start's key, speaker, n, attempt and the file's entry: no more, no less."""
    type_, data = results.recording_result(SESSION, DONE)
    assert type_ == "recording-done"
    assert data == {
        "TaskId": TASK,
        "SdkAppId": "1400000001",
        "RoomId": "88",
        "StrRoomId": "",
        "UserId": "rec",
        "Speaker": "al",
        "N": 1,
        "Attempt": 2,
        "File": results.file_entry(DONE),
    }
    assert set(data["File"]) == FIELDS


def test_a_session_s_result() -> None:
    """The result has the fields of the replaced service, decimal strings for numbers, and the extensions at the top; it matches
    the schema."""
    body = results.session_result(SESSION, [DONE])
    assert body == {
        "SdkAppId": "1400000001",
        "RoomId": "88",
        "StrRoomId": "",
        "UserId": "rec",
        "Files": [results.file_entry(DONE)],
        "TaskId": TASK,
        "Revision": 1,
        "EndReason": "RoomDestroyed",
    }
    codec.check("session-finished", body)


def test_a_string_room_is_named_in_its_own_field() -> None:
    """The unused room id is empty."""
    room = requests.Room(sdk_app_id=4_294_967_295, str_room_id="88")
    body = results.session_result(dataclasses.replace(SESSION, request=dataclasses.replace(REQUEST, room=room)), [])
    assert (body["SdkAppId"], body["RoomId"], body["StrRoomId"]) == ("4294967295", "", "88")


def test_nobody_published() -> None:
    """Without a publisher, Files is an empty list."""
    assert results.session_result(SESSION, [])["Files"] == []


def test_awaited_speakers_leave_no_entry() -> None:
    """A subscribed speaker who was never seen is not in Files; a second recording of a speaker is."""
    never_seen = _failed("Joining", speaker="bo", never_seen=True)
    second = dataclasses.replace(DONE, n=2, opened_ms=5)
    files = results.session_result(SESSION, [second, never_seen, DONE])["Files"]
    assert [f["UserId"] for f in files] == ["al", "al"]


def test_the_same_facts_give_the_same_body() -> None:
    """The input order of recordings does not change a byte."""
    several = [dataclasses.replace(DONE, speaker=s, n=n, opened_ms=o) for s, n, o in (("b", 1, 2), ("a", 1, 2), ("a", 2, 9))]
    bodies = {repr(results.session_result(SESSION, order)) for order in (several, several[::-1])}
    assert len(bodies) == 1
