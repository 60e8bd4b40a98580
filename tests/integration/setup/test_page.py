"""docs/install.md and the programs of which it speaks. That its commands work is for the hosts of `python -m tests.long install`."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from shared import errors
from tests.cli import understudy
from tests.loopdisk import attached
from tests.setups import set_up

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "install.md").read_text() + (DOCS / "operations/recovering.md").read_text()
BLOCKS = re.findall(r"^```sh ([a-z-]+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
HELP = re.compile(r"--[a-z-]+")


@pytest.mark.parametrize("role", ["config-server", "process-server", "master-target", "agent"])
async def test_every_option_on_the_page_is_one(role: str) -> None:
    help_ = await (understudy("init", "--help") if role == "config-server" else set_up(role, "--help"))
    known = set(HELP.findall(help_.stdout))
    program = "init" if role == "config-server" else f"-m {role.replace('-', '_')} setup"
    commands = re.findall(rf"{program} (?:.*\\\n)*.*$", "".join(text for _, text in BLOCKS), re.MULTILINE)
    # To install, and to upgrade; and once more in the place of the config server that was.
    assert len(commands) == (3 if role == "config-server" else 2)
    used = {option for command in commands for option in HELP.findall(command)}
    assert used
    assert used <= known


async def test_every_option_of_a_recovery_is_one() -> None:
    known = set(HELP.findall((await set_up("config-server", "--help", verb="recover")).stdout))
    found = re.findall(r"server recover (?:.*\\\n)*.*$", "".join(text for _, text in BLOCKS), re.MULTILINE)
    assert len(found) == 1
    assert set(HELP.findall(found[0])) <= known


def test_every_code_on_the_page_is_one() -> None:
    known = {cls.code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "code")}
    found = set(re.findall(r"US\d{3}", PAGE))
    assert found
    assert found <= known


OPTIONS = {"ext4": "-t ext4 -o ro,noload", "xfs": "-t xfs -o ro,norecovery,nouuid"}
_FIRST, _SECTORS = 2048, 700_000
"""Of the partition."""
_PARTITION = """
partx --add "$DEVICE" 2> /dev/null || true
[ -b "${DEVICE}p1" ] || mknod "${DEVICE}p1" b $(tr : ' ' < "/sys/class/block/$(basename "$DEVICE")p1/dev")
trap 'umount --quiet "${DEVICE}p1" || true; rm -f "${DEVICE}p1"; partx --delete "$DEVICE"; losetup --detach "$DEVICE"' ERR
"""


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_look_into_an_image_as_the_page_says_changes_nothing_of_it(tmp_path: Path, kind: str) -> None:
    """Of a machine that ran: its journal waits to be replayed."""
    image = tmp_path / "sda.raw"
    _make_image(tmp_path, image, kind)
    before = hashlib.sha256(image.read_bytes()).digest()
    assert f"`{OPTIONS['xfs']}`" in PAGE
    for _ in range(2):
        assert "a file from before" in _run(
            "look", tmp_path, {OPTIONS["ext4"]: OPTIONS[kind], "/var/tmp/db1/sda.raw": str(image)}
        )
        assert hashlib.sha256(image.read_bytes()).digest() == before


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_copy_of_an_image_as_the_page_makes_it_has_what_was_in_the_journal(
    tmp_path: Path, kind: str
) -> None:
    image, copy = tmp_path / "sda.raw", tmp_path / "copy.raw"
    _make_image(tmp_path, image, kind)
    before = hashlib.sha256(image.read_bytes()).digest()
    words = {"/var/tmp/db1/sda.raw": str(image), "/var/tmp/copy.raw": str(copy)}
    assert "in the journal 99" in _run("copy", tmp_path, words)
    assert hashlib.sha256(image.read_bytes()).digest() == before
    assert not copy.exists()


def _run(name: str, folder: Path, words: dict[str, str]) -> str:
    """What the page's block prints, with these words for its own."""
    [block] = [text for role, text in BLOCKS if role == name]
    words |= {
        "/mnt/look": str(folder / "look"),
        # What a kernel that knows partition tables does by itself, with udev.
        'lsblk --fs "$DEVICE"\n': f'{_PARTITION}\nlsblk --fs "$DEVICE"\n',
        'losetup --detach "$DEVICE"\n': 'rm -f "${DEVICE}p1"; partx --delete "$DEVICE"\nlosetup --detach "$DEVICE"\n',
    }
    for ours, theirs in words.items():
        assert ours in block
        block = block.replace(ours, theirs)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _make_image(folder: Path, image: Path, kind: str) -> None:
    disk, where = folder / "disk", folder / "mounted"
    where.mkdir()

    def run(*words: str | Path, **more: str) -> None:
        subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, **more)  # type: ignore[call-overload]

    with disk.open("wb") as file:
        file.truncate((_FIRST + _SECTORS + 2048) * 512)
    run("sfdisk", "--quiet", disk, input=f"{_FIRST},{_SECTORS},L\n")
    with attached(disk, "--offset", str(_FIRST * 512), "--sizelimit", str(_SECTORS * 512)) as device:
        run(f"mkfs.{kind}", "-q", device)
        run("mount", "-t", kind, device, where)
        (where / "a file from before").touch()
        run("umount", where)
        run("mount", "-t", kind, device, where)
        try:
            for number in range(100):
                (where / f"in the journal {number}").touch()
            run("sync", "--file-system", where)
            run("sync", device)
            run("cp", "--sparse=always", disk, image)
        finally:
            run("umount", where)
