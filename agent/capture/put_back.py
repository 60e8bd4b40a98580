"""A disks.json of an earlier boot beside what is captured in this one. Pure.

It comes to that where the file was lost at a reboot that gave the disks other names: what stood under the configured paths was captured
under the ids, and pinned. Then somebody put the file back from a backup. But an older agent's file, or one of before a disk was replaced,
looks the same. So such a file counts where all of it is proved, for all that is captured (`is_whole`), or not at all: half of it would give
one id a disk that another has. Where it does not count, what is captured goes on as what it is, what the file says otherwise is said
(`otherwise`), and it is kept (`bindings.BindingsFile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.capture.binding import COPIED, NAMED, Identity, Kind, Standing, bears, same
from agent.capture.bindings import Bound, PinnedTo, Which


def is_whole(
    lines: Mapping[str, Bound],
    captured: Mapping[str, PinnedTo],
    boot: str,
    standing: Mapping[Which, Standing],
    configured: Mapping[str, str],
) -> bool:
    """Whether the file says of each captured id, by a line of another boot, which standing disk it is: one alone bears its identity, which
    cannot change and was never shared, and none may hide it; no two have one disk, the configuration says nothing else, and one at least
    is not pinned there. All by id."""
    shared = {text for line in lines.values() for text in line.shared}
    given: list[Which] = []
    for id_ in captured:
        line = lines.get(id_)
        kept = line.kept if line and _is_of_another_boot(line, boot) else None
        if line is None or kept is None or kept.is_weak or line.identity in shared:
            return False
        if id_ in configured and not same(kept, Identity.parse(configured[id_])):
            return False
        if any(_may_hide(one, kept.kind) for one in standing.values()):
            return False
        bearing = [which for which, one in standing.items() if bears(one, kept)]
        if len(bearing) != 1:
            return False
        given += bearing
    return len({*given}) == len(given) and given != [pin.which for pin in captured.values()]


def _may_hide(disk: Standing, kind: Kind) -> bool:
    """No disk but a loop device has a file behind it: there is one on most machines that cannot be read, as a drive without a disc."""
    return disk.may_hide(kind) and (kind is not Kind.LOOP or disk.name.startswith("loop"))


def may_say_otherwise(lines: Mapping[str, Bound], captured: Mapping[str, PinnedTo], boot: str) -> bool:
    """Whether it matters what every disk of the machine says of itself."""
    return any(True for _ in _differing(lines, captured, boot))


def otherwise(
    lines: Mapping[str, Bound],
    captured: Mapping[str, PinnedTo],
    boot: str,
    standing: Mapping[Which, Standing],
    configured: Mapping[str, str],
) -> list[str]:
    """The captured ids of which the file says another disk than is pinned: by what cannot change, and the pinned one has another of that
    kind; or by what another disk bears, and not the pinned one."""
    found = []
    for id_, pin, kept in _differing(lines, captured, boot):
        disk = standing.get(pin.which)
        if disk is None or id_ in configured or bears(disk, kept) or kept.kind not in NAMED | COPIED:
            continue
        is_elsewhere = any(bears(one, kept) for one in standing.values())
        if is_elsewhere or (not kept.is_weak and any(one.kind is kept.kind for one in disk.identities)):
            found.append(id_)
    return found


def _differing(
    lines: Mapping[str, Bound], captured: Mapping[str, PinnedTo], boot: str
) -> Iterator[tuple[str, PinnedTo, Identity]]:
    for id_, pin in captured.items():
        line, (_, diskseq) = lines.get(id_), pin.which
        if not diskseq or line is None or line.kept is None or not _is_of_another_boot(line, boot):
            continue  # without a diskseq (kernels before 5.15) a pin says nothing
        if pin.line is None or pin.line.identity != line.identity:
            yield id_, pin, line.kept


def _is_of_another_boot(line: Bound, boot: str) -> bool:
    return line.seen is not None and line.seen.boot != boot
