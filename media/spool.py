"""The spool: the folder of segments and finished files, with the node's id under a file lock.

    <root>/.lock                                    held while the node runs; for a spool shared by nodes, these two are in
    <root>/.node                                    DATA_DIR: this node's id, generated once
    <root>/.spool                                   for a shared spool: shows that it is mounted; for any other, `.node` does
    <root>/<TaskId>/<speaker>_<n>/<epoch>.flv       one segment
    <root>/<TaskId>/<speaker>_<n>/<epoch>.flv.arrivals      its arrival index (media/arrival_index.py)
    <root>/<TaskId>/<speaker>_<n>/finished.<epoch>.mp4      the output of that transcode
    <root>/<TaskId>/<speaker>_<n>/<epoch>.p<number>.mp4     a piece, on a bounded spool (media/pieces.py)

Rules: no path is ever built from a raw id; TRTC's ids may contain "/", ".." and "%2F". While the mount is lost, nothing is
written to the folder beneath it. Limit: a start before the mount takes the folder beneath for a new spool. When the mount comes,
it hides the files there.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from machine import errors, states, storage_fault
from machine.reasons import Reason

SHARED = "shared"
_PROBE_BYTES = 4096
_PLAIN = re.compile(r"(?!b64-|sha-)[A-Za-z0-9_-]{1,120}")
# A segment or a finished file, complete or not.
_OURS = re.compile(
    r"(?:(?P<segment>\d{8,})\.(?:flv(?:\.arrivals)?|p\d+\.mp[34](?:\.json|\.upload)?)"
    r"|finished(?:\.(?P<output>\d{8,}))?\.mp[34](?:\.upload)?)(?:\.part|\.fetched)?"
)


def safe_name(text: str) -> str:
    """A unique file name for `text`: itself, base64url with the prefix `b64-`, or its SHA-256 if that is too long."""
    if _PLAIN.fullmatch(text):
        return text
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= 90:
        return "b64-" + base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")
    return "sha-" + hashlib.sha256(raw).hexdigest()


def fault_of(error: OSError) -> Reason:
    """The reason for the end of a job that this error ended: no space or quota is left, the spool is lost, or another fault than
    one of storage, which is retried on any node."""
    if error.errno in storage_fault.NO_SPACE:
        return Reason.DISK_FULL
    return Reason.SPOOL_LOST if storage_fault.is_one(error) else Reason.ERROR


def _files(folder: Path) -> Iterator[tuple[Path, int, bool]]:
    """The files in a recording's folder, each with its epoch and whether a transcode wrote it."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if found := _OURS.fullmatch(path.name):
                yield path, int(found["segment"] or found["output"] or 0), found["segment"] is None


def _remove(paths: Iterable[Path]) -> int:
    """Delete as many as possible; returns the number. Raises the first OSError afterwards."""
    removed = 0
    failed: OSError | None = None
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            removed += 1
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return removed


def check_owner(folder: Path) -> None:
    """Reject a folder of another user where anybody may create folders, such as /tmp: its owner could redirect our files. Raises
    errors.Unavailable."""
    try:
        found = folder.lstat()
        if not folder.parent.stat().st_mode & stat.S_IWOTH:
            return
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise errors.Unavailable(
            f"Anybody may write to {folder.parent}, and {folder.name} in it is not a folder of this user alone: it is"
            f" {stat.filemode(found.st_mode)} of user {found.st_uid}. Look at who made it and remove it, or set SPOOL_DIR to"
            " another folder."
        )


class Spool:
    """One node's spool. `start` takes the lock and reads the node's id; paths are available at any time."""

    def __init__(self, root: Path, identity: Path | None = None) -> None:
        """`identity` is the folder of lock and id if several nodes share the spool."""
        self.root = root.absolute()
        self._identity = (identity or root).absolute()
        self.node_id = ""
        self._shared = self._identity != self.root
        self._lock = -1

    def start(self) -> None:
        """Create the folder, take its lock, and read or generate the node's id. Safe to call twice.

        Raises errors.Unavailable if the folder cannot be used or another process holds its lock.
        """
        if self._lock >= 0:
            return
        try:
            for folder in (self.root, self._identity):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                check_owner(folder)
            lock = os.open(self._identity / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.Unavailable(f"The spool folder {self.root} cannot be used: {error.strerror}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.node_id = self._read_or_make_id()
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                message = f"The folder {self._identity} is in use by another process; give each service its own folder."
            else:
                message = f"The spool folder {self.root} cannot be used: {error.strerror}."
            raise errors.Unavailable(message) from error
        self._lock = lock

    def stop(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def lost(self) -> str:
        """Why the spool is not the one of the start (blocking); "" if it is. A mount may be stale, gone, or another one."""
        if not self.node_id:
            return ""
        try:
            found = _read(self._mark)
        except OSError as error:
            return f"The spool folder {self.root} cannot be read: {error.strerror}."
        if found == (SHARED if self._shared else self.node_id):
            return ""
        return f"The spool folder {self.root} has no file {self._mark.name} of this node any more: check its mount."

    def probe(self) -> str:
        """Why the spool cannot be written and read now (blocking); "" if it can. Writes a small file and deletes it."""
        if reason := self.lost():
            return reason
        path, data = self.root / f".probe.{self.node_id}", os.urandom(_PROBE_BYTES)
        part = path.with_name(f"{path.name}.part")
        try:
            try:
                with part.open("wb", buffering=0) as file:
                    file.write(data)
                    os.fsync(file.fileno())
                part.replace(path)
                with path.open("rb", buffering=0) as file:
                    found = file.read(_PROBE_BYTES + 1)
            finally:
                part.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except OSError as error:
            return f"The spool folder {self.root} cannot be written or read: {error.strerror or type(error).__name__}."
        return "" if found == data else f"The spool folder {self.root} gives other bytes than were written to it."

    def segment_path(self, task_id: str, speaker: str, n: int, epoch: int, *, make: bool = True) -> Path:
        """The path of this epoch's segment. With `make` it creates its folder (blocking). If the spool is gone, the capture
        reports it."""
        return self._folder(task_id, speaker, n, make=make) / f"{int(epoch):08d}.flv"

    def output_path(self, task_id: str, speaker: str, n: int, mode: str, epoch: int, *, make: bool = True) -> Path:
        """The path of the finished file of the transcode `epoch` (0: written by an older version). With `make` it creates its
        folder (blocking). A worker that wakes after its lease neither writes into nor replaces the file of a newer epoch. Raises
        KeyError for an unknown mode."""
        number = f".{int(epoch):08d}" if epoch else ""
        return self._folder(task_id, speaker, n, make=make) / f"finished{number}.{states.EXTENSION[mode]}"

    def remove_parts(self, task_id: str, speaker: str, n: int, before_epoch: int) -> None:
        """Delete unfinished output of earlier transcodes (blocking); one that is still writing then ends without a file."""
        current = f"finished.{int(before_epoch):08d}."
        for part in self._folder(task_id, speaker, n).glob("finished*.part"):
            if part.name < current:
                part.unlink(missing_ok=True)

    def segments(self, task_id: str, speaker: str, n: int) -> list[Path]:
        """The segments of a recording on this disk, ordered by epoch."""
        return sorted(self._folder(task_id, speaker, n).glob("*.flv"))

    def space(self) -> tuple[int, int]:
        """Bytes of the spool's file system that are free for this process, and in all (blocking). Raises errors.Unavailable if
        the spool is gone."""
        if reason := self.lost():
            raise errors.Unavailable(reason)
        try:
            found = shutil.disk_usage(self.root)
        except OSError as error:
            raise errors.Unavailable(f"The spool folder {self.root} cannot be read: {error.strerror}.") from error
        return found.free, found.total

    def remove_files(self, task_id: str, speaker: str, n: int, until_epoch: int) -> int:
        """Delete the files of epochs up to this one of a recording (blocking), and the folders that are then empty. Files of
        newer epochs and foreign files stay. Returns the number of deleted files; raises the first OSError after all others are
        deleted."""
        folder = self._present(task_id, speaker, n)
        removed = _remove(path for path, epoch, _ in _files(folder) if epoch <= until_epoch)
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()
        return removed

    def remove_outputs(self, task_id: str, speaker: str, n: int, before_epoch: int, but_epoch: int) -> int:
        """Like `remove_files`, for the output of transcodes before `before_epoch`, finished or not, except the one of
        `but_epoch`."""
        found = _files(self._present(task_id, speaker, n))
        return _remove(path for path, epoch, output in found if output and epoch < before_epoch and epoch != but_epoch)

    @property
    def _mark(self) -> Path:
        return self.root / (".spool" if self._shared else ".node")

    def _read_or_make_id(self) -> str:
        path = self._identity / ".node"
        known = _read(path)
        if not known:
            known = f"node-{uuid.uuid4().hex[:16]}"
            _write(path, known)
        if self._shared and _read(self._mark) != SHARED:
            _write(self._mark, SHARED)
        return known

    def _present(self, task_id: str, speaker: str, n: int) -> Path:
        """The folder of a recording, to delete in it. Raises OSError while the mount is lost, as they are not deleted."""
        if reason := self.lost():
            raise OSError(errno.ESTALE, reason)
        return self._folder(task_id, speaker, n)

    def _folder(self, task_id: str, speaker: str, n: int, *, make: bool = False) -> Path:
        session = self.root / safe_name(task_id)
        folder = session / f"{safe_name(speaker)}_{int(n)}"
        if make and self.root.is_dir() and not self.lost():
            session.mkdir(exist_ok=True, mode=0o700)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def _read(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text("ascii", "replace").strip()
    return ""


def _write(path: Path, text: str) -> None:
    # Nodes that share a new spool write its mark at the same moment.
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    with fresh.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
