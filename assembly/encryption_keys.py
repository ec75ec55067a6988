"""Encryption keys of secrets: those of SECRET_KEYS, or of a key file in DATA_DIR that the first start creates.

Rules: a key file that other users can read is refused. It is created atomically and never replaces an existing one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import structlog

import machine.encryption
import store.encrypted_rows
import store.inspection
from config import parsers
from config import settings as settings_module
from machine import errors

log = structlog.get_logger()

KEY_FILE = "secret.keys"
_HEAD = """\
# Keys that encrypt UserSigs, COS keys and callback URLs. Keep a copy apart from the database: without this file its secrets
# are lost. One key per line; the first encrypts, all decrypt (docs/operate.md, "Encryption keys").
"""


def keyring(settings: settings_module.Settings, *, make: bool = True) -> machine.encryption.Keyring:
    """The keys of SECRET_KEYS, else those of the key file, which `make` creates if it is missing. Raises Unavailable."""
    given = [key.get_secret_value() for key in settings.secret_keys]
    return machine.encryption.Keyring(given or _of_file(key_file(settings), make=make))


def describe(settings: settings_module.Settings) -> str:
    """Number and place of the keys, as a phrase; creates none. Raises Unavailable if they are unusable or do not decrypt every
    secret of the database. Blocking."""
    path, needed = key_file(settings), store.inspection.key_ids(settings.database)
    if not settings.secret_keys and not path.exists():
        if needed:
            raise errors.Unavailable(store.encrypted_rows.locked(needed, ()))
        return f"none yet: the first start creates {path}"
    ring = keyring(settings, make=False)
    if not needed <= set(ring.key_ids):
        raise errors.Unavailable(store.encrypted_rows.locked(needed - set(ring.key_ids), ring.key_ids))
    return f"{len(ring.key_ids)} in {'SECRET_KEYS' if settings.secret_keys else path}, the first is {ring.key_id}"


def key_file(settings: settings_module.Settings) -> Path:
    """Path of the key file, which is used without SECRET_KEYS."""
    folder = settings.data_dir if settings.data_dir != Path() else settings.database_file.parent
    return folder / KEY_FILE


def _of_file(path: Path, *, make: bool) -> list[str]:
    try:
        if make and not path.exists():
            _make(path)
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read(64 * 1024).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise errors.Unavailable(
            f"The key file {path} cannot be used: {reason}. Make it readable for the service's user, or set SECRET_KEYS."
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise errors.Unavailable(
            f"Other users can read the key file {path} (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}, and rotate its key if"
            " another user may have read it."
        )
    return _keys(path, lines)


def _keys(path: Path, lines: list[str]) -> list[str]:
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            found.append(parsers.encryption_key(line.strip()))
        except ValueError as error:
            raise errors.Unavailable(
                f"The key file {path} holds no key in line {number}: it must be base64 of 32 bytes."
            ) from error
    if not found:
        raise errors.Unavailable(f"The key file {path} holds no key: restore a copy of it, or set SECRET_KEYS.")
    return found


def _make(path: Path) -> None:
    """Create the key file under another name, then link it, so that a concurrent start uses the first complete file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{KEY_FILE}-")  # created with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{_HEAD}{machine.encryption.new_key()}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
            log.info("secrets.key_created", file=str(path))
    finally:
        Path(name).unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
