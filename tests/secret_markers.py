"""Secrets that carry a mark, and the search for that mark in all output.

All marks begin alike, so one search finds any of them, in every encoding of a text; the rest of a mark names the place where it
was planted. The search covers bytes: files, responses, messages, tables, and the command lines and environments of processes.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

MARK = "pLaNtEdMaRk"


def forms(text: str) -> dict[str, bytes]:
    """Encodings of a text, by name."""
    raw = text.encode()
    found = {
        "plain": raw,
        "upper case": raw.upper(),
        "lower case": raw.lower(),
        "percent-encoded": "".join(f"%{b:02X}" for b in raw).encode(),
        "percent-encoded in lower case": "".join(f"%{b:02x}" for b in raw).encode(),
        "JSON-escaped": "".join(f"\\u{b:04x}" for b in raw).encode(),
        "hexadecimal": raw.hex().encode(),
        "hexadecimal in upper case": raw.hex().upper().encode(),
        "reversed": raw[::-1],
        "UTF-16": text.encode("utf-16-le"),
    }
    for offset in range(3):
        # Some bits of the first and last character depend on their neighbors.
        first, last = -(-offset * 8 // 6), (offset + len(raw)) * 8 // 6
        found[f"base64 at {offset}"] = base64.b64encode(b"\0" * offset + raw)[first:last]
        found[f"base64 of addresses at {offset}"] = base64.urlsafe_b64encode(b"\0" * offset + raw)[first:last]
    return found


_FORMS = forms(MARK)
_ANY = re.compile(b"|".join(re.escape(form) for form in _FORMS.values()))


@dataclass(slots=True)
class Planted:
    """Planted secrets and their places. `others` are secrets that could not carry the mark, such as keys made by the service."""

    values: dict[str, str] = field(default_factory=dict)
    others: dict[str, bytes] = field(default_factory=dict)

    def make(self, where: str) -> str:
        """A secret for one place: with characters that URLs, base64 and JSON must encode."""
        made = f"{MARK}{len(self.values):03}/+aB9=="
        self.values[made] = where
        return made

    def learn(self, what: str, secret: str) -> None:
        """A secret made elsewhere, searched for in every encoding, plain and as part of a URL: the middle of either, which every
        use of it contains."""
        for spelling in (secret, quote(secret, safe="")):
            middle = spelling[len(spelling) // 4 : -(len(spelling) // 4)]
            self.others |= {f"{what}, {len(self.others)}, {form}": raw for form, raw in forms(middle).items()}

    def search(self, name: str, content: bytes) -> list[str]:
        """The leaks in `content`: its name, the encoding, and the context."""
        found = [f"{name}: {content[max(0, m.start() - 60) : m.end() + 40]!r}" for m in _ANY.finditer(content)]
        found += [f"{name}: {what}" for what, secret in self.others.items() if secret in content]
        return found[:5]

    def search_all(self, written: Mapping[str, bytes]) -> list[str]:
        """The leaks in all output."""
        return [leak for name, content in written.items() for leak in self.search(name, content)]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder; names count as content."""
    for path in sorted(folder.rglob("*")):
        yield f"name of {path.name}", str(path.relative_to(folder)).encode()
        if path.is_file():
            yield str(path), path.read_bytes()


def processes(pid: int) -> Iterator[tuple[str, bytes]]:
    """Command lines and environments of the programs that a process and its children have started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid:
                child = int(stat.parent.name)
                command = (stat.parent / "cmdline").read_bytes()
                # Between fork and exec a child still shows the memory of its parent, its environment included.
                if command == of_process(pid, "cmdline"):
                    continue
                yield f"cmdline of {child}", command
                yield f"environ of {child}", (stat.parent / "environ").read_bytes()
                yield from processes(child)


def of_process(pid: int, name: str) -> bytes:
    """One of the /proc files of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def address(url: str, secret: str) -> str:
    """A URL that carries a secret in its path and in its query."""
    return f"{url}/{quote(secret, safe='')}?token={quote(secret, safe='')}"
