"""What `understudy machine …` shows in a terminal: tables, the page of one machine, the line of one that is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from config_server.cli.output import fields, grid, line, percent, seconds, size, told
from shared.vocabulary import Health, HopState, MachineState, Severity

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from config_server.cli.rescue import StoredMachine
    from shared.api.machines import DeletionView, ErrorView, MachineView
    from shared.api.protection import DiskCandidate, DiskCandidates

_CLOSED: Final = "closed"
_REMOVING: Final = "removing"
"""Stages of a deletion (shared/api/machines.py)."""
_STYLES: Final[dict[str, str]] = {
    MachineState.ORDERED: "green",
    MachineState.DISCONNECTED: "red",
    MachineState.TO_BE_DELETED: "yellow",
    MachineState.UNKNOWN: "dim",
    HopState.OK: "green",
    HopState.ERROR: "red",
    HopState.UNKNOWN: "dim",
}
HEALTH_STYLES: Final[dict[str, str]] = {
    Health.NORMAL: "green",
    Health.WARNING: "yellow",
    Health.CRITICAL: "red",
}


def one_line(found: MachineView) -> str:
    """For a line of progress."""
    parts = [f"{found.name}: {found.state}"]
    running = [disk for disk in found.disks if disk.progress is not None]
    if running:
        parts.append(", ".join(f"{disk.name} {percent(disk.progress)}" for disk in running))
    if found.rpo_s is not None:
        parts.append(f"RPO {seconds(found.rpo_s)}")
    if found.cause:
        parts.append(found.cause)
    if found.errors:
        worst = _worst(found.errors)
        parts.append(f"{worst.code} {worst.what}")
    return " | ".join(parts)


def _styled(text: str, *more: str) -> Text:
    return line((text, _STYLES.get(text, "")), *more)


def _worst(errors: list[ErrorView]) -> ErrorView:
    return max(errors, key=lambda error: error.severity.rank)


def list_page(found: list[MachineView]) -> RenderableType:
    """A line for each machine, and below one for each that is not well: what is worst."""
    from rich.console import Group

    remarks: list[Text] = []
    for machine in found:
        if machine.errors:
            worst = _worst(machine.errors)
            words = f" {worst.code} {worst.what}" + (f": {worst.cause}" if worst.cause else "")
            more = len(machine.errors) - 1
            if more:
                words += f" (and {more} more: understudy machine show {machine.name})"
            remarks.append(
                line(f"{machine.name}: ", (machine.health, HEALTH_STYLES.get(machine.health, "")), words)
            )
    table = _list_table(found)
    remarks += [_deletion_line(machine.deletion) for machine in found if machine.deletion is not None]
    return Group(table, "", *remarks) if remarks else table


def _deletion_line(deletion: DeletionView) -> Text:
    name = deletion.machine
    if deletion.due is None:
        return line(f"{name}: ", (_when(deletion), "yellow"), f": {deletion.waits}")
    waits = f", and waits: {deletion.waits}" if deletion.waits else ""
    back = "" if deletion.stage == _REMOVING else f" (to take it back: understudy machine keep {name})"
    return line(f"{name}: ", (_when(deletion), "yellow"), f"{waits}{back}")


def _when(deletion: DeletionView) -> str:
    if deletion.due is None:
        return "to be deleted, if somebody says it again"
    if deletion.stage == _REMOVING:
        return "is being deleted, and cannot be taken back"
    if deletion.stage == _CLOSED:
        return f"due to be deleted since {minute(deletion.due)}; its agent is revoked"
    return f"{'due to be deleted since' if deletion.is_due else 'to be deleted on'} {minute(deletion.due)}"


def minute(time: str) -> str:
    return f"{time[:16].replace('T', ' ')} UTC"


def lost_page(found: DeletionView) -> RenderableType:
    """What is lost when a machine is deleted, and what is not."""
    points = str(found.points)
    if found.unknown:
        points = f"not known: {found.unknown}"
    elif found.first is not None and found.last is not None:
        points += f", from {found.first[:19]} to {found.last[:19]} UTC"
    facts: list[tuple[str, str | Text]] = [
        ("points", points),
        ("container", _container(found)),
        ("hardware", found.identity or "- (no identity of it is known: nothing tells it from a copy)"),
        *(("stays", stays) for stays in found.stays),
    ]
    if found.due is not None:
        facts.append(
            (
                "already",
                f"to be deleted on {minute(found.due)}, as {found.who} asked; said again, the delay begins anew",
            )
        )
    return fields(f"All that storage has of {found.machine}", facts)


def _container(found: DeletionView) -> str:
    if found.gone:
        return (
            f"{found.container}, which is gone already: what is left is the machine's entry in the registry. Who wants it brings it back"
            " first, if the account keeps deleted containers (container soft delete)"
        )
    return found.container or "- (storage holds nothing of it)"


def _list_table(found: list[MachineView]) -> Table:
    rows = [
        (
            machine.name,
            _styled(machine.state),
            line((machine.health, HEALTH_STYLES.get(machine.health, ""))),
            seconds(machine.rpo_s),
            machine.last_point.time[:19] if machine.last_point else "-",
            ", ".join(f"{disk.name} {size(disk.size_b)}" for disk in machine.disks),
        )
        for machine in found
    ]
    return grid(None, ("machine", "state", "health", ">RPO", "=last point", "disks"), rows)


def stored_table(found: list[StoredMachine]) -> Table:
    rows = [
        (each.name, str(each.points), each.last_point.time[:19] if each.last_point else "-", each.cause)
        for each in found
    ]
    return grid(None, ("machine", ">points", "=last point", "remark"), rows)


def candidates_page(found: DiskCandidates) -> RenderableType:
    if found.disks:
        return candidates_table(found)
    if found.seen_s is None:
        return line(
            f"The agent of {found.machine} has never reported. Next, on that host: start it, and see its log."
        )
    return line(
        f"The agent of {found.machine} has named no disk yet. It looks once a minute: ask again, then see its log."
    )


def candidates_table(found: DiskCandidates) -> Table:
    rows = [
        (
            disk.device,
            disk.id or "-",
            size(disk.size_b) if disk.size_b else "-",
            _protection(disk, by_configuration=found.by_configuration),
            disk.identity or "-",
            disk.why_not,
        )
        for disk in found.disks
    ]
    said = (
        f"as its agent said {seconds(found.seen_s)} ago"
        if found.seen_s is not None
        else "its agent never reported"
    )
    return grid(
        f"Disks of {found.machine}, {said}",
        ("disk", "id", ">size", "protected", "identity", "why it cannot be"),
        rows,
    )


def _protection(disk: DiskCandidate, *, by_configuration: bool) -> str:
    if by_configuration and disk.wanted:
        return "by its agent's configuration"
    if disk.captured:
        return "yes" if disk.wanted else "yet"
    if disk.until:
        return f"until {minute(disk.until)}"
    return "wanted" if disk.wanted else "no"


def _wish(found: MachineView) -> str | Text:
    wish = found.wish
    if wish is None:
        return "what its agent's configuration says"
    words = f"{wish.verb} {', '.join(wish.disks)}".rstrip()
    if wish.process_servers and wish.verb != "stop":
        words += f" by {', '.join(wish.process_servers)}"
    return line(words, (f"  pending since {wish.pending[:19]}", "yellow") if wish.pending else "")


def _deletion(deletion: DeletionView | None) -> list[tuple[str, str | Text]]:
    if deletion is None:
        return []
    points = f"points not known: {deletion.unknown}" if deletion.unknown else f"{deletion.points} points"
    return [("deletion", line((_when(deletion), "yellow"), f"  as {deletion.who} asked; {points}"))]


def _rpo(found: MachineView) -> str:
    if found.rpo_s is None and not found.protected:
        return "none is owed: it is not protected"
    return seconds(found.rpo_s)


def _epoch(found: MachineView) -> str:
    epoch = "a new one begins" if not found.epoch and found.disks else str(found.epoch or "-")
    return f"{epoch}, rounds {found.rounds if found.rounds is not None else '-'}"


def machine_page(found: MachineView) -> RenderableType:
    """Everything about a machine, for a terminal."""
    from rich.console import Group

    last = found.last_point
    facts: list[tuple[str, str | Text]] = [
        ("state", _styled(found.state, f"  {found.cause}" if found.cause else "")),
        ("health", line((found.health, HEALTH_STYLES.get(found.health, "")))),
        ("wanted", _wish(found)),
        *_deletion(found.deletion),
        (
            "policy",
            f"{found.policy_name or '(its own)'}: RPO at most {seconds(found.policy.rpo_threshold_s)}",
        ),
        ("mode", found.mode + (f"  {found.mode_cause}" if found.mode_cause else "")),
        ("RPO", _rpo(found)),
        ("last point", f"{last.time}  {last.id}  {last.state}" if last else "-"),
        ("epoch", _epoch(found)),
        ("ring", f"{size(found.ring.used_b)} of {size(found.ring.size_b)}"),
        ("rates", ", ".join(_rate(name, value) for name, value in found.rates.items()) or "-"),
        ("seen", f"{seconds(found.last_seen_s)} ago" if found.last_seen_s is not None else "never"),
    ]
    disks = [
        (disk.name, size(disk.size_b), disk.mode, _styled(disk.state), percent(disk.progress), disk.device)
        for disk in found.disks
    ]
    hops = [(hop.name, hop.where, _styled(hop.state), hop.detail) for hop in found.hops]
    parts: list[Any] = [
        fields(f"Machine {found.name}", facts),
        "",
        grid(None, ("disk", ">size", "mode", "state", ">progress", "device"), disks),
        "",
        grid(None, ("hop", "where", "state", "detail"), hops),
    ]
    if found.errors:
        parts.append("")
    for error in found.errors:
        colour = "yellow" if error.severity == Severity.WARNING else "red"
        head = line((error.code, colour), f" {error.what} ", (f"({error.source})", "dim"))
        parts.append(told(head, error.cause, error.action))
    return Group(*parts)


def _rate(name: str, value: float) -> str:
    what, is_bytes, _ = name.partition("_b_per_s")
    return f"{what} {size(value)}/s" if is_bytes else f"{name} {value:.1f}"
