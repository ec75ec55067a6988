"""Attributes of the finished objects in COS, as a start gives them: storage class, encryption and tags.

Rules: pure. A combination that COS would refuse after the lesson is refused with the start. Sources: COS's documents on "Initiate
Multipart Upload", server-side encryption, and object tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from events import errors

KMS = "cos/kms"
FIELDS = {
    "storage_class": "StorageClass",
    "encryption": "ServerSideEncryption",
    "kms_key_id": "SSEKMSKeyId",
    "tagging": "Tagging",
}
"""The fields of `CosConfig` by their name here; the names are those of COS's SDK."""
MOST_TAGS, MOST_KEY_BYTES, MOST_VALUE_BYTES = 10, 127, 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectAttributes:
    """Attributes of an object; "" is the default of COS. `tagging`: percent-encoded `key=value` pairs, joined by `&`."""

    storage_class: str = ""
    encryption: str = ""
    kms_key_id: str = ""
    tagging: str = ""

    def given(self) -> dict[str, str]:
        """Those that are set, by their field of `CosConfig`."""
        return {field: getattr(self, name) for name, field in FIELDS.items() if getattr(self, name)}


NONE = ObjectAttributes()


def read(config: Mapping[str, Any]) -> ObjectAttributes:
    """The attributes in a checked `CosConfig`. Raises InvalidEvent for tags and combinations that COS does not take."""
    found = ObjectAttributes(**{name: config.get(field, "") for name, field in FIELDS.items()})
    if found.kms_key_id and found.encryption != KMS:
        raise errors.InvalidEvent("CosConfig.SSEKMSKeyId", f"requires ServerSideEncryption {KMS}")
    if found.tagging:
        _check_tags(found.tagging)
    return found


def _check_tags(text: str) -> None:
    pairs = [pair.partition("=") for pair in text.split("&")]
    keys = [unquote_plus(key) for key, _, _ in pairs]
    values = [unquote_plus(value) for _, _, value in pairs]
    if len(pairs) > MOST_TAGS or len(set(keys)) < len(keys):
        raise errors.InvalidEvent("CosConfig.Tagging", f"must be at most {MOST_TAGS} tags with different keys")
    lengths = [(len(key.encode()), len(value.encode())) for key, value in zip(keys, values, strict=True)]
    if any(not 0 < key <= MOST_KEY_BYTES or value > MOST_VALUE_BYTES for key, value in lengths):
        why = f"must be key=value pairs joined by &, keys of 1 to {MOST_KEY_BYTES} bytes, values of at most {MOST_VALUE_BYTES}"
        raise errors.InvalidEvent("CosConfig.Tagging", why)
