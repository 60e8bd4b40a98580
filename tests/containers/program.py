"""The program as a host gets it: wheels, a virtual environment in /opt/understudy, the units of deploy/systemd.

No container reaches a package index. Other people's wheels are fetched once into build/containers/; the project's own is built for each
site, from the checkout as it stands. Both lie, read-only, in a container's /srv, where its pip looks (/etc/pip.conf).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from agent.capture.attach import OBJECT
from tests.containers.container import Container
from tests.containers.rootfs import WHEELS
from tests.containers.site import Site

PLACE: Final = "/opt/understudy"
ROLES: Final = ("agent", "process-server", "master-target", "config-server")
"""The extras of pyproject.toml, one for each daemon."""
_ROOT: Final = Path(__file__).parents[2]
_BUILD: Final = _ROOT / "build/containers"
_UNITS: Final = _ROOT / "deploy/systemd"
_ONE_S_OWN: Final = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
"""No hooks, signatures or line ends of whoever runs this."""


def provide(site: Site, *containers: Container) -> None:
    """What `install` needs in them. Before they are started."""
    own = site.folder / "program"
    if not own.is_dir():
        with _copy_of_the_source() as source:
            _pip_wheel(own, str(source), "--no-deps")
    for container in containers:
        container.shown |= {_fetched(): WHEELS[0], own: WHEELS[1]}


def renew(site: Site) -> None:
    """A newer version lies where pip looks, in place of the one that is installed: one commit more, as `setup.py` counts them, and other
    capture programs (each line of their source has another number, which stands in the object)."""
    place, newer = site.folder / "program", site.folder / "program-newer"
    with _copy_of_the_source() as source:
        programs = source / OBJECT.with_suffix(".c").relative_to(_ROOT)
        programs.write_text("\n" + programs.read_text())
        for words in ("init", "add --all", "-c user.name=test -c user.email=test@localhost commit -m newer"):
            subprocess.run(
                ["git", *words.split()],
                cwd=source,
                check=True,
                capture_output=True,
                env={**os.environ, **_ONE_S_OWN},
            )
        _pip_wheel(newer, str(source), "--no-deps")
    for old in place.glob("understudy-*.whl"):
        old.unlink()
    for made in newer.iterdir():
        made.rename(place / made.name)
    newer.rmdir()


def version(container: Container) -> str:
    """What is installed."""
    script = "from importlib.metadata import version; print(version('understudy'))"
    return container.read(f"{PLACE}/bin/python", "-c", script)


def _fetched(folder: Path = _BUILD) -> Path:
    """A folder of all that the project depends on, for the Python of Debian 12. For several at once: the others wait."""
    project = (_ROOT / "pyproject.toml").read_bytes()
    found = folder / f"wheels-{hashlib.sha256(project).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_dir():
            for other in folder.glob("wheels-*"):  # of other dependencies, or not finished
                shutil.rmtree(other)
            making = folder / f"{found.name}.making"
            with _copy_of_the_source() as source:
                _pip_wheel(making, f"{source}[{','.join(ROLES)}]")
            for own in making.glob("understudy-*.whl"):
                own.unlink()
            making.rename(found)
    return found


@contextlib.contextmanager
def _copy_of_the_source() -> Iterator[Path]:
    """What git knows of the checkout, as it stands, with what is built: setuptools leaves traces of its own in the folder that it builds,
    and takes them up the next time."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--", ":!tests"], cwd=_ROOT, check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory(prefix="understudy-source-") as made:
        for file in (*(_ROOT / name for name in names.decode().split("\0") if name), OBJECT):
            if file.exists():
                copy = Path(made) / file.relative_to(_ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        yield Path(made)


def _pip_wheel(into: Path, what: str, *options: str) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--wheel-dir",
        str(into),
    ]
    done = subprocess.run([*pip, *options, what], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"no wheels of {what}: {done.stderr[-3000:]}")


def install(container: Container, roles: Iterable[str]) -> None:
    """Virtual environment, units, users and folders, as deploy/systemd/README.md has it. Nothing is configured or started."""
    wanted = f"understudy[{','.join(roles)}]"
    container.run("python3", "-m", "venv", PLACE, within_s=300)
    container.run(f"{PLACE}/bin/pip", "install", "--quiet", wanted, within_s=600)
    # Where the program looks for it, unless the wheel has it.
    packages = container.read("sh", "-c", f"echo {PLACE}/lib/python3*/site-packages")
    place = f"{packages}/{OBJECT.relative_to(_ROOT)}"
    if not container.succeeds("test", "-e", place):
        container.put(OBJECT, place)
    for unit in sorted(_UNITS.glob("*.service")):
        container.put(unit, f"/etc/systemd/system/{unit.name}")
    container.put(_UNITS / "sysusers.conf", "/usr/lib/sysusers.d/understudy.conf")
    container.run("systemd-sysusers")
    container.put(_UNITS / "tmpfiles.conf", "/usr/lib/tmpfiles.d/understudy.conf")
    container.run("systemd-tmpfiles", "--create")
    container.run("systemctl", "daemon-reload")
