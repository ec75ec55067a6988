"""Probes of this machine for doctor: ffmpeg's features, locks, file systems, connections.

Rule: a probe leaves nothing behind. A fact that cannot be determined is an answer, not an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path

# Network file systems, by their names in /proc/mounts.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs")
# FUSE hides its back end (fuseblk is a disk); 9p and virtiofs show a folder of the host of a virtual machine or container.
DOUBTFUL = ("fuse", "9p", "virtiofs")
# ffmpeg's environment, as in a capture: the service's own contains secrets.
_CLEAN_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
_ESCAPED = re.compile(r"\\(\d{3})")


def ffmpeg_lacks(binary: str, wanted: Mapping[str, tuple[str, ...]], timeout_s: float) -> list[str]:
    """The names of `wanted` (by list of ffmpeg, such as encoders → aac) that this ffmpeg lacks."""
    with futures.ThreadPoolExecutor(len(wanted)) as pool:
        lists = dict(zip(wanted, pool.map(lambda kind: _ffmpeg_list(binary, kind, timeout_s), wanted), strict=True))
    missing = []
    for kind, names in wanted.items():
        listed = lists[kind]
        missing += [f"{name} ({kind})" for name in names if name not in listed]
    return missing


def _ffmpeg_list(binary: str, kind: str, timeout_s: float) -> set[str]:
    """The names that `ffmpeg -<kind>` lists: the only word of a line for protocols, else the word after the flags."""
    try:
        words = [binary, "-hide_banner", f"-{kind}"]
        done = subprocess.run(words, capture_output=True, timeout=timeout_s, check=False, env=_CLEAN_ENVIRONMENT)
    except (OSError, subprocess.SubprocessError):
        return set()
    lines = [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    return {name for line in lines if line for name in (line[0] if len(line) == 1 else line[1]).split(",")}


def setpriv_fault(path: str, timeout_s: float) -> str:
    """Why `setpriv --pdeathsig` or `prlimit` of this PATH does not work; "" if both do."""
    true = shutil.which("true", path=path) or "/bin/true"
    for name, options in (("setpriv", ["--pdeathsig", "KILL", "--no-new-privs"]), ("prlimit", ["--core=0"])):
        binary = shutil.which(name, path=path)
        if binary is None:
            return f"{name} is not on PATH"
        try:
            done = subprocess.run([binary, *options, "--", true], capture_output=True, timeout=timeout_s, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{binary} does not run ({type(error).__name__})"
        if done.returncode:
            return f"{binary} does not know {options[0]}"
    return ""


def folder_fault(folder: Path) -> str:
    """Why files cannot be written into `folder`, or why it cannot be created; "" if they can."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if existing != folder:
        return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written, so {folder} cannot be created"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}"
    return ""


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system on which `folder` is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def total_bytes(folder: Path) -> int:
    """The size of the file system of a folder in bytes."""
    return shutil.disk_usage(folder).total


def most_files() -> int:
    """The number of files that a service begun from here may open: it raises its soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def most_tasks(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The number of processes and threads that this user, container or unit may have; sys.maxsize without a limit. The limit of
    a user does not bind root."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = [] if soft == resource.RLIM_INFINITY or os.geteuid() == 0 else [soft]
    try:
        group = Path(own.read_text().strip().rpartition("::/")[2])
    except OSError:
        group = Path()
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):  # no limit here: no such file, or the word max
            limits.append(int((groups / folder / "pids.max").read_text()))
    return min(limits, default=sys.maxsize)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of this file. The probe holds a shared lock for a moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # other checks report a missing or unreadable file
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system of `path` in /proc/mounts; "" if unknown."""
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
    """`network` for a network file system, `doubtful` for one that may be, else `local`."""
    if kind in NETWORK:
        return "network"
    return "doubtful" if kind in DOUBTFUL or kind.startswith("fuse.") else "local"


def connect_fault(host: str, port: int, timeout_s: float) -> str:
    """Why no TCP connection is established within `timeout_s`; "" if one is."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return ""
    except TimeoutError:
        return f"no answer within {timeout_s:.1f} s"
    except OSError as error:
        return error.strerror or type(error).__name__


def size(size_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"
