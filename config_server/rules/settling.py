"""What is kept of a machine's disks after a report of its agent: by their ids, as soon as it tells these. Pure.

A disk that has an id is known by that, in all lines of the machine: those that shall be protected, the wish that is told, and those that
shall go. So a path is understood once, by what stands there when its agent says so, and from then on the same ids are judged, kept and
told, whatever is called so after the next boot; and no disk has two lines (`wishes.once`).

A wish that its agent goes by is not told in other words: it would fit itself anew. What it knows by an id is not told by a path any more.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from config_server.rules.disks import Offer
from config_server.rules.machine import Machine
from config_server.rules.wishes import once, same, with_ids
from shared.desired import Verb, WantedDisk, Wish


def settled(machine: Machine, offer: Offer, told: Wish | None) -> Machine:
    """`told`: what its agent says that it goes by, `offer` what it says of its disks, on the hardware whose disks these are."""
    wish, disks = machine.wish, machine.disks
    if wish is not None and wish.disks and told is not None and told.mark == wish.mark:
        wish = replace(wish, disks=with_ids(wish.disks, told.disks))
        disks = with_ids(with_ids(disks, told.disks), offer.bound)
    else:
        disks = offer.settled(disks)
        if wish is not None and wish.disks and wish.verb is Verb.PROTECT:
            wish = replace(wish, disks=disks)
        elif not machine.ended and offer.bound and not offer.is_unsettled(disks):
            disks = tuple(_noted(disks, offer))
    return replace(machine, wish=wish, disks=once(disks), dropped=offer.settled(machine.dropped))


def _noted(disks: Sequence[WantedDisk], offer: Offer) -> list[WantedDisk]:
    """Where nobody ever named disks, what its agent is to capture is what is protected. It may name fewer, or none, when it cannot start:
    so what it named once stays noted until somebody says what is wanted, or it names all that it is to capture. So does an id, also where
    it cannot say that."""
    said = [*offer.bound]
    noted: list[WantedDisk] = []
    for disk in disks:
        now = next((one for one in said if same(disk, one)), None)
        if now is not None:
            said.remove(now)
            noted.append(replace(now, id=now.id or disk.id))
        elif not (offer.is_whole and disk.id):  # else it was taken out of its configuration
            noted.append(disk)
    return [*noted, *said]
