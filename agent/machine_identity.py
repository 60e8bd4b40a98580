"""Who this machine is: what tells it from a copy of it (I7).

The identity is the hardware's: SMBIOS UUID and serial number, which a clone, a drill or a recovered machine gets anew while everything on
its disks stays the same. Containers and machines without SMBIOS have none; there it can be configured (`identity`). The boot names one
attachment of capture within one boot: what is pinned in the kernel's memory is the only thing that no copy of disks can carry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

DMI: Final = Path("/sys/class/dmi/id")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MEANINGLESS: Final = frozenset(
    {"", "none", "not specified", "to be filled by o.e.m.", "default string", "system serial number", "0"}
)
"""What boards carry whose maker wrote nothing."""


def identity_of(configured: str, *, dmi: Path = DMI) -> str:
    """The configured one, else what SMBIOS says; empty where there is nothing."""
    if configured:
        return configured
    uuid, serial = (_meant(dmi / name).lower() for name in ("product_uuid", "product_serial"))
    if uuid.replace("-", "").strip("0f") == "":  # all zeroes, all ones: nobody set it
        uuid = ""
    return f"smbios:{uuid}/{serial}" if uuid or serial else ""


def this_boot(*, boot_id: Path = BOOT_ID) -> str:
    """The kernel's own name of this boot."""
    return boot_id.read_text().strip()


def boot_of(attached_boot_ns: int, *, boot_id: Path = BOOT_ID) -> str:
    """Names this boot and, within it, the attachment of capture that the agent continues."""
    return f"{this_boot(boot_id=boot_id)}/{attached_boot_ns:x}"


def _meant(file: Path) -> str:
    try:
        text = file.read_text(errors="replace").strip()
    except OSError:  # no SMBIOS, or a kernel that hides this field
        return ""
    return "" if text.lower() in _MEANINGLESS else text
