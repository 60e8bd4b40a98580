"""The containers that tests stand on: what is promised of them, and that nothing of them stays."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import leftovers
from tests.containers.container import CommandFailedError, SystemState
from tests.containers.network import Cut
from tests.containers.site import Site, site

pytestmark = pytest.mark.long  # the host is built for it first
SIZE_B = 1 << 20
_ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    """Two of them, on."""
    with site() as made:
        for name in ("alpha", "beta"):
            made.container(name)
        for container in made.containers.values():
            container.start()
        yield made


def test_its_systemd_is_up_with_nothing_failed_and_a_bpffs_that_is_a_mount(here: Site) -> None:
    alpha = here.containers["alpha"]
    up = alpha.wait_until_settled()
    assert (up.state, up.failed) == (SystemState.RUNNING, ())
    assert alpha.read("hostname") == "alpha"
    assert alpha.succeeds("mountpoint", "/sys/fs/bpf")


def test_a_unit_that_fails_is_named(here: Site) -> None:
    beta = here.containers["beta"]
    beta.run("systemd-run", "--unit=bad", "--wait", "false", check=False)
    up = beta.wait_until_settled()
    assert (up.state, up.failed) == (SystemState.DEGRADED, ("bad.service",))
    assert beta.unit("bad").result == "exit-code"
    beta.run("systemctl", "reset-failed")


@pytest.mark.long
def test_its_systemd_goes_on_when_it_has_told_of_a_slow_start_often(here: Site) -> None:
    """Twice a second; nobody listens to it any more once it is up, and two dozen fit into the sockets on the way."""
    slow = ("systemd-run", "--quiet", "--property=Type=oneshot", "--wait", "sleep", "18")
    here.containers["alpha"].run(*slow, within_s=40)


def test_a_command_gives_its_output_its_exit_code_and_what_it_is_fed(here: Site) -> None:
    alpha = here.containers["alpha"]
    done = alpha.run("sh", "-c", "cat; echo said >&2; exit 3", stdin=b"fed", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "fed", "said\n")
    with pytest.raises(CommandFailedError, match="exit code 3"):
        alpha.run("sh", "-c", "exit 3")


def test_a_command_may_do_what_the_container_may_and_no_more(here: Site) -> None:
    """The host's root may set the clock, which is the host's, too."""
    alpha = here.containers["alpha"]
    sets = ("grep", "-E", "^Cap(Prm|Eff|Bnd):")
    assert alpha.read(*sets, "/proc/self/status") == alpha.read(*sets, "/proc/1/status")
    cap_sys_time = 25
    bounding = alpha.read("grep", "CapBnd", "/proc/self/status").split()[1]
    assert not int(bounding, 16) >> cap_sys_time & 1


def test_a_command_that_takes_too_long_is_ended(here: Site) -> None:
    alpha = here.containers["alpha"]
    with pytest.raises(CommandFailedError, match="exit code 124"):
        alpha.run("sleep", "86399", within_s=0.2, check=False)
    assert not alpha.succeeds("pgrep", "--exact", "sleep")


def test_files_and_folders_go_in_and_come_back(here: Site, tmp_path: Path) -> None:
    alpha = here.containers["alpha"]
    alpha.put(b"\0\1", "/srv/a/file", mode=0o600, owner="nobody")
    assert alpha.get("/srv/a/file") == b"\0\1"
    assert alpha.read("stat", "--format=%a %U", "/srv/a/file") == "600 nobody"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/file").write_text("text")
    alpha.put_folder(tmp_path, "/srv/folder")
    assert alpha.get("/srv/folder/inner/file") == b"text"


def test_one_container_s_files_are_no_other_s(here: Site) -> None:
    here.containers["alpha"].put("text", "/usr/local/mine")
    assert not here.containers["beta"].succeeds("test", "-e", "/usr/local/mine")


@pytest.mark.parametrize("how", list(Cut), ids=lambda how: how.name)
def test_a_link_is_cut_and_mended_and_is_as_it_was(here: Site, how: Cut) -> None:
    alpha, beta = here.containers["alpha"], here.containers["beta"]
    ping = ("ping", "-q", "-c1", "-W1", "beta")
    assert alpha.succeeds(*ping)
    beta.link.cut(how)
    assert not alpha.succeeds(*ping)
    assert ("LOWER_UP" in beta.read("ip", "link", "show", "eth0")) == (how is Cut.SILENT)
    beta.link.mend()
    assert alpha.succeeds(*ping)


def test_a_program_of_the_host_stands_beside_them_under_a_name(here: Site) -> None:
    here.place("outside")
    command = [*here.beside("outside"), sys.executable, "-c"]
    program = "import socket; s = socket.create_server(('', 7)); print('ready', flush=True); s.accept()[0].send(b'served')"
    with subprocess.Popen([*command, program], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        read = "import socket; print(socket.create_connection(('outside', 7)).recv(6).decode())"
        assert here.containers["alpha"].read("python3", "-c", read) == "served"


def test_a_disk_is_written_inside_and_read_outside_and_is_there_after_a_reboot(here: Site) -> None:
    alpha, beta = here.containers["alpha"], here.containers["beta"]
    disk = here.disk("disk", SIZE_B)
    alpha.hand_in(disk)
    alpha.run("dd", f"of={disk}", "oflag=direct", "bs=512", stdin=b"x" * 512)
    assert (here.folder / "disk.img").read_bytes() == b"x" * 512 + bytes(SIZE_B - 512)
    before = alpha.read("cat", "/proc/sys/kernel/random/boot_id")
    alpha.put("kept", "/srv/kept")
    assert alpha.reboot().state is SystemState.RUNNING
    assert alpha.read("cat", "/proc/sys/kernel/random/boot_id") != before
    assert alpha.get("/srv/kept") == b"kept"
    assert alpha.run("head", "--bytes=3", disk).stdout == "xxx"
    assert not beta.succeeds("test", "-e", disk)


def test_a_container_goes_off_by_itself_and_by_the_power_switch(here: Site) -> None:
    beta = here.containers["beta"]
    beta.run("systemd-run", "--unit=last", "-p", "ExecStop=touch /srv/stopped", "sleep", "infinity")
    beta.power_off()
    assert not beta.is_on
    beta.start()
    assert beta.succeeds("rm", "/srv/stopped")
    beta.run("systemd-run", "--unit=last", "-p", "ExecStop=touch /srv/stopped", "sleep", "infinity")
    beta.kill()
    assert not beta.is_on
    beta.start()
    assert not beta.succeeds("test", "-e", "/srv/stopped")


def test_nothing_of_the_host_s_is_changed_while_they_run_or_afterwards() -> None:
    def host() -> tuple[str, list[str]]:
        routes = subprocess.run(["ip", "-o", "route"], check=True, capture_output=True, text=True).stdout
        return routes, sorted(path.name for path in Path("/sys/class/net").iterdir())

    before = host()
    with site() as made:
        made.container("alpha").start()
        made.disk("disk", SIZE_B)
        assert host() == before
        mounts = Path("/proc/self/mountinfo").read_text()
        assert made.name not in mounts
        assert leftovers.traces(made.name)
        folder = made.folder
    assert host() == before
    assert leftovers.traces(folder.name) == []
    assert not folder.exists()


_KILLED = """
import sys
from tests.containers.site import site
with site() as made:
    alpha = made.container("alpha")
    alpha.start()
    made.disk("disk", 1 << 20)
    print(made.folder, alpha.leader, flush=True)
    sys.stdin.read()
"""


def test_of_a_test_that_was_killed_nothing_runs_any_more_and_the_next_names_and_removes_the_rest(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
    ) as test:
        assert test.stdout is not None
        place, leader = test.stdout.readline().split()
        watched = os.pidfd_open(int(leader))
        test.send_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    assert poll.poll(20_000), "its systemd outlives it"
    os.close(watched)
    folder = Path(place)
    assert folder.exists()
    with site() as made:
        assert made.name != folder.name
    assert (
        f"containers {folder.name} of process {test.pid}, which was killed, are removed"
        in capfd.readouterr().err
    )
    assert leftovers.traces(folder.name) == []
    assert not folder.exists()
