"""What pyproject.toml cannot say of a wheel: it holds the capture programs, compiled, so that no host needs a compiler; and its version
grows with each commit, since pip installs nothing over the same version."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT: Final = Path(__file__).parent
RELEASE: Final = "0.1.0"
PROGRAMS: Final = "agent/capture/bpf/capture.bpf.o"


def version() -> str:
    """RELEASE.postN, N the number of commits; of a tree that was changed since, with the time; without git, RELEASE."""
    if not (ROOT / ".git").exists():
        return RELEASE
    commits = _git("rev-list", "--count", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{RELEASE}.post{commits}" + (f"+changed.{int(time.time())}" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def compile_programs() -> None:
    """By the Makefile's rule, beside their source. Always: the times of files that were copied do not say which is older.

    Raises CompileError, of one line."""
    try:
        done = subprocess.run(
            ["make", "-s", "-B", PROGRAMS], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        cause = "make is not installed"
    else:
        if done.returncode == 0:
            return
        said = [line for line in done.stderr.splitlines() if "warning:" not in line.lower()]
        said = [line for line in said if "error:" in line] or said or [f"make ended with {done.returncode}"]
        cause = said[0]
    raise CompileError(
        f"the capture programs cannot be compiled: {cause}. It takes make, clang and libbpf's headers "
        "(Debian: apt-get install make clang libbpf-dev)"
    )


class BuildWithPrograms(build_py):
    def run(self) -> None:
        compile_programs()
        # Whatever a former build left there would go into the wheel, modules that are no more included.
        for former in (ROOT / "build").glob("lib*"):
            shutil.rmtree(former)
        super().run()


class ForOneArchitecture(Distribution):
    """Goes where files of one architecture go."""

    def has_ext_modules(self) -> bool:
        return True


class ForAnyPython3(bdist_wheel):
    """BPF code is the kernel's: nothing in it is made for one version of CPython."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    version=version(),
    distclass=ForOneArchitecture,
    cmdclass={"build_py": BuildWithPrograms, "bdist_wheel": ForAnyPython3},
)
