"""What a process server says of itself while machines of it are in trouble: a real spool, and real storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from shared.machine.storage import MachineStorage
from shared.vocabulary import Severity
from tests.deleted_machines import parts, remove
from tests.logs import make_chain
from tests.spools import MACHINE, append_all, hello


async def test_the_trouble_of_one_machine_is_not_the_servers_while_others_go_on(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """It was told as the server's own, so that each machine which it serves was critical."""
    async with parts(tmp_path / "spool", MachineStorage(machine_storage.vault)) as made:
        await append_all(await made.begun(), make_chain(3))
        await remove(machine_storage)
        async with asyncio.timeout(20):
            while not made.report().machines[MACHINE].errors:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)
        alone = [(error.code, error.severity) for error in made.report().errors]
        assert alone == [("US403", Severity.ERROR)], "it is all that the server has"
        other = msgspec.structs.replace(hello(0), machine="web2")
        await (await made.spool.open_machine(other)).begin(other)
        assert made.report().errors == []
        assert [error.code for error in made.report().machines[MACHINE].errors] == ["US481"]
        assert made.report().machines["web2"].errors == []
