"""Storage faults: which errors of the operating system come from a disk or a mount.

Rule: other errors, such as those of sockets, pipes and processes, say nothing about a disk. An error without a number is one of
this service about its spool.
Source: errno(3), and the errors that NFS, CIFS and FUSE return (nfs(5), fuse(4)).
"""

from __future__ import annotations

import errno

NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))
_LOST = frozenset(
    (
        # the disk, and a file system that the kernel made read-only after errors
        *(errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EUCLEAN),
        # a mount whose server is away, restarted, or forgot the file
        *(errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
        # a mount that is gone, or another one in its place
        *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR),
    )
)


def is_one(error: OSError) -> bool:
    """Whether this error may come from a disk or a mount."""
    return error.errno is None or error.errno in NO_SPACE or error.errno in _LOST
