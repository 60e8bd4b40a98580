"""The job that renews the CA: another key and certificate, to which everybody goes over, without a gap (rules/ca_renewal.py says why).

    make         the new key and certificate lie beside the old ones on each config server
    distribute   all daemons trust both
    switch       the new CA signs; servers present its certificates. The fence: from here on it only goes forward
    renewed      all daemons present certificates of the new CA
    drop         nobody trusts the old one any more; its key is gone

What the database says (`store/ca.py`: the stage) is what each config server does with its own files (ca_following.py) and tells the
daemons. A step writes the stage, and then looks whether all are there: done again after a kill, or in doubt, it writes what is there
already. A stage never goes back, but from `made` to `given-up`; the last one stays when the job has ended, for servers that were away.

**Cancelled before the switch**, the new certificate is said to be gone, and servers take it and its key out of their files. Daemons that
are away hear that when they come: until then they trust a certificate of which nobody has the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography import x509

from config_server.identity.ca import CertificateAuthority
from config_server.jobs.kinds import Kind, Refused, Stands, Waits
from config_server.operations.ca_following import Following
from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.operations.jobs import DRIVEN
from config_server.rules import ca_renewal as rules
from config_server.rules.ca_renewal import KIND, LANE, Lacking, Renewal, Server, Stage, is_at, is_lost
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store import audit, certificates, jobs, journal, replicas, tokens
from config_server.store import ca as stored
from config_server.store.database import Connection
from config_server.store.journal import Job
from shared.api.certificates import CaRenewRequest
from shared.api.jobs import Direction, JobAct, JobView
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import CaFilesError, DatabaseError, JobActError, LaneTakenError, UnderstudyError
from shared.status import Report
from shared.trust import anchors, identity
from shared.vocabulary import Role

_log = logging.get()

VERSION: Final = 1
LOOK_S: Final = 10.0
_SERVERS_S: Final = 2.0
_UNTIL: Final = "until_ns"
"""Among the arguments: before that it does not switch."""


class CaRenewals:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def begin(self, call: Call, body: CaRenewRequest) -> JobView:
        """Raises LaneTakenError while one is under way."""
        now_ns = self._control.now_ns()

        def work(db: Connection) -> JobView:
            until_ns = max(now_ns, replicas.clock(db)) + int(body.hold_s * SECOND_NS)
            if call.key and journal.is_there(db, call.key, kind=KIND, machine=""):
                return jobs.get(db, call.key)
            if (other := journal.in_lane(db, "", LANE)) is not None:
                raise LaneTakenError(
                    "The CA is not renewed once more", cause=f"it is being renewed (job {other.id})"
                )
            id_ = journal.create(
                db,
                kind=KIND,
                version=VERSION,
                machine="",
                lane=LANE,
                who=call.who,
                args={_UNTIL: until_ns},
                now_ns=now_ns,
                id_=call.key,
            )
            audit.add(db, call.who, "ca.renew", "", {"job": id_}, now_ns)
            return jobs.get(db, id_)

        begun = await self._control.db.run(work)
        self._control.bell.ring(DRIVEN)
        return begun


def kind(control: Control, following: Following) -> Kind:
    steps = [step(control, following) for step in (_Make, _Distribute, _Switch, _Renewed, _Drop)]

    def refused(db: Connection, job: Job) -> Refused:
        return {JobAct.CANCEL: _switched()} if _is_switched(db, job, control.has.signer) else {}

    return Kind(name=KIND, version=VERSION, steps=steps, fence=_Switch.name, lasting_s=0.0, refused=refused)


def _is_switched(db: Connection, job: Job, signer: str) -> bool:
    """`signer`: whose key signs by this server's files, which may be ahead of a database that was put back."""
    renewal = stored.renewal(db)
    if renewal is None or renewal.job != job.id:
        return False
    new = anchors.fingerprint(_certificate(renewal))
    return renewal.stage in (Stage.SWITCHED, Stage.DROPPED) or (renewal.stage is Stage.MADE and new == signer)


def _switched() -> JobActError:
    return JobActError(
        "The renewal of the CA was not cancelled",
        cause="the new CA signs already, and daemons have its certificates",
        action="Let it go on: nobody is locked out while it waits. Is the new CA not wanted either: renew once more when it has ended.",
    )


class _Step:
    name = ""

    def __init__(self, control: Control, following: Following) -> None:
        self._control = control
        self._following = following
        self._asked_ns: dict[str, int] = {}
        """By job: when it was asked first whether storage has all that another host would need (monotonic)."""

    async def do(self, job: Job, results: Mapping[str, Any]) -> Any | Waits | Stands:
        raise NotImplementedError

    async def undo(self, _job: Job) -> bool | Waits | Stands:
        return False

    def _unkept(self, job: Job) -> Waits | None:
        """Before what a config server that begins from an older state would not get over: it would not know who is trusted by then."""
        if self._control.kept_ns is None:
            return None
        asked_ns = self._asked_ns.setdefault(job.id, self._control.mono_ns())
        if self._control.kept_ns() > asked_ns:
            return None
        return Waits(
            "the control state in storage, with which another host would begin, has not all of this yet",
            LOOK_S,
        )

    def _invalid(self, renewal: Renewal) -> Waits | None:
        """By the clock of this host, now: that with which it was made may have been wrong by years."""
        new, now_ns = _certificate(renewal), self._control.now_ns()
        begins, ends = new.not_valid_before_utc, new.not_valid_after_utc
        if begins.timestamp() <= now_ns / SECOND_NS < ends.timestamp():
            return None
        return Waits(
            f"the new CA is valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}, and this host's clock shows {rfc3339(now_ns)[:10]}:"
            " set it right; or, if it is, cancel this job, and begin another one",
            LOOK_S,
        )

    async def _renewal(self, job: Job) -> Renewal:
        """Its own; of a database that was put back it may be gone. Raises CaFilesError."""
        found = await self._control.db.run(stored.renewal)
        if found is None or found.job != job.id:
            raise CaFilesError(
                "The renewal of the CA is not known any more",
                cause="the database was put back since, or another renewal has begun",
                action="Nothing was changed for that. Cancel, or abandon, this job, and begin another one: understudy ca renew.",
            )
        return found

    async def _servers(self, stage: Stage, renewal: Renewal) -> Waits | None:
        """None when all config servers that are there are at this stage. One that is not there now finds out when it comes."""
        try:
            await self._following.look()
        except DatabaseError:
            raise
        except UnderstudyError as exc:  # on this host, as it may be on any other: it is waited for, and said
            _log.info("this config server is not where the CA's renewal wants it", **exc.as_dict())
        new = anchors.fingerprint(_certificate(renewal))
        servers = await self._have()
        lacking = [server for server in servers if not is_at(server.has, stage, new)]
        if not lacking:
            return None
        with_key = ", or ".join(server.name for server in servers if new in server.has.keys)
        words = []
        for server in lacking:
            if server.has.wrong:
                words.append(f"{server.name} ({server.has.wrong})")
            elif not server.has.signer:
                words.append(f"{server.name} (an earlier version: upgrade it)")
            elif new not in server.has.keys and stage is not Stage.GIVEN_UP:
                source = with_key or "one that has it"
                words.append(f"{server.name} (copy ca.key and ca.pem from the data folder of {source})")
            else:
                words.append(server.name)
        return Waits(f"config servers that are not where they are to be: {', '.join(words)}", _SERVERS_S)

    @property
    def _id(self) -> str:
        return "" if self._control.others is None else self._control.others.id

    async def _have(self) -> list[Server]:
        """Each config server that is there, this one first. Raises DatabaseError."""
        others = () if self._control.others is None else await self._control.others.have()
        return [Server(self._id, self._following.name, self._control.has), *others]

    def _parties(self, db: Connection) -> dict[str, certificates.Party]:
        """Who takes part, by ROLE:NAME, and the certificate that he got last. Whoever was revoked does not."""
        found = certificates.parties(db, self._control.now_ns() - rules.LONG_EXPIRED_NS)
        return {
            name: party
            for party in found
            for name in [f"{party.role}:{party.name}"]
            if not self._control.revoked.covers(party.serial, name, party.begins_s)
        }

    def _reports(self) -> dict[str, Report]:
        return {seen.source: seen.report for seen in self._control.presence.all()}

    def _lacking_trust(self, db: Connection, new: str) -> Lacking:
        return rules.lacking_trust(_daemons(self._parties(db)), self._reports(), new)


class _Make(_Step):
    name = "make"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        renewal = await self._control.db.run(stored.renewal)
        if renewal is None or renewal.job != job.id or await self._is_lost(renewal):
            if strange := await self._strange():
                return strange
            renewal = await self._make(job)
        lacking = await self._servers(Stage.MADE, renewal)
        return lacking or {"new": anchors.fingerprint(_certificate(renewal))}

    async def _strange(self) -> Waits | None:
        """Who makes another CA is whom others copy from. Should one of them sign by a CA that he does not know (he was away when that was
        made, and the database was put back from before it), its key would be lost, and with it all that have its certificates."""
        mine, *others = await self._have()
        names = [server.name for server in others if server.has.signer not in ("", *mine.has.trusted)]
        if not names:
            return None
        return Waits(
            f"config servers that agree: {', '.join(names)} signs by a CA that {mine.name} does not know. Copy ca.key and ca.pem from the"
            " data folder of whichever daemons have certificates of to the other (and never the other way)",
            _SERVERS_S,
        )

    async def _is_lost(self, renewal: Renewal) -> bool:
        return is_lost(renewal, anchors.fingerprint(_certificate(renewal)), self._id, await self._have())

    async def _make(self, job: Job) -> Renewal:
        """The database first: what it names is trusted by nobody before its key is on a disk, and what it named before is gone."""
        if len(self._control.ca.trusted) >= anchors.MOST:
            raise CaFilesError(
                "The CA was not renewed once more",
                cause=f"{anchors.MOST} certificates are trusted: renewals were abandoned behind their switch, and no daemon takes more",
                action="Have the last one go on to its end. Where its job was abandoned: see docs/operations/keys.md.",
            )
        new, old = (
            CertificateAuthority.made(self._control.ca),
            anchors.pem_of(self._control.ca.trusted).decode(),
        )
        renewal = Renewal(job=job.id, stage=Stage.MADE, new=new.pem, old=old, by=self._id)

        def work(db: Connection) -> None:
            journal.still(db, job)
            before = stored.renewal(db)
            if before is not None and before.stage is Stage.MADE:
                stored.add_former(db, [_certificate(before)])
            stored.put(db, renewal)

        await self._control.db.run(work)
        reach("ca.in-database")
        await self._following.put_beside(new)
        return renewal

    async def undo(self, job: Job) -> bool | Waits | Stands:
        signers = {server.has.signer for server in await self._have()}

        def work(db: Connection) -> tuple[Renewal | None, bool]:
            journal.still(db, job)
            found = stored.renewal(db)
            if found is None or found.job != job.id:
                return None, False
            if found.stage is not Stage.MADE or anchors.fingerprint(_certificate(found)) in signers:
                return found, False
            stored.add_former(db, [_certificate(found)])
            found = msgspec.structs.replace(found, stage=Stage.GIVEN_UP)
            stored.put(db, found)
            return found, True

        renewal, is_there = await self._control.db.run(work)
        if renewal is None:
            return False
        if renewal.stage is not Stage.GIVEN_UP:
            return Stands("the new CA signs already", _switched())
        if lacking := await self._servers(Stage.GIVEN_UP, renewal):
            return lacking
        return is_there


class _Distribute(_Step):
    name = "distribute"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        renewal = await self._renewal(job)
        if renewal.stage is Stage.MADE and (
            hindrance := await self._servers(Stage.MADE, renewal) or self._invalid(renewal)
        ):
            return hindrance  # a server has come since, and has daemons that hear of nothing
        new = anchors.fingerprint(_certificate(renewal))
        lacking, clock_ns = await self._control.db.run(
            lambda db: (self._lacking_trust(db, new), replicas.clock(db))
        )
        if lacking.words:
            return _waits(lacking, "trust the new CA")
        # By this host's clock and by the database's: what follows cannot be taken back, and either may be ahead for a moment.
        if (until_ns := int(job.args.get(_UNTIL, 0))) > min(self._control.now_ns(), clock_ns):
            why = f"{rfc3339(until_ns)[:19]} UTC: until then operators can take the new CA into their profiles (understudy ca trust)"
            return Waits(why, LOOK_S, 1.0)
        return {"daemons": lacking.of}


class _Switch(_Step):
    name = "switch"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        renewal, now_ns = await self._renewal(job), self._control.now_ns()
        if renewal.stage is Stage.MADE and (
            hindrance := await self._servers(Stage.MADE, renewal)
            or self._invalid(renewal)
            or self._unkept(job)
        ):
            return hindrance
        new = anchors.fingerprint(_certificate(renewal))

        def work(db: Connection) -> Lacking | int:
            """Who has enrolled in between trusts both; but an earlier version than this takes only one."""
            if journal.still(db, job).direction is Direction.BACK or renewal.stage is not Stage.MADE:
                return 0
            if (lacking := self._lacking_trust(db, new)).words:
                return lacking
            stored.put(db, msgspec.structs.replace(renewal, stage=Stage.SWITCHED))
            audit.add(db, job.who, "ca.switch", "", {"job": job.id, "ca": new}, now_ns)
            # They name the CA by which they shall know the server, and it is the other one from now on.
            return len(tokens.make_void(db))

        ended = await self._control.db.run(work)
        reach("ca.switched")
        if isinstance(ended, Lacking):
            return _waits(ended, "trust the new CA")
        renewal = await self._renewal(job)
        if renewal.stage is Stage.MADE:
            return Waits("it is being cancelled", _SERVERS_S)
        return await self._servers(Stage.SWITCHED, renewal) or {"tokens ended": ended}


class _Renewed(_Step):
    name = "renewed"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        new = _certificate(await self._renewal(job))
        parties = await self._control.db.run(self._parties)
        lacking = rules.lacking_certificate(_daemons(parties), self._reports(), anchors.fingerprint(new))
        words = [*lacking.words, *(f"{name} (enrol it anew)" for name in _storage(parties, new))]
        if words:
            return _waits(Lacking(len(parties), words), "have a certificate of the new CA")
        return {"daemons": lacking.of}


class _Drop(_Step):
    name = "drop"

    async def do(self, job: Job, _results: Mapping[str, Any]) -> Any | Waits | Stands:
        renewal = await self._renewal(job)
        if renewal.stage is Stage.SWITCHED and (unkept := self._unkept(job)):
            return unkept
        new = _certificate(renewal)

        def work(db: Connection) -> tuple[x509.Certificate, ...]:
            journal.still(db, job)
            # By the database: the files may be ahead of it, if it was put back.
            stored.add_former(db, [each for each in anchors.loaded(renewal.old.encode()) if each != new])
            stored.put(db, msgspec.structs.replace(renewal, stage=Stage.DROPPED))
            return stored.former(db)

        former = await self._control.db.run(work)
        reach("ca.dropped")
        if lacking := await self._servers(Stage.DROPPED, renewal):
            return lacking
        gone = [anchors.fingerprint(each) for each in former if each != new]
        parties = await self._control.db.run(self._parties)
        trusting = rules.still_trusting(_daemons(parties), self._reports(), gone)
        if trusting.words:
            return _waits(trusting, "have let go of the old CA")
        return {"ca": anchors.fingerprint(new)}


def _certificate(renewal: Renewal) -> x509.Certificate:
    return identity.only_certificate(renewal.new)


def _daemons(parties: Mapping[str, certificates.Party]) -> list[str]:
    """Those that report."""
    return [name for name, party in parties.items() if party.role is not Role.STORAGE]


def _storage(parties: Mapping[str, certificates.Party], new: x509.Certificate) -> list[str]:
    """Emulators of storage, which report nothing, and whose clients trust what their configurations say."""
    return [
        name
        for name, party in parties.items()
        if party.role is Role.STORAGE
        and (not party.pem or anchors.issuer_of(identity.only_certificate(party.pem), [new]) is None)
    ]


def _waits(lacking: Lacking, what: str) -> Waits:
    return Waits(lacking.said(what), LOOK_S, lacking.share)
