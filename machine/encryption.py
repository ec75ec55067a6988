"""Encryption of secrets: Fernet (AES-128-CBC with HMAC-SHA256) under a ring of keys.

Rules: the first key encrypts, every key decrypts. The ciphertext includes its owner, so a row copied to another owner does not
decrypt. No error and no repr holds a key or a plaintext.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from cryptography import fernet

from machine import errors

# What encryption adds to a body at most: version, time, initialization vector, padding, HMAC.
OVERHEAD_BYTES = 73


class Keyring:
    """Keys as base64 of 32 bytes. Raises InvalidParameter if there is none, or for a malformed one."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise errors.InvalidParameter("There is no key to encrypt secrets with.", field="SECRET_KEYS")
        try:
            self._ring = fernet.MultiFernet([fernet.Fernet(key) for key in keys])
        except ValueError as error:
            raise errors.InvalidParameter("A key must be base64 of 32 bytes.", field="SECRET_KEYS") from error
        self.key_ids = tuple(_key_id(key) for key in keys)

    @property
    def key_id(self) -> str:
        """The id of the key that encrypts; it reveals nothing of the key."""
        return self.key_ids[0]

    def encrypt(self, clear: bytes, about: str) -> bytes:
        """Encrypt `clear`, which belongs to the owner `about`."""
        return base64.urlsafe_b64decode(self._ring.encrypt(about.encode() + b"\n" + clear))

    def decrypt(self, encrypted: bytes, about: str) -> bytes:
        """The opposite of `encrypt`. Raises DecryptionFailed if no key decrypts it, or if it belongs to another owner."""
        try:
            opened = self._ring.decrypt(base64.urlsafe_b64encode(encrypted))
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
