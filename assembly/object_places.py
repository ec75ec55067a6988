"""The objects of recordings and manifests in the buckets of their sessions."""

from __future__ import annotations

from events import requests
from machine import model
from tencent import cos_target

Endpoint = tuple[str, str, int] | None
"""Another server in the place of COS."""


def target(
    request: requests.StartRequest, recording: model.Recording, endpoint: Endpoint = None, number: int = 1
) -> cos_target.CosTarget:
    """The object of a recording's file of this number."""
    names = (recording.task_id, recording.speaker, recording.object_number, recording.mode)
    return in_bucket(request, cos_target.object_key(request.path, *names, number), endpoint)


def number(recording: model.Recording) -> int:
    """The number of a recording's last file among its files."""
    return len(recording.output.earlier) + 1 if recording.output else 1


def url(request: requests.StartRequest, recording: model.Recording) -> str:
    """The address of a recording's object."""
    return cos_target.url(target(request, recording, number=number(recording)))


def manifest_url(request: requests.StartRequest, task_id: str) -> str:
    """The address of a session's manifest."""
    return cos_target.url(in_bucket(request, cos_target.manifest_key(request.path, task_id)))


def in_bucket(request: requests.StartRequest, key: str, endpoint: Endpoint = None) -> cos_target.CosTarget:
    """The object of this key in the bucket of a session."""
    return cos_target.CosTarget(
        region=request.region, bucket=request.bucket, key=key, endpoint=endpoint, attributes=request.attributes
    )
