"""Two versions on one database: the range of revisions that may write, and what keeps the rows right for both.

A migration expands: nodes of the version before go on writing. `contract` ends that, after the last of them has stopped.

Rules:
- `schema_range.oldest` is the oldest revision of a program that may write. Every decision reads it in its transaction.
- Release 0.1.0 reads no range and does not keep the columns that came after it. Until the contract triggers of PostgreSQL keep
  them, for connections without a name. After it, a trigger refuses the decisions of such a connection.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from machine import errors

# The oldest revision of a program that may write after the contract.
OLDEST = "0012"
# The name of every connection of this program to PostgreSQL. Release 0.1.0 gives none.
APPLICATION_NAME = "recorder"
# A node that sent a heartbeat within this time is alive.
ALIVE_MS = 30_000

_FORMER = "current_setting('application_name') = ''"

_REFUSE = """
CREATE FUNCTION recorder_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this recorder is older than its database: install the newer version on this node';
END $$
"""
CONTRACT = (
    "DROP FUNCTION recorder_count, recorder_task_id, recorder_again, recorder_key CASCADE",
    _REFUSE,
    # Without counts of failed attempts, 0.1.0 parks no message that it cannot decide: it gives the message to another node.
    *(
        f"CREATE TRIGGER recorder_refuse BEFORE INSERT ON {table} FOR EACH STATEMENT"
        f" WHEN ({_FORMER}) EXECUTE FUNCTION recorder_refuse()"
        for table in ("inbox", "attempts")
    ),
)


def check(oldest: str, revision: str) -> None:
    """Raise Outdated if a program of `revision` may not write."""
    if revision < oldest:
        raise errors.Outdated(
            f"This service (revision {revision}) is older than the database allows (since revision {oldest}): install the newer"
            " version on this node."
        )


def contracted(connection: Connection) -> bool:
    """Whether the contract of this revision is done."""
    return bool(connection.execute(text("SELECT oldest FROM schema_range")).scalar_one() >= OLDEST)


def contract(connection: Connection) -> None:
    """End the time of two versions."""
    if connection.dialect.name == "postgresql":
        # Decisions that read the range end first, and none begins until this transaction ends.
        connection.execute(text("LOCK TABLE inbox, schema_range IN ACCESS EXCLUSIVE MODE"))
        for statement in CONTRACT:
            connection.exec_driver_sql(statement)
    connection.execute(text("UPDATE schema_range SET oldest = :oldest"), {"oldest": OLDEST})
