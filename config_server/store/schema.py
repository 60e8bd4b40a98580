"""The data model: every table of the config server's database, on SQLite and on PostgreSQL.

    who may call            operators · operator_tokens · tokens · certificates · revocations · recorded_revocations
    what is to be           machines · policies · settings
    what is                 reports · events
    what is being done      commands · jobs, steps · grants
    what was done           audit · deleted
    who else is there       replicas · rings · leases (replicas.py; empty with SQLite)

Times (`_ns`: nanoseconds, `_s`: seconds, of Unix time) are by the clock of the server that wrote them, unless a column says otherwise. A
*subject* is ROLE:NAME, or the serial number of a certificate (hexadecimal, lower case). JSON is text: msgspec writes and reads it, and no
statement looks into it (PostgreSQL's functions refuse some of what daemons say). Nothing refers to another table by a foreign key: a
revocation names what this database may not know, and of a machine that was deleted its events, jobs and audit entries stay.

A database is brought to this by migrations/; a test compares the two, on both databases.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    and_,
    false,
    text,
)

METADATA: Final = MetaData()

NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both. (SQLite gives numbers by itself to an INTEGER alone.)"""
FLAG: Final = Boolean().with_variant(Integer, "sqlite")
"""0 and 1 on SQLite."""
SHARE: Final[Double[float]] = Double().with_variant(REAL, "sqlite")

IMPLICIT: Final = "rowid"
"""The order in which rows were written. Every table of SQLite has this column unasked; on PostgreSQL the tables have it that are read in
that order. There, of two transactions at the same time, the later one may have the lower number."""


def _written() -> Column[Any]:
    return Column(IMPLICIT, NUMBER, Identity(always=True), nullable=False)


def _number(name: str) -> Column[Any]:
    """One that is always there, and 0 in rows that were written before the column was."""
    return Column(name, NUMBER, nullable=False, server_default=text("0"))


def _word(name: str, default: str | None = "", **more: Any) -> Column[Any]:
    """Text that is always there. `default`: what rows have that were written before the column was."""
    given = None if default is None else text(f"'{default}'")
    return Column(name, Text, nullable=False, server_default=given, **more)


operators: Final = Table(
    "operators",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("hash", LargeBinary, nullable=False),  # of the token (tokens.py)
    Column("created_ns", NUMBER, nullable=False),
)

operator_tokens: Final = Table(  # beside the first operator's, which is a file
    "operator_tokens",
    METADATA,
    Column("id", Text, primary_key=True),  # random
    _word("operator", None),
    Column("hash", LargeBinary, nullable=False, unique=True),  # of the token (operators.py)
    _word("words", None),  # what it is for
    _word("who", None),  # by whom it was made
    Column("created_ns", NUMBER, nullable=False),
    Column("expires_ns", NUMBER, nullable=False),
    Column("used_ns", NUMBER),  # last, to the hour
)

tokens: Final = Table(  # with which daemons enrol, once each
    "tokens",
    METADATA,
    Column("hash", LargeBinary, primary_key=True),
    _word("role", None),
    _word("name", None),
    _word("hosts", None),  # JSON: names and addresses of a server's certificate
    Column("created_ns", NUMBER, nullable=False),
    Column("expires_ns", NUMBER, nullable=False),
    Column("used_ns", NUMBER),
    _word("key"),  # fingerprint of the key for which it was used
    _word("certificate"),  # PEM: the answer, for whoever did not hear it and has that key
    _written(),
)

certificates: Final = Table(  # issued here, or shown by their owners
    "certificates",
    METADATA,
    Column("serial", Text, primary_key=True),  # hexadecimal
    _word("role", None),
    _word("name", None),
    Column("issued_ns", NUMBER, nullable=False),
    Column("expires_ns", NUMBER, nullable=False),
    _word("key"),  # fingerprint of the public key; empty: from before it was noted
    _word("renews"),  # the serial number of the one before; empty: it was issued for a token
    _word("pem"),  # empty: it was only shown here
    _written(),
    Index("certificates_of_key", "key"),
)

revocations: Final = Table(  # and readmissions: what was said of a subject last (revocation.py)
    "revocations",
    METADATA,
    Column("subject", Text, primary_key=True),
    _word("reason", None),
    Column("revoked_ns", NUMBER, nullable=False),
    Column("expires_ns", NUMBER),  # written by nobody any more
    Column("before_s", NUMBER),  # of a name: refused is what begins before; NULL: all of it
    _word("who"),
    Column("readmitted_ns", NUMBER),
    _word("mark"),  # of the restore since which it was said (restored.py); empty: there was none
)

recorded_revocations: Final = Table(  # what of these storage has, and this database has taken in
    "recorded_revocations",
    METADATA,
    Column("blob", Text, primary_key=True),
)

machines: Final = Table(
    "machines",
    METADATA,
    Column("name", Text, primary_key=True),
    Column(
        "protected", FLAG, nullable=False
    ),  # by the wish, or by what was asked for before there were wishes
    _word("disks", None),  # JSON: list of WantedDisk: which are protected, or were
    Column("policy", Text),  # JSON: Policy of its own; NULL: see policy_name
    Column("created_ns", NUMBER, nullable=False),
    Column("ended", FLAG, nullable=False, server_default=false()),  # somebody said that it is to stop
    Column("wish", Text),  # JSON: Wish, the last act of an operator; NULL: no opinion
    Column("wish_ns", NUMBER),
    Column("wish_incarnation", Text),  # in which it was said or taken over (incarnations.py)
    Column("policy_name", Text),  # NULL: the default one's, unless it has its own
    _word("identity"),  # of the hardware whose disks these are; empty: not known
    _word("dropped", "[]"),  # JSON: disks that are to go, while its agent has not heard of it
    Column("deletion", Text),  # JSON: Deletion; NULL: it is to stay
    Column("moved", FLAG, nullable=False, server_default=false()),  # as dropped: of its process servers
)

policies: Final = Table(
    "policies",
    METADATA,
    Column("name", Text, primary_key=True),
    _word("body", None),  # JSON: Policy
)

settings: Final = Table(  # what there is one of (settings.py): incarnations, the mark of a restore, what conditions have lasted …
    "settings",
    METADATA,
    Column("name", Text, primary_key=True),
    _word("value", None),
)

reports: Final = Table(  # the last one of every daemon, for the next start, and for other config servers
    "reports",
    METADATA,
    _word("role", None),
    _word("name", None),
    Column("received_ns", NUMBER, nullable=False),
    _word("report", None),  # JSON, without results of commands; empty: the daemon takes part no more
    _word("state"),  # as the report says; empty: it was stored before this column was
    _word("start"),  # of the daemon, and which of its reports
    _number("number"),
    _number("heard_ns"),  # by the clock of the database; 0: not known
    _word("address"),  # from which it came
    _word("told"),  # JSON: what its agent was told, and does not go by (rules/wishes.py)
    _word("writer"),  # the config server that shared it last, ...
    _number("batch"),  # ... and in which of its batches
    PrimaryKeyConstraint("role", "name"),
    Index("reports_of_writer", "writer", "batch"),
)

events: Final = Table(
    "events",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    _word("kind", None),
    _word("severity", None),
    _word("source", None),  # the subject that reports it
    _word("object", None),  # a machine, MACHINE/DISK, or a subject
    _word("code", None),  # of the error; empty: something happened
    _word("what", None),
    _word("cause", None),
    _word("action", None),
    Column("first_ns", NUMBER, nullable=False),
    Column("last_ns", NUMBER, nullable=False),
    Column("count", NUMBER, nullable=False),  # in how many words it was told
    Column("resolved_ns", NUMBER),  # NULL: it is open
    _word("key"),  # tells two of one code and object apart
    sqlite_autoincrement=True,  # clients remember the ids that they have seen
)
OPEN: Final = (events.c.source, events.c.object, events.c.code, events.c.key)
"""What makes a problem one event while it lasts."""
Index(
    "events_open",
    *OPEN,
    unique=True,
    sqlite_where=events.c.resolved_ns.is_(None),
    postgresql_where=events.c.resolved_ns.is_(None),
)
Index(
    "events_over",
    events.c.source,
    events.c.id,
    sqlite_where=events.c.resolved_ns.is_not(None),
    postgresql_where=events.c.resolved_ns.is_not(None),
)

commands: Final = Table(
    "commands",
    METADATA,
    Column("id", Text, primary_key=True),
    _word("target", None),  # the daemon: a subject
    _word("kind", None),
    _word("args", None),  # JSON
    Column("created_ns", NUMBER, nullable=False),
    _word("state", None),
    _word("result", None),  # JSON
    Column("done_ns", NUMBER),
    _written(),
)
Index(
    "commands_pending",
    commands.c.target,
    sqlite_where=commands.c.state == text("'pending'"),
    postgresql_where=commands.c.state == text("'pending'"),
)

jobs: Final = Table(
    "jobs",
    METADATA,
    Column("id", Text, primary_key=True),
    _word("kind", None),
    _word("machine", None),
    _word("state", None),
    Column("progress", SHARE),
    _word("detail", None),
    _word("args", None),  # JSON
    Column("result", Text),  # JSON
    Column("error", Text),  # JSON: Failure
    Column("created_ns", NUMBER, nullable=False),
    Column("updated_ns", NUMBER, nullable=False),
    # Of those that a config server drives (journal.py):
    Column(
        "version", NUMBER, nullable=False, server_default=text("0")
    ),  # of the kind's steps; 0: none here drives it
    _word("lane"),  # a machine has one active job of each; empty: of none
    _word("who"),  # began it
    _word("direction", "forward"),
    _word("cancelled_by"),
    _word("superseded_by"),  # which job took its place, or what else (journal.supersede); empty: nothing
    _word("owner"),  # the config server that has it, for people; empty: nobody
    Column("term", NUMBER, nullable=False, server_default=text("0")),  # rises with each claim
    _word("word"),  # of the last claim, random
    Column("lease_ns", NUMBER, nullable=False, server_default=text("0")),  # until then it is the owner's
    Column(
        "wake_ns", NUMBER, nullable=False, server_default=text("0")
    ),  # nobody takes it before then; see journal.wake
    _word("waits"),  # for what; empty: it does not
    Column("attention", FLAG, nullable=False, server_default=false()),  # a person has to say how it goes on
    Column("in_doubt", FLAG, nullable=False, server_default=false()),  # the database was put back since
    Column("ended_ns", NUMBER),
    # Of those whose work a command does somewhere (restores.py):
    _word("worker"),  # how it goes, as the command said last; empty: it has said nothing
    Column("heard_ns", NUMBER, nullable=False, server_default=text("0")),  # when it said so
    _written(),
)
Index(
    "jobs_lane",
    jobs.c.machine,
    jobs.c.lane,
    unique=True,
    sqlite_where=and_(jobs.c.state == text("'running'"), jobs.c.lane != text("''")),
    postgresql_where=and_(jobs.c.state == text("'running'"), jobs.c.lane != text("''")),
)
Index(
    "jobs_due",
    jobs.c.wake_ns,
    sqlite_where=jobs.c.state == text("'running'"),
    postgresql_where=jobs.c.state == text("'running'"),
)

steps: Final = Table(  # of jobs, each that was ever begun
    "steps",
    METADATA,
    _word("job", None),
    _word("step", None),
    _word("state", None),
    Column("tries", NUMBER, nullable=False),  # that failed, since the last that did not
    Column("result", Text),  # JSON
    Column("changed_ns", NUMBER, nullable=False),
    Column("undone_ns", NUMBER, nullable=False),  # since when nothing of it was seen; 0: it is not undone
    _written(),
    PrimaryKeyConstraint("job", "step"),
)

grants: Final = Table(  # who may read which machine's container (operations/granting.py)
    "grants",
    METADATA,
    Column("id", Text, primary_key=True),
    _word("machine", None),
    _word("container", None),
    _word("who", None),
    _word("host", None),
    Column("given_ns", NUMBER, nullable=False),  # by storage's clock, as the others
    Column("expires_ns", NUMBER, nullable=False),
    Column("ended_ns", NUMBER),
    _word("ended_by"),
    Column("returned", FLAG, nullable=False, server_default=false()),  # by whoever had it, not taken from him
    _word("request"),  # the id with which it was asked for; empty: none
)
Index("grants_machine", grants.c.machine)
Index(
    "grants_request",
    grants.c.request,
    unique=True,
    sqlite_where=grants.c.request != text("''"),
    postgresql_where=grants.c.request != text("''"),
)

deleted: Final = Table(  # containers that went with their machines (operations/deleted.py)
    "deleted",
    METADATA,
    Column("container", Text, primary_key=True),
    _word("machine", None),
    _word("incarnation", None),  # in which it was deleted (incarnations.py)
    Column("deleted_ns", NUMBER, nullable=False),
)

audit: Final = Table(  # never changed, never removed
    "audit",
    METADATA,
    Column("id", NUMBER, primary_key=True),
    Column("time_ns", NUMBER, nullable=False),
    _word("who", None),
    _word("action", None),
    _word("object", None),
    _word("detail", None),  # JSON
    sqlite_autoincrement=True,
)

replicas: Final = Table(  # config servers that use this database, each start of one
    "replicas",
    METADATA,
    Column("id", Text, primary_key=True),  # random
    _word("name", None),  # for people
    Column("batch", NUMBER, nullable=False),  # how often it has written what it heard
    Column("beat_ns", NUMBER, nullable=False),  # when it did last, by the clock of the database
    _word("said", None),  # JSON: Said, what the others are to know of it
)

rings: Final = Table(  # bells that somebody rang lately
    "rings",
    METADATA,
    _word("writer", None),
    Column("batch", NUMBER, nullable=False),
    _word("name", None),
    PrimaryKeyConstraint("writer", "batch", "name"),
)

leases: Final = Table(  # of what one config server does at a time
    "leases",
    METADATA,
    Column("name", Text, primary_key=True),
    _word("owner", None),  # of `replicas`
    Column("term", NUMBER, nullable=False),  # rises with each owner
    Column("until_ns", NUMBER, nullable=False),  # by the clock of the database
)
