"""COS host: the COS client connects to the bucket's own host under myqcloud.com or to none, whatever bucket and region a start
has.

Rule: the tests catch the request that the SDK is about to send, before a connection; no name is resolved.
"""

from __future__ import annotations

import itertools
import string
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from events import codec
from events import errors as event_errors
from machine import errors
from tencent import cos_requests, cos_target, credentials

KEYS = credentials.Credentials(secret_id="AKIDexample", secret_key="secret", token="token")
BUCKET, REGION = "lessons-1250000000", "ap-shanghai"
# Texts that could end a host name, begin another one, or be parsed in two ways.
ENDS = [
    ".evil.example", ".evil.example/", "/", "/..", "\\", "@evil.example", ":80", ":80@evil.example", "#", "?", "?x=", "#@", "%2f",
    "%2e", "%00", "\x00", "\n", "\r\nHost: evil.example", "\t", " ", ";", ",", "&", "'", '"', "{", "}", "<", "|", "_", "-", "--",
    "..", ".", "[::1]", "x" * 300, "。evil.example", "．", "／", "＠", "\u200b", "\u00ad", "é", "\ud800",
]  # fmt: skip
WHOLE = [
    "", ".", "..", "evil.example", "127.0.0.1", "[::1]", "localhost", "169.254.169.254", "evil.example#", "evil.example/?",
    "@evil.example", "evil.example:443", "cos.evil.example", "-", "-ap-shanghai", "ap-shanghai-", "AP-SHANGHAI", "ap_shanghai",
    "cn-north", "cn-south", "cn-east", "cn-south-2", "cn-southwest", "sg", "tj", "bj", "accelerate.evil", "cos.accelerate",
    "ap-shanghai.myqcloud.com.evil.example", "ap-shanghai.internal", "ap-shanghai.cos-internal",
]  # fmt: skip
REGIONS = [REGION + end for end in ENDS] + [end + REGION for end in ENDS] + WHOLE
BUCKETS = (
    [BUCKET + end for end in ENDS]
    + [end + BUCKET for end in ENDS]
    + WHOLE
    + ["lessons", "1250000000", "-1250000000", "a.b-1250000000"]
)
HOSTILE = [(region, BUCKET) for region in REGIONS] + [(REGION, bucket) for bucket in BUCKETS]
REAL = list(
    itertools.product(
        ("ap-shanghai", "ap-guangzhou", "ap-beijing-1", "na-siliconvalley", "eu-frankfurt", "accelerate"), (BUCKET, "a-12500")
    )
)


class RecordingSession(requests.Session):
    """Records the SDK's requests, responds with 200, and never connects."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str | None]] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        host = request.headers.get("Host")
        self.seen.append((str(request.url), host.decode() if isinstance(host, bytes) else host))
        answer = requests.Response()
        answer.status_code, answer.request, answer.url = 200, request, str(request.url)
        answer._content = b""
        return answer


def requests_of(region: str, bucket: str, **more: Any) -> list[tuple[str, str | None]]:
    """URL and Host header of each request that the client would send. Raises errors.InvalidParameter."""
    target = cos_target.CosTarget(region=region, bucket=bucket, key="lessons/one.mp4", **more)
    caught = RecordingSession()
    client = cos_requests.Client(target, KEYS, caught)
    client.head_bucket()
    with pytest.raises(cos_requests.RequestFailed):  # an empty response to HEAD has no length
        client.head()
    client.abort("upload")
    return caught.seen


def test_a_hostile_name_is_refused() -> None:
    """The client itself refuses a hostile name and names its field; the schema is not the only check."""
    assert len(HOSTILE) > 200
    for region, bucket in HOSTILE:
        with pytest.raises(errors.InvalidParameter) as caught:
            requests_of(region, bucket)
        assert caught.value.field == ("CosConfig.Bucket" if region == REGION else "CosConfig.Region")
        assert "evil" not in caught.value.message


@pytest.mark.parametrize(("region", "bucket"), REAL)
def test_the_host_is_the_buckets_own(region: str, bucket: str) -> None:
    """Every kind of request goes by TLS to {bucket}.cos.{region}.myqcloud.com and to no other host."""
    expected = f"{bucket}.cos.{region}.myqcloud.com"
    seen = requests_of(region, bucket)
    assert len(seen) >= 3
    for url, host in seen:
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("https", expected)
        assert host in (None, expected)


def test_only_a_setting_selects_another_server() -> None:
    """With COS_ENDPOINT, an operator's setting, the client connects to that server and still signs the bucket's host."""
    for url, host in requests_of(REGION, BUCKET, endpoint=("http", "127.0.0.1", 9)):
        assert (urlsplit(url).netloc, host) == ("127.0.0.1:9", f"{BUCKET}.cos.{REGION}.myqcloud.com")


def schema_refusal(region: str, bucket: str) -> str:
    """The field for which the schema refuses a start, "" if it accepts it."""
    config = {"Region": region, "Bucket": bucket, "Path": "x"}
    try:
        codec.check("start", {"SdkAppId": 1, "RoomId": 1, "UserId": "u", "UserSig": "s", "CosConfig": config})
    except event_errors.InvalidEvent as error:
        return error.field
    return ""


def test_the_schema_allows_only_host_characters() -> None:
    """The schema accepts only lower-case letters, digits and hyphens, so such a name stays a label under myqcloud.com."""
    assert schema_refusal(REGION, BUCKET) == ""
    accepted = [case for case in HOSTILE if not schema_refusal(*case)]
    assert len(accepted) < 20
    assert [
        case for case in accepted if not all(char in string.ascii_lowercase + string.digits + "-" for char in "".join(case))
    ] == []
