"""`recorder doctor`: looks at settings and surroundings, and says what is wrong, what it means and what to type.

Imports nothing of ours but this room: what only other rooms know is handed in as `Given`. Rules: nothing is changed and nothing
left behind; a check answers within seconds; `fail` is what the service cannot work with, `warn` what it can do without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from cli import client, doctor_probes
from config import settings

OK, WARN, FAIL = "ok", "warn", "fail"
ADVISED_FFMPEG = (7, 1)
# What captures, transcodes and their checks are made with.
ABILITIES = {
    "protocols": ("rtmp", "http", "file"),
    "demuxers": ("flv", "concat"),
    "muxers": ("flv", "mp4", "mp3"),
    "encoders": ("libx264", "libmp3lame", "aac"),
}
PORTS = {"rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
# Answers for every region; a bucket's own host is known only at a start.
COS_HOST = "service.cos.myqcloud.com"
SHORT_TOKEN = 16
SETTINGS_PAGE = "docs/settings.md says what each setting may be."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. `meaning` and `type` are "" where all is well."""

    check: str
    status: str
    found: str
    meaning: str = ""
    type: str = ""


class Schema(Protocol):
    """A database's schema (store.inspection.Schema)."""

    @property
    def current(self) -> str: ...
    @property
    def newest(self) -> str: ...
    @property
    def known(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the other rooms know. `find_ffmpeg`, `check_template`, `check_owner` (of the spool), `schema`, `sealing` (where the
    keys of secrets are) and `credentials` (the name of the place that has them) raise `fault`, whose text is a sentence. `mounts`
    is the system's table of mounts."""

    find_ffmpeg: Callable[[str], str]
    ffmpeg_version: Callable[[str], tuple[int, ...] | None]
    check_template: Callable[[str], None]
    pull_template: str
    check_owner: Callable[[Path], None]
    schema: Callable[[str], Schema]
    sealing: Callable[[settings.Settings], str]
    credentials: Callable[[], str]
    version: str
    fault: type[Exception]
    mounts: Path = Path("/proc/mounts")


class Case:
    """One examination: the environment, the settings it describes, and what was learned on the way."""

    def __init__(self, environ: Mapping[str, str], given: Given) -> None:
        self.environ = environ
        self.given = given
        self.faults: tuple[str, ...] = ()
        self.settings = settings.Settings()
        try:
            self.settings = settings.load(environ)
        except settings.SettingsError as error:
            self.faults = error.faults

    @property
    def is_file(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.settings.database.startswith(settings.SQLITE)

    @functools.cached_property
    def service(self) -> client.Client:
        """The service that the commands ask."""
        token = self.environ.get("RECORDER_TOKEN", "")
        return client.Client(url=self.environ.get("RECORDER_URL") or client.DEFAULT_URL, token=token, timeout_s=5.0)

    @functools.cached_property
    def service_fault(self) -> str:
        """Why the service is of no use to the commands; "" if it is."""
        try:
            self.service.check_ready()
            self.service.sessions(limit="1")
        except client.ClientError as error:
            return str(error)
        return ""


def examine(environ: Mapping[str, str], given: Given) -> list[Finding]:
    """Every check, in order; without settings that can be used, only those that need none."""
    case = Case(environ, given)
    checks = CHECKS_WITHOUT_SETTINGS if case.faults else CHECKS
    return [_made(name, check, case) for name, check in checks.items()]


def _made(name: str, check: Callable[[Case], Finding], case: Case) -> Finding:
    """What the check found; one that the system itself prevented is a failure, and no end of the examination."""
    try:
        return check(case)
    except OSError as error:
        meaning, get = (
            "This could not be looked at; the service may meet the same.",
            "recorder doctor  # again, once that is mended",
        )
        return Finding(check=name, status=FAIL, found=f"{type(error).__name__}: {error}", meaning=meaning, type=get)


def verdict(found: list[Finding]) -> str:
    """The worst status of all."""
    statuses = {finding.status for finding in found}
    return next(status for status in (FAIL, WARN, OK) if status in statuses or status == OK)


# --- settings -------------------------------------------------------------------------------------------------------------
def check_settings(case: Case) -> Finding:
    """All settings can be used."""
    if not case.faults:
        return Finding(check="settings", status=OK, found="all can be used")
    found = "; ".join(case.faults)
    meaning = "The service does not start, and what depends on settings was not looked at."
    return Finding(check="settings", status=FAIL, found=found, meaning=meaning, type=SETTINGS_PAGE)


def check_tokens(case: Case) -> Finding:
    """Whoever can reach the port needs a token that cannot be guessed."""
    name = "api-tokens"
    if any(fault.startswith("API_TOKENS") for fault in case.faults):
        meaning = "Whoever reaches the port could start, stop and look at recordings; the service does not start so."
        return Finding(check=name, status=FAIL, found="none, or unusable", meaning=meaning, type=_MAKE_TOKEN)
    tokens = [token.get_secret_value() for token in case.settings.api_tokens]
    if any(len(token) < SHORT_TOKEN for token in tokens):
        found = f"one is shorter than {SHORT_TOKEN} characters"
        return Finding(check=name, status=WARN, found=found, meaning="It can be guessed.", type=_MAKE_TOKEN)
    return Finding(
        check=name, status=OK, found=f"{len(tokens)} set" if tokens else "none; on loopback none is needed until a key is made"
    )


_MAKE_TOKEN = "export API_TOKENS=$(openssl rand -hex 24)  # and RECORDER_TOKEN the same for the commands"  # noqa: S105 - a command


# --- ffmpeg ---------------------------------------------------------------------------------------------------------------
def check_ffmpeg(case: Case) -> Finding:
    """There is an ffmpeg, and it is not too old."""
    name, get = "ffmpeg", "Unset FFMPEG_BINARY to use the bundled one, or point it to an ffmpeg of version 7.1 or later."
    try:
        binary = case.given.find_ffmpeg(case.settings.ffmpeg_binary)
    except case.given.fault as error:
        return Finding(check=name, status=FAIL, found=str(error), meaning="Nothing can be recorded.", type=get)
    numbers = case.given.ffmpeg_version(binary) or (0,)
    version = ".".join(map(str, numbers)) if numbers != (0,) else "unknown"
    found = f"{binary}, version {version}"
    if numbers < ADVISED_FFMPEG:
        meaning = "Older ones lose a late camera and write files with wrong sizes; the recorder is tested with 7.1 and later."
        return Finding(check=name, status=WARN, found=found, meaning=meaning, type=get)
    return Finding(check=name, status=OK, found=found)


def check_abilities(case: Case) -> Finding:
    """That ffmpeg was built with all that is used of it."""
    name = "ffmpeg-abilities"
    try:
        missing = doctor_probes.ffmpeg_lacks(case.given.find_ffmpeg(case.settings.ffmpeg_binary), ABILITIES)
    except case.given.fault:
        return Finding(check=name, status=FAIL, found="there is no ffmpeg", meaning="See above.", type="recorder doctor")
    if missing:
        meaning = "Captures or transcodes will fail."
        get = "Unset FFMPEG_BINARY to use the bundled ffmpeg, which has all of them."
        return Finding(check=name, status=FAIL, found="it lacks " + ", ".join(missing), meaning=meaning, type=get)
    return Finding(check=name, status=OK, found="rtmp, flv, libx264, libmp3lame, aac and what else is used")


def check_setpriv(case: Case) -> Finding:
    """A capture ends with the service that started it, and takes no more than it may."""
    fault = doctor_probes.setpriv_fault(case.environ.get("PATH", ""))
    if fault:
        meaning = "The service does not start: its ffmpegs would outlive it when it is killed with -9, and have no limits."
        return Finding(check="setpriv", status=FAIL, found=fault, meaning=meaning, type="apt-get install util-linux")
    return Finding(check="setpriv", status=OK, found="works")


# --- disk -----------------------------------------------------------------------------------------------------------------
def check_spool(case: Case) -> Finding:
    """The spool can be written."""
    folder = case.settings.spool
    fault = doctor_probes.folder_fault(folder)
    try:
        case.given.check_owner(folder)
    except case.given.fault as error:
        fault = fault or str(error)
    if fault:
        meaning = "Nothing can be recorded: media goes to the spool first."
        get = "Set SPOOL_DIR (or CFS_PATH) to a folder that this user may write, or change its owner."
        return Finding(check="spool", status=FAIL, found=fault, meaning=meaning, type=get)
    return Finding(check="spool", status=OK, found=f"{folder} can be written")


def check_space(case: Case) -> Finding:
    """The spool has room."""
    free, needed = doctor_probes.free_bytes(case.settings.spool), case.settings.min_free_bytes
    found = f"{_size(free)} free, MIN_FREE is {_size(needed)}"
    if free < needed:
        meaning = "Every start is refused until there is room."
        get = f"df -h {case.settings.spool}  # then make room, set SPOOL_DIR elsewhere, or lower MIN_FREE"
        return Finding(check="spool-space", status=FAIL, found=found, meaning=meaning, type=get)
    return Finding(check="spool-space", status=OK, found=found)


def check_lock(case: Case) -> Finding:
    """One service has the spool, and it is the one that answers."""
    many = bool(case.settings.amqp_url.get_secret_value())
    lock = (case.settings.data_dir if case.settings.spool_shared and many else case.settings.spool) / ".lock"
    if not doctor_probes.is_locked(lock):
        return Finding(check="spool-lock", status=OK, found="free")
    if not case.service_fault:
        return Finding(check="spool-lock", status=OK, found="held by the running service")
    meaning = "A service started with these settings would refuse the spool; what holds it does not answer at RECORDER_URL."
    get = f"fuser -v {lock}  # who holds it; set RECORDER_URL if it is the service, else stop it or set another SPOOL_DIR"
    return Finding(check="spool-lock", status=FAIL, found="held by another process", meaning=meaning, type=get)


def check_database(case: Case) -> Finding:
    """The database can be written, and its schema is this program's."""
    name, file = "database", case.settings.database_file
    fault = doctor_probes.folder_fault(file.parent) if case.is_file else ""
    get = "Start PostgreSQL, or mend DATABASE_URL."
    if case.is_file:
        get = "Set DATA_DIR to a folder that this user may write, or change its owner."
    try:
        schema = None if fault else case.given.schema(case.settings.database)
    except case.given.fault as error:
        fault = str(error)
    if fault or schema is None:
        return Finding(check=name, status=FAIL, found=fault, meaning="The service does not start.", type=get)
    if not schema.known:
        meaning = "A newer recorder has written this database; this one would not understand it."
        get = "Install the newer version here too (docs/operate.md, Restart, upgrade), or name another database."
        return Finding(check=name, status=FAIL, found=f"schema {schema.current}", meaning=meaning, type=get)
    if not case.is_file and schema.current != schema.newest:
        found = f"schema {schema.current}" if schema.current else "empty"
        get = "recorder migrate  # after a pg_dump, with the nodes of the old version stopped"
        return Finding(check=name, status=FAIL, found=found, meaning=f"No node starts before it is at {schema.newest}.", type=get)
    if not schema.current:
        return Finding(check=name, status=OK, found="empty: its tables are made at the first start")
    if schema.current != schema.newest:
        meaning = f"The next start brings it to {schema.newest}, and an older recorder cannot use it after that."
        get = f"cp {file} {file}.{schema.current}  # a copy, with the service stopped; then start it again"
        return Finding(check=name, status=WARN, found=f"schema {schema.current}", meaning=meaning, type=get)
    return Finding(check=name, status=OK, found=f"can be written, schema {schema.current}")


def check_secret_keys(case: Case) -> Finding:
    """There are keys to seal secrets with, and they open what the database holds."""
    try:
        return Finding(check="secret-keys", status=OK, found=case.given.sealing(case.settings))
    except case.given.fault as error:
        meaning = "The service does not start: UserSigs and COS keys could not be opened."
        get = "recorder keys rotate --help  # docs/operate.md, Encryption keys, says what to do"
        return Finding(check="secret-keys", status=FAIL, found=str(error), meaning=meaning, type=get)


def check_place(case: Case) -> Finding:
    """The database lies on a disk of this machine."""
    name, get = "database-place", "Set DATA_DIR to a folder on a disk of this machine."
    meaning = "SQLite's locks do not hold on a network file system: the database would be damaged sooner or later."
    if any("must not lie on CFS_PATH" in fault for fault in case.faults):
        return Finding(check=name, status=FAIL, found="it lies on CFS_PATH", meaning=meaning, type=get)
    if case.faults or not case.is_file:
        return Finding(check=name, status=OK, found="not on CFS_PATH" if case.faults else "a server's, and no file")
    kind = doctor_probes.file_system(case.settings.database_file, case.given.mounts)
    distance = doctor_probes.distance(kind)
    if distance == "network":
        return Finding(check=name, status=FAIL, found=f"a network file system ({kind})", meaning=meaning, type=get)
    if distance == "doubtful":
        found = f"{kind}, which may be a network file system"
        return Finding(check=name, status=WARN, found=found, meaning=meaning.replace("would", "could"), type=get)
    return Finding(check=name, status=OK, found=kind or "cannot be told on this system")


# --- TRTC, COS, receivers ---------------------------------------------------------------------------------------------------
def check_callback_keys(case: Case) -> Finding:
    """TRTC's callbacks can be verified."""
    name, keys = "callback-keys", case.settings.trtc_callback_keys
    if keys:
        return Finding(check=name, status=OK, found="applications " + ", ".join(str(app) for app in keys))
    meaning = "No callback of TRTC is taken: only speakers named in SubscribeUserIds are recorded."
    get = "export TRTC_CALLBACK_KEYS=1400000001=…  # SdkAppId=key, as set in the TRTC console under Callbacks"
    return Finding(check=name, status=WARN, found="none", meaning=meaning, type=get)


def check_callback_secret(case: Case) -> Finding:
    """Receivers can tell our results from forged ones."""
    if case.settings.callback_secret.get_secret_value():
        return Finding(check="callback-secret", status=OK, found="set")
    meaning = "Results are posted unsigned: a receiver cannot tell them from forged ones."
    get = "export CALLBACK_SECRET=whsec_$(openssl rand -base64 24)  # and give it to the receivers"
    return Finding(check="callback-secret", status=WARN, found="not set", meaning=meaning, type=get)


def check_credentials(case: Case) -> Finding:
    """There are credentials for COS where a start brings none."""
    try:
        return Finding(check="credentials", status=OK, found=f"from {case.given.credentials()}")
    except case.given.fault as error:
        meaning = "Each start must bring SecretId and SecretKey of its own."
        get = "export TENCENTCLOUD_SECRET_ID=… TENCENTCLOUD_SECRET_KEY=…  # or bind a role to this machine"
        return Finding(check="credentials", status=WARN, found=str(error), meaning=meaning, type=get)


def check_pull(case: Case) -> Finding:
    """Streams can be pulled from where PULL_ADDRESS says."""
    template = case.settings.pull_address or case.given.pull_template
    try:
        case.given.check_template(template)
        parts = urlsplit(template)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    except (case.given.fault, ValueError, KeyError) as error:
        found, meaning = str(error), "No stream can be pulled."
        return Finding(check="pull", status=FAIL, found=found, meaning=meaning, type=SETTINGS_PAGE)
    return _reached("pull", host, port, "Streams are pulled from there: nothing can be recorded while it is out of reach.")


def check_cos(case: Case) -> Finding:
    """COS can be reached."""
    _, host, port = case.settings.cos_server or ("https", COS_HOST, 443)
    return _reached("cos", host, port, "Files are written there: uploads wait, and are tried again, while it is out of reach.")


def _reached(name: str, host: str, port: int, meaning: str) -> Finding:
    fault = doctor_probes.connect_fault(host, port)
    if fault:
        get = f"nc -vz {host} {port}  # from this machine; look at DNS, firewall and security group"
        return Finding(check=name, status=WARN, found=f"{host}:{port}: {fault}", meaning=meaning, type=get)
    return Finding(check=name, status=OK, found=f"{host}:{port} answers")


# --- the service ------------------------------------------------------------------------------------------------------------
def check_service(case: Case) -> Finding:
    """The service runs, answers the commands, and is of this program's version."""
    url = case.service.url
    if case.service_fault:
        meaning = "The commands start, stop, sessions, show, results and replay do not work from here."
        get = "recorder serve  # or set RECORDER_URL and RECORDER_TOKEN to those of the service"
        return Finding(check="service", status=WARN, found=case.service_fault, meaning=meaning, type=get)
    version = case.service.version()
    if version != case.given.version:
        meaning, get = f"This program is {case.given.version}.", "Restart the service, or set RECORDER_URL to the right one."
        return Finding(check="service", status=WARN, found=f"{url} is version {version}", meaning=meaning, type=get)
    return Finding(check="service", status=OK, found=f"{url} answers, version {version}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "settings": check_settings,
    "api-tokens": check_tokens,
    "ffmpeg": check_ffmpeg,
    "ffmpeg-abilities": check_abilities,
    "setpriv": check_setpriv,
    "spool": check_spool,
    "spool-space": check_space,
    "spool-lock": check_lock,
    "database": check_database,
    "secret-keys": check_secret_keys,
    "database-place": check_place,
    "callback-keys": check_callback_keys,
    "callback-secret": check_callback_secret,
    "credentials": check_credentials,
    "pull": check_pull,
    "cos": check_cos,
    "service": check_service,
}
_NEED_NO_SETTINGS = ("settings", "api-tokens", "setpriv", "database-place", "service")
CHECKS_WITHOUT_SETTINGS = {name: CHECKS[name] for name in _NEED_NO_SETTINGS}
