"""One small file a machine, beside its spool: what this server knows of it already, for its next start.

Whoever keeps something here goes by it at once; the disk only follows. So a file that cannot be written stops nobody: it is told
(`trouble`) and tried again. The last that was kept is what lies there in the end, whatever is cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Final

from shared.daemon.single_writer import SingleWriter
from shared.daemon.trouble import Trouble
from shared.errors import NoThreadError, SpoolError, StateFileError, cause_of
from shared.host import durable
from shared.log import names


class MachineFiles:
    """All of one kind. `what` and `error`: how people are told that one cannot be written."""

    def __init__(self, spool_dir: Path, file: str, what: str, error: type[StateFileError]) -> None:
        self.trouble: Final = Trouble(what, lambda: None)
        """Why the disk does not have what was kept last."""
        self._folder: Final = spool_dir
        self._file: Final = file
        self._error: Final = error
        self._kept: Final[dict[str, bytes | None]] = {}
        self._writers: Final[dict[str, SingleWriter]] = {}

    def path(self, machine: str) -> Path:
        return self._folder / names.check_machine(machine) / self._file

    def all(self) -> dict[str, Path]:
        """Those that lie there, by machine."""
        return {path.parent.name: path for path in self._folder.glob(f"*/{self._file}")}

    async def keep(self, machine: str, content: bytes | None) -> bool:
        """None: nothing is kept any more. Whether the disk has it."""
        if machine not in self._writers:
            self._writers[machine] = SingleWriter(f"store {self._file}", partial(self._write, machine))
        if machine not in self._kept or self._kept[machine] != content:
            self._kept[machine] = content
            self._writers[machine].changed()
        await self._written([self._writers[machine]])
        return not self._writers[machine].is_due

    async def remove(self, machine: str) -> None:
        """Nothing is kept any more. Raises SpoolError where it is on the disk still; it is tried again."""
        if not await self.keep(machine, None):
            error = self.trouble.error
            cause = error.cause if error is not None else "it is not done yet"
            raise SpoolError(f"{self.path(machine)} could not be removed", cause=cause)

    async def store_again(self) -> None:
        """What could not be stored before."""
        await self._written([writer for writer in self._writers.values() if writer.is_due])

    async def _written(self, writers: list[SingleWriter]) -> None:
        for writer in writers:
            await writer.written()
        if not any(writer.is_due for writer in self._writers.values()):
            self.trouble.report(None)

    async def _write(self, machine: str) -> bool:
        path = self.path(machine)
        try:
            await asyncio.to_thread(_store, path, self._kept[machine])
        except (OSError, NoThreadError) as exc:
            self.trouble.report(self._error(f"{path} could not be written", cause=cause_of(exc)))
            return False
        return True


def _store(path: Path, content: bytes | None) -> None:
    if content is None:
        durable.remove_file(path)
    else:
        durable.make_folder(path.parent)
        durable.replace_file(path, content)
