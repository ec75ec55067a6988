"""The environment's variables: clean text, default folders, and names that are no settings but look like some.

Rule: nothing here reads the process's environment; it arrives as a mapping.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping

# Names as similar as MIN_FREEE and MIN_FREE. A lower limit would take HOSTNAME for HOST.
_SIMILAR = 0.85
_PREFIX = "RECORDER_"


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables without what env files leave around values: spaces, a carriage return, a pair of quotes. `docker run
    --env-file` and ConfigMaps take quotes for a part of the value; shells, systemd and compose do not."""
    return {name: _unquoted(value.strip()) for name, value in environ.items()}


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def default_folders(environ: Mapping[str, str]) -> dict[str, str]:
    """Folders of this machine, by variable; "" for one that this environment does not tell."""
    data = environ.get("XDG_DATA_HOME") or (f"{environ['HOME']}/.local/share" if environ.get("HOME") else "")
    temporary = environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the spool checks the owner of its folder below it
    return {"DATA_DIR": f"{data}/recorder" if data else "", "SPOOL_DIR": f"{temporary}/recorder-{os.getuid()}"}


def expanded(path: str, environ: Mapping[str, str]) -> str:
    """The path with HOME in the place of a leading ~."""
    home = environ.get("HOME", "")
    return home + path[1:] if home and (path == "~" or path.startswith("~/")) else path


def misspelled(environ: Mapping[str, str], settings: Collection[str]) -> Iterator[tuple[str, str]]:
    """Variables that are no setting, each with the setting that it was probably meant for."""
    for name in sorted(set(environ) - set(settings)):
        written = name.strip("\ufeff").upper().removeprefix(_PREFIX)
        # Kubernetes sets RECORDER_PORT=tcp://… beside a service of that name.
        if name.startswith(_PREFIX) and (written not in settings or environ[name].startswith("tcp://")):
            continue
        for meant in difflib.get_close_matches(written, settings, n=1, cutoff=_SIMILAR):
            yield name, meant
