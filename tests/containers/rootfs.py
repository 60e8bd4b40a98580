"""The file system that every container begins with: Debian 12 with systemd and what the project's units need; nothing of the project.

Built once into build/containers/ (20 s to a minute, over the network), under the digest of its recipe: another recipe is another folder.
It is never written to again. A container gets a view of it with an upper folder of its own (overlayfs): made in no time, whatever its size.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

SUITE: Final = "bookworm"
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus"),
    # What a host of ours is said to need.
    *("python3", "python3-venv", "libbpf1", "ca-certificates"),
    # What the tests do there, and what the documentation calls.
    *("iproute2", "iputils-ping", "procps", "sudo", "e2fsprogs"),
)
BPF_UNIT: Final = """\
# On a host of its own systemd mounts this before anything else; in a container it leaves it to whoever made that.
[Unit]
Description=BPF file system, as a host has it
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf

[Install]
WantedBy=sysinit.target
"""
WHEELS: Final = ("/srv/wheels", "/srv/program")
"""Where pip looks: nothing is there to be fetched, since no container reaches the network outside."""
FILES: Final = {
    "etc/systemd/system/host-bpffs.service": BPF_UNIT,
    "etc/pip.conf": f"[global]\nno-index = true\nfind-links = {' '.join(WHEELS)}\ndisable-pip-version-check = true\n",
}
LEFT_OUT: Final = ("usr/share/man", "usr/share/doc", "usr/share/locale", "var/cache/apt")
MASKED: Final = ("apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "e2scrub_all.timer")
"""They wait for a person or the network."""
_BUILD: Final = Path(__file__).parents[2] / "build/containers"


def digest() -> str:
    """Of all that the file system is made of."""
    recipe = json.dumps([SUITE, PACKAGES, FILES, LEFT_OUT, MASKED])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def rootfs(folder: Path = _BUILD) -> Path:
    """Its folder, built if it is not there. For several at once: the others wait."""
    whole = folder / f"rootfs-{digest()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.is_dir():
            for other in folder.glob("rootfs-*"):  # of another recipe, or one that was not finished
                shutil.rmtree(other)
            making = folder / f"{whole.name}.making"
            _build(making)
            making.rename(whole)
    return whole


def _build(into: Path) -> None:
    if shutil.which("mmdebstrap") is None or shutil.which("systemd-nspawn") is None:
        raise AssertionError("mmdebstrap or systemd-nspawn is not installed: run `make setup`")
    into.mkdir(mode=0o755)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    for place in LEFT_OUT:
        command.append(f"--dpkgopt=path-exclude=/{place}/*")
    subprocess.run([*command, SUITE, str(into)], check=True)
    for name, content in FILES.items():
        (into / name).write_text(content)
    subprocess.run(["systemctl", f"--root={into}", "--quiet", "enable", "host-bpffs.service"], check=True)
    subprocess.run(["systemctl", f"--root={into}", "--quiet", "mask", *MASKED], check=True)
