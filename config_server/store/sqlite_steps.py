"""How SQLite databases of before alembic come to the schema with which migrations/ begin. Nothing is ever added or changed here.

Each such database says by its `user_version` how many of the steps it has; one with all of them is what migrations/versions/0001 makes
anew, and is stamped so. The number stays as it is: a program of that time opens a database which only has more (migrations/__init__.py).
"""

from __future__ import annotations

import sqlite3
from typing import Final

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE operators (name TEXT PRIMARY KEY, hash BLOB NOT NULL, created_ns INTEGER NOT NULL);
    CREATE TABLE tokens (
        hash BLOB PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, hosts TEXT NOT NULL,
        created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, used_ns INTEGER);
    CREATE TABLE certificates (
        serial TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL,
        issued_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL);
    CREATE TABLE machines (
        name TEXT PRIMARY KEY, protected INTEGER NOT NULL, disks TEXT NOT NULL, policy TEXT,
        created_ns INTEGER NOT NULL);
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE reports (
        role TEXT NOT NULL, name TEXT NOT NULL, received_ns INTEGER NOT NULL, report TEXT NOT NULL,
        PRIMARY KEY (role, name));
    CREATE TABLE commands (
        id TEXT PRIMARY KEY, target TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL,
        created_ns INTEGER NOT NULL, state TEXT NOT NULL, result TEXT NOT NULL, done_ns INTEGER);
    CREATE INDEX commands_pending ON commands (target) WHERE state = 'pending';
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, severity TEXT NOT NULL, source TEXT NOT
        NULL, object TEXT NOT NULL, code TEXT NOT NULL, what TEXT NOT NULL, cause TEXT NOT NULL, action TEXT
        NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, count INTEGER NOT NULL, resolved_ns
        INTEGER);
    CREATE UNIQUE INDEX events_open ON events (source, object, code) WHERE resolved_ns IS NULL;
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, kind TEXT NOT NULL, machine TEXT NOT NULL, state TEXT NOT NULL, progress REAL,
        detail TEXT NOT NULL, args TEXT NOT NULL, result TEXT, error TEXT,
        created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL);
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT
        NULL, object TEXT NOT NULL, detail TEXT NOT NULL);
    """,
    """
    ALTER TABLE events ADD COLUMN key TEXT NOT NULL DEFAULT '';
    DROP INDEX events_open;
    CREATE UNIQUE INDEX events_open ON events (source, object, code, key) WHERE resolved_ns IS NULL;
    """,
    """
    CREATE TABLE revocations (
        subject TEXT PRIMARY KEY, reason TEXT NOT NULL, revoked_ns INTEGER NOT NULL, expires_ns INTEGER);
    """,
    """
    CREATE TABLE grants (
        id TEXT PRIMARY KEY, machine TEXT NOT NULL, container TEXT NOT NULL, who TEXT NOT NULL, host TEXT NOT NULL,
        given_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, ended_ns INTEGER, ended_by TEXT NOT NULL DEFAULT '',
        returned INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX grants_machine ON grants (machine);
    """,
    """
    CREATE INDEX events_over ON events (source, id) WHERE resolved_ns IS NOT NULL;
    """,
    """
    ALTER TABLE revocations ADD COLUMN before_s INTEGER;
    ALTER TABLE certificates ADD COLUMN key TEXT NOT NULL DEFAULT '';
    CREATE INDEX certificates_of_key ON certificates (key);
    ALTER TABLE tokens ADD COLUMN key TEXT NOT NULL DEFAULT '';
    ALTER TABLE tokens ADD COLUMN certificate TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE certificates ADD COLUMN renews TEXT NOT NULL DEFAULT '';
    ALTER TABLE certificates ADD COLUMN pem TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE grants ADD COLUMN request TEXT NOT NULL DEFAULT '';
    CREATE UNIQUE INDEX grants_request ON grants (request) WHERE request != '';
    """,
    """
    ALTER TABLE revocations ADD COLUMN who TEXT NOT NULL DEFAULT '';
    CREATE TABLE recorded_revocations (blob TEXT PRIMARY KEY);
    """,
    """
    ALTER TABLE revocations ADD COLUMN readmitted_ns INTEGER;
    UPDATE revocations SET readmitted_ns = max(revoked_ns + 1, (before_s + 300) * 1000000000) WHERE before_s IS NOT NULL;
    """,
    """
    ALTER TABLE machines ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
    UPDATE machines SET ended = 1 WHERE protected = 0 AND disks != '[]';
    """,
    """
    ALTER TABLE revocations ADD COLUMN mark TEXT NOT NULL DEFAULT '';
    """,
    # A machine's wish begins with the next act of an operator: an upgrade orders nothing.
    """
    ALTER TABLE machines ADD COLUMN wish TEXT;
    ALTER TABLE machines ADD COLUMN wish_ns INTEGER;
    ALTER TABLE machines ADD COLUMN wish_incarnation TEXT;
    ALTER TABLE machines ADD COLUMN policy_name TEXT;
    CREATE TABLE policies (name TEXT PRIMARY KEY, body TEXT NOT NULL);
    INSERT INTO policies SELECT 'default', value FROM settings WHERE name = 'default-policy';
    DELETE FROM settings WHERE name = 'default-policy';
    INSERT INTO settings VALUES ('incarnations', json_array(lower(hex(randomblob(8)))));
    DELETE FROM commands WHERE kind IN ('protect', 'unprotect');
    """,
    # Empty: it is not known, and whoever is the machine when he reports next has it.
    """
    ALTER TABLE machines ADD COLUMN identity TEXT NOT NULL DEFAULT '';
    """,
    # Each policy had an interval, also where only a threshold was ever set; 300 is what nobody chose.
    """
    UPDATE policies SET body = json_remove(body, '$.point_interval_s') WHERE json_extract(body, '$.point_interval_s') = 300;
    UPDATE machines SET policy = json_remove(policy, '$.point_interval_s') WHERE json_extract(policy, '$.point_interval_s') = 300;
    """,
    # Disks are known by their ids, and each act says which are to go.
    """
    ALTER TABLE machines ADD COLUMN dropped TEXT NOT NULL DEFAULT '[]';
    UPDATE machines SET disks =
        (SELECT json_group_array(json_object('device', value)) FROM json_each(disks) WHERE length(value) BETWEEN 1 AND 4096);
    """,
    # Which of them somebody wants deleted.
    """
    ALTER TABLE machines ADD COLUMN deletion TEXT;
    """,
    # Acts say so, too, where they name other process servers than before.
    """
    ALTER TABLE machines ADD COLUMN moved INTEGER NOT NULL DEFAULT 0;
    """,
    # The containers that were deleted with their machines: daemons that have something of them may come later.
    """
    CREATE TABLE deleted (
        container TEXT PRIMARY KEY, machine TEXT NOT NULL, incarnation TEXT NOT NULL, deleted_ns INTEGER NOT NULL);
    """,
)


def version(db: sqlite3.Connection) -> int:
    """How many steps it has; 0: there is nothing in it yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def bring_up(db: sqlite3.Connection) -> None:
    """Through all the steps that it lacks, each a transaction: a database is never between two versions. Raises sqlite3.Error."""
    for step in range(version(db), len(MIGRATIONS)):
        db.executescript(f"BEGIN;{MIGRATIONS[step]};PRAGMA user_version = {step + 1};COMMIT;")
