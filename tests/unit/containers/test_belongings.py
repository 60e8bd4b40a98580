"""What is compared of a host before an installation and after its removal."""

from __future__ import annotations

from tests.containers import belongings


def test_what_a_host_writes_by_itself_does_not_count_and_what_looks_like_it_does() -> None:
    kept = {
        "/etc/understudy\td 755 0:0",
        "/var/logs\td 755 0:0",
        "/opt/understudy/bin/pip\tf 755 0:0",
        "/etc/passwd\tf 644 0:0",
    }
    left_out = {
        "/var/log\td 755 0:0",
        "/var/log/journal/x\tf 640 0:0",
        "/usr/lib/python3.11/__pycache__/venv.pyc\tf 644 0:0",
        "/root/.cache/pip/x\tf 644 0:0",
        "/etc/passwd-\tf 644 0:0",
        "/etc/.updated\tf 644 0:0",
    }
    assert belongings.files(kept | left_out) == kept


def test_a_file_of_another_mode_or_owner_is_another() -> None:
    before, after = ({"file": frozenset({f"/etc\td {mode} 0:0"})} for mode in ("755", "700"))
    assert belongings.difference(before, after) == ["+ file /etc\td 700 0:0", "- file /etc\td 755 0:0"]
    assert belongings.difference(before, before) == []


def test_ports_are_told_without_the_state_of_their_queues() -> None:
    lines = ["tcp   LISTEN 0      128          0.0.0.0:443       0.0.0.0:*", "udp UNCONN 3 0 [::]:53 [::]:*"]
    assert belongings.ports(lines) == {"tcp 0.0.0.0:443", "udp [::]:53"}
