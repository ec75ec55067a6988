"""Folders of this machine: those of unset variables, and `~` in given ones."""

from __future__ import annotations

import os
from collections.abc import Mapping


def defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """The folders by variable; "" for one that this environment does not give."""
    data = environ.get("XDG_DATA_HOME") or (f"{environ['HOME']}/.local/share" if environ.get("HOME") else "")
    temporary = environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the spool checks the owner of its folder below it
    return {"DATA_DIR": f"{data}/recorder" if data else "", "SPOOL_DIR": f"{temporary}/recorder-{os.getuid()}"}


def expanded(path: str, environ: Mapping[str, str]) -> str:
    """The path with HOME in the place of a leading `~`."""
    home = environ.get("HOME", "")
    return home + path[1:] if home and (path == "~" or path.startswith("~/")) else path
