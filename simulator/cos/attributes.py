"""Attributes of new objects, as COS checks them: storage class, server-side encryption and tags.

Source: COS XML API documents 436/7746 (Initiate Multipart Upload), 436/33417 (storage classes), 436/42997 (object tags). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from simulator.cos import responses

STORAGE_CLASS = "x-cos-storage-class"
ENCRYPTION = "x-cos-server-side-encryption"
KMS_KEY_ID = "x-cos-server-side-encryption-cos-kms-key-id"
TAGGING = "x-cos-tagging"
HEADERS = frozenset(("content-disposition", STORAGE_CLASS, ENCRYPTION, KMS_KEY_ID, TAGGING))
STORAGE_CLASSES = frozenset(
    f"{zones}{name}"
    for zones, names in (("", "STANDARD STANDARD_IA INTELLIGENT_TIERING ARCHIVE DEEP_ARCHIVE"),
                         ("MAZ_", "STANDARD STANDARD_IA INTELLIGENT_TIERING"))
    for name in names.split()
)  # fmt: skip
KMS = "cos/kms"
MOST_TAGS = 10


def check(headers: Mapping[str, str]) -> None:
    """Check the headers of a new object, by their names in lower case. Raises Refused."""
    if headers.get(STORAGE_CLASS, "STANDARD") not in STORAGE_CLASSES:
        raise responses.Refused(400, "InvalidStorageClass", "The storage class you specified is not valid.")
    encryption = headers.get(ENCRYPTION)
    if encryption not in (None, "AES256", KMS) or (KMS_KEY_ID in headers and encryption != KMS):
        raise responses.Refused(400, "InvalidArgument", "The encryption you specified is not valid.")
    if TAGGING in headers:
        _check_tags(headers[TAGGING])


def _check_tags(text: str) -> None:
    try:
        tags = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        tags = []
    keys = [key for key, _ in tags]
    too_long = any(not 0 < len(key.encode()) <= 127 or len(value.encode()) > 255 for key, value in tags)
    if not 0 < len(tags) <= MOST_TAGS or len(set(keys)) < len(keys) or too_long:
        raise responses.Refused(400, "InvalidTag", "The tags you specified are not valid.")
