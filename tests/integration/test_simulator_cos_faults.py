"""Scripted faults of COS: with each of them an upload ends in the right object or in the right error.

The tests run with Tencent's SDK alone, whose errors show the wire's content, and with the recorder's uploader.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from fastcrc import crc64
from qcloud_cos import CosConfig, CosS3Client
from qcloud_cos.cos_exception import CosClientError, CosServiceError

from machine import errors, uploaded_object
from simulator import server
from simulator.cos import faults, signature
from tencent import cos, credentials
from tests import waiting

BUCKET, REGION, KEY = "recordings-1250000000", "ap-guangzhou", "lessons/T1/alice_1.mp4"
PART_BYTES = 1_048_576
BODY = os.urandom(2 * PART_BYTES + 11)
KEYS = credentials.Credentials(secret_id="AKIDone", secret_key="key-one", token="")
EVERY = ("initiate", "upload-part", "complete", "head-object")
Upload = Callable[..., Any]


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[server.Simulator]:
    account = signature.Account(secret_id=KEYS.secret_id, secret_key=KEYS.secret_key)
    running = server.Simulator(folder=tmp_path / "simulator", accounts=[account], buckets=[BUCKET])
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def upload(simulator: server.Simulator, tmp_path: Path) -> AsyncIterator[Upload]:
    path = tmp_path / "alice_1.mp4"
    path.write_bytes(BODY)
    uploader = cos.CosUploader(first_part_bytes=PART_BYTES, pauses_s=(0.01, 0.01), silence_timeout_s=1.0)
    await uploader.start()
    target = cos.CosTarget(region=REGION, bucket=BUCKET, key=KEY, endpoint=("http", "127.0.0.1", simulator.port))
    states: list[cos.UploadState] = []

    async def save(state: cos.UploadState) -> None:
        states.append(state)

    async def begin(*, resume: bool = False) -> uploaded_object.UploadedObject:
        state = states[-1] if resume and states else None
        return await uploader.upload(path, target, KEYS, state=state, save=save)

    yield begin
    await uploader.stop()


def script(simulator: server.Simulator, *rules: faults.Fault) -> None:
    simulator.cos.faults.set(*rules)


def check_right(simulator: server.Simulator, done: uploaded_object.UploadedObject) -> None:
    """The bucket has one object, which equals the file."""
    (stored,) = simulator.cos.objects.all()
    assert (stored.key, stored.path.read_bytes() == BODY) == (KEY, True)
    assert (done.size_bytes, done.crc64) == (len(BODY), str(crc64.xz(BODY))) == (stored.size, stored.crc64)


def struck(simulator: server.Simulator) -> int:
    return sum(bool(served.fault) for served in simulator.cos.served)


PASSING = (
    *(faults.Fault(action=faults.STATUS, operation=name, times=2) for name in EVERY),
    *(faults.Fault(action=faults.STATUS, operation=name, status=429, code="SlowDown") for name in EVERY),
    *(faults.Fault(action=faults.RESET, operation=name, times=2) for name in EVERY),
    *(faults.Fault(action=faults.COMMIT_THEN_RESET, operation=name) for name in EVERY),
    *(faults.Fault(action=faults.DELAY, operation=name, delay_s=0.2) for name in EVERY),
    *(faults.Fault(action=faults.DELAY, operation=name, delay_s=1.5) for name in ("initiate", "upload-part", "head-object")),
    *(faults.Fault(action=faults.WRONG_CRC, operation=name) for name in ("upload-part", "complete", "head-object")),
    *(
        faults.Fault(action=action, operation="upload-part", skip=skip)
        for action in (faults.STATUS, faults.RESET, faults.COMMIT_THEN_RESET)
        for skip in (1, 2)
    ),
    faults.Fault(action=faults.STATUS, operation="upload-part", status=404, code="NoSuchUpload", skip=1),
    faults.Fault(action=faults.STATUS, operation="complete", status=404, code="NoSuchUpload"),
    faults.Fault(action=faults.STATUS, operation="complete", status=400, code="InvalidPart"),
    faults.Fault(action=faults.STATUS, operation="upload-part", status=400, code="BadDigest"),
)


def _name(fault: faults.Fault) -> str:
    return f"{fault.action}-{fault.operation}-{fault.delay_s or fault.code}-{fault.skip}"


@pytest.mark.parametrize("fault", PASSING, ids=_name)
async def test_a_passing_fault_ends_in_the_right_object(simulator: server.Simulator, upload: Upload, fault: faults.Fault) -> None:
    """A fault that passes after one or two requests is survived by the uploader within one call."""
    script(simulator, fault)
    check_right(simulator, await upload())
    await waiting.until(lambda: struck(simulator) == fault.times, what="the fault to have struck")


@pytest.mark.parametrize(
    ("fault", "reason", "retry"),
    [
        (faults.Fault(action=faults.STATUS, times=0), "server", True),
        *((faults.Fault(action=faults.STATUS, operation=name, times=0), "server", True) for name in EVERY[1:]),
        (faults.Fault(action=faults.STATUS, times=0, status=429, code="SlowDown"), "throttled", True),
        (faults.Fault(action=faults.STATUS, times=0, status=403, code="AccessDenied"), "refused", False),
        (faults.Fault(action=faults.STATUS, times=0, status=404, code="NoSuchBucket"), "refused", False),
        (faults.Fault(action=faults.RESET, operation="upload-part", times=0), "network", True),
        (faults.Fault(action=faults.DELAY, operation="upload-part", times=0, delay_s=1.5), "network", True),
        (faults.Fault(action=faults.STATUS, operation="complete", status=409, code="FileAlreadyExists"), "refused", False),
        (faults.Fault(action=faults.EXPIRED_TOKEN, times=0), "expired-token", True),
        (faults.Fault(action=faults.EXPIRED_TOKEN, operation="upload-part", skip=1), "expired-token", True),
        (faults.Fault(action=faults.EXPIRED_TOKEN, operation="complete"), "expired-token", True),
        (faults.Fault(action=faults.WRONG_CRC, operation="head-object", times=0), "mismatch", True),
    ],
)
async def test_a_lasting_fault_ends_in_the_right_error(
    simulator: server.Simulator, upload: Upload, fault: faults.Fault, reason: str, retry: bool
) -> None:
    """A lasting fault has its reason and its retry flag, and once it is over the upload continues."""
    script(simulator, fault)
    with pytest.raises(errors.UploadFailed) as caught:
        await upload()
    assert (caught.value.reason, caught.value.retry) == (reason, retry)
    script(simulator)
    check_right(simulator, await upload(resume=True))


async def test_an_expired_token_costs_no_part(simulator: server.Simulator, upload: Upload) -> None:
    """With fresh credentials an upload continues without sending any part twice."""
    script(simulator, faults.Fault(action=faults.EXPIRED_TOKEN, operation="upload-part", skip=2))
    with pytest.raises(errors.UploadFailed):
        await upload()
    check_right(simulator, await upload(resume=True))
    parts = [served.status for served in simulator.cos.served if served.operation == "upload-part"]
    assert parts == [200, 200, 403, 200]


async def test_a_lost_answer_to_create_leaves_no_upload(simulator: server.Simulator, upload: Upload) -> None:
    """An upload whose Create got no response is aborted once the next one is recorded."""
    script(simulator, faults.Fault(action=faults.COMMIT_THEN_RESET, operation="initiate", times=2))
    check_right(simulator, await upload())
    operations = [served.operation for served in simulator.cos.served]
    assert (operations.count("initiate"), operations.count("abort")) == (3, 2)
    assert not list(simulator.folder.glob("cos-uploads/*/upload.json"))


# The same faults as the official SDK reports them.


@pytest.fixture
def sdk(simulator: server.Simulator) -> Any:
    session = requests.Session()
    config = CosConfig(
        Region=REGION, SecretId=KEYS.secret_id, SecretKey=KEYS.secret_key, Scheme="http", IP="127.0.0.1", Port=simulator.port,
        Timeout=1,
    )  # fmt: skip
    yield CosS3Client(config, retry=0, session=session)
    session.close()


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (faults.Fault(action=faults.STATUS), 503, "ServiceUnavailable"),
        (faults.Fault(action=faults.STATUS, status=403, code="AccessDenied"), 403, "AccessDenied"),
        (faults.Fault(action=faults.EXPIRED_TOKEN), 403, "ExpiredToken"),
    ],
)
async def test_the_sdk_sees_refusals(simulator: server.Simulator, sdk: Any, fault: faults.Fault, status: int, code: str) -> None:
    """A scripted refusal reaches the official SDK like COS's own: status, code, request id, and nothing stored."""
    script(simulator, fault)
    with pytest.raises(CosServiceError) as caught:
        await asyncio.to_thread(sdk.put_object, Bucket=BUCKET, Key=KEY, Body=b"x")
    assert (caught.value.get_status_code(), caught.value.get_error_code()) == (status, code)
    assert caught.value.get_request_id()
    assert simulator.cos.objects.all() == []


@pytest.mark.parametrize(
    ("fault", "stored"),
    [
        (faults.Fault(action=faults.RESET), []),
        (faults.Fault(action=faults.COMMIT_THEN_RESET), [KEY]),
        (faults.Fault(action=faults.DELAY, delay_s=1.5), None),
    ],
)
async def test_the_sdk_sees_broken_lines(
    simulator: server.Simulator, sdk: Any, fault: faults.Fault, stored: list[str] | None
) -> None:
    """A reset, a lost response and a late one are client errors of the SDK, and the stored objects match the fault."""
    script(simulator, fault)
    with pytest.raises(CosClientError):
        await asyncio.to_thread(sdk.put_object, Bucket=BUCKET, Key=KEY, Body=BODY)
    if stored is not None:
        assert [each.key for each in simulator.cos.objects.all()] == stored


async def test_the_sdk_sees_a_wrong_crc(simulator: server.Simulator, sdk: Any) -> None:
    """The wrong CRC-64 is in one response, and the object is right."""
    script(simulator, faults.Fault(action=faults.WRONG_CRC))
    put = await asyncio.to_thread(sdk.put_object, Bucket=BUCKET, Key=KEY, Body=BODY)
    assert put["x-cos-hash-crc64ecma"] != str(crc64.xz(BODY))
    head = await asyncio.to_thread(sdk.head_object, Bucket=BUCKET, Key=KEY)
    assert head["x-cos-hash-crc64ecma"] == str(crc64.xz(BODY))
