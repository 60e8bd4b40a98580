"""Jobs that a config server drives, and their steps; what several config servers share; and operators
beside the first. Whoever knows only 0001 drives none, and has
only jobs of version 0; it shares nothing, and is alone (replicas.py)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
usable_from = "0002"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FLAG = sa.Boolean().with_variant(sa.Integer(), "sqlite")
_ACTIVE = "state = 'running' AND lane != ''"


def upgrade() -> None:
    for column in (
        _number("version"),
        _word("lane"),
        _word("who"),
        _word("direction", "forward"),
        _word("cancelled_by"),
        _word("superseded_by"),
        _word("owner"),
        _number("term"),
        _word("word"),
        _number("lease_ns"),
        _number("wake_ns"),
        _word("waits"),
        sa.Column("attention", FLAG, nullable=False, server_default=sa.false()),
        sa.Column("in_doubt", FLAG, nullable=False, server_default=sa.false()),
        sa.Column("ended_ns", NUMBER),
        _word("worker"),
        _number("heard_ns"),
    ):
        op.add_column("jobs", column)
    op.create_index(
        "jobs_lane",
        "jobs",
        ["machine", "lane"],
        unique=True,
        sqlite_where=sa.text(_ACTIVE),
        postgresql_where=sa.text(_ACTIVE),
    )
    op.create_index(
        "jobs_due",
        "jobs",
        ["wake_ns"],
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "steps",
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("tries", NUMBER, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("changed_ns", NUMBER, nullable=False),
        sa.Column("undone_ns", NUMBER, nullable=False),
        *_written(),
        sa.PrimaryKeyConstraint("job", "step"),
    )
    for column in (
        _word("state"),
        _word("start"),
        _number("number"),
        _number("heard_ns"),
        _word("address"),
        _word("told"),
        _word("writer"),
        _number("batch"),
    ):
        op.add_column("reports", column)
    op.create_index("reports_of_writer", "reports", ["writer", "batch"])
    op.create_table(
        "operator_tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("operator", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("words", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("created_ns", NUMBER, nullable=False),
        sa.Column("expires_ns", NUMBER, nullable=False),
        sa.Column("used_ns", NUMBER),
    )
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("batch", NUMBER, nullable=False),
        sa.Column("beat_ns", NUMBER, nullable=False),
        sa.Column("said", sa.Text, nullable=False),
    )
    op.create_table(
        "rings",
        sa.Column("writer", sa.Text, nullable=False),
        sa.Column("batch", NUMBER, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("writer", "batch", "name"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("term", NUMBER, nullable=False),
        sa.Column("until_ns", NUMBER, nullable=False),
    )


def _written() -> list[sa.Column[Any]]:
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    return [] if is_sqlite else [sa.Column("rowid", sa.BigInteger, sa.Identity(always=True), nullable=False)]


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, NUMBER, nullable=False, server_default=sa.text("0"))


def _word(name: str, default: str = "") -> sa.Column[Any]:
    return sa.Column(name, sa.Text, nullable=False, server_default=sa.text(f"'{default}'"))
