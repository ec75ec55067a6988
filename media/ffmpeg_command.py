"""The ffmpeg binary, and the argument lists it is run with for a capture. Built with ffmpeg-python; imports `machine.errors`
and, of this room, `process`.

Rule: what ffmpeg may open is spelled out (`-protocol_whitelist`, `-format_whitelist`), its analysis is short, its
packets are flushed, and no secret is ever an argument. The pull address travels as an ffconcat script on an inherited
pipe. Measured with ffmpeg 9.0.2 against the plain address, over HTTP-FLV and RTMP: first byte on disk (1.09 s and 0.81
s), stop by `q` (0.10 s and 0.34 s), late tracks, a resolution change, timestamps, stalls and refusals are all the same
to within 20 ms, so it is used always.
"""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ffmpeg
import imageio_ffmpeg
import requests

from machine import errors
from media import ffmpeg_process

OLDEST_SYSTEM_VERSION = (7, 1)
QUIET = ("-hide_banner", "-nostats", "-loglevel", "level+warning")
_ANALYSIS_US = 1_000_000
# While one track is muted, ffmpeg holds the other back for this long, waiting for the first. The default is 10 s, all of
# which a crash would lose and a watch would take for a stall (measured).
_INTERLEAVE_US = 250_000
_LONGEST_ADDRESS_BYTES = 16_384
_PROTOCOLS = {"http": "http,tcp", "https": "https,http,tls,tcp", "rtmp": "rtmp,tcp", "rtmps": "rtmps,rtmp,tls,tcp"}
# Where Python knows of no file of authorities (SSL_CERT_FILE names one).
_SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_HEARTBEAT = "noise=drop=mod(n\\,31)"


def find(configured: str = "") -> str:
    """The ffmpeg to use: the configured one, else the system's if it is 7.1 or later, else the bundled one (imageio-ffmpeg).

    Blocking: runs `ffmpeg -version`. Raises errors.Unavailable when the configured one does not run or none is there.
    """
    if configured:
        if version(configured) is None:
            raise errors.Unavailable(f"FFMPEG_BINARY names {configured}, which does not run as ffmpeg.")
        return configured
    system = shutil.which("ffmpeg")
    if system is not None and (version(system) or (0,)) >= OLDEST_SYSTEM_VERSION:
        return system
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise errors.Unavailable("No ffmpeg was found; set FFMPEG_BINARY to one of version 7.1 or later.") from error


def version(binary: str) -> tuple[int, ...] | None:
    """The version numbers of a binary, (0,) when it runs but states none, None when it does not run. Blocking."""
    try:
        done = subprocess.run([binary, "-version"], capture_output=True, timeout=20, check=True, env=ffmpeg_process.ENVIRONMENT)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(rb"ffmpeg version n?(\d+(?:\.\d+)*)[ -]", done.stdout)
    return tuple(int(number) for number in found[1].split(b".")) if found else (0,)


def capture_script(address: str, *, timeout_s: float) -> bytes:
    """The ffconcat script that names the pull address. `timeout_s` is ffmpeg's own limit for a silent server, a backstop only.

    Raises errors.InvalidParameter for an address that is no http, https, rtmp or rtmps URL or cannot stand in a script.
    """
    scheme = urlsplit(address).scheme.lower()
    raw = address.encode("utf-8", "replace")
    if scheme not in _PROTOCOLS or any(byte < 0x21 for byte in raw) or len(raw) > _LONGEST_ADDRESS_BYTES:
        raise errors.InvalidParameter("The pull address is not an http, https, rtmp or rtmps URL.", field="PULL_ADDRESS")
    options = {
        "protocol_whitelist": _PROTOCOLS[scheme],
        "format_whitelist": "flv",  # else a server might answer with a script or a playlist of its own
        "rw_timeout": str(int(timeout_s * 1_000_000)),
        "analyzeduration": str(_ANALYSIS_US),
    }
    if scheme in ("https", "rtmps"):
        # Before 8 ffmpeg checks nothing by itself, and its environment is empty: SSL_CERT_FILE is read here.
        options |= {"tls_verify": "1", "ca_file": _quoted(authorities().encode()).decode()}
    lines = [b"ffconcat version 1.0", b"file " + _quoted(raw)]
    lines += [f"option {name} {value}".encode() for name, value in options.items()]
    return b"\n".join(lines) + b"\n"


def authorities() -> str:
    """The file of the authorities whose certificates count for a pull by TLS: SSL_CERT_FILE, the system's, or those that come
    with requests."""
    known = ssl.get_default_verify_paths().cafile
    if known:
        return known
    return _SYSTEM_AUTHORITIES if Path(_SYSTEM_AUTHORITIES).is_file() else requests.utils.DEFAULT_CA_BUNDLE_PATH


def _quoted(raw: bytes) -> bytes:
    """One word of a script."""
    return b"'" + raw.replace(b"'", b"'\\''") + b"'"


def capture_args(binary: str, script_fd: int, path: Path, mode: str) -> list[str]:
    """The arguments of a capture that reads its script from `script_fd` and writes FLV to `path`.

    Everything the speaker sends is copied, so that one track's silence is not taken for the stream's end and a wanted track that
    begins later is noticed; of pictures in mode 00 one packet in 31 is kept, as a sign of life. The header is never
    rewritten and no end marker follows, so the file's time of last writing is that of its last packet.
    """
    source = ffmpeg.input(
        f"/dev/fd/{script_fd}",
        format="concat",
        safe=0,
        auto_convert=0,
        protocol_whitelist="file," + ",".join(sorted({name for names in _PROTOCOLS.values() for name in names.split(",")})),
        format_whitelist="concat,flv",
        analyzeduration=_ANALYSIS_US,
    )
    heartbeat = {"bsf:v": _HEARTBEAT} if mode == "00" else {}
    output = ffmpeg.output(
        source["a?"],
        source["v?"],
        str(path),
        format="flv",
        codec="copy",
        flush_packets=1,
        max_interleave_delta=_INTERLEAVE_US,
        flvflags="no_duration_filesize+no_sequence_end",
        **heartbeat,
    )
    return compiled(output, binary)


def compiled(output: Any, binary: str, *options: str) -> list[str]:
    """The argument list of an ffmpeg-python output, with the global options that every run has and those given."""
    return [str(part) for part in output.global_args(*QUIET, *options).overwrite_output().compile(cmd=binary)]
