"""The range of revisions that may write; triggers that keep today's columns right while nodes of 0.1.0 write beside today's"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

OF_SESSION = "(SELECT count(*) FROM recordings r WHERE r.task_id = sessions.task_id AND {which})"
LIVE = "r.state NOT IN ('Done', 'Failed')"


# The revision of release 0.1.0, whose connections have no name.
BEFORE = "0006"
_FORMER = "current_setting('application_name') = ''"
_COUNT = """
CREATE FUNCTION recorder_count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    more_live integer := 0;
    more_uploading integer := 0;
    more_present integer := 0;
BEGIN
    IF NEW.state NOT IN ('Done', 'Failed') THEN
        more_live := 1;
        more_uploading := (NEW.state = 'Uploading')::integer;
        more_present := coalesce(NEW.present, false)::integer;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF OLD.state NOT IN ('Done', 'Failed') THEN
            more_live := more_live - 1;
            more_uploading := more_uploading - (OLD.state = 'Uploading')::integer;
            more_present := more_present - coalesce(OLD.present, false)::integer;
        END IF;
    END IF;
    IF more_live <> 0 OR more_uploading <> 0 OR more_present <> 0 THEN
        UPDATE sessions SET live = live + more_live, uploading = uploading + more_uploading, present = present + more_present
        WHERE task_id = NEW.task_id;
    END IF;
    RETURN NULL;
END $$
"""
_TASK_ID = """
CREATE FUNCTION recorder_task_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.task_id := substr(NEW.recording_id, 1, 26);
    RETURN NEW;
END $$
"""
# A deadline that is armed again was not published yet.
_AGAIN = """
CREATE FUNCTION recorder_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.again_ms := NULL;
    RETURN NEW;
END $$
"""
_KEY = """
CREATE FUNCTION recorder_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sessions SET key_id = NEW.key_id WHERE task_id = NEW.subject AND key_id = '';
    RETURN NULL;
END $$
"""
EXPAND = (
    _COUNT,
    _TASK_ID,
    _AGAIN,
    _KEY,
    "CREATE TRIGGER recorder_count AFTER INSERT OR UPDATE ON recordings FOR EACH ROW"
    f" WHEN ({_FORMER}) EXECUTE FUNCTION recorder_count()",
    "CREATE TRIGGER recorder_task_id BEFORE INSERT ON segments FOR EACH ROW"
    " WHEN (NEW.task_id = '') EXECUTE FUNCTION recorder_task_id()",
    "CREATE TRIGGER recorder_again BEFORE UPDATE ON deadlines FOR EACH ROW"
    f" WHEN (NEW.serial <> OLD.serial AND NEW.again_ms IS NOT NULL AND {_FORMER}) EXECUTE FUNCTION recorder_again()",
    "CREATE TRIGGER recorder_key AFTER INSERT ON audit FOR EACH ROW"
    f" WHEN (NEW.action = 'start' AND NEW.key_id <> '' AND {_FORMER}) EXECUTE FUNCTION recorder_key()",
)


def upgrade() -> None:
    """Go up to this revision."""
    made = op.create_table(
        "schema_range",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("oldest", sa.String(8), nullable=False),
    )
    op.bulk_insert(made, [{"id": 1, "oldest": BEFORE}])
    op.add_column("nodes", sa.Column("revision", sa.String(8), nullable=False, server_default=""))
    if op.get_bind().dialect.name != "postgresql":
        return  # one process writes to a file
    for statement in EXPAND:
        op.execute(statement)
    # After the triggers: what an older node committed before them is counted here.
    op.execute(
        "UPDATE sessions SET"  # noqa: S608 - constants
        f" live = {OF_SESSION.format(which=LIVE)},"
        f""" uploading = {OF_SESSION.format(which=f"{LIVE} AND r.state = 'Uploading'")},"""
        f" present = {OF_SESSION.format(which=f'{LIVE} AND r.present')}"
        " WHERE task_id IN (SELECT task_id FROM recordings WHERE state NOT IN ('Done', 'Failed'))"
    )
    op.execute("UPDATE segments SET task_id = substr(recording_id, 1, 26) WHERE task_id = ''")
