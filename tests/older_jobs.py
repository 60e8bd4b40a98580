"""Jobs of version 0, as a program from before the journal of jobs left them: restores whose commands report, and nobody drives."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, insert

from config_server.store.schema import jobs
from shared.api.jobs import JobState


def create(
    db: Connection, id_: str, kind: str, machine: str, who: str, args: dict[str, Any], now_ns: int
) -> None:
    new = {
        "id": id_,
        "kind": kind,
        "machine": machine,
        "who": who,
        "state": JobState.RUNNING,
        "detail": "",
        "args": msgspec.json.encode(args).decode(),
        "created_ns": now_ns,
        "updated_ns": now_ns,
    }
    db.execute(insert(jobs).values(**new))
