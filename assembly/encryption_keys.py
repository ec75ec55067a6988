"""The keys that secrets are sealed with: those of SECRET_KEYS, or of a file in DATA_DIR that the first start makes.

May import every room but the simulator. Rule: a key file is for its owner alone, and one that others can read is not used; it is
made whole or not at all, and never in place of one that is there.
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
from config import settings as ops_settings
from machine import errors

log = structlog.get_logger()

KEY_FILE = "secret.keys"
_HEAD = """\
# What the recorder seals UserSigs, COS keys and callbacks' addresses with. Keep a copy apart from the database: lost with this
# file is what it seals. One key a line, the first seals, all open (docs/operate.md, "Encryption keys").
"""


def keyring(settings: ops_settings.Settings, *, make: bool = True) -> machine.encryption.Keyring:
    """The keys that the settings name. Without SECRET_KEYS those of the key file, made here if it is not there (`make`). Raises
    Unavailable."""
    given = [key.get_secret_value() for key in settings.secret_keys]
    return machine.encryption.Keyring(given or _of_file(key_file(settings), make=make))


def describe(settings: ops_settings.Settings) -> str:
    """Where the keys are, as a phrase; makes none. Raises Unavailable if they cannot be used, or do not open what the database
    holds. Blocking."""
    path, needed = key_file(settings), store.inspection.key_ids(settings.database)
    if not settings.secret_keys and not path.exists():
        if needed:
            raise errors.Unavailable(store.encrypted_rows.locked(needed, ()))
        return f"none yet: {path} is made at the first start"
    ring = keyring(settings, make=False)
    if not needed <= set(ring.key_ids):
        raise errors.Unavailable(store.encrypted_rows.locked(needed - set(ring.key_ids), ring.key_ids))
    return f"{len(ring.key_ids)} in {'SECRET_KEYS' if settings.secret_keys else path}, the first is {ring.key_id}"


def key_file(settings: ops_settings.Settings) -> Path:
    """Where the key file lies, if it is used."""
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
            f"The key file {path} is open to other users (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}, and rotate its key if"
            " somebody may have read it."
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
        raise errors.Unavailable(f"The key file {path} holds no key: bring back a copy of it, or set SECRET_KEYS.")
    return found


def _make(path: Path) -> None:
    """Beside its place first, then linked to it: nobody ever sees half of it, and who comes second takes the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{KEY_FILE}-")  # for its owner only, by its nature
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"{_HEAD}{machine.encryption.new_key()}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
            log.info("secrets.key_made", file=str(path))
    finally:
        Path(name).unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
