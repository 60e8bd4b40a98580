"""One small file a machine, beside its spool: what this server knows of it already, for its next start.

Whoever keeps something here goes by it at once; the disk only follows. So a file that cannot be written stops nobody: it is told
(`trouble`) and tried again. The last that was kept is what lies there in the end, whatever is cancelled meanwhile: each write takes the
newest, and one at a time.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Final

from shared import durable
from shared.errors import StateFileError
from shared.log import names
from shared.trouble import Trouble


class MachineFiles:
    """All of one kind. `what` and `error`: how people are told that one cannot be written."""

    def __init__(self, spool_dir: Path, file: str, what: str, error: type[StateFileError]) -> None:
        self.trouble: Final = Trouble(what, lambda: None)
        """Why the disk does not have what was kept last."""
        self._folder: Final = spool_dir
        self._file: Final = file
        self._error: Final = error
        self._wanted: Final[dict[str, bytes | None]] = {}
        self._stored: Final[dict[str, bytes | None]] = {}
        """What is on the disk for certain; None: nothing."""
        self._writing: Final = threading.Lock()

    def path(self, machine: str) -> Path:
        return self._folder / names.check_machine(machine) / self._file

    def all(self) -> dict[str, Path]:
        """Those that lie there, by machine."""
        return {path.parent.name: path for path in self._folder.glob(f"*/{self._file}")}

    async def keep(self, machine: str, content: bytes | None) -> None:
        """None: nothing is kept any more."""
        self._wanted[machine] = content
        if not self._is_stored(machine):
            await self._store(machine)

    async def store_again(self) -> None:
        """What could not be stored before."""
        for machine in self._unstored():
            await self._store(machine)

    async def _store(self, machine: str) -> None:
        failed = await asyncio.to_thread(self._write, machine)
        if failed is not None or not self._unstored():
            self.trouble.report(failed)

    def _unstored(self) -> list[str]:
        return [machine for machine in self._wanted if not self._is_stored(machine)]

    def _is_stored(self, machine: str) -> bool:
        return machine in self._stored and self._stored[machine] == self._wanted[machine]

    def _write(self, machine: str) -> StateFileError | None:
        path = self.path(machine)
        with self._writing:
            content = self._wanted[machine]
            if self._is_stored(machine):
                return None
            # Behind a failed sync, neither is known to be there.
            self._stored.pop(machine, None)
            try:
                if content is None:
                    durable.remove_file(path)
                else:
                    durable.make_folder(path.parent)
                    durable.replace_file(path, content)
            except OSError as exc:
                return self._error(f"{path} could not be written", cause=exc.strerror or str(exc))
            self._stored[machine] = content
        return None
