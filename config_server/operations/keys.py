"""Handlers of keys: what process servers and master targets are given of the vault, which stays here.

A daemon gets one machine's data key at a time, for its wrapped form, which lies in storage: the vault's own keys never leave. So does
whoever restores, for segments of before the machine's document was made anew: wrapped for another machine, it does not open. Nobody is
given a key before the audit log says so durably; where it cannot be written, no key goes out. New keys are made only under a vault that
storage knows (shared/keys/vault_record.py); what it knew is remembered in the database, for the time when it is away.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

import msgspec

from config_server.operations.call import Call
from config_server.operations.control import Control, check_name
from config_server.store import audit, settings
from config_server.store.database import Connection
from shared import decoding
from shared.api.keys import KeyRequest, MachineKeyGrant, VaultKeyView, VaultView
from shared.api.route import Nothing
from shared.errors import ConfigError
from shared.keys.sealing import MachineKey
from shared.keys.vault import WrappedKey
from shared.keys.vault_record import RecordedVault, Records


class Keys:
    def __init__(self, control: Control, vault: RecordedVault | None) -> None:
        self._control: Final = control
        self._vault: Final = vault

    async def unwrap(self, call: Call, body: KeyRequest) -> MachineKeyGrant:
        machine = check_name(call.path["machine"], "machine")
        key = await self._open().unwrap(WrappedKey(body.key_id, body.wrapped), machine)
        return await self._hand_out(call, "key.grant", machine, MachineKey(body.key_id, body.wrapped, key))

    async def create(self, call: Call, _body: Nothing) -> MachineKeyGrant:
        """Nothing is kept of it here: it is the machine's from the moment that its process server has put it, wrapped, into storage."""
        machine = check_name(call.path["machine"], "machine")
        return await self._hand_out(call, "key.create", machine, await self._open().new_key(machine))

    async def vault(self, _call: Call, _body: Nothing) -> VaultView:
        """Of what storage knew when it answered last. Raises ConfigError."""
        vault = self._open()
        ours, recorded = vault.file.fingerprints, vault.recorded
        keys = [
            VaultKeyView(
                id=id_,
                fingerprint=ours[id_],
                is_current=id_ == vault.file.current,
                is_recorded=recorded.get(id_) == ours[id_],
            )
            for id_ in ours
        ]
        problem = vault.problem
        return VaultView(
            file=str(vault.file.path),
            keys=keys,
            missing=sorted(recorded.keys() - ours.keys()),
            problem=None if problem is None else f"{problem.what}: {problem.cause}",
        )

    def _open(self) -> RecordedVault:
        if self._vault is None:
            raise ConfigError(
                "No key can be handed out",
                cause="no vault file is configured on this config server",
                action="Add `vault_file` to its configuration, and start it again.",
            )
        return self._vault

    async def _hand_out(self, call: Call, action: str, machine: str, key: MachineKey) -> MachineKeyGrant:
        detail = {
            "key_id": key.key_id,
            "wrapped_sha256": hashlib.sha256(key.wrapped).hexdigest(),
            "serial": f"{call.serial:x}",
            "address": call.remote,
        }
        now_ns = self._control.now_ns()
        await self._control.db.run(lambda db: audit.add(db, call.who, action, machine, detail, now_ns))
        return grant_of(key)


def grant_of(key: MachineKey) -> MachineKeyGrant:
    return MachineKeyGrant(
        key_id=key.key_id,
        wrapped=base64.b64encode(key.wrapped).decode(),
        key=base64.b64encode(key.key).decode(),
    )


def remembered(db: Connection, storage: str) -> Records:
    """The vault keys that this storage had when it answered last."""
    value = settings.get(db, _remembered(storage))
    return {} if value is None else decoding.decode(value, type=dict[str, str])


def remember(db: Connection, storage: str, recorded: Records) -> None:
    settings.put(db, _remembered(storage), msgspec.json.encode(dict(recorded)).decode())


def _remembered(storage: str) -> str:
    return f"vault keys of {storage}"
