"""Wrong settings, each alone in an environment that is right otherwise: what people paste, mistype, forget or point elsewhere.

Rule: a fault of the settings ends `recorder serve` with 2 and one of a server or a file with 1, each with one line that has every
word of `told`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests import engines, postgres

USAGE, REFUSED = 2, 1
ALONE, MANY = "embedded", "distributed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One wrong environment. `code` None: the service runs and reports the fault itself, so only doctor is asked."""

    name: str
    environ: Mapping[str, str]
    told: tuple[str, ...]
    code: int | None = USAGE
    engine: str = ALONE
    command: str = "serve"


def values() -> list[Case]:
    """Values that cannot be read, are out of range or contradict each other; the setting's name begins the line."""
    alone = (
        ("PORT", "none", "0 to 65535"), ("PORT", "99999", "0 to 65535"), ("HOST", "localhost:8080", "without a port"),
        ("HOST", "http://recorder", "host name"), ("HOST", "h" * 64, "host name"), ("HOST", "[::1", "host name"),
        ("LINGER", "soon", "30s"), ("MAX_DURATION", "99999999999d", "century"), ("LEASE", "0", "at least 1"),
        ("MIN_FREE", "much", "2GiB"), ("LOG_LEVEL", "loud", "debug"), ("LOG_FORMAT", "xml", "json"),
        ("PULL_ADDRESS", "file:///x", "rtmp://"), ("PULL_USER", "both", "per-speaker"), ("CAPTURE", "gstreamer", "ffmpeg"),
        ("TRTC_KEYS", "1400000001", "SdkAppId=key"), ("TRTC_CALLBACK_KEYS", "{", "JSON"), ("SECRET_KEYS", "short", "openssl"),
        ("API_TOKENS", "two words", "without spaces"), ("CALLBACK_ALLOW", "10.0.0.0/99", "networks"), ("MAX_CPU", "2", "0 to 1"),
        ("CALLBACK_SECRET", "whsec_!", "base64"), ("COS_ENDPOINT", "cos", "127.0.0.1:9000"), ("ROLES", "cook", "worker"),
        ("ROLES", "api", "AMQP_URL"), ("DATABASE_CONNECTIONS", "-1", "from 0"), ("SPOOL_SHARED", "maybe", "true or false"),
    )  # fmt: skip
    many = (
        ("CLUSTER_TOKEN", "", "required"), ("SECRET_KEYS", "", "openssl"), ("NODE_URL", "10.0.0.7:8080", "http://"),
        ("NODE_URL", "http://10.0.0.7:x", "port"), ("AMQP_URL", "", "required"), ("DATABASE_URL", "", "postgresql://"),
    )  # fmt: skip
    return [
        *(Case(name=f"{name}={text}"[:40], environ={name: text}, told=(f"{name}: ", hint)) for name, text, hint in alone),
        *(Case(name=f"{name}={text}", environ={name: text}, told=(f"{name}: ", hint), engine=MANY) for name, text, hint in many),
        Case(name="no token", environ={"HOST": "0.0.0.0"}, told=("API_TOKENS: ", "HOST")),
        Case(name="no folder", environ={"SPOOL_SHARED": "true"}, told=("SPOOL_SHARED: ", "CFS_PATH"), engine=MANY),
        Case(name="no address", environ={"HOST": "::", "API_TOKENS": "t" * 16}, told=("NODE_URL: ", "HOST"), engine=MANY),
    ]


def addresses() -> list[Case]:
    """Addresses of database and broker that cannot be used as they are."""
    databases = (
        ("jdbc:postgresql://h/x", "postgresql://"), ("host=h dbname=x", "postgresql://"), ("mysql://u@h/x", "postgresql://"),
        ("postgres://u:PLANTED/x@h/x", "percent-encode"), ("postgres://u:PLANTED#x@h/x", "percent-encode"),
        ("postgres://u:PLANTED?x@h/x", "percent-encode"), ("postgres://u:[PLANTED@h/x", "percent-encode"),
        ("postgres://u@h:99999/x", "port"), ("postgres://u@h:one/x", "port"), ("postgres://u@h,/x", "host"),
        ("postgres://u@h/x?sslmode=yes", "verify-full"), ("postgres://u@h/x?sslmode", "name=value"),
        ("postgres://u@h/x?sslmode=require&channel_binding=require", "sslmode=verify-full"),
        ("postgres://u@h/x?pgbouncer=true", "`pgbouncer`"), ("postgres://u@h/x?sslrootcert=/none.crt", "sslrootcert"),
        ("postgres://u@h/x?target_session_attrs=master", "read-write"),
    )  # fmt: skip
    brokers = (
        ("rabbit:5672", "amqp://"), ("http://h:15672/", "amqp://"), ("amqp://u:PLANTED/x@h/", "percent-encode"),
        ("amqp://h:one/", "port"), ("amqp://h1,h 2/", "host"), ("amqps://h/?cafile=/none.pem", "cafile"),
    )  # fmt: skip
    files = (("sqlite:///x.db?mode=ro", "no parameters"), ("sqlite:///", "name a file"), ("sqlite://x.db", "sqlite:///path"))
    return [
        *(Case(name=url, environ={"DATABASE_URL": url}, told=("DATABASE_URL: ", hint), engine=MANY) for url, hint in databases),
        *(Case(name=url, environ={"AMQP_URL": url}, told=("AMQP_URL: ", hint), engine=MANY) for url, hint in brokers),
        *(Case(name=url, environ={"DATABASE_URL": url}, told=("DATABASE_URL: ", hint)) for url, hint in files),
    ]


def files(folder: Path) -> list[Case]:
    """Folders and files that cannot be used. Root may run the tests, and no mode stops it, so a file is in the folder's place."""
    file, keys, data = folder / "file", folder / "open", folder / "damaged"
    file.write_text("a file")
    for made in (keys, data, folder / "other" / "recorder.db"):
        made.mkdir(parents=True)
    (keys / "secret.keys").write_text(engines.SECRET_KEYS)
    (keys / "secret.keys").chmod(0o644)
    (data / "recorder.db").write_text("no database" * 1000)
    return [
        Case(name=name, environ={setting: str(path)}, told=(told, *more), code=REFUSED)
        for name, setting, path, told, *more in (
            ("file as data", "DATA_DIR", file, str(file), "DATA_DIR"),
            ("below a file", "DATA_DIR", file / "data", str(file), "DATA_DIR"),
            ("file as spool", "SPOOL_DIR", file, str(file), "spool"),
            ("file as CFS", "CFS_PATH", file / "cfs", str(file), "spool"),
            ("readable keys", "DATA_DIR", keys, str(keys), "chmod 600"),
            ("damaged database", "DATA_DIR", data, "damaged", "DATA_DIR"),
            ("folder as database", "DATA_DIR", folder / "other", "cannot be opened", "DATA_DIR"),
            ("no ffmpeg", "FFMPEG_BINARY", folder / "ffmpeg", "FFMPEG_BINARY"),
        )
    ]


async def servers(silent_port: int, closed_port: int, pooled: str) -> list[Case]:
    """Servers that are away, refuse the login, or cannot hold the data. `pooled`: a URL of a pool for transactions."""
    server = postgres.shared()
    right, latin1, locked, read_only, empty = (server.create() for _ in range(5))
    connection = await asyncpg.connect(right.replace("+asyncpg", ""))
    names = {url: url.rsplit("/", 1)[1] for url in (right, latin1, locked, read_only)}
    for statement in (
        f"DROP DATABASE {names[latin1]}",
        f"CREATE DATABASE {names[latin1]} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        "CREATE ROLE stranger LOGIN",
        "CREATE ROLE nobody NOLOGIN",
        f"REVOKE CONNECT ON DATABASE {names[locked]} FROM PUBLIC",
        f"ALTER DATABASE {names[read_only]} SET default_transaction_read_only = on",
    ):
        await connection.execute(statement)
    await connection.close()

    def as_role(role: str, url: str) -> str:
        return url.replace("recorder@", f"{role}@")

    def at(port: int) -> Callable[[str], str]:
        return lambda url: url.replace(f":{server.port}/", f":{port}/")

    wrong = (
        ("closed port", at(closed_port)(right), "Start PostgreSQL"), ("silent host", at(silent_port)(right), "Start PostgreSQL"),
        ("unknown host", right.replace("127.0.0.1", "none.invalid"), "host name"), ("no role", as_role("none", right), "28000"),
        ("role without login", as_role("nobody", right), "28000"), ("no database", f"{right}_none", "CREATE DATABASE"),
        ("no right to connect", as_role("stranger", locked), "42501"), ("LATIN1", latin1, "LATIN1"),
        ("not migrated", empty, "migrate"), ("pool of transactions", pooled, "pool_mode"),
        ("no TLS", f"{right}?sslmode=require", "sslmode"),
        ("no certificates", f"{right}?sslmode=verify-full", "root certificate"),
        ("options", f"{right}?options=-cnone%3D1", "parameters"),
        ("ports", f"postgresql:///{names[right]}?host=127.0.0.1&port=1,2", "DATABASE_URL"),
        ("no standby", f"{right}?target_session_attrs=standby", "read-only"),
    )  # fmt: skip
    migrated = (
        ("migrating LATIN1", latin1, "ENCODING 'UTF8'"), ("no right to create", as_role("stranger", right), "GRANT"),
        ("read-only", read_only, "read-only"), ("no schema to migrate", f"{right}?search_path=none", "search_path"),
        ("migrating a pool", pooled, "pool_mode"), ("migrating away", at(closed_port)(right), "Start PostgreSQL"),
    )  # fmt: skip
    brokers = (
        ("broker away", f"amqp://u:PLANTED@127.0.0.1:{closed_port}/"), ("broker silent", f"amqp://127.0.0.1:{silent_port}/"),
        ("no broker of two", f"amqp://127.0.0.1:{closed_port},none.invalid:5672/"),
    )  # fmt: skip
    return [
        *(Case(name=n, environ={"DATABASE_URL": u}, told=(told,), code=REFUSED, engine=MANY) for n, u, told in wrong),
        *(
            Case(name=n, environ={"DATABASE_URL": u}, told=(told,), code=REFUSED, engine=MANY, command="migrate")
            for n, u, told in migrated
        ),
        *(Case(name=n, environ={"AMQP_URL": u}, told=("RabbitMQ",), code=None, engine=MANY) for n, u in brokers),
    ]
