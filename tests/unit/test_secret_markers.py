"""The search for planted secrets finds them in every encoding."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests import secret_markers


def written(secret: str) -> dict[str, bytes]:
    """A secret in the encodings that programs use."""
    raw = secret.encode()
    found = {
        "plain": b"a line with " + raw,
        "json": json.dumps({"a": json.dumps({"b": secret})}).encode(),
        "escaped": "".join(f"\\u{ord(c):04x}" for c in secret).encode(),
        "quoted": quote(secret, safe="").encode(),
        "form": urlencode({"UserSig": secret}).encode(),
        "percent": "".join(f"%{b:02X}" for b in raw).encode(),
        "hex": binascii.hexlify(raw, " ", 40),
        "dump": raw.hex().upper().encode(),
        "sqlite": b"\0\x01" + raw + b"\0",
        "repr": repr(raw).encode(),
        "upper": secret.upper().encode(),
    }
    for before in range(6):
        for after in range(3):
            found[f"base64-{before}-{after}"] = base64.b64encode(b"x" * before + raw + b"y" * after)
            found[f"url-base64-{before}-{after}"] = base64.urlsafe_b64encode(b"x" * before + raw + b"y" * after)
    return found


@pytest.mark.parametrize("secret", ["", "eJyrVgrxCdYrSy1SslJQMtIzUNJR*-ItkpqTm_"])
def test_every_form_is_found(secret: str) -> None:
    """The search finds every encoding, because a search that finds nothing would prove nothing; foreign secrets are found like
    our own."""
    marks = secret_markers.Planted()
    if secret:
        marks.learn("made elsewhere", secret)
    secret = secret or marks.make("here")
    missed = [name for name, content in written(secret).items() if not marks.search(name, content)]
    assert missed == []


@pytest.mark.parametrize("content", [b"", b"UserSig=***", base64.b64encode(b"nothing of it" * 100), b"planted mark"])
def test_nothing_else_is_found(content: bytes) -> None:
    """Similar text is no leak."""
    assert secret_markers.Planted().search("x", content) == []


def test_files_and_their_names_are_searched(tmp_path: Path) -> None:
    """The search covers folders, files and names, and also secrets without a mark."""
    marks = secret_markers.Planted(others={"the key": b"0123456789abcdef"})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text("token=" + marks.make("log"))
    (tmp_path / "a" / quote(marks.make("name"), safe="")).touch()
    (tmp_path / "b").write_bytes(b"..0123456789abcdef..")
    leaks = marks.search_all(dict(secret_markers.files(tmp_path)))
    assert len(leaks) == 3
    assert any("the key" in leak for leak in leaks)
