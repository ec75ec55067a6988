"""Encryption keys: the key ring, and the key file that the first start makes."""

from __future__ import annotations

import os
from concurrent import futures
from pathlib import Path

import pytest

from assembly import encryption_keys
from config import parsers
from config import settings as ops_settings
from machine import encryption as rings
from machine import errors

A, B = "Zmlyc3Qga2V5IG9mIHRoaXMgdGVzdDogMzIgYnl0ZSE=", "c2Vjb25kLS1fX-_vv7-_dGhpcyB0ZXN0OiAzMiBieXQ="


def settings(folder: Path, **environ: str) -> ops_settings.Settings:
    """Settings of one node that keeps its data there."""
    return ops_settings.load({"DATA_DIR": str(folder), "HOME": "/nowhere", **environ})


def test_what_is_sealed_opens_with_every_key_of_the_ring() -> None:
    """The first key encrypts and every key decrypts; another key, another owner and a changed byte fail."""
    sealed = rings.Keyring([A]).encrypt(b"secret", "mine")
    assert b"secret" not in sealed
    assert len(sealed) <= len(b"mine\nsecret") + rings.OVERHEAD_BYTES
    both = rings.Keyring([B, A])
    assert (both.decrypt(sealed, "mine"), both.key_ids[1]) == (b"secret", rings.Keyring([A]).key_id)
    assert rings.Keyring([B]).decrypt(both.encrypt(b"", "mine"), "mine") == b""
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for ring, body, about in (
        (rings.Keyring([B]), sealed, "mine"),
        (both, sealed, "yours"),
        (both, changed, "mine"),
        (both, b"", ""),
    ):
        with pytest.raises(errors.DecryptionFailed):
            ring.decrypt(body, about)


@pytest.mark.parametrize("keys", [[], ["short"], ["c2hvcnQ="], [A, "é"]])
def test_what_is_no_key_is_refused(keys: list[str]) -> None:
    """No key, or a text that is no key, is refused without repeating it."""
    with pytest.raises(errors.InvalidParameter, match="key") as refused:
        rings.Keyring(keys)
    assert not any(key in str(refused.value) for key in keys)


def test_one_key_has_one_id_however_it_is_written() -> None:
    """Both base64 alphabets are accepted, with and without padding."""
    written = {A, A.rstrip("="), A.replace("-", "+").replace("_", "/")}
    assert {rings.Keyring([parsers.encryption_key(text)]).key_id for text in written} == {rings.Keyring([A]).key_id}
    for wrong in ("", "x", A + "x", A[:-2], "é" * 43):
        with pytest.raises(ValueError, match="not a key"):
            parsers.encryption_key(wrong)


def test_the_first_start_makes_a_key_file_for_its_owner(tmp_path: Path) -> None:
    """The key file is made once, by however many starts, complete, mode 0600, and without leftovers."""
    folder = tmp_path / "data"
    with futures.ThreadPoolExecutor(8) as pool:
        rings_ = list(pool.map(lambda _: encryption_keys.keyring(settings(folder)), range(8)))
    assert len({ring.key_id for ring in rings_}) == 1
    assert [p.name for p in folder.iterdir()] == [encryption_keys.KEY_FILE]
    assert (folder / encryption_keys.KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    before = (folder / encryption_keys.KEY_FILE).read_bytes()
    assert encryption_keys.keyring(settings(folder)).key_id == rings_[0].key_id
    assert (folder / encryption_keys.KEY_FILE).read_bytes() == before


def test_a_setting_wins_and_makes_no_file(tmp_path: Path) -> None:
    """With SECRET_KEYS the file is neither made nor read."""
    (tmp_path / encryption_keys.KEY_FILE).mkdir()
    ring = encryption_keys.keyring(settings(tmp_path, SECRET_KEYS=f"{A}, {B}"))
    assert ring.key_ids == rings.Keyring([A, B]).key_ids


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (f"# of the first start\n\n{A}\n", 0o640, "chmod 600"),
        (f"{A}\n", 0o604, "chmod 600"),
        (f"# one\n{A}\nPLANTED-and-no-key\n", 0o600, "in line 3"),
        ("# nothing but words\n", 0o600, "holds no key"),
        ("", 0o600, "holds no key"),
    ],
    ids=["group", "others", "damaged", "words", "empty"],
)
def test_a_key_file_that_cannot_be_trusted_is_refused(tmp_path: Path, content: str, mode: int, says: str) -> None:
    """A key file that is readable by others, damaged or empty is named, and its content not repeated."""
    file = tmp_path / encryption_keys.KEY_FILE
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(errors.Unavailable, match=says) as refused:
        encryption_keys.keyring(settings(tmp_path))
    assert str(file) in refused.value.message
    assert not any(line and line in refused.value.message for line in content.splitlines())


def test_a_key_file_that_cannot_be_read_or_made_is_said(tmp_path: Path) -> None:
    """A folder in its place, or an impossible DATA_DIR, gives an error with the way out."""
    (tmp_path / "a" / encryption_keys.KEY_FILE).mkdir(parents=True)
    (tmp_path / "b").touch()
    for folder in ("a", "b"):
        with pytest.raises(errors.Unavailable, match="SECRET_KEYS"):
            encryption_keys.keyring(settings(tmp_path / folder))
    if os.geteuid():
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / encryption_keys.KEY_FILE).touch(0o000)
        with pytest.raises(errors.Unavailable, match="Permission denied"):
            encryption_keys.keyring(settings(tmp_path / "c"))


def test_many_nodes_need_the_setting() -> None:
    """Nodes refuse to start with a key file each: one could not decrypt the secrets of another."""
    environ = {"DATABASE_URL": "postgresql+asyncpg://u@h/d", "AMQP_URL": "amqp://h/", "CLUSTER_TOKEN": "t", "HOME": "/nowhere"}
    with pytest.raises(ops_settings.SettingsError, match="SECRET_KEYS: is required with AMQP_URL"):
        ops_settings.load(environ)
    assert ops_settings.load(environ | {"SECRET_KEYS": A}).secret_keys
    assert A not in repr(ops_settings.load(environ | {"SECRET_KEYS": A}))
