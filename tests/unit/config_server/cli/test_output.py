"""What commands print."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from rich.console import RenderableType

from config_server.cli import (
    certificate_commands,
    job_commands,
    machine_pages,
    output,
    point_commands,
    rebinding,
    record_commands,
    restore_command,
)
from config_server.cli.main import cli, show_error
from config_server.rules import view
from config_server.rules.facts import facts_of
from config_server.rules.machine import Machine
from config_server.rules.presence import Presence
from shared.api.audit import AuditView
from shared.api.certificates import CertificateView
from shared.api.copies import CopyList, CopyView
from shared.api.events import EventView
from shared.api.jobs import JobState, JobView
from shared.api.machines import DeletionView, MachineView
from shared.api.points import GapView, PointList
from shared.api.policies import Policy
from shared.api.protection import DiskCandidate, DiskCandidates
from shared.api.route import Failure
from shared.errors import NotFoundError, UnhealthyError
from shared.recovery.folder import Manifest, ManifestDisk
from shared.status import AgentDisk, AgentReport, Problem
from shared.vocabulary import Role

TIME = "2026-11-24T14:16:00.123456789Z"


@pytest.mark.parametrize(
    ("size_b", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 40, "5.0 TiB"),
        (9 << 50, "9216.0 TiB"),
    ],
)
def test_sizes_are_binary(size_b: float | None, text: str) -> None:
    assert output.size(size_b) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.04, "0.0 s"), (119, "119.0 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations_are_short(value: float | None, text: str) -> None:
    assert output.seconds(value) == text


def test_every_command_can_be_loaded_and_has_a_line_in_the_list() -> None:
    runner = CliRunner()
    for name in cli.list_commands(click.Context(cli)):
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0, result.output
    listed = runner.invoke(cli, ["--help"], terminal_width=120).output.partition("Commands:")[2].splitlines()
    lines = [line.split(None, 1) for line in listed if line]
    assert [name for name, _ in lines][:4] == ["init", "lab", "server", "machine"]
    assert all(help_.endswith(".") for _, help_ in lines)


def test_an_error_is_three_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(NotFoundError("Machine 'x' was not found", cause="nobody knows it", action="Look again."))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[0].strip() for line in err.splitlines()] == ["Error US200", "Why", "Do"]


# ---- on a terminal of 80 columns


def lines_of(page: RenderableType, width: int = 80) -> list[str]:
    printed = io.StringIO()
    output.console(file=printed, width=width).print(page)
    return [line.rstrip() for line in printed.getvalue().splitlines()]


def event(**changes: object) -> EventView:
    fields = {
        "id": 1,
        "kind": "problem",
        "severity": "critical",
        "object": "web1",
        "code": "US407",
        "what": "Epoch 2 cannot be continued",
        "cause": "storage lost log [twice]",
        "action": "None: a new epoch begins.",
        "source": "agent:web1",
        "first": TIME,
        "last": TIME,
        "count": 1,
        "resolved": None,
    }
    return EventView(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_event_shows_its_whole_time_why_and_what_to_do() -> None:
    happened = event(kind="state", severity="info", code="", what="web1 went on", cause="", action="")
    assert lines_of(record_commands._events_page([event(), happened])) == [
        "2026-11-24T14:16:00 critical US407 Epoch 2 cannot be continued (web1, open)",
        "  Why: storage lost log [twice]",
        "  Do:  None: a new epoch begins.",
        "2026-11-24T14:16:00 info web1 went on (web1)",
    ]


def test_a_job_shows_its_whole_id_and_why_it_failed() -> None:
    error = Failure("US490", "loop0.raw could not be written", "no space", "Make room.", 5)
    job = JobView(
        id="0123456789abcdef", kind="restore", machine="web1", state=JobState.FAILED, progress=0.45, detail="",
        args={}, result=None, error=error, created=TIME, updated=TIME,
    )  # fmt: skip
    shown = lines_of(job_commands._page([job]))
    assert shown[2].split() == ["0123456789abcdef", "restore", "web1", "failed", "45.0%", TIME[:19]]
    assert shown[-3:] == [
        "0123456789abcdef US490 loop0.raw could not be written",
        "  Why: no space",
        "  Do:  Make room.",
    ]


def test_a_checksum_is_folded_and_not_cut() -> None:
    disk = ManifestDisk(
        name="loop0", file="loop0.raw", size_b=1 << 20, sha256="0123456789abcdef" * 4, serial=""
    )
    manifest = Manifest(
        machine="web1", id="1-2", claim="00", epoch=1, batch=2, time=TIME, consistency="crash", suspect=False,
        unreadable=(), disks=(disk,),
    )  # fmt: skip
    shown = lines_of(restore_command._manifest_table(manifest, Path("/out"), 1.0))
    at = shown[-2].index("0123")
    assert shown[-2][at:] + shown[-1].strip() == disk.sha256


def test_times_and_ids_stay_in_one_piece_and_long_words_are_folded() -> None:
    path = "/var/tmp/" + "x" * 90
    shown = lines_of(output.grid(None, ("=time", "=id", "path"), [(TIME, "0123456789abcdef", path)]))
    assert shown[2].startswith(f"{TIME}  0123456789abcdef  /var/tmp/")
    assert "".join(line[len(TIME) + 20 :] for line in shown[2:]) == path


def test_where_folding_does_not_do_each_row_stands_by_itself() -> None:
    table = output.grid(
        "Two", ("=time", "=id", "why"), [(TIME, "0123456789abcdef", ""), (TIME, "1", "it is so")]
    )
    table.caption = "That is all."
    assert lines_of(table, width=40) == [
        "Two",
        f"time  {TIME}",
        "id    0123456789abcdef",
        "",
        f"time  {TIME}",
        "id    1",
        "why   it is so",
        "That is all.",
    ]


ALIKE = [f"production-database-server-{number:02}" for number in range(3)]
OTHER = "smbios:4c4c4544-0043-3510-8052-b9c04f4a4d33"
SERIAL = "7c4f38cf29ddf180" + "a" * 24


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_nothing_is_cut_or_folded_letter_by_letter_on_a_narrow_screen(width: int) -> None:
    disks = [
        DiskCandidate(
            device=f"/dev/disk/by-id/wwn-0x5000c500a1b2c3d{number}", size_b=1 << 40, identity=f"wwid:naa.5000c500a1b2c3d{number}",
            id="", captured=False, wanted=False, why_not="read-only", name="",
        )
        for number in range(2)
    ]  # fmt: skip
    certificate = CertificateView(
        serial=SERIAL, name="agent:web1", issued=TIME, expires=TIME, revoked=TIME, reason="stolen"
    )
    jobs = [
        JobView(id=str(number) * 16, kind="restore", machine=name, state=JobState.FAILED, progress=0.1, detail="", args={},
                result=None, error=None, created=TIME, updated=TIME)
        for number, name in enumerate(ALIKE)
    ]  # fmt: skip
    copies = [
        CopyView(
            identity=OTHER, address="10.0.0.17", refused_s=10, since_s=3000, cause="it is another machine"
        )
    ]
    pages: dict[str, tuple[RenderableType, list[str]]] = {
        "machine list": (machine_pages.list_page([_machine("resync", name) for name in ALIKE]), [*ALIKE, "resync"]),
        "machine disks": (
            machine_pages.candidates_page(DiskCandidates(machine="web1", seen_s=1.0, disks=disks)),
            [*(disk.device for disk in disks), *(disk.identity for disk in disks), "read-only"],
        ),
        "certificate list": (certificate_commands._table([certificate]), [SERIAL, TIME[:19], "agent:web1", "stolen"]),
        "machine copies": (rebinding.page(CopyList(machine="web1", identity="", generation=1, copies=copies, meant="")), [OTHER]),
        "job list": (job_commands._page(jobs), [*ALIKE, "failed", TIME[:19]]),
    }  # fmt: skip
    for name, (page, words) in pages.items():
        shown = lines_of(page, width)
        assert "…" not in "".join(shown), name
        # A word that is folded is so at ten letters or more: its beginning says which one it is.
        for word in words:
            is_copied = word in (OTHER, SERIAL) and width >= 60
            least = word if is_copied else word[:10]
            assert any(least in line for line in shown), f"{word} in {name}"
        if width == 40:
            joined = re.sub(r"\s+", "", "".join(shown))
            assert all(re.sub(r"\s+", "", word) in joined for word in words), name


@pytest.mark.parametrize(
    ("is_stored", "says"), [(False, "understudy machine show web1"), (True, "with the same options")]
)
def test_a_machine_without_points_says_so_and_why_there_are_none(is_stored: bool, says: str) -> None:
    gap = GapView(None, None, None, None, cause="it is being copied")
    lone, *rest = lines_of(point_commands._page(PointList("web1", []), is_stored=is_stored), width=120)
    assert (says in lone, rest) == (True, [])
    shown = lines_of(point_commands._page(PointList("web1", [], [gap]), is_stored=is_stored), width=120)
    assert shown == [lone, "no points between the beginning and now: it is being copied"]


@pytest.mark.parametrize(("seen_s", "says"), [(None, "has never reported"), (2.0, "ask again")])
def test_an_agent_that_names_no_disk_is_said_to(seen_s: float | None, says: str) -> None:
    found = DiskCandidates(machine="web1", seen_s=seen_s, disks=[])
    assert says in " ".join(lines_of(machine_pages.candidates_page(found)))


def test_a_machine_of_which_no_copy_was_refused_says_so() -> None:
    found = CopyList(machine="web1", identity="smbios:1", generation=1, copies=[], meant="")
    [said] = lines_of(rebinding.page(found), width=120)
    assert said == "Machine 'web1' is smbios:1, and no copy of it was refused lately: nothing is to be done."


def test_an_audit_entry_shows_who_did_what_in_one_line_and_the_detail_below() -> None:
    who = "process-server:a-name-of-some-length"
    entry = AuditView(time=TIME, who=who, action="enrol", object=who, detail={"serial": "7" * 40})
    assert lines_of(record_commands._audit_page([entry])) == [
        f"2026-11-24T14:16:00 {who} enrol",
        who,
        f'  {{"serial":"{"7" * 40}"}}',
    ]


@pytest.mark.parametrize(
    ("changes", "says", "is_kept"),
    [
        ({}, "to be deleted on 2026-11-24 14:16 UTC (", True),
        ({"is_due": True, "waits": "it is read"}, "due to be deleted since 2026-11-24 14:16 UTC, and waits: it is read (", True),
        ({"is_due": True, "stage": "closed"}, "due to be deleted since 2026-11-24 14:16 UTC; its agent is revoked (", True),
        ({"is_due": True, "stage": "removing"}, "is being deleted, and cannot be taken back", False),
        ({"due": None, "waits": "so"}, "to be deleted, if somebody says it again: so", False),
    ],
)  # fmt: skip
def test_of_a_deletion_it_is_said_how_far_it_is_and_how_it_is_taken_back_while_it_can_be(
    changes: dict[str, Any], says: str, is_kept: bool
) -> None:
    fields = {
        "machine": "web1",
        "container": "v-1",
        "identity": "",
        "points": 3,
        "due": TIME,
        "stage": "waiting",
    }
    deletion = DeletionView(**{**fields, **changes})
    found = msgspec.structs.replace(_machine("ordered"), deletion=deletion)
    [*_, remark] = lines_of(machine_pages.list_page([found]), width=200)
    assert remark.startswith(f"web1: {says}")
    assert ("machine keep web1" in remark) is is_kept
    page = lines_of(machine_pages.machine_page(found), width=200)
    [line] = [line for line in page if line.strip().startswith("deletion")]
    assert says.split(" (")[0].split(", and waits")[0].split(": so")[0] in line
    assert "3 points" in line


def test_points_that_were_not_listed_are_not_shown_as_none() -> None:
    deletion = DeletionView(machine="web1", container="", identity="", points=0, due=TIME, unknown="away")
    found = msgspec.structs.replace(_machine("ordered"), deletion=deletion)
    page = lines_of(machine_pages.machine_page(found), width=200)
    assert [line for line in page if "points not known: away" in line]


@pytest.mark.parametrize("identity", ["smbios:4c4c4544/7", ""])
def test_what_is_lost_says_of_which_hardware_it_is_or_that_nobody_knows(identity: str) -> None:
    found = DeletionView(machine="web1", container="v-1", identity=identity, points=3)
    page = lines_of(machine_pages.lost_page(found), width=200)
    [line] = [line for line in page if line.strip().startswith("hardware")]
    assert (identity or "no identity of it is known: nothing tells it from a copy") in line


def test_of_a_container_that_is_gone_already_it_is_said_what_is_left_and_what_brings_it_back() -> None:
    found = DeletionView(machine="web1", container="v-1", gone=True, identity="", points=0)
    page = " ".join(" ".join(lines_of(machine_pages.lost_page(found), width=200)).split())
    assert "v-1, which is gone already: what is left is the machine's entry in the registry" in page
    assert "soft delete" in page


def test_of_a_machine_that_is_not_protected_no_rpo_is_owed() -> None:
    found = msgspec.structs.replace(_machine("unprotected"), protected=False, rpo_s=None)
    rpo = [line for line in lines_of(machine_pages.machine_page(found)) if line.strip().startswith("RPO")]
    assert "none is owed: it is not protected" in rpo[0]
    measured = msgspec.structs.replace(found, rpo_s=3.0)  # it replicates all the same
    assert [line for line in lines_of(machine_pages.machine_page(measured)) if "3.0 s" in line]


def test_an_epoch_that_has_no_number_yet_is_not_the_one_before() -> None:
    found = msgspec.structs.replace(_machine("resync"), epoch=0)
    assert "a new one begins" in " ".join(lines_of(machine_pages.machine_page(found)))
    nothing = msgspec.structs.replace(found, disks=[])
    assert "a new one begins" not in " ".join(lines_of(machine_pages.machine_page(nothing)))


EVIL = "[/x] [link=http://evil/]sda[/link] :bomb: \x1b]0;pwned\x07\x1b[2J\x9b2J \u202eexe"


def _machine(text: str, name: str = "web1") -> MachineView:
    """As the config server shows a machine whose agent reports such words."""
    severity: Any = text  # an agent may say anything
    problem = Problem(code=text, what=text, cause=text, action=text, severity=severity, object=text, key=text)
    disk = AgentDisk(name=text, device=text, mode=text, mode_cause=text, state=text, serial=text)
    report = AgentReport(
        state=text, cause=text, mode=text, mode_cause=text, disks=[disk], rates={text: 1.0}, errors=[problem]
    )
    presence = Presence()
    presence.learn(Role.AGENT, name, msgspec.json.encode(report), 1, 1)
    known = Machine(name, protected=True, disks=(), policy=Policy(), created_ns=0)
    return view.machine_view(known, facts_of(presence, name, 1), 1)


PAGES: dict[str, Callable[[str], RenderableType]] = {
    "machine list": lambda text: machine_pages.list_page([_machine(text)]),
    "machine show": lambda text: machine_pages.machine_page(_machine(text)),
    "event list": lambda text: record_commands._events_page([event(code=text, what=text, cause=text, object=text, severity=text)]),
    "job list": lambda text: job_commands._page(
        [JobView(id=text, kind=text, machine=text, state=JobState.FAILED, progress=0.1, detail=text, args={}, result=None,
                 error=Failure(text, text, text, text, 5), created=TIME, updated=TIME)]
    ),
    "audit list": lambda text: record_commands._audit_page([AuditView(time=TIME, who=text, action=text, object=text, detail={text: text})]),
    "certificate list": lambda text: certificate_commands._table(
        [CertificateView(serial=text, name=text, issued=TIME, expires=TIME, revoked=None, reason=text)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_words_of_others_are_shown_as_they_are_and_control_nothing(page: str) -> None:
    # On a terminal the only escapes are those of styles.
    printed = io.StringIO()
    console = output.console(file=printed, width=1000, terminal=True)
    console.print(PAGES[page](EVIL))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown), shown
    for part in ("[/x]", "[link=http://evil/]", ":bomb:", "\\x1b[2J", "\\u202e"):
        assert part in shown


def test_what_goes_to_stderr_and_json_control_nothing_either(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(UnhealthyError(EVIL, cause=EVIL, action=EVIL))
    output.say(EVIL)
    with output.Progress() as progress:
        progress.show(EVIL)
    assert not re.search("[\x1b\x07\x9b\u202e]", capsys.readouterr().err)
    as_json = output.to_json({"cause": EVIL})
    assert not re.search("[\x1b\x07\x9b\u202e]", as_json)
    assert msgspec.json.decode(as_json) == {"cause": EVIL}


def test_what_is_said_takes_the_place_of_a_line_of_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.Progress() as progress:
        progress.show("web1: waiting")
        output.say("It takes long.")
        progress.show("web1: waiting")
    output.say("Done.")
    clear = "\r\x1b[K"
    assert capsys.readouterr().err == f"web1: waiting{clear}It takes long.\nweb1: waiting{clear}Done.\n"
