"""COS's three listings – objects, multipart uploads, parts – page by page.

Rule: a truncated page names the start of the next one, in COS's own field names; `encoding-type=url` percent-encodes keys and
values derived from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from simulator.cos import objects, routing, uploads

PAGE = 1000


def objects_page(about: routing.Target, stored: Sequence[objects.Stored]) -> dict[str, Any]:
    """The fields of `<ListBucketResult>` (GET Bucket): prefix, delimiter, marker, max-keys."""
    query, encode = about.query, _encoder(about)
    prefix, delimiter, marker = query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", "")
    limit, names = _limit(about, "max-keys"), dict[str, objects.Stored | None]()
    for each in stored:
        if each.key.startswith(prefix):
            cut = each.key.find(delimiter, len(prefix)) if delimiter else -1
            name = each.key if cut < 0 else each.key[: cut + len(delimiter)]
            if name.encode() > marker.encode():
                names.setdefault(name, each if cut < 0 else None)
    shown = dict(list(names.items())[:limit])
    truncated = len(names) > limit
    contents = [_object(each, encode) for each in shown.values() if each is not None]
    return {
        "Name": about.bucket,
        "EncodingType": query.get("encoding-type"),
        "Prefix": encode(prefix),
        "Marker": encode(marker),
        "MaxKeys": limit,
        "Delimiter": encode(delimiter) or None,
        "IsTruncated": truncated,
        "NextMarker": encode(list(shown)[-1]) if truncated and shown else None,
        "Contents": contents,
        "CommonPrefixes": [{"Prefix": encode(name)} for name, each in shown.items() if each is None],
    }


def uploads_page(about: routing.Target, opened: Sequence[uploads.Upload]) -> dict[str, Any]:
    """The fields of `<ListMultipartUploadsResult>`: prefix, key-marker with upload-id-marker, max-uploads."""
    query, encode = about.query, _encoder(about)
    after = (query.get("key-marker", "").encode(), query.get("upload-id-marker", "\U0010ffff"))
    matching = [
        upload
        for upload in opened
        if upload.key.startswith(query.get("prefix", "")) and (upload.key.encode(), upload.upload_id) > after
    ]
    limit = _limit(about, "max-uploads")
    shown, truncated = matching[:limit], len(matching) > limit
    return {
        "Bucket": about.bucket,
        "EncodingType": query.get("encoding-type"),
        "KeyMarker": encode(query.get("key-marker", "")),
        "UploadIdMarker": query.get("upload-id-marker", ""),
        "NextKeyMarker": encode(shown[-1].key) if truncated else None,
        "NextUploadIdMarker": shown[-1].upload_id if truncated else None,
        "MaxUploads": limit,
        "IsTruncated": truncated,
        "Prefix": encode(query.get("prefix", "")),
        "Upload": [
            {
                "Key": encode(upload.key),
                "UploadId": upload.upload_id,
                "StorageClass": "STANDARD",
                "Initiated": _iso(upload.initiated_s),
            }
            for upload in shown
        ],
    }


def parts_page(about: routing.Target, upload: uploads.Upload) -> dict[str, Any]:
    """The fields of `<ListPartsResult>`: part-number-marker, max-parts."""
    marker = about.query.get("part-number-marker", "0")
    after = int(marker) if marker.isdecimal() else 0
    matching = [part for number, part in sorted(upload.parts.items()) if number > after]
    limit = _limit(about, "max-parts")
    shown, truncated = matching[:limit], len(matching) > limit
    return {
        "Bucket": about.bucket,
        "EncodingType": about.query.get("encoding-type"),
        "Key": _encoder(about)(upload.key),
        "UploadId": upload.upload_id,
        "StorageClass": "STANDARD",
        "PartNumberMarker": after,
        "NextPartNumberMarker": shown[-1].number if truncated else None,
        "MaxParts": limit,
        "IsTruncated": truncated,
        "Part": [
            {
                "PartNumber": part.number,
                "LastModified": _iso(part.modified_s),
                "ETag": f'"{part.etag}"',
                "Size": part.size,
            }
            for part in shown
        ],
    }


def _object(stored: objects.Stored, encode: Callable[[str], str]) -> dict[str, Any]:
    return {
        "Key": encode(stored.key),
        "LastModified": _iso(stored.modified_s),
        "ETag": f'"{stored.etag}"',
        "Size": stored.size,
        "StorageClass": "STANDARD",
    }


def _encoder(about: routing.Target) -> Callable[[str], str]:
    if about.query.get("encoding-type") == "url":
        return lambda text: quote(text, safe="/-_.~")
    return lambda text: text


def _limit(about: routing.Target, name: str) -> int:
    text = about.query.get(name, "")
    return min(int(text), PAGE) if text.isdecimal() and int(text) else PAGE


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
