"""The typed payloads of internal events: the same fields as the schema, and JSON that passes it."""

from __future__ import annotations

import dataclasses

import pytest

from events import codec
from machine import internal_events, job_key, model

SUBJECT_FIELDS = {"TaskId", "Speaker", "N", "Revision"}
RECORDING = {"TaskId": "01HV0000000000000000000000", "Speaker": "al", "N": 1}
DELIVERY = {"TaskId": "01HV0000000000000000000000", "Revision": 2}
OUTPUT = model.Output(duration_ms=5_000, size_bytes=9, crc64="1", start_ms=1, end_ms=2, gaps=((1, 2),), missing=1, epoch=3)
SAMPLES = {
    "capture-started": (internal_events.CaptureStarted(epoch=3, first_packet_ms=7), RECORDING),
    "ffmpeg-exit": (
        internal_events.FfmpegExit(epoch=3, job="transcode", reason="ok", output=OUTPUT, node="n1", last_packet_ms=8),
        RECORDING,
    ),
    "upload-finished": (internal_events.UploadFinished(epoch=3, size_bytes=9, crc64="1", url="https://x/y"), RECORDING),
    "upload-failed": (internal_events.UploadFailure(epoch=3, reason="network", retry=True, detail="no answer"), RECORDING),
    "callback-finished": (internal_events.DeliveryFinished(epoch=3), DELIVERY),
    "callback-failed": (internal_events.DeliveryFailure(epoch=3, reason="gone", retry=False), DELIVERY),
    "worker-lost": (
        internal_events.WorkerLost(
            owner=job_key.parse("01HV0000000000000000000000/al/1"), epoch=3, node="n1", media_ms=0, size_bytes=9
        ),
        {},
    ),
    "deadline-passed": (
        internal_events.DeadlinePassed(owner=job_key.parse("01HV0000000000000000000000"), kind="idle", serial="s"),
        {},
    ),
}


def _wire_name(field: str) -> str:
    return "".join(word.capitalize() for word in field.split("_"))


@pytest.mark.parametrize("type_", sorted(internal_events.TYPES))
def test_a_payload_has_the_fields_of_its_schema(type_: str) -> None:
    """Every property of the schema is a field and the other way round; a required one has no default."""
    schema = codec.schemas()["$defs"][type_]
    fields = {_wire_name(f.name): f for f in dataclasses.fields(internal_events.TYPES[type_])}
    assert set(fields) == set(schema["properties"]) - SUBJECT_FIELDS
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    assert required == set(schema["required"]) - SUBJECT_FIELDS


def test_every_internal_event_has_a_payload() -> None:
    """The schema's internal events and the typed payloads are the same list."""
    callbacks = {"user-publishing", "user-unpublished", "user-entered", "user-left", "user-removed", "room-destroyed"}
    assert set(codec.types("inside")) - callbacks == set(internal_events.TYPES) == set(SAMPLES)


@pytest.mark.parametrize("type_", sorted(SAMPLES))
def test_a_payload_survives_its_json(type_: str) -> None:
    """The JSON of a payload passes the schema, and reading it gives the payload again."""
    payload, subject = SAMPLES[type_]
    data = codec.check(type_, subject | codec.from_payload(payload))
    assert codec.to_payload(type(payload), data) == payload


def test_a_long_detail_is_cut() -> None:
    """A detail longer than the schema allows is cut, so that the outcome is published all the same."""
    failed = internal_events.UploadFailure(epoch=3, reason="server", retry=True, detail="x" * 9_999)
    data = codec.from_payload(failed)
    assert len(data["Detail"]) == codec.MAX_DETAIL
    codec.check("upload-failed", RECORDING | data)
