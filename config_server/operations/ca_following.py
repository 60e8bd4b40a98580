"""This config server's part of the renewal of its CA: its files are what the database says they are to be, and it serves by them.

Each server does so for itself, once a second or so: none hands its key to another (docs/decisions/0031). One that has not the new key
says that it lacks it; a person copies the files, and it goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec
from cryptography import x509

from config_server.identity import ca_files, ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.identity.own_certificate import OwnCertificate
from config_server.operations.control import Control
from config_server.rules.ca_renewal import Has, Renewal, Stage, is_at
from config_server.store import ca as stored
from config_server.store.database import Connection
from shared.api.certificates import Trust
from shared.errors import CaFilesError, DatabaseError, UnderstudyError, cause_of
from shared.trust import anchors

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Following:
    def __init__(
        self, control: Control, name: str, folder: Path, vault_file: Path | None, own: OwnCertificate
    ) -> None:
        """`name`: of this server, for people."""
        self.name: Final = name
        self.folder: Final = folder
        self._control = control
        self._vault_file = vault_file
        self._own = own
        self._at_work = asyncio.Lock()

    async def look(self) -> None:
        """Once. Raises DatabaseError; CaFilesError, IdentityFileError, HostClockError or ConfigError where it is not as it should be: then
        daemons are told nothing of whom to trust by this server."""
        async with self._at_work:
            try:
                lacks = await self._look()
            except BaseException as exc:
                self._control.trust = None
                if isinstance(exc, UnderstudyError) and not isinstance(exc, DatabaseError):
                    wrong = f"{exc.what}: {exc.cause}"
                    self._control.has = msgspec.structs.replace(self._control.has, wrong=wrong)
                raise
            if lacks is not None:
                raise lacks

    async def put_beside(self, new: CertificateAuthority) -> None:
        """The new key, before anybody is told of it. Raises CaFilesError, IdentityFileError."""
        async with self._at_work:
            await self._on_disk(ca_files.put_beside, self.folder, new)

    async def _look(self) -> CaFilesError | None:
        """What it has not been given."""

        def work(db: Connection) -> tuple[Renewal | None, tuple[x509.Certificate, ...]]:
            return stored.renewal(db), stored.former(db)

        control = self._control
        renewal, former = await control.db.run(work)
        if renewal is None:
            found = await self._on_disk(CertificateAuthority.read, self.folder)
        else:
            (new,) = anchors.loaded(renewal.new.encode())
            if renewal.stage is Stage.DROPPED:
                await self._on_disk(self._note, new)
            known = {*anchors.loaded(renewal.old.encode()), *former}
            found = await self._on_disk(ca_files.brought, self.folder, renewal.stage, new, known)
        control.ca.become(found)
        control.ca.former = former
        await self._own.renew()
        control.has = self._has()
        control.refuses_renewed = (
            renewal is not None
            and renewal.stage in (Stage.SWITCHED, Stage.DROPPED)
            and anchors.fingerprint(new) not in control.has.trusted
        )
        if renewal is not None and not is_at(control.has, renewal.stage, anchors.fingerprint(new)):
            control.trust = None
            return CaFilesError(
                "This config server has not the new CA's key",
                cause=f"the CA is being renewed, and {self.folder} has not been given what another config server has made",
            )
        gone = [print_ for print_ in map(anchors.fingerprint, former) if print_ not in control.has.trusted]
        pem = anchors.pem_of(control.ca.trusted).decode()
        control.trust = Trust(pem=pem, signer=control.has.signer, gone=gone)
        return None

    def _has(self) -> Has:
        ca, chain = self._control.ca, self._own.presented
        issuer = None
        if chain is not None:
            issuer = anchors.issuer_of(x509.load_pem_x509_certificate(chain.cert), anchors.loaded(chain.ca))
        return Has(
            anchors.fingerprint(ca.certificate),
            tuple(map(anchors.fingerprint, ca.trusted)),
            tuple(anchors.fingerprint(each) for each in ca.trusted if ca.has_key_of(each)),
            "" if issuer is None else anchors.fingerprint(issuer),
        )

    def _note(self, new: x509.Certificate) -> None:
        """Before the old one goes: a server that finds another one noted does not start. Raises OSError, ConfigError."""
        ca = CertificateAuthority.read(self.folder)
        if (
            self._vault_file is not None
            and ca.certificate == new
            and ca_note.is_of_another(ca, self._vault_file)
        ):
            ca_note.note(ca, self._vault_file)

    async def _on_disk(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await asyncio.to_thread(work, *args, **kwargs)
        except UnderstudyError:
            raise
        except (OSError, ValueError) as exc:
            cause = cause_of(exc) if isinstance(exc, OSError) else str(exc)
            raise CaFilesError(
                f"The CA's files in {self.folder} could not be used",
                cause=cause,
                action="See to the cause; it is tried again at once.",
            ) from exc
