"""The enrolment command: what is refused before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.control import enrol


def test_a_token_file_of_other_bytes_is_named_and_not_a_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_bytes(b"\xff\xfe\x00")
    arguments = ["--server", "https://127.0.0.1:1", "--token-file", str(token), "--dir", str(tmp_path / "d")]
    assert enrol.main(arguments) == 2
    assert str(token) in capsys.readouterr().err


@pytest.mark.parametrize(
    "server", ["foo", "http://127.0.0.1:1", "https://", "https://[::1", "https://x:port"]
)
def test_a_server_that_cannot_be_one_is_a_usage_error_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    token = tmp_path / "token"
    token.write_text(enrol.new_token(b"ca")[0])
    arguments = ["--server", server, "--token-file", str(token), "--dir", str(tmp_path / "d")]
    assert enrol.main(arguments) == 2
    assert "its URL must look like https://HOST" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
