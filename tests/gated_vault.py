"""A vault that is away, or does not answer, for some machines: until a test says otherwise."""

from __future__ import annotations

import asyncio

from shared.errors import KeyUnavailableError
from shared.keys.sealing import MachineKey
from shared.keys.vault import FileVault, WrappedKey


class GatedVault:
    def __init__(self, vault: FileVault) -> None:
        self.vault = vault
        self.away: set[str] = set()
        """Machines whose keys cannot be had."""
        self.silent: set[str] = set()
        """Machines whose keys are asked for, and nobody ever answers."""
        self.asked: list[str] = []
        """Who was refused, or waits."""

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        await self._pass(machine)
        return await self.vault.unwrap(wrapped, machine)

    async def new_key(self, machine: str) -> MachineKey:
        await self._pass(machine)
        return await self.vault.new_key(machine)

    async def _pass(self, machine: str) -> None:
        if machine in self.away | self.silent:
            self.asked.append(machine)
        if machine in self.away:
            raise KeyUnavailableError(f"The key of machine {machine} cannot be had now", cause="a test")
        if machine in self.silent:
            await asyncio.Event().wait()
