"""The schema of before alembic, as SQLite's databases have it already (sqlite_steps.py)."""

from __future__ import annotations

import json
import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
usable_from = "0001"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLAG = sa.Boolean().with_variant(sa.Integer(), "sqlite")
_STEPS = 19


def upgrade() -> None:
    op.create_table(
        "audit",
        _number("id"),
        _number("time_ns"),
        _word("who"),
        _word("action"),
        _word("object"),
        _word("detail"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "certificates",
        _word("serial"),
        _word("role"),
        _word("name"),
        _number("issued_ns"),
        _number("expires_ns"),
        _word("key", ""),
        _word("renews", ""),
        _word("pem", ""),
        *_written(),
        sa.PrimaryKeyConstraint("serial"),
    )
    _index("certificates_of_key", "certificates", ["key"])
    op.create_table(
        "commands",
        _word("id"),
        _word("target"),
        _word("kind"),
        _word("args"),
        _number("created_ns"),
        _word("state"),
        _word("result"),
        sa.Column("done_ns", NUMBER),
        *_written(),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("commands_pending", "commands", ["target"], "state = 'pending'")
    op.create_table(
        "deleted",
        _word("container"),
        _word("machine"),
        _word("incarnation"),
        _number("deleted_ns"),
        sa.PrimaryKeyConstraint("container"),
    )
    op.create_table(
        "events",
        _number("id"),
        _word("kind"),
        _word("severity"),
        _word("source"),
        _word("object"),
        _word("code"),
        _word("what"),
        _word("cause"),
        _word("action"),
        _number("first_ns"),
        _number("last_ns"),
        _number("count"),
        sa.Column("resolved_ns", NUMBER),
        _word("key", ""),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    _index("events_open", "events", ["source", "object", "code", "key"], "resolved_ns IS NULL", unique=True)
    _index("events_over", "events", ["source", "id"], "resolved_ns IS NOT NULL")
    op.create_table(
        "grants",
        _word("id"),
        _word("machine"),
        _word("container"),
        _word("who"),
        _word("host"),
        _number("given_ns"),
        _number("expires_ns"),
        sa.Column("ended_ns", NUMBER),
        _word("ended_by", ""),
        sa.Column("returned", FLAG, nullable=False, server_default=sa.false()),
        _word("request", ""),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("grants_machine", "grants", ["machine"])
    _index("grants_request", "grants", ["request"], "request != ''", unique=True)
    op.create_table(
        "jobs",
        _word("id"),
        _word("kind"),
        _word("machine"),
        _word("state"),
        sa.Column("progress", sa.Double().with_variant(sa.REAL(), "sqlite")),
        _word("detail"),
        _word("args"),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        _number("created_ns"),
        _number("updated_ns"),
        *_written(),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "machines",
        _word("name"),
        sa.Column("protected", FLAG, nullable=False),
        _word("disks"),
        sa.Column("policy", sa.Text),
        _number("created_ns"),
        sa.Column("ended", FLAG, nullable=False, server_default=sa.false()),
        sa.Column("wish", sa.Text),
        sa.Column("wish_ns", NUMBER),
        sa.Column("wish_incarnation", sa.Text),
        sa.Column("policy_name", sa.Text),
        _word("identity", ""),
        _word("dropped", "[]"),
        sa.Column("deletion", sa.Text),
        sa.Column("moved", FLAG, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "operators",
        _word("name"),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        _number("created_ns"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "policies",
        _word("name"),
        _word("body"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "recorded_revocations",
        _word("blob"),
        sa.PrimaryKeyConstraint("blob"),
    )
    op.create_table(
        "reports",
        _word("role"),
        _word("name"),
        _number("received_ns"),
        _word("report"),
        sa.PrimaryKeyConstraint("role", "name"),
    )
    op.create_table(
        "revocations",
        _word("subject"),
        _word("reason"),
        _number("revoked_ns"),
        sa.Column("expires_ns", NUMBER),
        sa.Column("before_s", NUMBER),
        _word("who", ""),
        sa.Column("readmitted_ns", NUMBER),
        _word("mark", ""),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_table(
        "settings",
        _word("name"),
        _word("value"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tokens",
        sa.Column("hash", sa.LargeBinary, nullable=False),
        _word("role"),
        _word("name"),
        _word("hosts"),
        _number("created_ns"),
        _number("expires_ns"),
        sa.Column("used_ns", NUMBER),
        _word("key", ""),
        _word("certificate", ""),
        *_written(),
        sa.PrimaryKeyConstraint("hash"),
    )
    # One incarnation: a database is told by it from others that were made, or put back, elsewhere.
    settings = sa.table("settings", sa.column("name"), sa.column("value"))
    drawn = json.dumps([secrets.token_hex(8)])
    op.execute(settings.insert().values(name=sa.literal("incarnations"), value=sa.literal(drawn)))
    if _is_sqlite():
        op.execute(
            f"PRAGMA user_version = {_STEPS}"
        )  # else a program of before would begin with its first step


def _is_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _word(name: str, default: str | None = None) -> sa.Column[Any]:
    given = None if default is None else sa.text(f"'{default}'")
    return sa.Column(name, sa.Text, nullable=False, server_default=given)


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, NUMBER, nullable=False)


def _written() -> list[sa.Column[Any]]:
    """SQLite has it unasked."""
    return (
        [] if _is_sqlite() else [sa.Column("rowid", sa.BigInteger, sa.Identity(always=True), nullable=False)]
    )


def _index(name: str, table: str, columns: list[str], where: str = "", *, unique: bool = False) -> None:
    given = sa.text(where) if where else None
    op.create_index(name, table, columns, unique=unique, sqlite_where=given, postgresql_where=given)
