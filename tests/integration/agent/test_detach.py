"""`python -m agent detach` beside an agent that runs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agent import lock
from shared.errors import AgentRunningError
from tests.capture_parts import MIB, Rig, frozen, mounted, needs_capture, rig, run, until

CONFIG = """
machine = "m"
disks = ["{disk}"]
process_server = "ps:9443"
control_url = "https://cs"
state_dir = "{state}"
pin_dir = "{pins}"
[tls]
cert = "c"
key = "k"
ca = "a"
"""


def detach(r: Rig, *options: str) -> subprocess.CompletedProcess[str]:
    config = r.folder / "agent.toml"
    config.write_text(CONFIG.format(disk=r.device, state=r.folder / "state", pins=r.pin_dir))
    command = [sys.executable, "-m", "agent", "detach", "--config", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def agent(state_dir: Path, pin_dir: Path | None = None, *, hangs: Path | None = None) -> Iterator[int]:
    """A process that holds the locks, as an agent does, and writes to the file `hangs` in a thread; its pid."""
    script = (
        "import sys, threading; from pathlib import Path; from agent import lock\n"
        "hangs, pins = ([Path(a)] if a else [] for a in sys.argv[2:])\n"
        "with lock.held(Path(sys.argv[1]), 'x', *pins):\n"
        "    for path in hangs: threading.Thread(target=path.write_bytes, args=(b'x',)).start()\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(state_dir), str(hangs or ""), str(pin_dir or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.kill()


@needs_capture
def test_capture_is_not_detached_under_a_running_agent_which_is_named() -> None:
    with rig(8 * MIB) as r:
        with agent(r.folder / "state") as pid:
            refused = detach(r)
            assert refused.returncode == 5
            assert f"an agent runs (process {pid})" in refused.stderr
            assert "Stop it first" in refused.stderr
            assert r.pin_dir.exists()
            forced = detach(r, "--force")
            assert forced.returncode == 0
            assert f"(process {pid})" in forced.stderr
            assert "It is not stopped" in forced.stderr
            assert not r.pin_dir.exists()
            os.kill(pid, 0)
        r.capture.close()


@needs_capture
def test_capture_of_an_agent_that_is_stopped_is_detached() -> None:
    with rig(8 * MIB) as r:
        with agent(r.folder / "state"):
            pass
        done = detach(r)
        assert (done.returncode, r.pin_dir.exists()) == (0, False), done.stderr
        assert "no trace of it is left" in done.stdout


@needs_capture
def test_an_agent_with_another_state_dir_holds_the_same_capture() -> None:
    with rig(8 * MIB) as r:
        with agent(r.folder / "other", r.pin_dir) as pid:
            refused = detach(r)
            assert refused.returncode == 5
            assert f"an agent runs (process {pid})" in refused.stderr
            with (
                pytest.raises(AgentRunningError, match=f"process {pid}"),
                lock.held(r.folder / "state", "The agent was not started", r.pin_dir),
            ):
                pass
        assert lock.beside(r.pin_dir).exists()
        assert detach(r).returncode == 0
        assert not lock.beside(r.pin_dir).exists()
        r.capture.close()


@needs_capture
def test_locks_of_a_killed_agent_are_free_while_a_disk_hangs_that_it_read() -> None:
    with rig(64 * MIB) as r:
        run("mkfs.ext4", "-q", r.device)
        # The process is waited for behind the thaw: it cannot end before.
        with mounted(r.device, r.folder / "mnt") as mnt, ExitStack() as process, frozen(mnt):
            pid = process.enter_context(agent(r.folder / "state", r.pin_dir, hangs=mnt / "file"))
            tasks = Path(f"/proc/{pid}/task")

            def hangs() -> bool:
                return any("(disk sleep)" in (task / "status").read_text() for task in tasks.iterdir())

            until(hangs, "nothing hangs")
            os.kill(pid, signal.SIGKILL)
            until(lambda: is_free(r), "the locks of a dead agent are held")
            assert hangs()
        r.capture.close()


def is_free(r: Rig) -> bool:
    try:
        with lock.held(r.folder / "state", "The agent was not started", r.pin_dir):
            return True
    except AgentRunningError:
        return False


def test_a_folder_that_its_holder_removes_just_now_is_made_again(tmp_path: Path) -> None:
    pin_dir = tmp_path / "pins" / "here"
    with lock.held(None, "x", pin_dir):
        lock.beside(pin_dir).rmdir()
        with lock.held(None, "x", pin_dir):
            assert lock.beside(pin_dir).exists()
    assert not pin_dir.parent.exists()


FORGETFUL = """
import gc, sys
from pathlib import Path
from agent import lock
class Cycle:
    def __init__(self, file): self.me, self.file = self, file
gc.disable()
files = [open("/dev/null") for _ in range(8)]
real = lock._lock
def collected(*arguments):
    fd = real(*arguments)
    gc.collect()
    return fd
lock._lock = collected
cycles = [Cycle(file) for file in files]
del cycles, files
with lock.held(Path(sys.argv[1]), "x", Path(sys.argv[2])):
    print("held", flush=True); sys.stdin.read()
"""


def test_files_that_are_collected_in_the_thread_of_the_locks_leave_them_locked(tmp_path: Path) -> None:
    state_dir, pin_dir = tmp_path / "state", tmp_path / "pins"
    command = [sys.executable, "-W", "ignore", "-c", FORGETFUL, str(state_dir), str(pin_dir)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            for places in ((state_dir, None), (None, pin_dir)):
                with (
                    pytest.raises(AgentRunningError, match=f"process {child.pid}"),
                    lock.held(places[0], "x", places[1]),
                ):
                    pass
        finally:
            child.kill()


INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from agent import lock
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started the tests in the background may have it ignored
state_dir = Path(sys.argv[1])
real = os.open
def told(path, *arguments):
    if path == state_dir / lock.NAME: print("opening", flush=True)
    return real(path, *arguments)
os.open = told
try:
    with lock.held(state_dir, "x"): print("held", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
(holding,) = (thread for thread in threading.enumerate() if thread.name == "lock")
os.open = real
answers = os.open(state_dir / lock.NAME, os.O_RDWR)
holding.join()
with lock.held(state_dir, "x"): print("free", flush=True)
"""


def test_who_is_interrupted_while_the_disk_of_the_lock_hangs_goes_and_leaves_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / lock.NAME)  # opening it waits for somebody at its other end
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "opening\n"
            child.send_signal(signal.SIGINT)
            # Python does not hear of one that comes just before it begins to wait; who sits at a terminal presses the keys again.
            while not select.select([child.stdout], [], [], 2)[0]:
                child.send_signal(signal.SIGINT)
            said, _ = child.communicate(timeout=20)
        finally:
            child.kill()
    assert said.splitlines() == ["interrupted", "free"]


@needs_capture
def test_detach_makes_nothing_where_no_agent_ever_ran() -> None:
    with rig(8 * MIB) as r:
        assert detach(r).returncode == 0
        assert not (r.folder / "state").exists()


def test_a_holder_that_the_kernel_does_not_show_is_not_invented(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.write_text(
        "1: POSIX  ADVISORY  WRITE 7 00:1b:845 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 8 00:1b:845 0 EOF\n"
    )
    assert lock.holder(845, locks) == 0
    locks.write_text("1: FLOCK  ADVISORY  WRITE 9 00:1b:845 0 EOF\n")
    assert lock.holder(845, locks) == lock.holder(845, locks, device="00:1b") == 9
    assert lock.holder(845, locks, device="00:1c") == 0
    assert lock.holder(845, tmp_path / "none") == 0
    with (
        lock.held(tmp_path, "x"),
        pytest.raises(AgentRunningError, match=f"process {os.getpid()}"),
        lock.held(tmp_path, "y"),
    ):
        pass
