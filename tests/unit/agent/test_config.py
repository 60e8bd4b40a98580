"""The disks of an agent's configuration: paths, or tables with ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import AgentConfig, check_disks
from shared.daemon.service import load_config
from shared.desired import WantedDisk
from shared.errors import ConfigError

BASE = """
machine = "m"
process_server = "ps:9443"
control_url = "https://cs"
state_dir = "/var/lib/understudy"
pin_dir = "/sys/fs/bpf/understudy"
{disks}
[tls]
cert = "c"
key = "k"
ca = "a"
"""


def load(folder: Path, disks: str) -> AgentConfig:
    file = folder / "agent.toml"
    plain = disks if not disks.lstrip().startswith("[[") else ""
    file.write_text(BASE.format(disks=plain) + (disks if not plain else ""))
    return load_config(file, AgentConfig)


def test_paths_alone_are_enough(tmp_path: Path) -> None:
    config = load(tmp_path, 'disks = ["/dev/sdb", "/dev/sdc"]')
    assert [(disk.device, disk.id, disk.identity) for disk in config.protected] == [
        ("/dev/sdb", None, None),
        ("/dev/sdc", None, None),
    ]


def test_a_table_carries_id_and_identity(tmp_path: Path) -> None:
    config = load(tmp_path, '[[disk]]\nid = "data"\ndevice = "/dev/sdb"\nidentity = "wwid:naa.1"\n')
    (disk,) = config.protected
    assert (disk.device, disk.id, disk.identity) == ("/dev/sdb", "data", "wwid:naa.1")


@pytest.mark.parametrize(
    ("disks", "why"),
    [
        ('disks = ["/dev/sdb", "/dev/sdb"]', "Two disks have the device /dev/sdb"),
        ('[[disk]]\nid = "a"\ndevice = "/dev/b"\n[[disk]]\nid = "a"\ndevice = "/dev/c"\n', "Two disks have the id a"),
        ('[[disk]]\nid = "a/b"\ndevice = "/dev/b"\n', r"matching regex .*at `disk.0.\.id`"),
        ('[[disk]]\ndevice = "/dev/b"\nidentity = "naa.1"\n', "identity of disk /dev/b is none"),
        ('[[disk]]\ndevice = "/dev/b"\nidentity = "wwn:1"\n', "'wwn' is not a valid Kind"),
        ('[[disk]]\ndevice = "/dev/b"\nnumber = 1\n', "unknown field `number`"),
    ],
)  # fmt: skip
def test_what_is_wrong_of_the_disks_is_named(tmp_path: Path, disks: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(tmp_path, disks)


def test_no_disk_and_no_process_server_need_to_be_named(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(BASE.replace('process_server = "ps:9443"', "").format(disks=""))
    config = load_config(file, AgentConfig)
    assert (config.protected, config.addresses) == ((), ())


def test_the_process_server_that_is_preferred_stands_first(tmp_path: Path) -> None:
    config = load(tmp_path, 'disks = ["/dev/sdb"]\nprocess_servers = ["ps2:9443", "[fd00::1]:9444"]')
    assert config.servers == ("ps:9443", "ps2:9443", "[fd00::1]:9444")
    assert config.addresses == (("ps", 9443), ("ps2", 9443), ("fd00::1", 9444))


@pytest.mark.parametrize("url", ["http://cs", "https://a..b", "", "https://", "https://x:0"])
def test_a_control_url_that_can_be_none_is_named(tmp_path: Path, url: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(BASE.format(disks='disks = ["/dev/sdb"]').replace("https://cs", url))
    with pytest.raises(ConfigError, match="control_url"):
        load_config(file, AgentConfig)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("point_interval_s = 0", "Expected `float` >= 1.0 - at `point_interval_s`"),
        ("point_interval_s = -5.0", "Expected `float` >= 1.0"),
        ("point_interval_s = nan", "Expected `float` >= 1.0"),
        ("point_interval_s = inf", "Expected `float` <="),
        ('process_server = "ps:99999"', "'ps:99999' is not an address"),
        ('process_server = "ps:0"', "is not an address"),
        ('process_server = "ps:\u0665"', "is not an address"),
        ('process_server = "ps"', "is not an address"),
        ('process_servers = ["ps1"]', "'ps1' is not an address"),
        ('process_servers = ["ps1:9443", "ps1:9443"]', "A process server is named twice"),
    ],
)
def test_a_number_out_of_range_is_named(tmp_path: Path, line: str, why: str) -> None:
    base = BASE.replace('process_server = "ps:9443"', "") if line.startswith("process_server") else BASE
    file = tmp_path / "agent.toml"
    file.write_text(base.format(disks=f'{line}\ndisks = ["/dev/sdb"]'))
    with pytest.raises(ConfigError, match=why):
        load_config(file, AgentConfig)


def test_a_disk_with_an_id_may_be_called_as_another_is() -> None:
    """That was its path once."""
    former = WantedDisk("/dev/sdb", "data")
    check_disks([former, WantedDisk("/dev/sdb", identity="wwid:B"), WantedDisk("/dev/sdb", "sdb-2")])
    with pytest.raises(ConfigError, match="device /dev/sdb"):
        check_disks([former, WantedDisk("/dev/sdb", identity="wwid:B"), WantedDisk("/dev/sdb")])
