"""Outages of the database: errors whose cause is the database itself, and not the transaction that met them.

Rules: a database that refuses writes counts as unavailable, although it answers queries. Each outage names its cause and what to
do. Other errors, such as a wrong statement or a violated constraint, are no outages.
Source: PostgreSQL, appendix A (SQLSTATE); SQLite, result codes.
"""

from __future__ import annotations

import secrets
import socket
import sqlite3
import ssl

from sqlalchemy import exc, insert

from machine import errors
from store import sql, statements, tables

_READ_ONLY = "25006"
POOLED = (
    "A pooler before PostgreSQL gives each transaction another server, which loses locks and prepared statements: set its"
    " pool_mode to session, or let DATABASE_URL name the server itself."
)
# A prepared statement is missing, or is there already: another client's.
UNPREPARED = ("26000", "42P05")
_LOGIN = (
    "PostgreSQL does not let the user of DATABASE_URL in (SQLSTATE {state}): correct user and password, create the role, or add"
    " it to pg_hba.conf."
)
REFUSALS = {
    **dict.fromkeys(UNPREPARED, POOLED),
    **{state: _LOGIN.format(state=state) for state in ("28000", "28P01")},
    "3D000": (
        "The database of DATABASE_URL does not exist (SQLSTATE 3D000): create it with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE"
        " template0, or correct the name."
    ),
    "3F000": "The schema for the tables does not exist (SQLSTATE 3F000): create it, or correct search_path in DATABASE_URL.",
    "42501": (
        "The role of DATABASE_URL lacks a right (SQLSTATE 42501): make it the owner of the database and of its tables, or GRANT"
        " CREATE and USAGE ON SCHEMA public to it."
    ),
    "08P01": (
        "PostgreSQL, or a pooler before it, refuses what the recorder needs (SQLSTATE 08P01): set the pooler's pool_mode to"
        " session, and remove parameters that it does not know from DATABASE_URL."
    ),
    "53100": "The disk of the PostgreSQL server is full (SQLSTATE 53100): free space on it.",
    "53200": "The PostgreSQL server is out of memory (SQLSTATE 53200): free memory on it.",
    "53300": (
        "The PostgreSQL server has no connection left (SQLSTATE 53300): raise its max_connections, or set DATABASE_CONNECTIONS"
        " (docs/operate.md, Database connections)."
    ),
    "57P01": "The PostgreSQL server is shutting down (SQLSTATE 57P01): start it again.",
    "57P02": "The PostgreSQL server crashed and restarts (SQLSTATE 57P02): wait until it answers.",
    "57P03": "The PostgreSQL server is starting or recovering (SQLSTATE 57P03): wait until it answers.",
    "58030": "The PostgreSQL server cannot use its disk (SQLSTATE 58030): check that disk.",
}
# The classes of errors of the connection, of resources, of an operator's intervention, and of the server's system.
_CLASSES = ("08", "53", "57", "58")
_SQLITE = {
    sqlite3.SQLITE_FULL: "The disk of the database file is full ({name}): free space in DATA_DIR.",
    sqlite3.SQLITE_IOERR: "The database file cannot be read or written ({name}): check the disk of DATA_DIR.",
    sqlite3.SQLITE_READONLY: "The database file is read-only ({name}): check the owner and the mount of DATA_DIR.",
    sqlite3.SQLITE_CANTOPEN: "The database file cannot be opened ({name}): check DATA_DIR, and the limit of open files.",
    sqlite3.SQLITE_BUSY: "Another process locks the database file ({name}): end it, or wait until it is done.",
    sqlite3.SQLITE_LOCKED: "The database file is locked ({name}): wait until the other transaction is done.",
    sqlite3.SQLITE_NOMEM: "There is no memory left for the database ({name}): free memory on this machine.",
    sqlite3.SQLITE_PROTOCOL: "The locks of the database file do not work ({name}): DATA_DIR must be on a local disk.",
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# A row of 16 KiB needs new pages, so a full disk refuses it. Random digits, because PostgreSQL compresses other text.
_PROBE_BYTES = 8 * 1024
_INSERT_PROBE = sql.Statement(insert(tables.inbox), "event_id", "at_ms", "answer")


class ReadOnly(errors.DatabaseUnavailable):
    """The database is read-only, as a standby is, or a server after a failover: point DATABASE_URL to the primary, or make this
    server writable."""

    def __init__(self) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()), refused=True)


class Hanging(errors.DatabaseUnavailable):
    """A call on SQLite's file does not return. What waits for it is refused, and may be committed when the call returns."""

    def __init__(self, silent_s: float) -> None:
        super().__init__(
            f"The database file has not answered for {silent_s:.0f} s: check the disk of DATA_DIR. Nothing must be repeated by"
            " hand: all work goes on when it answers.",
            refused=True,
        )


class Damaged(errors.DatabaseUnavailable):
    """Pages of SQLite's file are damaged. Work that needs none of them goes on: what failed is tried alone, and counted."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The database file is damaged ({name}): stop the recorder, check the disk of DATA_DIR, and restore a backup"
            " (docs/operate.md, Restart, upgrade, back up, restore)."
        )


def outage(error: Exception) -> errors.DatabaseUnavailable | None:
    """The outage behind an error of a driver or of SQLAlchemy; None if the error has another cause."""
    if isinstance(error, errors.DatabaseUnavailable):
        return error
    origin = getattr(error, "orig", None) or error
    state = getattr(origin, "sqlstate", None) or ""
    if state == _READ_ONLY:
        return ReadOnly()
    if state in REFUSALS:
        return errors.DatabaseUnavailable(REFUSALS[state], refused=True)
    if state[:2] in _CLASSES:
        return errors.DatabaseUnavailable(f"The database does not answer: {type(origin).__name__} (SQLSTATE {state}).")
    code = (getattr(origin, "sqlite_errorcode", None) or 0) & 0xFF
    name = getattr(origin, "sqlite_errorname", "")
    if code in _DAMAGED:
        return Damaged(name)
    if code in _SQLITE:
        return errors.DatabaseUnavailable(_SQLITE[code].format(name=name), refused=True)
    closed = type(origin).__name__ in ("InterfaceError", "InternalClientError") and not isinstance(origin, sqlite3.Error)
    if closed or isinstance(origin, OSError | exc.TimeoutError):
        # Of an OSError the text may hold addresses, which an answer must not.
        why = f" ({origin.verify_message})" if isinstance(origin, ssl.SSLCertVerificationError) else ""
        return errors.DatabaseUnavailable(f"The database does not answer: {type(origin).__name__}{why}.{_hint(origin)}")
    return None


def _hint(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return " Correct the host name in DATABASE_URL, or repair the name service."
    # The driver's own error, of no subclass: the server refuses TLS.
    if isinstance(error, ssl.SSLError) or type(error) is ConnectionError:
        return " Check sslmode and sslrootcert in DATABASE_URL, and the server's TLS."
    return " Start PostgreSQL, or correct host and port in DATABASE_URL." if isinstance(error, OSError) else ""


def insert_probe(id_: str) -> sql.Steps[None]:
    """Write a row that a database with a full disk refuses. One that a crash leaves behind expires with the ids of events."""
    yield sql.Step(_INSERT_PROBE, [{"event_id": id_, "at_ms": 0, "answer": secrets.token_hex(_PROBE_BYTES)}])


def delete_probe(id_: str) -> sql.Steps[None]:
    """Delete the row of `insert_probe`."""
    yield sql.Step(statements.UNCLAIM, [{"at_event_id": id_}])
