"""Checks of `recorder doctor`: settings, ffmpeg, disk, limits, database, network and the running service.

Rules: a check changes nothing and leaves nothing behind. All run side by side, within seconds. `fail`: the service cannot
work. `warn`: it works, with a limit.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from cli import doctor_attention, doctor_case, doctor_cluster, doctor_outside, doctor_probes
from cli.doctor_case import FAIL, OK, SETTINGS_PAGE, WARN, Case, fail, ok, warn
from cli.doctor_case import Finding as Finding
from config import consistency
from machine import errors

ADVISED_FFMPEG = (7, 1)
# Used by captures, transcodes and verification.
ABILITIES = {
    "protocols": ("rtmp", "http", "file"),
    "demuxers": ("flv", "concat"),
    "muxers": ("flv", "mp4", "mp3"),
    "encoders": ("libx264", "libmp3lame", "aac"),
}
SHORT_TOKEN = 16
# A capture by ffmpeg has a segment, two pipes, a process descriptor, and for a moment the pipe of its address; a native one a
# socket, a segment, its index and the growing file. Followers are other processes, and have as many for each recording.
FILES_PER_CAPTURE = 6
FILES_OF_SERVICE = 512
EXPECTED_CAPTURES = 500
# Threads and processes, which the kernel counts alike.
TASKS_OF_SERVICE = 256
TASKS_PER_FFMPEG = 16
TASKS_PER_FOLLOWED = 5  # an ffmpeg that copies, and a thread of the follower
# Checks without whose answer the service cannot work.
_NEEDED = ("ffmpeg", "spool", "database")


def examine(
    environ: Mapping[str, str], mounts: Path = Path("/proc/mounts"), limit_s: float = doctor_case.LIMIT_S
) -> list[Finding]:
    """Run all checks side by side, for `limit_s`; with unusable settings only those that need none. The findings have the order
    of CHECKS. `mounts`: the system's table of mounts."""
    # Loading takes the time of the program's start and not of the checks.
    from assembly import database, encryption_keys, inspection  # noqa: F401 - loaded here, used by the checks

    case = Case(environ, mounts, limit_s)
    checks = CHECKS_WITHOUT_SETTINGS if case.faults else CHECKS
    found: dict[str, Finding] = {}
    # Daemons: a check that hangs does not hold the end of the program.
    threads = [threading.Thread(target=_run, args=(name, check, case, found), daemon=True) for name, check in checks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(case.rest_s)
    return [found.get(name) or _late(name, limit_s) for name in checks]


def _run(name: str, check: Callable[[Case], Finding], case: Case, found: dict[str, Finding]) -> None:
    """Run a check. An error is a finding and does not end the examination."""
    try:
        finding = check(case)
    except Exception as error:  # noqa: BLE001 - the others are still of use, whatever is wrong with this one
        meaning = "This check could not run; the service may meet the same error."
        finding = fail(f"{type(error).__name__}: {error}", meaning, "recorder doctor  # again, once this is repaired")
    found[name] = dataclasses.replace(finding, check=name)


def _late(name: str, limit_s: float) -> Finding:
    """The finding about a check that did not end."""
    judged = fail if name in _NEEDED else warn
    remedy = "recorder doctor --within 30  # waits longer"
    return dataclasses.replace(
        judged(f"no answer within {limit_s:g} s", "What it examines is slow, or hangs.", remedy), check=name
    )


def verdict(findings: list[Finding]) -> str:
    """The worst status."""
    statuses = {finding.status for finding in findings}
    return next(status for status in (FAIL, WARN, OK) if status in statuses or status == OK)


# --- settings -------------------------------------------------------------------------------------------------------------
def check_settings(case: Case) -> Finding:
    """All settings are usable."""
    if not case.faults and case.misspelled:
        return warn("; ".join(case.misspelled), "The service runs without them.", SETTINGS_PAGE)
    if not case.faults:
        return ok("all usable")
    meaning = "The service does not start. Checks that depend on settings were left out."
    return fail("; ".join(case.faults), meaning, SETTINGS_PAGE)


def check_tokens(case: Case) -> Finding:
    """A port that others can reach needs a token that cannot be guessed."""
    if any(fault.startswith("API_TOKENS") for fault in case.faults):
        meaning = "Anyone who reaches the port could start, stop and read recordings, so the service does not start."
        return fail("none, or unusable", meaning, _MAKE_TOKEN)
    tokens = [token.get_secret_value() for token in case.settings.api_tokens]
    if any(len(token) < SHORT_TOKEN for token in tokens):
        return warn(f"one is shorter than {SHORT_TOKEN} characters", "It can be guessed.", _MAKE_TOKEN)
    return ok(f"{len(tokens)} set" if tokens else "none; loopback needs none until an API key exists")


_MAKE_TOKEN = "export API_TOKENS=$(openssl rand -hex 24)  # and RECORDER_TOKEN the same for the commands"  # noqa: S105 - a command


# --- ffmpeg ---------------------------------------------------------------------------------------------------------------
def check_ffmpeg(case: Case) -> Finding:
    """An ffmpeg of a tested version is installed."""
    from assembly import inspection

    remedy = "Unset FFMPEG_BINARY to use the bundled ffmpeg, or set it to an ffmpeg of version 7.1 or later."
    try:
        binary, numbers = inspection.ffmpeg(case.settings)
    except errors.RecorderError as error:
        return fail(str(error), "Nothing can be recorded.", remedy)
    version = ".".join(map(str, numbers)) if numbers != (0,) else "unknown"
    found = f"{binary}, version {version}"
    if numbers < ADVISED_FFMPEG:
        meaning = "Older versions lose a late camera and write wrong sizes; the recorder is tested with 7.1 and later."
        return warn(found, meaning, remedy)
    return ok(found)


def check_abilities(case: Case) -> Finding:
    """This ffmpeg has every protocol, format and encoder in use."""
    from assembly import inspection

    try:
        binary, _ = inspection.ffmpeg(case.settings)
    except errors.RecorderError:
        return fail("there is no ffmpeg", "See above.", "recorder doctor")
    missing = doctor_probes.ffmpeg_lacks(binary, ABILITIES, case.left_s)
    if missing:
        remedy = "Unset FFMPEG_BINARY to use the bundled ffmpeg, which has all of them."
        return fail("it lacks " + ", ".join(missing), "Captures or transcodes will fail.", remedy)
    return ok("rtmp, flv, libx264, libmp3lame, aac and the others in use")


def check_setpriv(case: Case) -> Finding:
    """An ffmpeg ends with the service and has limits."""
    fault = doctor_probes.setpriv_fault(case.environ.get("PATH", ""), case.left_s)
    if fault:
        meaning = "The service does not start: without these an ffmpeg has no limits and outlives a kill -9 of the service."
        return fail(fault, meaning, "apt-get install util-linux")
    return ok("works")


# --- disk -----------------------------------------------------------------------------------------------------------------
def check_spool(case: Case) -> Finding:
    """The spool is writable and belongs to this user."""
    from assembly import inspection

    folder = case.settings.spool
    fault = doctor_probes.folder_fault(folder)
    try:
        inspection.check_spool_owner(case.settings)
    except errors.RecorderError as error:
        fault = fault or str(error)
    if fault:
        remedy = "Set SPOOL_DIR (or CFS_PATH) to a folder that this user can write, or change its owner."
        return fail(fault, "Nothing can be recorded: media goes to the spool first.", remedy)
    return ok(f"{folder} can be written")


def check_space(case: Case) -> Finding:
    """The spool has MIN_FREE."""
    free, needed = doctor_probes.free_bytes(case.settings.spool), case.settings.min_free_bytes
    found = f"{doctor_probes.size(free)} free, MIN_FREE is {doctor_probes.size(needed)}"
    if free < needed:
        remedy = f"df -h {case.settings.spool}  # then free space, set SPOOL_DIR elsewhere, or lower MIN_FREE"
        return fail(found, "Every start is refused until there is enough space.", remedy)
    return ok(found)


def check_spool_policy(case: Case) -> Finding:
    """The file system of the spool allows what SPOOL_POLICY asks for, and no recording takes more of it."""
    from assembly import spool_policy

    folder = case.settings.spool
    if not folder.exists() or doctor_probes.folder_fault(folder):
        return ok("not known before the spool can be written")
    found = spool_policy.of(case.settings, folder, doctor_probes.total_bytes(folder))
    if not found.wanted:
        return ok("it keeps everything until a recording is Done")
    if not found.bound_bytes:
        return warn(spool_policy.NOT_BOUNDED, "A long recording can fill it.", "Set SPOOL_DIR to ext4, XFS, btrfs or tmpfs")
    most = doctor_probes.size(found.bound_bytes)
    if over := spool_policy.over_bound(folder, found.bound_bytes):
        meaning = "COS takes their files too slowly, or a file cannot be written while they run. They can fill the spool."
        remedy = "Search the log of the service for upload.live_failed and follower.ended_often"
        return warn(f"recordings that take more than {most}: {over}", meaning, remedy)
    return ok(f"at most {most} for a recording")


def check_lock(case: Case) -> Finding:
    """The locks of the spool and of SQLite's file are free, or held by the service that answers."""
    shared = case.settings.spool_shared and case.distributed
    spool = (case.settings.data_dir if shared else case.settings.spool) / ".lock"
    file = case.settings.database_file.resolve()
    database = file.with_name(f"{file.name}.lock")
    held = [lock for lock in (spool, *([] if case.distributed else [database])) if doctor_probes.is_locked(lock)]
    if not held:
        return ok("free")
    if not case.service_fault:
        return ok("held by the running service")
    meaning = "A service with these settings would not start. The process that holds the lock does not answer at RECORDER_URL."
    remedy = f"fuser -v {held[0]}  # shows the process; set RECORDER_URL if it is the service, else stop it or change {{}}"
    return fail("held by another process", meaning, remedy.format("SPOOL_DIR" if held[0] == spool else "DATA_DIR"))


def check_open_files(case: Case) -> Finding:
    """The limit of open files is enough for the captures."""
    captures = case.settings.max_captures or EXPECTED_CAPTURES
    limit, needed = doctor_probes.most_files(), FILES_OF_SERVICE + FILES_PER_CAPTURE * captures
    if limit < needed:
        meaning = f"{captures} captures at a time need {needed}. Above the limit no capture, upload or connection begins."
        remedy = f"ulimit -n {needed}  # or LimitNOFILE={needed} in the unit of systemd; then restart the service"
        return warn(f"at most {limit} open files", meaning, remedy)
    return ok(f"at most {limit} open files")


def check_processes(case: Case) -> Finding:
    """The limit of processes and threads is enough for the service and its ffmpegs."""
    captures, by_ffmpeg = case.settings.max_captures or EXPECTED_CAPTURES, case.settings.capture == "ffmpeg"
    ffmpegs = captures * by_ffmpeg + (case.settings.transcodes or os.cpu_count() or 1)
    followed = captures if case.settings.follow and not by_ffmpeg else 0
    limit = doctor_probes.most_tasks()
    needed = TASKS_OF_SERVICE + TASKS_PER_FFMPEG * ffmpegs + TASKS_PER_FOLLOWED * followed
    if limit < needed:
        meaning = f"The service and {ffmpegs + followed} ffmpegs need about {needed}. Above the limit nothing new begins."
        remedy = f"ulimit -u {needed}  # or TasksMax={needed} in the unit of systemd, or the container's limit of pids"
        return warn(f"at most {limit} processes and threads", meaning, remedy)
    return ok("no limit" if limit == sys.maxsize else f"at most {limit} processes and threads")


# --- database -------------------------------------------------------------------------------------------------------------
def check_database(case: Case) -> Finding:
    """The database is writable and has this program's schema."""
    from assembly import database

    file = case.settings.database_file
    fault = doctor_probes.folder_fault(file.parent) if case.is_file else ""
    remedy = "Start PostgreSQL, or correct DATABASE_URL."
    if case.is_file:
        remedy = "Set DATA_DIR to a folder that this user can write, or change its owner."
    try:
        schema = None if fault else case.schema
    except errors.RecorderError as error:
        fault = str(error)
    if fault or schema is None:
        return fail(fault, "The service does not start.", remedy)
    current = schema.current
    if not schema.known:
        meaning = "A newer recorder has migrated this database; this version cannot read it."
        remedy = "Install the newer version here too (docs/operate.md, Restart, upgrade), or use another database."
        return fail(f"schema {current}", meaning, remedy)
    if not case.is_file and current < schema.newest:
        found = f"schema {current}" if current else "empty"
        remedy = "recorder migrate  # after a pg_dump; the nodes of the old version go on"
        return fail(found, f"Nodes start only at schema {schema.newest}.", remedy)
    if not current:
        return ok("empty: the first start creates its tables")
    if current > schema.newest:
        meaning = "A newer version has migrated this database, and still allows this one."
        return warn(f"schema {current}", meaning, "Install the newer version here too (docs/operate.md, Restart, upgrade).")
    if schema.contract_is_due:
        meaning = "An upgrade is not finished: nodes of the version before may still write."
        return warn(f"schema {current}", meaning, "recorder migrate --contract  # after the last of them has stopped")
    if current != schema.newest:
        meaning = f"The next start migrates it to {schema.newest}; after that an older recorder cannot use it."
        remedy = f"cp {file} {file}.{current}  # a copy, with the service stopped; then start it again"
        return warn(f"schema {current}", meaning, remedy)
    needed = database.pool_size(case.settings)
    if schema.free is not None and schema.free < needed:
        meaning = f"This node opens up to {needed}; without them its requests fail and its leases may end."
        remedy = "Raise max_connections of PostgreSQL, or set DATABASE_CONNECTIONS (docs/operate.md, Database connections)."
        return warn(f"the server has {schema.free} connections left", meaning, remedy)
    return ok(f"can be written, schema {current}")


def check_secret_keys(case: Case) -> Finding:
    """The encryption keys decrypt every secret of the database."""
    from assembly import encryption_keys

    try:
        return ok(encryption_keys.describe(case.settings))
    except errors.RecorderError as error:
        meaning = "The service does not start: it could not decrypt UserSigs and COS keys."
        remedy = "recorder keys rotate --help  # and docs/operate.md, Encryption keys"
        return fail(str(error), meaning, remedy)


def check_place(case: Case) -> Finding:
    """A SQLite file is on a local disk."""
    remedy = "Set DATA_DIR to a folder on a local disk."
    meaning = "SQLite's locks do not work on a network file system: the database would be damaged sooner or later."
    if any(fault.endswith(consistency.ON_CFS_PATH) for fault in case.faults):
        return fail("it is on CFS_PATH", meaning, remedy)
    if case.faults or not case.is_file:
        return ok("not on CFS_PATH" if case.faults else "a server's, and no file")
    kind = doctor_probes.file_system(case.settings.database_file, case.mounts)
    distance = doctor_probes.distance(kind)
    if distance == "network":
        return fail(f"a network file system ({kind})", meaning, remedy)
    if distance == "doubtful":
        found = f"{kind}, which may be a network file system"
        return warn(found, meaning.replace("would", "could"), remedy)
    return ok(kind or "unknown on this system")


# --- the service ------------------------------------------------------------------------------------------------------------
def check_service(case: Case) -> Finding:
    """The service runs, answers the commands and has this program's version."""
    from assembly import identity

    url = case.service.url
    if case.service_fault:
        meaning = "The commands start, stop, sessions, show, results, replay and resend do not work from here."
        remedy = "recorder serve  # or set RECORDER_URL and RECORDER_TOKEN to those of the service"
        return warn(case.service_fault, meaning, remedy)
    version = case.service.version()
    if version != identity.VERSION:
        meaning, remedy = f"This program is {identity.VERSION}.", "Restart the service, or set RECORDER_URL to the right one."
        return warn(f"{url} has version {version}", meaning, remedy)
    return ok(f"{url} answers, version {version}")


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "settings": check_settings,
    "api-tokens": check_tokens,
    "ffmpeg": check_ffmpeg,
    "ffmpeg-abilities": check_abilities,
    "setpriv": check_setpriv,
    "spool": check_spool,
    "spool-space": check_space,
    "spool-policy": check_spool_policy,
    "spool-lock": check_lock,
    "open-files": check_open_files,
    "processes": check_processes,
    "database": check_database,
    "secret-keys": check_secret_keys,
    "database-place": check_place,
    "callback-keys": doctor_outside.check_callback_keys,
    "callback-secret": doctor_outside.check_callback_secret,
    "credentials": doctor_outside.check_credentials,
    "pull": doctor_outside.check_pull,
    "cos": doctor_outside.check_cos,
    "clock": doctor_cluster.check_clock,
    "broker": doctor_cluster.check_broker,
    "workers": doctor_cluster.check_workers,
    "dead-letters": doctor_cluster.check_dead_letters,
    "receivers": doctor_cluster.check_receivers,
    "service": check_service,
    "attention": doctor_attention.check_attention,
}
_NEED_NO_SETTINGS = ("settings", "api-tokens", "setpriv", "database-place", "service")
CHECKS_WITHOUT_SETTINGS = {name: CHECKS[name] for name in _NEED_NO_SETTINGS}
