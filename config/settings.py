"""Settings: one frozen value, built once from an environment mapping.

Rules: all faults are reported at once; each names its variable and its allowed values, never its value. An empty variable counts
as unset. Secrets are `SecretStr`, so that no log and no dump shows them. This module does not read the process's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
import pydantic_settings
from pydantic import SecretStr

from config import addresses, consistency, environment, fields, parsers

DATABASE_NAME = "recorder.db"
DURATION = fields.DURATION


class SettingsError(ValueError):
    """The settings cannot be used. `faults` has a sentence for each wrong variable."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        self.faults = faults
        super().__init__("The settings cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))


_list_of, _setting = fields.list_of, fields.setting
Seconds = fields.Seconds
Keys = fields.Keys


class Settings(pydantic_settings.BaseSettings):
    """All settings of the service. Times are in seconds, sizes in bytes."""

    model_config = pydantic_settings.SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    host: Annotated[str, fields.read(addresses.host)] = _setting(
        "HOST", "127.0.0.1", "a host name or address, without a port", "Address on which the API listens."
    )
    port: int = _setting("PORT", 8080, "a number from 0 to 65535", "Port of the API; 0 takes a free one.", ge=0, le=65535)
    api_tokens: Annotated[tuple[SecretStr, ...], _list_of(parsers.token)] = _setting(
        "API_TOKENS",
        (),
        "a comma-separated list of printable words without spaces",
        "Bearer tokens of the API. Required unless HOST is a loopback address.",
    )
    api_rate: int = _setting(
        "API_RATE", 1200, "a number from 0", "Requests per minute for each key or token on a node; 0 is no limit.", ge=0
    )
    api_sessions: int = _setting(
        "API_SESSIONS", 1000, "a number from 0", "Open sessions for a key without its own quota; 0 is no limit.", ge=0
    )
    metrics_token: Annotated[SecretStr, fields.read(parsers.token)] = _setting(
        "METRICS_TOKEN", SecretStr(""), "one printable word", "Token that reads `/metrics` and nothing else.", shown="none"
    )
    data_dir: Path = _setting(
        "DATA_DIR", Path(), "a path", "Folder of the database.", shown="`$XDG_DATA_HOME/recorder`, or `~/.local/share/recorder`"
    )
    database_url: Annotated[SecretStr, fields.read(addresses.database)] = _setting(
        "DATABASE_URL",
        SecretStr(""),
        "sqlite:///path of a file; with AMQP_URL postgresql://user:password@host/name, also with several hosts and sslmode",
        "The database, unless it is the SQLite file `recorder.db` in DATA_DIR.",
    )
    database_connections: int = _setting(
        "DATABASE_CONNECTIONS", 0, "a number from 0", "Connections of this node to PostgreSQL; 0: by its roles.", ge=0, le=100
    )
    secret_keys: Annotated[tuple[SecretStr, ...], _list_of(parsers.encryption_key)] = _setting(
        "SECRET_KEYS",
        (),
        "a comma-separated list of keys, each base64 of 32 bytes as `openssl rand -base64 32` prints them",
        "Keys that encrypt UserSigs, COS keys and callbacks' addresses: the first encrypts, all decrypt. The same on every"
        " node; required with AMQP_URL.",
        shown="the file `secret.keys` in DATA_DIR, created at the first start",
    )
    cfs_path: Path | None = _setting(
        "CFS_PATH", None, "a path", "Mounted file system (CFS) for the spool. The database is never on it."
    )
    spool_dir: Path = _setting(
        "SPOOL_DIR",
        Path(),
        "a path",
        "Folder of the spool if CFS_PATH is not set.",
        shown="`recorder-<uid>` in the system's folder for temporary files",
    )
    pull_address: str = _setting(
        "PULL_ADDRESS",
        "",
        "an address that begins with rtmp://, rtmps://, http:// or https://",
        "Template of the address from which streams are pulled, with {room}, {sdkappid}, {userid}, {usersig}, {speaker}"
        " and {number_room}.",
        shown="TRTC's RTMP address",
        pattern=r"^((rtmps?|https?)://\S+)?$",
    )
    pull_user: Literal["shared", "per-speaker"] = _setting(
        "PULL_USER",
        "shared",
        "shared or per-speaker",
        "Whether all pulls of a session use the recording user, or each speaker gets a separate user (needs TRTC_KEYS).",
    )
    trtc_keys: Keys = _setting(
        "TRTC_KEYS", {}, "SdkAppId=key pairs, or a JSON object", "Secret keys of TRTC applications, for generating UserSigs."
    )
    trtc_callback_keys: Keys = _setting(
        "TRTC_CALLBACK_KEYS",
        {},
        "SdkAppId=key pairs, or a JSON object",
        "Callback keys of TRTC applications, as set in the TRTC console. Callbacks of other applications are refused.",
    )
    trtc_callback_forward: Keys = _setting(
        "TRTC_CALLBACK_FORWARD",
        {},
        "SdkAppId=URL pairs, or a JSON object, of applications in TRTC_CALLBACK_KEYS",
        "Receivers of the applications' own to which each TRTC callback is passed on; private ones need CALLBACK_ALLOW.",
    )
    trtc_callback_window_s: Seconds = _setting(
        "TRTC_CALLBACK_WINDOW",
        300.0,
        DURATION,
        "Maximum age of a TRTC callback, or how far ahead its CallbackTs may be; an older one may be a replay. 0: any age.",
        ge=0,
        shown="5m",
    )
    callback_secret: SecretStr = _setting(
        "CALLBACK_SECRET",
        SecretStr(""),
        "a text, or whsec_ and base64",
        "Secret that signs results (Standard Webhooks). Unset: results are unsigned.",
    )
    callback_allow: Annotated[tuple[str, ...], _list_of(parsers.host_or_network)] = _setting(
        "CALLBACK_ALLOW",
        (),
        "a comma-separated list of hosts, addresses and networks such as 10.0.0.0/8",
        "Private hosts and networks that may receive results.",
    )
    cos_endpoint: Annotated[str, fields.read(parsers.http_endpoint)] = _setting(
        "COS_ENDPOINT",
        "",
        "an IP address such as http://127.0.0.1:9000",
        "Server in the place of COS, such as the simulator.",
        shown="COS itself",
    )
    capture: Literal["native", "ffmpeg"] = _setting(
        "CAPTURE", "native", "native or ffmpeg", "What pulls the streams: a reader in the worker itself, or an ffmpeg for each."
    )
    ffmpeg_binary: str = _setting(
        "FFMPEG_BINARY", "", "a path", "The ffmpeg binary.", shown="ffmpeg 7.1 or later on PATH, else the bundled one"
    )
    roles: Annotated[tuple[str, ...], _list_of(parsers.role)] = _setting(
        "ROLES",
        parsers.ROLES,
        "a list of api, machine, worker",
        "Roles of this process; all three without AMQP_URL.",
        shown="api,machine,worker",
    )
    amqp_url: Annotated[SecretStr, fields.read(addresses.broker)] = _setting(
        "AMQP_URL",
        SecretStr(""),
        "an address such as amqp://user:password@host/ or amqps://user:password@host1:5671,host2:5671/, tried in their order",
        "RabbitMQ; with a PostgreSQL DATABASE_URL it selects the distributed engine. Unset: everything runs in this process.",
        shown="none",
    )
    amqp_prefix: str = _setting(
        "AMQP_PREFIX", "recorder", "a name", "Prefix of exchange and queue names; two services on one broker need two prefixes."
    )
    spool_shared: bool = _setting(
        "SPOOL_SHARED", False, "true or false", "All workers share CFS_PATH as one folder, so any of them can finish a recording."
    )
    node_url: Annotated[str, fields.read(addresses.node)] = _setting(
        "NODE_URL",
        "",
        "an address such as http://10.0.0.7:8080",
        "Address at which other nodes fetch this node's segments; required if HOST is every address of the machine.",
        shown="HOST:PORT",
    )
    cluster_token: SecretStr = _setting(
        "CLUSTER_TOKEN", SecretStr(""), "any text", "Token by which nodes fetch each other's segments.", shown="none"
    )
    progress_events: Annotated[tuple[str, ...], _list_of(parsers.progress_event)] = _setting(
        "PROGRESS_EVENTS", (), f"a list of {', '.join(parsers.PROGRESS_EVENTS)}", "Progress of recordings to publish as results."
    )
    progress_every_s: Seconds = _setting("PROGRESS_EVERY", 60.0, DURATION, "Time between two recording-progress.", ge=1)
    manifest: bool = _setting(
        "MANIFEST",
        False,
        "true or false",
        "Write manifest.json beside the files of every session, not only on request.",
    )
    node_return_s: Seconds = _setting(
        "NODE_RETURN", 1800.0, DURATION, "Time for which a transcode waits for an absent node with segments."
    )
    drain_s: Seconds = _setting("DRAIN", 20.0, DURATION, "Time in which a stop hands captures over, or a start waits for it.")
    max_captures: int = _setting(
        "MAX_CAPTURES", 0, "a number from 0", "Captures at once on this worker if other workers exist; 0 is no limit.", ge=0
    )
    max_cpu: float = _setting(
        "MAX_CPU",
        0.8,
        "a number from 0 to 1",
        "Share of this worker's CPUs (a container's quota counts) for its captures and the service itself, over half a minute."
        " Above it the worker leaves new captures to other workers; transcodes do not count; 0 is no limit.",
        ge=0,
        le=1,
        shown="0.8",
    )
    max_load: float = _setting(
        "MAX_LOAD",
        0.0,
        "a number from 0",
        "Load per core of the whole machine, including other programs. Above it the worker leaves new captures to other workers;"
        " 0 is no limit.",
        ge=0,
        shown="0",
    )
    follow: bool = _setting(
        "FOLLOW", True, "true or false", "Write and upload the file of a recording while it runs. Only with CAPTURE=native."
    )
    transcodes: int = _setting(
        "TRANSCODES",
        0,
        "a number from 0",
        "Transcodes of whole recordings at once on this worker; 0 is one for each CPU that it may use.",
        ge=0,
    )
    uploads: int = _setting(
        "UPLOADS", 0, "a number from 0", "Uploads at once on this worker; 0 is two for each CPU, and at least 4.", ge=0
    )
    deliveries: int = _setting(
        "DELIVERIES",
        0,
        "a number from 0",
        "Posts of results at once on this worker, an eighth of them to one receiver; 0 is 32 for each CPU, and at least 64.",
        ge=0,
    )
    live_views: int = _setting("LIVE_VIEWS", 8, "a number from 0", "Live views at once on this node; 0: none.", ge=0)
    linger_s: Seconds = _setting("LINGER", 30.0, DURATION, "Time in which a returning speaker continues the recording.", ge=0)
    idle_timeout_s: Seconds = _setting(
        "IDLE_TIMEOUT",
        300.0,
        DURATION,
        "Without media, a recording or session ends after this, unless callbacks report a speaker.",
        gt=0,
    )
    join_timeout_s: Seconds = _setting("JOIN_TIMEOUT", 300.0, DURATION, "A session without any publisher ends after this.", gt=0)
    max_duration_s: Seconds = _setting(
        "MAX_DURATION", 86_400.0, DURATION, "A session ends after this in any case.", gt=0, shown="24h"
    )
    result_wait_s: Seconds = _setting(
        "RESULT_WAIT",
        900.0,
        DURATION,
        "Time for which the result of a closed session waits for upload retries.",
        gt=0,
        shown="15m",
    )
    upload_retry_for_s: Seconds = _setting(
        "UPLOAD_RETRY_FOR", 259_200.0, DURATION, "Time for which an upload is retried.", ge=0, shown="72h"
    )
    keep_failed_s: Seconds = _setting(
        "KEEP_FAILED", 604_800.0, DURATION, "How long files and secrets of failed recordings are kept.", gt=0, shown="7d"
    )
    keep_messages_s: Seconds = _setting(
        "KEEP_MESSAGES", 604_800.0, DURATION, "How long an event id is remembered, to deduplicate repeats.", gt=0, shown="7d"
    )
    keep_sessions_s: Seconds = _setting(
        "KEEP_SESSIONS",
        7_776_000.0,
        DURATION,
        "Time for which finished sessions, timelines and results can be read; longer while one of their files is kept.",
        gt=0,
        shown="90d",
    )
    lease_s: Seconds = _setting(
        "LEASE", 30.0, f"{DURATION}, at least 1", "A worker without a heartbeat for this time counts as lost.", ge=1
    )
    min_free_bytes: Annotated[int, fields.read(parsers.size_bytes)] = _setting(
        "MIN_FREE",
        2 * 2**30,
        "a size such as 2GiB, 500MB or 1048576",
        "Free space of the spool below which starts are refused.",
        ge=0,
        shown="2GiB",
    )
    capture_reserve_bytes: Annotated[int, fields.read(parsers.size_bytes)] = _setting(
        "CAPTURE_RESERVE",
        256 * 2**20,
        "a size such as 2GiB, 500MB or 1048576",
        "Expected further need of each running capture. A start is refused if MIN_FREE plus these reserves do not fit.",
        shown="256MiB",
    )
    spool_policy: Literal["keep", "bounded", "auto"] = _setting(
        "SPOOL_POLICY",
        "auto",
        "keep, bounded or auto",
        "What stays on the spool while a recording runs. keep: everything. bounded: what COS has not confirmed, and the last"
        " minutes; the file is written and uploaded meanwhile, as with FOLLOW. auto: bounded if the spool's file system is"
        " smaller than 2 GiB. Only without AMQP_URL and with CAPTURE=native.",
    )
    spool_per_recording_bytes: Annotated[int, fields.read(parsers.size_bytes)] = _setting(
        "SPOOL_PER_RECORDING",
        64 * 2**20,
        "a size such as 64MiB, at least 32MiB",
        "Space that a running recording takes on a bounded spool, if its stream has at most 1.5 Mbit/s and COS keeps up.",
        ge=32 * 2**20,
        shown="64MiB",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], fields.read(str.lower)] = _setting(
        "LOG_LEVEL", "info", "debug, info, warning or error", "Lowest level that is logged."
    )
    log_format: Annotated[Literal["auto", "json", "console"], fields.read(str.lower)] = _setting(
        "LOG_FORMAT", "auto", "auto, json or console", "auto: readable text on a terminal, otherwise JSON lines."
    )

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *others: Any, **named: Any) -> tuple[Any, ...]:
        """Use only the values from `load`: no environment, no file."""
        return (init_settings,)

    @property
    def spool(self) -> Path:
        """The folder of FLV and finished files."""
        return self.cfs_path or self.spool_dir

    @property
    def database(self) -> str:
        """URL of the database: DATABASE_URL, or the file in DATA_DIR. It may contain a password."""
        return self.database_url.get_secret_value() or f"{addresses.SQLITE}{self.data_dir / DATABASE_NAME}"

    @property
    def database_file(self) -> Path:
        """The SQLite file."""
        return Path(self.database.removeprefix(addresses.SQLITE))

    @property
    def cos_server(self) -> tuple[str, str, int] | None:
        """COS_ENDPOINT as (scheme, host, port); None for COS itself."""
        parts = urlsplit(self.cos_endpoint)
        if not parts.hostname:
            return None
        return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def load(environ: Mapping[str, str]) -> Settings:
    """Build the settings from `environ`. Raises SettingsError with every fault."""
    clean = environment.cleaned(environ)
    given = {name: clean[name] for name in variables() if clean.get(name)}
    for name, folder in environment.default_folders(clean).items():
        given[name] = given.get(name) or folder
    for name in ("DATA_DIR", "SPOOL_DIR", "CFS_PATH", "FFMPEG_BINARY"):
        if given.get(name):
            given[name] = environment.expanded(given[name], clean)
    settings, faults = _checked(given)
    faults.update({name: fault for name, fault in consistency.found(settings) if name not in faults})
    if faults:
        raise SettingsError(tuple(f"{name}: {fault}" for name, fault in sorted(faults.items())))
    return settings


def misspelled(environ: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each variable that is no setting but looks like one."""
    return tuple(
        f"{name} is no setting: {meant} was probably meant, and has its default unless it is set too"
        for name, meant in environment.misspelled(environ, tuple(variables()))
    )


def secret_names() -> list[str]:
    """The variables that hold secrets."""
    return [name for name, field in variables().items() if "SecretStr" in str(Settings.model_fields[field].annotation)]


def variables() -> dict[str, str]:
    """Field name by variable, in order."""
    return {str(info.validation_alias): field for field, info in Settings.model_fields.items()}


def _checked(given: dict[str, str]) -> tuple[Settings, dict[str, str]]:
    """Settings without the wrong variables, and the fault of each of those."""
    try:
        return Settings.model_validate(given), {}
    except pydantic.ValidationError as error:
        causes = {str(fault["loc"][0]): fault.get("ctx", {}).get("error") for fault in error.errors(include_input=False)}
    right = Settings.model_validate({name: text for name, text in given.items() if name not in causes})
    return right, {name: _fault(name, cause) for name, cause in causes.items()}


def _fault(name: str, cause: object) -> str:
    """The fault of a variable: the words of its parser if they can be shown, else the allowed values."""
    extra: Any = Settings.model_fields[variables()[name]].json_schema_extra
    return str(cause) if isinstance(cause, addresses.Fault) else f"must be {extra['allowed']}"
