"""The simulator's COS in pieces: signature, routing, XML, where keys are stored, fault scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cos import faults, objects, responses, routing, signature

SECRET_ID, SECRET_KEY = "AKIDQjz3ltompVjBni5LitkWHFlFpwkn9U5q", "BQYIM75p8x0iWVFSIgqEKwFprpRSVHlz"
SIGNED_HEADERS = {
    "Date": "Thu, 16 May 2019 06:45:51 GMT",
    "Host": "examplebucket-1250000000.cos.ap-beijing.myqcloud.com",
    "Content-Type": "text/plain",
    "Content-Length": "13",
    "Content-MD5": "mQ/fVh815F3k6TAUm8m0eg==",
    "x-cos-acl": "private",
    "x-cos-grant-read": 'uin="100000000011"',
}
AUTHORIZATION = (
    "q-sign-algorithm=sha1&q-ak=AKIDQjz3ltompVjBni5LitkWHFlFpwkn9U5q&q-sign-time=1557989151;1557996351"
    "&q-key-time=1557989151;1557996351"
    "&q-header-list=content-length;content-md5;content-type;date;host;x-cos-acl;x-cos-grant-read"
    "&q-url-param-list=&q-signature=3b8851a11a569213c17ba8fa7dcf2abec6935172"
)
TARGET = "/exampleobject(%E8%85%BE%E8%AE%AF%E4%BA%91)"
ACCOUNTS = {SECRET_ID: signature.Account(secret_id=SECRET_ID, secret_key=SECRET_KEY)}
NOW_S = 1557990000


def check(raw_path: str = TARGET, now_s: float = NOW_S, **headers: str) -> str:
    sent = SIGNED_HEADERS | {"Authorization": AUTHORIZATION} | headers
    try:
        return signature.verify(signature.parse("PUT", raw_path, sent), ACCOUNTS, now_s).secret_id
    except responses.Refused as refused:
        return refused.code


def test_the_documented_signature() -> None:
    """The upload that COS's documentation signs step by step is accepted, and refused after any change or its time."""
    assert check() == SECRET_ID
    assert check(raw_path="/exampleobject") == "SignatureDoesNotMatch"
    assert check(**{"x-cos-acl": "public-read"}) == "SignatureDoesNotMatch"
    assert check(now_s=1557996351) == "AccessDenied"
    assert check(now_s=1557980000) == "RequestTimeTooSkewed"
    assert check(Authorization="") == "AccessDenied"
    assert check(Authorization="q-sign-algorithm=sha1&q-ak=x") == "InvalidArgument"
    assert check(Authorization=AUTHORIZATION.replace(SECRET_ID, "AKIDother")) == "InvalidAccessKeyId"


def test_a_listed_header_must_be_there() -> None:
    """A header that the signature lists and the request lacks makes it invalid."""
    headers = {name: value for name, value in SIGNED_HEADERS.items() if name != "x-cos-acl"}
    signed = signature.parse("PUT", TARGET, headers | {"Authorization": AUTHORIZATION})
    with pytest.raises(responses.Refused, match="SignatureDoesNotMatch"):
        signature.verify(signed, ACCOUNTS, NOW_S)


@pytest.mark.parametrize(
    ("host", "raw_path", "bucket", "key"),
    [
        ("b-1.cos.ap-beijing.myqcloud.com", "/a%2Fb/../c%20d?x=1", "b-1", "a/b/../c d"),
        ("b-1.cos.ap-beijing.myqcloud.com:9000", "/", "b-1", ""),
        ("b-1.cos-internal.ap-beijing.tencentcos.cn", "/k", "b-1", "k"),
        ("127.0.0.1:9000", "/cos/b-1/k/%E4%B8%96", "b-1", "k/世"),
    ],
)
def test_where_bucket_and_key_stand(host: str, raw_path: str, bucket: str, key: str) -> None:
    """The bucket is taken from the Host or the path, the key from the raw target, decoded once."""
    assert routing.concerns(host, raw_path)
    about = routing.target(host, raw_path)
    assert (about.bucket, about.key) == (bucket, key)


def test_what_is_not_cos() -> None:
    """Other hosts and paths belong to the rest of the simulator; an operation that COS has and the simulator lacks is 501."""
    assert not routing.concerns("127.0.0.1:9000", "/control")
    assert not routing.concerns("cos.ap-beijing.myqcloud.com", "/")
    about = routing.Target(bucket="b", key="k", query={"acl": ""})
    for copies, target in ((False, about), (True, routing.Target(bucket="b", key="k", query={}))):
        with pytest.raises(responses.Refused, match="NotImplemented"):
            routing.operation("PUT", target, copies=copies)
    with pytest.raises(responses.Refused, match="InvalidBucketName"):
        routing.target("127.0.0.1", "/cos/../x")


def test_xml_is_escaped_and_read() -> None:
    """Text in responses is escaped; a Complete document keeps its order, with or without quotes and namespaces."""
    assert b"<Key>a&amp;&lt;b&gt;</Key>" in responses.document("Error", {"Key": "a&<b>", "None": None})
    body = (
        b'<CompleteMultipartUpload xmlns="x"><Part><PartNumber>2</PartNumber><ETag>"e2"</ETag></Part>'
        b"<Part><ETag>e1</ETag><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>"
    )
    assert responses.read_parts(body) == [(2, "e2"), (1, "e1")]
    for bad in (b"", b"<a>", b"<a><Part><PartNumber>x</PartNumber></Part></a>", b"<!DOCTYPE a []><a/>"):
        with pytest.raises(responses.Refused, match="MalformedXML"):
            responses.read_parts(bad)


@pytest.mark.parametrize("key", ["..", "a/../../../b", "/a", "a/", "a//b", ".x/y", "a/.", "n\0ul", "back\\slash", "x" * 300])
def test_hostile_keys_stay_inside(tmp_path: Path, key: str) -> None:
    """A key that is no plain path is stored under a digest inside its bucket and found again, also by a later process."""
    stored = objects.Objects(tmp_path)
    draft = stored.draft()
    draft.write(b"12")
    draft.write(b"3456789")
    put = stored.put(draft, "bucket", key, modified_s=1.0)
    assert put.path.parent == tmp_path / "cos" / "bucket" / ".keys"
    assert put.crc64 == "11051210869376104954"
    again = objects.Objects(tmp_path)
    again.start()
    assert again.get("bucket", key) == put
    again.delete("bucket", key)
    again.delete("bucket", key)
    assert not put.path.exists()
    assert not list((tmp_path / "cos").iterdir())


def test_replacing_keeps_one_file(tmp_path: Path) -> None:
    """An object put again replaces its file; a plain key is a readable path; file and folder of one name both fit."""
    stored = objects.Objects(tmp_path)
    for key, body in (("p/T1/alice_1.mp4", b"old"), ("p/T1/alice_1.mp4", b"new"), ("p/T1", b"x"), ("p/T1/alice_1.mp4/y", b"z")):
        draft = stored.draft()
        draft.write(body)
        stored.put(draft, "b", key, modified_s=1.0)
    assert (tmp_path / "cos/b/p/T1/alice_1.mp4").read_bytes() == b"new"
    assert len([path for path in (tmp_path / "cos").rglob("*") if path.is_file()]) == 3
    assert [each.path.read_bytes() for each in stored.all()] == [b"x", b"new", b"z"]


def test_fault_scripts_count_matches() -> None:
    """`skip` lets the first matches pass, `times` limits a fault, 0 means forever, and other requests do not count."""
    script = faults.Script()
    script.set(
        faults.Fault(action=faults.RESET, operation="upload-part", key="a/*", skip=1, times=2),
        faults.Fault(action=faults.STATUS, operation="head-*", times=0),
    )

    def action(operation: str, key: str) -> str:
        fault = script.strike(operation, "bucket", key)
        return fault.action if fault else ""

    assert [action("upload-part", "a/1") for _ in range(4)] == ["", "reset", "reset", ""]
    assert action("upload-part", "b") == ""
    assert [action("head-object", "x") for _ in range(3)] == ["status"] * 3
    with pytest.raises(ValueError, match="commit-then-reset"):
        script.set(faults.Fault(action="burn"))
