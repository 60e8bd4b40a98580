"""Tells daemons where the config server is that is in force (shared/trust/pointer.py): when it takes over, and at each start, since its
names may be others. One that was superseded reads it, and hands it to whoever still comes: an agent without a session reaches nobody else
who knows."""

from __future__ import annotations

import time
from typing import Final

from config_server.config import ConfigServerConfig
from config_server.identity.ca import CertificateAuthority
from config_server.recovery.generation import Force
from config_server.recovery.keeping import CHECK_S
from shared.api.route import PORT
from shared.blob import BlobStore
from shared.errors import BlobExistsError, BlobNotFoundError, PreconditionError
from shared.serving import listening
from shared.trust.pointer import BLOB, MOST_B, Pointer, encoded, opened, opened_by, statement

_MOST: Final = 8


class Pointing:
    def __init__(self, config: ConfigServerConfig, ca: CertificateAuthority, force: Force) -> None:
        port = "" if config.port == PORT else f":{config.port}"
        self._urls: Final = tuple(f"https://{listening.shown(host)}{port}" for host in config.hosts[:_MOST])
        self._ca: Final = ca
        self._ca_file: Final = config.data_dir / "ca.pem"
        self._force: Final = force
        self._said: tuple[int, bytes] = (0, b"")
        """The generation for which it was written, and the CA that signed it, ..."""
        self._looked_s = 0.0
        """... and when that was looked at last (monotonic): somebody may have deleted it since."""
        self.elsewhere = ""
        """What storage says, while another one is in force; "": that is not so, or is not known yet."""

    async def look(self, vault: BlobStore) -> None:
        """Raises StorageError. A server without names, or that is not known to be in force, says nothing."""
        if self._force.by is not None:
            await self._find(vault, self._force.by.generation)
            return
        self.elsewhere = ""
        generation = self._force.generation
        now = (generation, self._ca.der)
        if not generation or not self._urls:
            return
        if now == self._said and time.monotonic() - self._looked_s < CHECK_S:
            return
        found = await vault.read_versioned(BLOB, MOST_B)
        there = None if found is None else opened(found[0], self._ca_file)
        if there is not None and there.generation > generation:
            return  # it has been superseded, and will know soon
        # Signed anew where the CA was renewed: its former certificate is soon trusted by nobody.
        is_ours = found is not None and opened_by(found[0], [self._ca.certificate]) is not None
        if there is None or not is_ours or (there.generation, there.urls) != (generation, self._urls):
            made_ns = max(time.time_ns(), 0 if there is None else there.made_ns + 1)
            pointer = Pointer(generation=generation, urls=self._urls, made_ns=made_ns)
            data = encoded(pointer, self._ca.sign(statement(pointer)))
            try:
                if found is None:
                    await vault.create(BLOB, data)
                else:
                    await vault.replace(BLOB, data, if_match=found[1])
            except (BlobExistsError, BlobNotFoundError, PreconditionError):
                return  # somebody else wrote it: at the next look
        self._said, self._looked_s = now, time.monotonic()

    async def _find(self, vault: BlobStore, by: int) -> None:
        if self.elsewhere and time.monotonic() - self._looked_s < CHECK_S:
            return
        found = await vault.read_versioned(BLOB, MOST_B)
        there = None if found is None else opened(found[0], self._ca_file)
        if found is not None and there is not None and there.generation >= by:
            self.elsewhere, self._looked_s = found[0].decode(), time.monotonic()
