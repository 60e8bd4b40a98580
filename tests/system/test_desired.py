"""What a config server wants of a machine, over a whole installation and under load: in the order of this file, on one lab."""

from __future__ import annotations

import os
import secrets
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.capture import libbpf, pins
from shared.desired import Verb
from tests.lab import Lab, lab
from tests.long.moved import SecondServer
from tests.long.story import Story, scratch, two_disks, wait_until
from tests.loopdisk import loop_disk
from tests.wishing_lab import WishingLab

DISK_B = 16 << 20
THIRD_B = 8 << 20


@dataclass
class Site:
    """A lab whose agent hears wishes; two disks are written all the time, the third holds `content`."""

    lab: Lab
    says: WishingLab
    story: Story
    folder: Path
    both: list[str]
    third: str
    content: bytes

    @property
    def pin_dir(self) -> Path:
        return Path(tomllib.loads((self.lab.folder / "agent.toml").read_text())["pin_dir"])

    def pinned(self) -> dict[str, int]:
        """The kernel's numbers of all that is pinned."""
        found = {f"link {link}": program for link, program in pins.program_ids(self.pin_dir).items()}
        for path in self.pin_dir.iterdir():
            if not path.name.startswith("link-"):
                fd = libbpf.get(path)
                found[path.name] = libbpf.map_info(fd).id
                os.close(fd)
        return found

    def place_point(self) -> str:
        complete = self.story.writer.completed
        point: str = self.lab.create_point()["id"]
        self.story.expect(point, complete)
        return point


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    content = secrets.token_bytes(THIRD_B)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        both = stack.enter_context(two_disks(folder, DISK_B))
        third = stack.enter_context(loop_disk(folder / "disk-c", THIRD_B))
        with Path(third).open("r+b", buffering=0) as disk:
            disk.write(content)
            os.fsync(disk.fileno())
        story = stack.enter_context(Story(folder, both, 2, DISK_B))
        running = stack.enter_context(lab(both, point_interval=20, segment_seconds=1, ring_mib=256))
        says = stack.enter_context(WishingLab(running))
        says.reports(both, "ordered")
        yield Site(running, says, story, folder, both, third, content)


def test_a_third_disk_is_taken_in_while_the_others_are_written(site: Site) -> None:
    before, epoch = site.pinned(), site.says.report["epoch"]
    site.place_point()
    site.says.wish(Verb.PROTECT, *site.both, site.third)
    site.says.reports([*site.both, site.third], "ordered")
    assert site.says.report["epoch"] > epoch
    assert before.items() <= site.pinned().items(), "something that is the others' was made anew"
    point = site.place_point()
    images = site.lab.restore(point, site.folder / "three")
    third = images[0].with_name(f"{Path(site.third).name}.raw")
    assert third.read_bytes() == site.content
    shutil.rmtree(site.folder / "three")


def test_it_is_left_out_again_while_the_others_are_written(site: Site) -> None:
    before, epoch = site.pinned(), site.says.report["epoch"]
    site.says.wish(Verb.PROTECT, *site.both)
    site.says.reports(site.both, "ordered")
    assert site.says.report["epoch"] > epoch
    after = site.pinned()
    assert after.items() <= before.items(), "something that is the others' was made anew"
    assert {name[:-3] for name in before.keys() - after.keys()} == {"dirty-a", "dirty-b", "todo"}
    site.place_point()


def test_the_stream_turns_to_the_second_process_server_when_the_first_has_ended(site: Site) -> None:
    with SecondServer(site.lab, site.folder) as second:
        config = tomllib.loads((site.lab.folder / "agent.toml").read_text())
        first = config["process_server"]
        site.says.wish(Verb.PROTECT, *site.both, servers=(first, second.address))
        wait_until(lambda: site.says.report["connected"], "no session", 30)
        assert site.says.report["process_server"] == first
        site.place_point()
        site.lab.kill("process-server")
        wait_until(
            lambda: (
                (site.says.report["process_server"], site.says.report["connected"]) == (second.address, True)
            ),
            "it does not turn to the other",
            90,
            lambda: site.says.report,
        )
        site.says.reports(site.both, "ordered")
        site.place_point()
        # As an operator would have it go back.
        site.lab.start("process-server")
        site.says.wish(Verb.PROTECT, *site.both, servers=(first,))
        wait_until(lambda: site.says.report["connected"], "no session", 60, lambda: site.says.report)
        site.says.reports(site.both, "ordered")
        site.place_point()


def test_protection_is_stopped_and_begins_again_and_points_before_stay(site: Site) -> None:
    epoch = site.says.report["epoch"]
    last, boot = site.place_point(), site.says.report["boot"]
    site.says.wish(Verb.STOP)
    site.says.reports([], "unprotected")
    assert not pins.exist(site.pin_dir)
    assert site.says.report["former"] == boot, "else it is taken for a copy of itself"
    site.lab.stop("agent")
    site.lab.start("agent")
    site.says.reports([], "unprotected")
    assert not pins.exist(site.pin_dir)
    site.says.wish(Verb.PROTECT)
    site.says.reports(site.both, "ordered")
    assert site.says.report["epoch"] > epoch
    site.place_point()
    assert last in {point["id"] for point in site.lab.points()}


def test_every_point_of_all_that_is_a_prefix_and_the_last_holds_everything(site: Site) -> None:
    site.story.stop()
    site.story.check_every_point(site.lab, minimum=8)
    site.story.check_latest(site.lab)
