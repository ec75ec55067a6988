"""What closes and opens secrets: Fernet (AES-128-CBC with HMAC-SHA256) under a ring of keys. Imports `machine`.

Rule: the first key seals, every key opens. What is sealed says inside what it is about: under another owner it does not open,
so that a row that somebody moved is of no use. No error and no repr holds a key or what it opens.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from cryptography import fernet

from machine import errors

# Of a sealed body, beside the clear one: version, time, initial vector, padding, HMAC.
OVERHEAD_BYTES = 73


class Keyring:
    """Keys as base64 of 32 bytes, the first of which seals. Raises InvalidParameter for none, or one that is none."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise errors.InvalidParameter("There is no key to seal secrets with.", field="SECRET_KEYS")
        try:
            self._ring = fernet.MultiFernet([fernet.Fernet(key) for key in keys])
        except ValueError as error:
            raise errors.InvalidParameter("A key must be base64 of 32 bytes.", field="SECRET_KEYS") from error
        self.key_ids = tuple(_key_id(key) for key in keys)

    @property
    def key_id(self) -> str:
        """The id of the key that seals: says nothing about the key."""
        return self.key_ids[0]

    def encrypt(self, clear: bytes, about: str) -> bytes:
        """Seal `clear`, which belongs to `about`."""
        return base64.urlsafe_b64decode(self._ring.encrypt(about.encode() + b"\n" + clear))

    def decrypt(self, sealed: bytes, about: str) -> bytes:
        """The opposite of `seal`. Raises DecryptionFailed: no key of these opens it, or it belongs to something else."""
        try:
            opened = self._ring.decrypt(base64.urlsafe_b64encode(sealed))
        except fernet.InvalidToken:
            raise errors.DecryptionFailed() from None
        owner, _, clear = opened.partition(b"\n")
        if owner != about.encode():
            raise errors.DecryptionFailed()
        return clear


def new_key() -> str:
    """A new random key."""
    return fernet.Fernet.generate_key().decode()


def _key_id(key: str) -> str:
    return hashlib.sha256(b"recorder key\n" + base64.urlsafe_b64decode(key)).hexdigest()[:12]
