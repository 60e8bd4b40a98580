"""A wheel of a clean tree, installed as deploy/systemd/README.md says, on a host that has neither compiler nor checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

import pytest

from deploy import systemd
from tests.capture_parts import MIB, needs_capture
from tests.loopdisk import loop_disk

ROOT = Path(__file__).parents[2]
RELEASE = "0.1.0"
"""The version of a tree that is no checkout."""
PROGRAMS = "agent/capture/bpf/capture.bpf.o"
PLATFORM = sysconfig.get_platform().replace("-", "_")
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
"""What pip runs for a wheel, without pip."""


def run(*command: str | Path, cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def copy_tree(to: Path) -> Path:
    """What belongs to the program, as it is in a fresh clone: nothing of it is built."""
    packages = [made.parent for made in ROOT.glob("*/__init__.py")]
    for package in packages:
        shutil.copytree(package, to / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.o"))
    for name in ("Makefile", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, to)
    return to


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    """Made by `make wheel`, in a tree in which a module was deleted since the build before."""
    for former in ("lib", f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"):
        (tree / "build" / former / "agent").mkdir(parents=True)
        (tree / "build" / former / "agent/deleted.py").touch()
    run("make", "-s", "-o", "setup", "wheel", f"PY={sys.executable}", cwd=tree, env={**os.environ, **OFFLINE})
    (made,) = (tree / "build").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that stands for /opt/understudy. The packages that pip would fetch are had from where the tests have them."""
    place = tmp_path_factory.mktemp("host")
    program = place / "understudy"
    shutil.copy(wheel, place)
    page = (ROOT / "deploy/systemd/README.md").read_text()
    script = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace(
        "/opt/understudy", str(program)
    )
    run("/bin/bash", "-euc", script, cwd=place, env={**OFFLINE, "PATH": "/nonexistent"})
    (site,) = program.glob("lib/python3*/site-packages")
    (site / "of-the-tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return program


def python(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program / "bin/python", *arguments],
        cwd=program.parent, env={"PATH": str(program / "bin")}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def document(wheel: Path, name: str) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"understudy-{RELEASE}.dist-info/{name}"))


def test_the_wheel_holds_the_packages_the_programs_and_what_systemd_needs_and_nothing_else(
    tree: Path, wheel: Path
) -> None:
    wanted = {
        str(path.relative_to(tree))
        for pattern in ("*/**/*.py", PROGRAMS, "deploy/systemd/*.service", "deploy/systemd/*.conf")
        for path in tree.glob(pattern)
        if path.relative_to(tree).parts[0] not in ("build", "tests")
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        programs = archive.read(PROGRAMS)
    assert programs.startswith(b"\x7fELF")
    assert str(tree).encode() not in programs, "the programs differ by where they are built"
    assert held == wanted


def test_the_wheel_is_for_every_python_3_of_one_architecture(wheel: Path) -> None:
    tag = f"py3-none-{PLATFORM}"
    assert wheel.name == f"understudy-{RELEASE}-{tag}.whl"
    said = document(wheel, "WHEEL")
    assert (said.get_all("Tag"), said["Root-Is-Purelib"]) == ([tag], "false")
    assert document(wheel, "METADATA")["Version"] == RELEASE


@needs_capture
def test_an_agent_that_was_installed_protects_a_disk_without_compiler_and_checkout(
    installed: Path, tmp_path: Path
) -> None:
    with loop_disk(tmp_path / "disk", 8 * MIB) as device:
        done = python(installed, "-m", "agent", "preflight", device)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"mode +ordered\n", done.stdout), done.stdout


def test_what_was_installed_knows_nothing_of_the_checkout(installed: Path) -> None:
    code = "import sys, agent, deploy; print(agent.__file__, deploy.__file__, *sys.path, sep='\\n')"
    first, second, *path = python(installed, "-c", code).stdout.splitlines()
    assert all(Path(module).is_relative_to(installed) for module in (first, second))
    assert str(ROOT) not in path


def test_what_systemd_needs_comes_with_the_wheel(installed: Path) -> None:
    code = "from deploy import systemd; print(*systemd.host_files(), sep='\\n')"
    assert python(installed, "-c", code).stdout.split() == [str(path) for path in systemd.host_files()]


def test_each_commit_makes_a_newer_version_and_a_changed_tree_one_of_its_own(tmp_path: Path) -> None:
    """pip installs nothing over the same version: an upgrade would leave the old program, and say nothing."""
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy(ROOT / "setup.py", tree)

    def version() -> str:
        return run(sys.executable, "setup.py", "--version", cwd=tree, env=dict(os.environ)).split()[-1]

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
        run("git", *who, *arguments, cwd=tree, env=dict(os.environ))

    assert version() == RELEASE
    git("init", "-q")
    git("add", "setup.py")
    git("commit", "-qm", "one")
    assert version() == f"{RELEASE}.post1"
    git("commit", "-qm", "two", "--allow-empty")
    assert version() == f"{RELEASE}.post2"
    (tree / "setup.py").write_text((tree / "setup.py").read_text() + "# changed\n")
    assert re.fullmatch(rf"{re.escape(RELEASE)}\.post2\+changed\.\d+", version())


@needs_capture
def test_an_installed_agent_whose_programs_are_gone_says_what_to_do(installed: Path, tmp_path: Path) -> None:
    (programs,) = installed.glob(f"lib/python3*/site-packages/{PROGRAMS}")
    away = programs.rename(tmp_path / "away")
    try:
        with loop_disk(tmp_path / "disk", 8 * MIB) as device:
            done = python(installed, "-m", "agent", "preflight", device)
    finally:
        away.rename(programs)
    assert (done.returncode, done.stderr) == (5, "")
    assert f"the capture programs are missing ({programs})" in done.stdout
    assert "install Understudy again" in done.stdout


@pytest.mark.parametrize(
    ("lacking", "cause"),
    [
        ("clang", "clang: No such file or directory"),
        ("headers", "'absent/bpf_tracing.h' file not found"),
        ("make", "make is not installed"),
    ],
)
def test_where_the_programs_cannot_be_compiled_no_wheel_is_made_and_one_line_says_why(
    lacking: str, cause: str, tmp_path: Path
) -> None:
    """An object that looks newer than its source, as it does when a tree is copied, helps nobody."""
    tree, tools = copy_tree(tmp_path / "tree"), tmp_path / "tools"
    tools.mkdir()
    for tool in {"make", "clang", "sh", "uname", "sed"} - {lacking}:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    source = (tree / PROGRAMS).with_suffix(".c")
    if lacking == "headers":
        source.write_text(source.read_text().replace("<bpf/bpf_tracing.h>", "<absent/bpf_tracing.h>"))
    (tree / PROGRAMS).write_bytes(b"stale")
    os.utime(tree / PROGRAMS, (time.time() + 60,) * 2)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path],
        cwd=tree, env={"PATH": str(tools)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert cause in line
    assert "apt-get install make clang libbpf-dev" in line
    assert not list(tmp_path.glob("*.whl"))
