"""Reports of daemons about machine `web1`, at ages, and what the config server shows of it. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from config_server.rules import view
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import Facts, facts_of
from config_server.rules.lasting import Lasting
from config_server.rules.machine import Machine
from config_server.rules.presence import Presence
from config_server.rules.rpo import StorageProgress
from config_server.store import lasting_record
from shared.api.machines import MachineView
from shared.api.points import PointView
from shared.api.policies import Policy
from shared.desired import WantedDisk
from shared.status import Report
from shared.vocabulary import Role

NOW: Final = 1_700_000_000 * SECOND_NS
_LOOK_NS: Final = 60 * SECOND_NS
_LOOKS: Final = 120


def machine(**changes: object) -> Machine:
    base = Machine("web1", protected=True, disks=(WantedDisk("/dev/sda"),), policy=Policy(), created_ns=0)
    return msgspec.structs.replace(base, **changes)


class World:
    def __init__(self, known: Machine | None = None) -> None:
        self.presence = Presence()
        self.progress = StorageProgress()
        self.lasting = Lasting()
        self.machine = known or machine()
        self.now_ns = NOW
        self.owner = ""
        self.untaken: tuple[str, int] | None = None
        self.withheld_ns: int | None = None

    def later(self, seconds: float) -> World:
        """The config server looks meanwhile, as it does; of very long times not to the end."""
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        self._look()
        for _ in range(_LOOKS):
            if self.now_ns >= end_ns:
                break
            self.now_ns = min(end_ns, self.now_ns + _LOOK_NS)
            self._look()
        self.now_ns = end_ns
        return self

    def says(self, role: str, name: str, report: Report, age_s: float = 0.0, skew_s: float = 0.0) -> World:
        received_ns = self.now_ns - int(age_s * SECOND_NS)
        report = msgspec.structs.replace(report, sent_ns=received_ns - int(skew_s * SECOND_NS))
        self.presence.learn(Role(role), name, msgspec.json.encode(report), received_ns, received_ns)
        return self

    def restart(self) -> World:
        """Of the config server: what it knows is what it had stored."""
        before, self.presence = self.presence, Presence()
        kept = lasting_record.decode(lasting_record.encode(self.lasting.kept()))
        self.progress, self.lasting = StorageProgress(), Lasting()
        self.lasting.recover(kept, self.now_ns)
        for seen in before.all():
            raw = msgspec.json.encode(seen.report)
            self.presence.learn(seen.role, seen.name, raw, seen.received_ns, seen.heard_ns, self.now_ns)
        return self

    def show(self, protected: Machine | None = None, last_point: PointView | None = None) -> MachineView:
        known = protected or self.machine
        facts = self._facts(last_point)
        rpo = self.progress.rpo("web1", facts, self.now_ns, self.now_ns)
        lasting = self.lasting.look(known, facts, self.now_ns)
        facts = msgspec.structs.replace(facts, rpo=rpo, lasting=lasting)
        return view.machine_view(known, facts, self.now_ns)

    def _facts(self, last_point: PointView | None = None) -> Facts:
        facts = facts_of(self.presence, "web1", self.now_ns, last_point, self.owner)
        return msgspec.structs.replace(facts, untaken=self.untaken, withheld_ns=self.withheld_ns)

    def _look(self) -> None:
        self.lasting.look(self.machine, self._facts(), self.now_ns)
