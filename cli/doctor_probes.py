"""Looking at the machine: what ffmpeg can do, whether a lock is held, what kind of file system a path lies on, who listens.

Imports nothing of ours. Rule: nothing is left behind; whatever cannot be found out is an answer and no error.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

CONNECT_S = 2.0
RUN_S = 20.0

# Kinds of file systems that are another machine's, by their names in /proc/mounts.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs")
# FUSE does not say what it stands for (fuseblk is a disk), and 9p is a virtual machine's or a container's view of some folder.
DOUBTFUL = ("fuse", "9p", "virtiofs")
# What an ffmpeg sees of the environment, here as in a capture: secrets are in ours.
_NOTHING_OF_OURS = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_ESCAPED = re.compile(r"\\(\d{3})")


def ffmpeg_lacks(binary: str, wanted: Mapping[str, tuple[str, ...]]) -> list[str]:
    """What of `wanted` (list of ffmpeg → names, such as encoders → aac) this ffmpeg does not have."""
    missing = []
    for kind, names in wanted.items():
        listed = _ffmpeg_list(binary, kind)
        missing += [f"{name} ({kind})" for name in names if name not in listed]
    return missing


def _ffmpeg_list(binary: str, kind: str) -> set[str]:
    """The names in `ffmpeg -<kind>`: the only word of a line for protocols, else the one after the flags."""
    try:
        words = [binary, "-hide_banner", f"-{kind}"]
        done = subprocess.run(words, capture_output=True, timeout=RUN_S, check=False, env=_NOTHING_OF_OURS)
    except (OSError, subprocess.SubprocessError):
        return set()
    lines = [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    return {name for line in lines if line for name in (line[0] if len(line) == 1 else line[1]).split(",")}


def setpriv_fault(path: str) -> str:
    """Why `setpriv --pdeathsig` of this PATH does not work, or `prlimit` beside it; "" if both do."""
    true = shutil.which("true", path=path) or "/bin/true"
    for name, options in (("setpriv", ["--pdeathsig", "KILL", "--no-new-privs"]), ("prlimit", ["--core=0"])):
        binary = shutil.which(name, path=path)
        if binary is None:
            return f"{name} is not on PATH"
        try:
            done = subprocess.run([binary, *options, "--", true], capture_output=True, timeout=RUN_S, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{binary} does not run ({type(error).__name__})"
        if done.returncode:
            return f"{binary} does not know {options[0]}"
    return ""


def folder_fault(folder: Path) -> str:
    """Why files cannot be written into `folder`, or why it cannot be made; "" if they can."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    if there != folder:
        return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written, so {folder} cannot be made"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}"
    return ""


def free_bytes(folder: Path) -> int:
    """What may still be written where `folder` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of this file. A shared lock is taken for a moment to find out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # what is not there, or not ours to read, is told by other checks
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that `path` lies on, by /proc/mounts; "" where that cannot be told."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    whole = path.resolve()
    best, kind = -1, ""
    for fields in (line.split(" ") for line in lines):
        if len(fields) < 3:
            continue
        point = Path(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[1]))
        # A later mount over the same folder hides the earlier one.
        if whole.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def distance(kind: str) -> str:
    """`network` for a file system that is another machine's, `doubtful` for one that may be, else `local`."""
    if kind in NETWORK:
        return "network"
    return "doubtful" if kind in DOUBTFUL or kind.startswith("fuse.") else "local"


def connect_fault(host: str, port: int, timeout_s: float = CONNECT_S) -> str:
    """Why no TCP connection comes about within `timeout_s`; "" if one does."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return ""
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except OSError as error:
        return error.strerror or type(error).__name__
