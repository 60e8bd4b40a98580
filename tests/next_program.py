"""The next version of this program, as a rolling upgrade meets it: this tree, with one revision more, which only adds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from config_server.store import migrations

VERSION: Final = "the next"
REVISION: Final = f"{int(migrations.NEWEST) + 1:04}"
_TREE: Final = Path(__file__).parents[1]
_PACKAGES: Final = ("agent", "config_server", "deploy", "master_target", "process_server", "shared")
_MIGRATION: Final = f'''"""A column, an index and a table: all that the next version needs."""

import sqlalchemy as sa
from alembic import op

revision = "{REVISION}"
down_revision = "{migrations.NEWEST}"
usable_from = "USABLE_FROM"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("newer", sa.Text, nullable=False, server_default=sa.text("'none'")))
    op.create_index("jobs_newer", "jobs", ["newer"])
    op.create_table("newer", sa.Column("name", sa.Text, primary_key=True))
'''
_SCHEMA: Final = """
jobs.append_column(_word("newer", "none"))
Index("jobs_newer", jobs.c.newer)
newer: Final = Table("newer", METADATA, Column("name", Text, primary_key=True))
"""


def make(folder: Path, usable_from: str = migrations.NEWEST) -> Path:
    """Where `python -m config_server` runs it, as the working directory. `usable_from`: what its revision says of itself."""
    for package in _PACKAGES:
        shutil.copytree(_TREE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "shared/version.py").write_text(f"VERSION = {VERSION!r}\n")
    store = folder / "config_server/store"
    (store / f"migrations/versions/{REVISION}_next.py").write_text(
        _MIGRATION.replace("USABLE_FROM", usable_from)
    )
    _change(store / "migrations/__init__.py", f'"{migrations.NEWEST}"', f'"{REVISION}"')
    with (store / "schema.py").open("a") as schema:
        schema.write(_SCHEMA)
    return folder


def _change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file} has {old} {text.count(old)} times"
    file.write_text(text.replace(old, new))
