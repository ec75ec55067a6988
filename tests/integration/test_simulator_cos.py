"""The simulator's COS, used by Tencent's official SDK and, where the SDK hides too much, by plain requests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from fastcrc import crc64
from qcloud_cos import CosConfig, CosS3Client
from qcloud_cos.cos_exception import CosClientError, CosServiceError

from simulator import server
from simulator.cos import faults, signature
from tests import waiting

BUCKET, REGION = "recordings-1250000000", "ap-guangzhou"
HOST = f"{BUCKET}.cos.{REGION}.myqcloud.com"
PART_BYTES = 1_048_576
Client = Callable[..., Any]


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[server.Simulator]:
    accounts = [
        signature.Account(secret_id="AKIDone", secret_key="key-one"),
        signature.Account(secret_id="AKIDtemporary", secret_key="key-two", token="token-two"),
    ]
    running = server.Simulator(folder=tmp_path / "simulator", accounts=accounts, buckets=[BUCKET])
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(simulator: server.Simulator) -> AsyncIterator[Client]:
    sessions: list[requests.Session] = []

    def make(secret_id: str = "AKIDone", secret_key: str = "key-one", token: str | None = None, retry: int = 0) -> Any:
        session = requests.Session()
        sessions.append(session)
        config = CosConfig(
            Region=REGION, SecretId=secret_id, SecretKey=secret_key, Token=token,
            Scheme="http", IP="127.0.0.1", Port=simulator.port,
        )  # fmt: skip
        return CosS3Client(config, retry=retry, session=session)

    yield make
    for session in sessions:
        session.close()


async def refused(call: Callable[..., Any], **arguments: Any) -> CosServiceError:
    with pytest.raises(CosServiceError) as caught:
        await asyncio.to_thread(call, **arguments)
    return caught.value


async def upload_parts(cos: Any, key: str, parts: dict[int, bytes]) -> tuple[str, list[dict[str, Any]]]:
    created = await asyncio.to_thread(cos.create_multipart_upload, Bucket=BUCKET, Key=key)
    listed = []
    for number, body in parts.items():
        answer = await asyncio.to_thread(
            cos.upload_part,
            Bucket=BUCKET, Key=key, Body=body, PartNumber=number, UploadId=created["UploadId"], EnableMD5=True,
        )  # fmt: skip
        assert answer["x-cos-hash-crc64ecma"] == str(crc64.xz(body))
        listed.append({"PartNumber": number, "ETag": answer["ETag"]})
    return created["UploadId"], sorted(listed, key=lambda part: part["PartNumber"])


async def test_small_object_round_trip(simulator: server.Simulator, client: Client) -> None:
    """The official SDK puts, heads, reads, range-reads and deletes an object, and the folder has it as a readable file."""
    cos, key, body = client(), "录制/room 8489/alice_1.mp4", os.urandom(70_000)
    put = await asyncio.to_thread(
        cos.put_object, Bucket=BUCKET, Key=key, Body=body, EnableMD5=True, Metadata={"x-cos-meta-task": "T1"}
    )
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert put["x-cos-hash-crc64ecma"] == str(crc64.xz(body))
    head = await asyncio.to_thread(cos.head_object, Bucket=BUCKET, Key=key)
    assert (head["Content-Length"], head["x-cos-meta-task"]) == ("70000", "T1")
    whole = await asyncio.to_thread(cos.get_object, Bucket=BUCKET, Key=key)
    assert whole["Body"].get_raw_stream().read() == body
    part = await asyncio.to_thread(cos.get_object, Bucket=BUCKET, Key=key, Range="bytes=100-199")
    assert part["Body"].get_raw_stream().read() == body[100:200]
    assert part["Content-Range"] == "bytes 100-199/70000"
    assert (simulator.folder / "cos" / BUCKET / key).read_bytes() == body
    await asyncio.to_thread(cos.delete_object, Bucket=BUCKET, Key=key)
    assert (await refused(cos.head_object, Bucket=BUCKET, Key=key)).get_status_code() == 404
    assert not list((simulator.folder / "cos").rglob("*.mp4"))


async def test_multipart_in_any_order(simulator: server.Simulator, client: Client) -> None:
    """Parts sent in any order, one of them twice, become one object with COS's multipart ETag and the CRC-64 of the whole."""
    cos = client()
    parts = {3: os.urandom(1000), 1: os.urandom(PART_BYTES), 2: os.urandom(PART_BYTES + 7)}
    upload_id, listed = await upload_parts(cos, "a/b.mp4", parts)
    await asyncio.to_thread(cos.upload_part, Bucket=BUCKET, Key="a/b.mp4", Body=parts[3], PartNumber=3, UploadId=upload_id)
    page = await asyncio.to_thread(cos.list_parts, Bucket=BUCKET, Key="a/b.mp4", UploadId=upload_id, MaxParts=2)
    assert [(part["PartNumber"], part["Size"]) for part in page["Part"]] == [("1", "1048576"), ("2", "1048583")]
    assert (page["IsTruncated"], page["NextPartNumberMarker"]) == ("true", "2")
    open_uploads = await asyncio.to_thread(cos.list_multipart_uploads, Bucket=BUCKET)
    assert [upload["UploadId"] for upload in open_uploads["Upload"]] == [upload_id]
    done = await asyncio.to_thread(
        cos.complete_multipart_upload,
        Bucket=BUCKET, Key="a/b.mp4", UploadId=upload_id, MultipartUpload={"Part": listed},
    )  # fmt: skip
    whole = parts[1] + parts[2] + parts[3]
    assert done["x-cos-hash-crc64ecma"] == str(crc64.xz(whole))
    md5s = b"".join(hashlib.md5(parts[number]).digest() for number in (1, 2, 3))
    assert done["ETag"] == f'"{hashlib.md5(md5s).hexdigest()}-3"'
    read = await asyncio.to_thread(cos.get_object, Bucket=BUCKET, Key="a/b.mp4")
    assert read["Body"].get_raw_stream().read() == whole
    again = await refused(
        cos.complete_multipart_upload,
        Bucket=BUCKET, Key="a/b.mp4", UploadId=upload_id, MultipartUpload={"Part": listed},
    )  # fmt: skip
    assert again.get_error_code() == "NoSuchUpload"
    assert simulator.cos.uploads.all() == []


async def test_attributes_of_an_object(client: Client) -> None:
    """A multipart upload gives its object a disposition, a storage class and encryption; unusable attributes are refused."""
    cos = client()
    given = {"ContentDisposition": "inline", "StorageClass": "STANDARD_IA", "Tagging": "a=1&b="}
    given |= {"ServerSideEncryption": "cos/kms", "SSEKMSKeyId": "k-1"}
    begun = await asyncio.to_thread(cos.create_multipart_upload, Bucket=BUCKET, Key="k", **given)
    part = await asyncio.to_thread(cos.upload_part, Bucket=BUCKET, Key="k", Body=b"x", PartNumber=1, UploadId=begun["UploadId"])
    parts = {"Part": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    await asyncio.to_thread(
        cos.complete_multipart_upload, Bucket=BUCKET, Key="k", UploadId=begun["UploadId"], MultipartUpload=parts
    )
    head = await asyncio.to_thread(cos.head_object, Bucket=BUCKET, Key="k")
    assert (head["content-disposition"], head["x-cos-storage-class"]) == ("inline", "STANDARD_IA")
    assert head["x-cos-server-side-encryption"] == "cos/kms"
    assert head["x-cos-server-side-encryption-cos-kms-key-id"] == "k-1"
    assert "x-cos-tagging" not in head
    for wrong, code in (
        ({"StorageClass": "COLD"}, "InvalidStorageClass"),
        ({"SSEKMSKeyId": "k-1"}, "InvalidArgument"),
        ({"Tagging": "a=1&a=2"}, "InvalidTag"),
    ):
        assert (await refused(cos.create_multipart_upload, Bucket=BUCKET, Key="k", **wrong)).get_error_code() == code


async def test_the_sdks_own_upload_file(client: Client, tmp_path: Path) -> None:
    """The SDK's parallel `upload_file` works."""
    cos, path = client(), tmp_path / "recording.mp4"
    path.write_bytes(os.urandom(3 * PART_BYTES + 5))
    await asyncio.to_thread(
        cos.upload_file, Bucket=BUCKET, Key="c.mp4", LocalFilePath=str(path), PartSize=1, MAXThread=3, EnableMD5=True
    )
    head = await asyncio.to_thread(cos.head_object, Bucket=BUCKET, Key="c.mp4")
    assert head["x-cos-hash-crc64ecma"] == str(crc64.xz(path.read_bytes()))


async def test_complete_checks_the_parts(client: Client) -> None:
    """Complete refuses a wrong ETag, a wrong order, a part that was never sent and a small part before the last."""
    cos = client()
    upload_id, listed = await upload_parts(cos, "d", {1: b"small", 2: b"last"})
    wrong = [listed[0] | {"ETag": '"0"'}, listed[1]]
    codes = []
    for parts in (wrong, listed[::-1], [*listed, {"PartNumber": 9, "ETag": '"0"'}], listed):
        error = await refused(
            cos.complete_multipart_upload, Bucket=BUCKET, Key="d", UploadId=upload_id, MultipartUpload={"Part": parts}
        )
        codes.append((error.get_status_code(), error.get_error_code()))
    assert codes == [(400, "InvalidPart"), (400, "InvalidPartOrder"), (400, "InvalidPart"), (400, "EntityTooSmall")]


async def test_abort(simulator: server.Simulator, client: Client) -> None:
    """An aborted upload and its parts are deleted, and the upload cannot be used any more."""
    cos = client()
    upload_id, _ = await upload_parts(cos, "e", {1: b"x"})
    await asyncio.to_thread(cos.abort_multipart_upload, Bucket=BUCKET, Key="e", UploadId=upload_id)
    error = await refused(cos.list_parts, Bucket=BUCKET, Key="e", UploadId=upload_id)
    assert (error.get_status_code(), error.get_error_code()) == (404, "NoSuchUpload")
    assert not any(path.is_file() for path in (simulator.folder / "cos-uploads").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"secret_id": "AKIDnobody"}, "InvalidAccessKeyId"),
        ({"secret_id": "AKIDtemporary", "secret_key": "key-two"}, "InvalidAccessKeyId"),
        ({"secret_id": "AKIDtemporary", "secret_key": "key-two", "token": "other"}, "InvalidAccessKeyId"),
    ],
)
async def test_wrong_keys_are_refused(client: Client, arguments: dict[str, str], code: str) -> None:
    """A wrong secret, an unknown id, and a temporary key without its token get 403 and COS's XML."""
    error = await refused(client(**arguments).put_object, Bucket=BUCKET, Key="f", Body=b"x" * 300_000)
    assert (error.get_status_code(), error.get_error_code()) == (403, code)
    assert error.get_origin_msg().startswith("<?xml")
    assert error.get_request_id() != "Unknown"


async def test_temporary_keys(simulator: server.Simulator, client: Client) -> None:
    """A temporary key works with its token until it expires, and is then refused as ExpiredToken."""
    cos = client("AKIDtemporary", "key-two", "token-two")
    await asyncio.to_thread(cos.head_bucket, Bucket=BUCKET)
    old = simulator.cos.accounts["AKIDtemporary"]
    simulator.cos.set_accounts(
        signature.Account(secret_id=old.secret_id, secret_key=old.secret_key, token=old.token, expires_s=time.time() - 1)
    )
    error = await refused(cos.put_object, Bucket=BUCKET, Key="g", Body=b"x")
    assert (error.get_status_code(), error.get_error_code()) == (403, "ExpiredToken")


async def test_presigned_addresses(simulator: server.Simulator, client: Client) -> None:
    """A presigned address works without a header until it is altered, and an unsigned request never does."""
    cos = client()
    await asyncio.to_thread(cos.put_object, Bucket=BUCKET, Key="h i", Body=b"content")
    address = cos.get_presigned_url(Bucket=BUCKET, Key="h i", Method="GET", Headers={"Host": HOST})
    async with aiohttp.ClientSession(headers={"Host": HOST}) as session:
        async with session.get(address) as answer:
            assert (answer.status, await answer.read()) == (200, b"content")
        async with session.get(address.replace("h%20i", "h%20j")) as answer:
            assert (answer.status, "SignatureDoesNotMatch" in await answer.text()) == (403, True)
        async with session.get(f"{simulator.url}/h%20i") as answer:
            assert (answer.status, "AccessDenied" in await answer.text()) == (403, True)


async def test_buckets_and_overwriting(client: Client) -> None:
    """An unknown bucket is 404, a digest that does not fit is 400, and forbid-overwrite is 409 without any change."""
    cos = client()
    await asyncio.to_thread(cos.head_bucket, Bucket=BUCKET)
    assert (await refused(cos.head_bucket, Bucket="other-1250000000")).get_status_code() == 404
    assert (await refused(cos.put_object, Bucket="other-1250000000", Key="k", Body=b"x")).get_error_code() == "NoSuchBucket"
    bad = await refused(cos.put_object, Bucket=BUCKET, Key="k", Body=b"x", ContentMD5="AAAAAAAAAAAAAAAAAAAAAA==")
    assert (bad.get_status_code(), bad.get_error_code()) == (400, "BadDigest")
    await asyncio.to_thread(cos.put_object, Bucket=BUCKET, Key="k", Body=b"first")
    forbid = {"x-cos-forbid-overwrite": "true"}
    refusal = await refused(cos.put_object, Bucket=BUCKET, Key="k", Body=b"second", Metadata=forbid)
    assert (refusal.get_status_code(), refusal.get_error_code()) == (409, "FileAlreadyExists")
    read = await asyncio.to_thread(cos.get_object, Bucket=BUCKET, Key="k")
    assert read["Body"].get_raw_stream().read() == b"first"


async def test_listing(client: Client) -> None:
    """Objects are listed in order, by prefix and delimiter, page by page."""
    cos = client()
    for key in ("p/T1/alice_1.mp4", "p/T1/b 世.mp4", "p/T2/carol_1.mp4", "q"):
        await asyncio.to_thread(cos.put_object, Bucket=BUCKET, Key=key, Body=b"x")
    listed = await asyncio.to_thread(cos.list_objects, Bucket=BUCKET, Prefix="p/")
    assert [item["Key"] for item in listed["Contents"]] == ["p/T1/alice_1.mp4", "p/T1/b 世.mp4", "p/T2/carol_1.mp4"]
    folders = await asyncio.to_thread(cos.list_objects, Bucket=BUCKET, Prefix="p/", Delimiter="/")
    assert [item["Prefix"] for item in folders["CommonPrefixes"]] == ["p/T1/", "p/T2/"]
    page = await asyncio.to_thread(cos.list_objects, Bucket=BUCKET, MaxKeys=2)
    rest = await asyncio.to_thread(cos.list_objects, Bucket=BUCKET, Marker=page["NextMarker"])
    assert [item["Key"] for item in rest["Contents"]] == ["p/T2/carol_1.mp4", "q"]


async def test_keys_never_leave_the_folder(simulator: server.Simulator, client: Client) -> None:
    """Keys with dots, empty segments or the name of a folder are stored and read back, inside the bucket's folder."""
    cos = client()
    keys = ["../../../outside", "a//b", "a/../../b", "/lead", ".hidden", "n", "n/m", "%2e%2e/x", "w" * 500]
    for key in keys:
        await asyncio.to_thread(cos.put_object, Bucket=BUCKET, Key=f"t/{key}", Body=key.encode())
    for key in keys:
        read = await asyncio.to_thread(cos.get_object, Bucket=BUCKET, Key=f"t/{key}")
        assert read["Body"].get_raw_stream().read() == key.encode()
    root = (simulator.folder / "cos" / BUCKET).resolve()
    files = [path for path in simulator.folder.parent.rglob("*") if path.is_file() and "cos-index" not in path.parts]
    assert len(files) == len(keys)
    assert all(path.resolve().is_relative_to(root) for path in files)


async def test_objects_survive_a_restart(simulator: server.Simulator, client: Client) -> None:
    """After a restart in the same folder, objects and open uploads are the same as before."""
    await asyncio.to_thread(client().put_object, Bucket=BUCKET, Key="kept", Body=b"kept")
    upload_id, listed = await upload_parts(client(), "late", {1: b"part"})
    await simulator.stop()
    await simulator.start()
    cos = client()
    head = await asyncio.to_thread(cos.head_object, Bucket=BUCKET, Key="kept")
    assert head["x-cos-hash-crc64ecma"] == str(crc64.xz(b"kept"))
    await asyncio.to_thread(
        cos.complete_multipart_upload, Bucket=BUCKET, Key="late", UploadId=upload_id, MultipartUpload={"Part": listed}
    )
    read = await asyncio.to_thread(cos.get_object, Bucket=BUCKET, Key="late")
    assert read["Body"].get_raw_stream().read() == b"part"


async def test_fault_status_and_expired_token(simulator: server.Simulator, client: Client) -> None:
    """A script affects only the chosen request: the second part gets 503, the next Complete ExpiredToken, all others work."""
    simulator.cos.faults.set(
        faults.Fault(action=faults.STATUS, operation="upload-part", key="s*", skip=1, status=503, code="SlowDown"),
        faults.Fault(action=faults.EXPIRED_TOKEN, operation="complete"),
    )
    cos = client()
    with pytest.raises(CosServiceError) as caught:
        await upload_parts(cos, "s", {1: b"x" * PART_BYTES, 2: b"y"})
    assert (caught.value.get_status_code(), caught.value.get_error_code()) == (503, "SlowDown")
    upload_id, listed = await upload_parts(cos, "s", {1: b"x" * PART_BYTES, 2: b"y"})
    complete = {"Bucket": BUCKET, "Key": "s", "UploadId": upload_id, "MultipartUpload": {"Part": listed}}
    assert (await refused(cos.complete_multipart_upload, **complete)).get_error_code() == "ExpiredToken"
    await asyncio.to_thread(cos.complete_multipart_upload, **complete)
    struck = [(served.operation, served.code) for served in simulator.cos.served if served.fault]
    assert struck == [("upload-part", "SlowDown"), ("complete", "ExpiredToken")]


async def test_fault_resets(simulator: server.Simulator, client: Client) -> None:
    """`reset` stores nothing, and `commit-then-reset` stores the object whose response was lost."""
    cos = client()
    simulator.cos.faults.set(
        faults.Fault(action=faults.RESET, key="never"), faults.Fault(action=faults.COMMIT_THEN_RESET, key="lost-answer")
    )
    for key in ("never", "lost-answer"):
        with pytest.raises(CosClientError):
            await asyncio.to_thread(cos.put_object, Bucket=BUCKET, Key=key, Body=b"z" * 3_000_000)
    assert [stored.key for stored in simulator.cos.objects.all()] == ["lost-answer"]
    assert simulator.cos.objects.all()[0].size == 3_000_000
    assert not list((simulator.folder / "cos-drafts").iterdir())


async def test_fault_wrong_crc_and_delay(simulator: server.Simulator, client: Client) -> None:
    """`wrong-crc` stores the object and returns a wrong CRC-64 once, and `delay` responds late."""
    cos = client()
    simulator.cos.faults.set(
        faults.Fault(action=faults.WRONG_CRC, operation="put-object"),
        faults.Fault(action=faults.DELAY, operation="head-*", delay_s=0.3),
    )
    put = await asyncio.to_thread(cos.put_object, Bucket=BUCKET, Key="k", Body=b"x")
    assert put["x-cos-hash-crc64ecma"] != str(crc64.xz(b"x"))
    before = time.monotonic()
    head = await asyncio.to_thread(cos.head_object, Bucket=BUCKET, Key="k")
    assert time.monotonic() - before >= 0.3
    assert head["x-cos-hash-crc64ecma"] == str(crc64.xz(b"x"))


async def test_a_client_that_vanishes_leaves_nothing(simulator: server.Simulator) -> None:
    """A connection closed in the middle of a body stores neither object nor partial file."""
    account = simulator.cos.accounts["AKIDone"]
    times = f"{int(time.time()) - 10};{int(time.time()) + 100}"
    fields = {
        "q-sign-algorithm": "sha1", "q-ak": account.secret_id, "q-sign-time": times, "q-key-time": times,
        "q-header-list": "host", "q-url-param-list": "",
    }  # fmt: skip
    signed = signature.parse("PUT", "/half", {"Host": HOST})
    fields["q-signature"] = signature.sign(signed, account.secret_key, fields)
    authorization = "&".join(f"{name}={value}" for name, value in fields.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    head = f"PUT /half HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {authorization}\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + b"x" * 400_000)
    await writer.drain()
    drafts = simulator.folder / "cos-drafts"
    await waiting.until(lambda: drafts.exists() and list(drafts.iterdir()), what="the draft being written")
    writer.close()
    await writer.wait_closed()
    await waiting.until(lambda: not list(drafts.iterdir()), what="the draft removed")
    assert simulator.cos.objects.all() == []
    del reader
