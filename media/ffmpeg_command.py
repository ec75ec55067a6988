"""The ffmpeg binary and the arguments of a capture, built with ffmpeg-python.

Rules: `-protocol_whitelist` and `-format_whitelist` name everything that ffmpeg may open; its analysis is short; it flushes every
packet; no secret is an argument. The pull address travels as an ffconcat script on an inherited pipe. Measured with ffmpeg 9.0.2
against a plain address, over HTTP-FLV and RTMP: first byte on disk (1.09 s and 0.81 s), stop by `q` (0.10 s and 0.34 s), late
tracks, resolution changes, timestamps, stalls and refusals agree within 20 ms. So the script is always used.
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
# While one track is muted, ffmpeg holds back the other for this long. The default is 10 s: a crash would lose that much, and the
# watch would take it for a stall (measured).
_INTERLEAVE_US = 250_000
# A view begins with media that is on disk already, so its analysis takes no time.
_VIEW_ANALYSIS_US = 300_000
_FRAGMENT_US = 250_000
_LONGEST_ADDRESS_BYTES = 16_384
_PROTOCOLS = {"http": "http,tcp", "https": "https,http,tls,tcp", "rtmp": "rtmp,tcp", "rtmps": "rtmps,rtmp,tls,tcp"}
# Used where Python finds no CA file (SSL_CERT_FILE names one).
_SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_HEARTBEAT = "noise=drop=mod(n\\,31)"


def find(configured: str = "") -> str:
    """The ffmpeg to use: the configured one, else the system's from version 7.1 on, else the bundled one (imageio-ffmpeg).

    Blocking: runs `ffmpeg -version`. Raises errors.Unavailable if the configured one does not run or none is found.
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
    """The version of a binary as numbers; (0,) if it runs but states none, None if it does not run. Blocking."""
    try:
        done = subprocess.run([binary, "-version"], capture_output=True, timeout=20, check=True, env=ffmpeg_process.ENVIRONMENT)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(rb"ffmpeg version n?(\d+(?:\.\d+)*)[ -]", done.stdout)
    return tuple(int(number) for number in found[1].split(b".")) if found else (0,)


def capture_script(address: str, *, timeout_s: float) -> bytes:
    """The ffconcat script with the pull address. `timeout_s` is ffmpeg's own limit for a silent server, only a backstop.

    Raises errors.InvalidParameter for an address that is not an http, https, rtmp or rtmps URL, or that a script cannot hold.
    """
    scheme = urlsplit(address).scheme.lower()
    raw = address.encode("utf-8", "replace")
    if scheme not in _PROTOCOLS or any(byte < 0x21 for byte in raw) or len(raw) > _LONGEST_ADDRESS_BYTES:
        raise errors.InvalidParameter("The pull address is not an http, https, rtmp or rtmps URL.", field="PULL_ADDRESS")
    options = {
        "protocol_whitelist": _PROTOCOLS[scheme],
        "format_whitelist": "flv",  # otherwise a server could answer with a script or a playlist
        "rw_timeout": str(int(timeout_s * 1_000_000)),
        "analyzeduration": str(_ANALYSIS_US),
    }
    if scheme in ("https", "rtmps"):
        # Before version 8 ffmpeg does not verify certificates by default, and its environment is empty: so SSL_CERT_FILE is read
        # here.
        options |= {"tls_verify": "1", "ca_file": _quoted(authorities().encode()).decode()}
    lines = [b"ffconcat version 1.0", b"file " + _quoted(raw)]
    lines += [f"option {name} {value}".encode() for name, value in options.items()]
    return b"\n".join(lines) + b"\n"


def authorities() -> str:
    """The CA file for pulls over TLS: SSL_CERT_FILE, else the system's, else the one that ships with requests."""
    known = ssl.get_default_verify_paths().cafile
    if known:
        return known
    return _SYSTEM_AUTHORITIES if Path(_SYSTEM_AUTHORITIES).is_file() else requests.utils.DEFAULT_CA_BUNDLE_PATH


def _quoted(raw: bytes) -> bytes:
    """Quote one word of a script."""
    return b"'" + raw.replace(b"'", b"'\\''") + b"'"


def capture_args(binary: str, script_fd: int, path: Path, mode: str) -> list[str]:
    """The arguments of a capture that reads its script from `script_fd` and writes FLV to `path`.

    ffmpeg copies every track, so that silence in one track does not look like the end of the stream, and a wanted track that
    begins later is noticed. In mode 00 it keeps one video packet in 31, as a heartbeat. The header is never rewritten and no end
    marker follows, so the file's modification time is the time of its last packet.
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


def view_args(binary: str, output_fd: int) -> list[str]:
    """The arguments of a live view: FLV on stdin, fragmented MP4 to `output_fd`, in fragments of _FRAGMENT_US at most. It copies
    the packets."""
    source = ffmpeg.input("pipe:0", format="flv", protocol_whitelist="pipe", analyzeduration=_VIEW_ANALYSIS_US)
    output = ffmpeg.output(
        source["v?"],
        source["a?"],
        f"pipe:{output_fd}",
        format="mp4",
        codec="copy",
        movflags="frag_keyframe+empty_moov+default_base_moof",
        frag_duration=_FRAGMENT_US,
        flush_packets=1,
        max_interleave_delta=_INTERLEAVE_US,
    )
    return compiled(output, binary)


def compiled(output: Any, binary: str, *options: str) -> list[str]:
    """The argument list of an ffmpeg-python output, with the global options of every run and the given ones."""
    return [str(part) for part in output.global_args(*QUIET, *options).overwrite_output().compile(cmd=binary)]
