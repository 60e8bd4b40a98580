"""What tells a machine from its copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.machine_identity import boot_of, identity_of

UUID = "4c4c4544-0042-3510-8054-b9c04f4d5931"


def dmi(folder: Path, uuid: str, serial: str) -> Path:
    (folder / "product_uuid").write_text(f"{uuid}\n")
    (folder / "product_serial").write_text(f"{serial}\n")
    return folder


def test_a_configured_identity_comes_before_the_hardware(tmp_path: Path) -> None:
    assert identity_of("lab:1", dmi=dmi(tmp_path, UUID, "VMware-56 4d")) == "lab:1"


def test_the_hardware_is_uuid_and_serial_number_however_they_are_written(tmp_path: Path) -> None:
    found = identity_of("", dmi=dmi(tmp_path, UUID.upper(), "B5QK"))
    assert found == f"smbios:{UUID}/b5qk"
    assert identity_of("", dmi=dmi(tmp_path, UUID, "b5qk")) == found


@pytest.mark.parametrize(
    "uuid", ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "Not Specified"]
)
def test_what_a_board_carries_whose_maker_wrote_nothing_is_no_identity(tmp_path: Path, uuid: str) -> None:
    assert identity_of("", dmi=dmi(tmp_path, uuid, "To be filled by O.E.M.")) == ""
    assert identity_of("", dmi=dmi(tmp_path, uuid, "B5QK")) == "smbios:/b5qk"


def test_a_machine_without_smbios_has_none(tmp_path: Path) -> None:
    assert identity_of("", dmi=tmp_path / "none") == ""


def test_a_boot_is_that_of_the_kernel_and_of_the_attachment(tmp_path: Path) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("5e1f\n")
    assert boot_of(255, boot_id=boot_id) == "5e1f/ff"
    assert boot_of(256, boot_id=boot_id) != boot_of(255, boot_id=boot_id)
