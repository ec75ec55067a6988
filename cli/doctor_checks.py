"""Checks of `recorder doctor`: settings, ffmpeg, disk, database, network and the running service.

Rules: a check changes nothing, leaves nothing behind and ends within seconds. `fail`: the service cannot work. `warn`: it works,
with a limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path

from cli import doctor_attention, doctor_probes
from cli.doctor_case import FAIL, OK, WARN, Case, fail, ok, warn
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
# Answers for every region; a bucket's own host is known only at a start.
COS_HOST = "service.cos.myqcloud.com"
SHORT_TOKEN = 16
# A capture has a segment, two pipes, a process descriptor, and for a moment the pipe of its address.
FILES_PER_CAPTURE = 6
FILES_OF_SERVICE = 512
EXPECTED_CAPTURES = 500
SETTINGS_PAGE = "docs/settings.md lists what each setting may be."


def examine(environ: Mapping[str, str], mounts: Path = Path("/proc/mounts")) -> list[Finding]:
    """Run all checks in order; with unusable settings only those that need none. `mounts`: the system's table of mounts."""
    case = Case(environ, mounts)
    checks = CHECKS_WITHOUT_SETTINGS if case.faults else CHECKS
    # Together: a host that does not answer costs its time limit once.
    with futures.ThreadPoolExecutor(len(checks)) as threads:
        return list(threads.map(lambda name: _finding(name, checks[name], case), checks))


def _finding(name: str, check: Callable[[Case], Finding], case: Case) -> Finding:
    """Run a check. An error of the operating system is a finding and does not end the examination."""
    try:
        return dataclasses.replace(check(case), check=name)
    except OSError as error:
        meaning = "This check could not run; the service may meet the same error."
        remedy = "recorder doctor  # again, once this is repaired"
        return dataclasses.replace(fail(f"{type(error).__name__}: {error}", meaning, remedy), check=name)


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
    missing = doctor_probes.ffmpeg_lacks(binary, ABILITIES)
    if missing:
        remedy = "Unset FFMPEG_BINARY to use the bundled ffmpeg, which has all of them."
        return fail("it lacks " + ", ".join(missing), "Captures or transcodes will fail.", remedy)
    return ok("rtmp, flv, libx264, libmp3lame, aac and the others in use")


def check_setpriv(case: Case) -> Finding:
    """An ffmpeg ends with the service and has limits."""
    fault = doctor_probes.setpriv_fault(case.environ.get("PATH", ""))
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


def check_lock(case: Case) -> Finding:
    """The locks of the spool and of SQLite's file are free, or held by the service that answers."""
    distributed = bool(case.settings.amqp_url.get_secret_value())
    spool = (case.settings.data_dir if case.settings.spool_shared and distributed else case.settings.spool) / ".lock"
    file = case.settings.database_file.resolve()
    database = file.with_name(f"{file.name}.lock")
    held = [lock for lock in (spool, *([] if distributed else [database])) if doctor_probes.is_locked(lock)]
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


# --- database -------------------------------------------------------------------------------------------------------------
def check_database(case: Case) -> Finding:
    """The database is writable and has this program's schema."""
    from assembly import database, inspection

    file = case.settings.database_file
    fault = doctor_probes.folder_fault(file.parent) if case.is_file else ""
    remedy = "Start PostgreSQL, or correct DATABASE_URL."
    if case.is_file:
        remedy = "Set DATA_DIR to a folder that this user can write, or change its owner."
    try:
        schema = None if fault else inspection.schema(case.settings)
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
    if schema.clock_warnings:
        meaning = "Nothing is lost; times in the log and in other programs differ."
        return warn(" ".join(schema.clock_warnings), meaning, "timedatectl set-ntp true")
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


# --- TRTC, COS, receivers ---------------------------------------------------------------------------------------------------
def check_callback_keys(case: Case) -> Finding:
    """TRTC callbacks can be verified."""
    keys = case.settings.trtc_callback_keys
    if keys:
        return ok("applications " + ", ".join(str(app) for app in keys))
    meaning = "Every TRTC callback is refused: only speakers named in SubscribeUserIds are recorded."
    remedy = "export TRTC_CALLBACK_KEYS=1400000001=…  # SdkAppId=key, as set in the TRTC console under Callbacks"
    return warn("none", meaning, remedy)


def check_callback_secret(case: Case) -> Finding:
    """Receivers can verify results."""
    if case.settings.callback_secret.get_secret_value():
        return ok("set")
    meaning = "Results are posted unsigned: a receiver cannot tell them from forged ones."
    remedy = "export CALLBACK_SECRET=whsec_$(openssl rand -base64 24)  # and give it to the receivers"
    return warn("not set", meaning, remedy)


def check_credentials(case: Case) -> Finding:
    """COS credentials exist for starts that bring none."""
    from assembly import inspection

    try:
        return ok(f"from {inspection.credentials_source(case.environ)}")
    except errors.RecorderError as error:
        remedy = "export TENCENTCLOUD_SECRET_ID=… TENCENTCLOUD_SECRET_KEY=…  # or bind a role to this machine"
        return warn(str(error), "Each start must bring its own SecretId and SecretKey.", remedy)


def check_pull(case: Case) -> Finding:
    """The server of PULL_ADDRESS can be reached."""
    from assembly import inspection

    try:
        host, port = inspection.pull_endpoint(case.settings)
    except (errors.RecorderError, ValueError, KeyError) as error:
        return fail(str(error), "No stream can be pulled.", SETTINGS_PAGE)
    return _connection(host, port, "Streams are pulled from there: nothing is recorded while it is unreachable.")


def check_cos(case: Case) -> Finding:
    """COS can be reached."""
    _, host, port = case.settings.cos_server or ("https", COS_HOST, 443)
    return _connection(host, port, "Files are uploaded there: uploads are retried while it is unreachable.")


def _connection(host: str, port: int, meaning: str) -> Finding:
    fault = doctor_probes.connect_fault(host, port)
    if fault:
        remedy = f"nc -vz {host} {port}  # from this machine; check DNS, firewall and security group"
        return warn(f"{host}:{port}: {fault}", meaning, remedy)
    return ok(f"{host}:{port} answers")


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


def check_dead_letters(case: Case) -> Finding:
    """The broker answers, and its dead letter queue has space."""
    from assembly import inspection

    if not case.settings.amqp_url.get_secret_value():
        return ok("no broker")
    try:
        count, warnings = inspection.dead_letters(case.settings)
    except errors.RecorderError as error:
        return warn(str(error), "Messages wait in the database.", "Start RabbitMQ, or correct AMQP_URL.")
    if warnings:
        return warn(f"{count} messages", "The broker refuses more at a limit; those then take slots.", " ".join(warnings))
    return ok(f"{count} messages")


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "settings": check_settings,
    "api-tokens": check_tokens,
    "ffmpeg": check_ffmpeg,
    "ffmpeg-abilities": check_abilities,
    "setpriv": check_setpriv,
    "spool": check_spool,
    "spool-space": check_space,
    "spool-lock": check_lock,
    "open-files": check_open_files,
    "database": check_database,
    "secret-keys": check_secret_keys,
    "database-place": check_place,
    "callback-keys": check_callback_keys,
    "callback-secret": check_callback_secret,
    "credentials": check_credentials,
    "pull": check_pull,
    "cos": check_cos,
    "dead-letters": check_dead_letters,
    "service": check_service,
    "attention": doctor_attention.check_attention,
}
_NEED_NO_SETTINGS = ("settings", "api-tokens", "setpriv", "database-place", "service")
CHECKS_WITHOUT_SETTINGS = {name: CHECKS[name] for name in _NEED_NO_SETTINGS}
