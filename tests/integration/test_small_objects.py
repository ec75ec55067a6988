"""Small objects, such as manifests: one request, compared, with the attributes of the files; a failure says whether to retry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from events import object_attributes
from machine import errors
from simulator import server
from simulator.cos import faults, signature
from tencent import cos, credentials

BUCKET, KEY = "recordings-1250000000", "lessons/T1/manifest.json"
KEYS = credentials.Credentials(secret_id="AKIDone", secret_key="key-one", token="")


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[server.Simulator]:
    account = signature.Account(secret_id=KEYS.secret_id, secret_key=KEYS.secret_key)
    running = server.Simulator(folder=tmp_path, accounts=[account], buckets=[BUCKET])
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def uploader() -> AsyncIterator[cos.CosUploader]:
    one = cos.CosUploader(pauses_s=(0.01,))
    await one.start()
    yield one
    await one.stop()


def target(simulator: server.Simulator) -> cos.CosTarget:
    attributes = object_attributes.ObjectAttributes(storage_class="STANDARD_IA", encryption="AES256", tagging="a=b")
    endpoint = ("http", "127.0.0.1", simulator.port)
    return cos.CosTarget(region="ap-guangzhou", bucket=BUCKET, key=KEY, endpoint=endpoint, attributes=attributes)


async def test_a_small_object_is_written_and_replaced(simulator: server.Simulator, uploader: cos.CosUploader) -> None:
    """It takes the place of an older one, survives a passing fault, and has type and attributes."""
    for body in (b"{}", "清单".encode()):
        simulator.cos.faults.set(faults.Fault(action=faults.STATUS, operation="put-object", times=1))
        await uploader.put(body, target(simulator), KEYS)
        (stored,) = simulator.cos.objects.all()
        assert (stored.key, stored.path.read_bytes(), stored.content_type) == (KEY, body, "application/json")
    assert stored.metadata == {
        "content-disposition": 'inline; filename="manifest.json"',
        "x-cos-storage-class": "STANDARD_IA",
        "x-cos-server-side-encryption": "AES256",
        "x-cos-tagging": "a=b",
    }


@pytest.mark.parametrize(
    ("fault", "reason", "retry"),
    [
        (faults.Fault(action=faults.STATUS, status=403, code="AccessDenied"), "refused", False),
        (faults.Fault(action=faults.STATUS, times=0), "server", True),
        (faults.Fault(action=faults.EXPIRED_TOKEN), "expired-token", True),
        (faults.Fault(action=faults.WRONG_CRC), "mismatch", True),
    ],
    ids=["refused", "away", "expired", "damaged"],
)
async def test_a_failure_says_whether_to_retry(
    simulator: server.Simulator, uploader: cos.CosUploader, fault: faults.Fault, reason: str, retry: bool
) -> None:
    """Each failure has the reason and the retry of an upload's."""
    simulator.cos.faults.set(fault)
    with pytest.raises(errors.UploadFailed) as failed:
        await uploader.put(b"{}", target(simulator), KEYS)
    assert (failed.value.reason, failed.value.retry) == (reason, retry)
