"""What pyproject.toml cannot say of a wheel: it holds the capture programs, compiled, so that no host needs a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT: Final = Path(__file__).parent
PROGRAMS: Final = "agent/capture/bpf/capture.bpf.o"


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
    distclass=ForOneArchitecture,
    cmdclass={"build_py": BuildWithPrograms, "bdist_wheel": ForAnyPython3},
)
