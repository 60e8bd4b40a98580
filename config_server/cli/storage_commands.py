"""`understudy storage check`: whether a storage account is fit for an installation, before one is built on it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from config_server.cli import rescue
from config_server.cli.options import COMMON, add_options, find_profile
from config_server.cli.output import Progress, emit, grid, line, run, say, told
from shared.blob import BlobConfig
from shared.errors import ConfigError, StorageUnfitError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shared.blob.check import Finding, Report

_STYLES: Final = {"ok": "green", "warning": "yellow", "error": "red", "unknown": "dim"}


@click.group()
@add_options(*COMMON)
def storage() -> None:
    """The storage account that an installation is, or will be, built on."""


@storage.command()
@click.option(
    "--config",
    "daemon",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A server's configuration: check its storage, with the rights of whoever runs this.",
)
@add_options(*rescue.STORAGE)
@add_options(*COMMON)
def check(daemon: Path | None, **blob: Any) -> None:
    """Whether the storage account is fit for an installation: can it be reached, is what we need allowed, does it do what it must?

    What is tried, is tried in a container of its own, and removed again. The account is that of --blob-url, of --config, or of the
    profile. Ends with 5 when there is an error; a warning is no error.
    """
    report = run(_check(_config(daemon, **blob)))
    emit(report, lambda: _page(report))
    if bad := [finding.name for finding in report.findings if finding.state == "error"]:
        raise StorageUnfitError(
            f"The storage account {report.account} cannot be used as it is", cause=", ".join(bad)
        )


class _Daemon(msgspec.Struct):
    """Of a server's configuration, what leads to its storage."""

    blob: BlobConfig | None = None


def _config(daemon: Path | None, blob_url: str | None, **blob: Any) -> BlobConfig:
    """Raises UsageError, ConfigError."""
    if daemon is not None and blob_url is not None:
        raise UsageError("Two storage accounts are given", action="Give --blob-url or --config, not both.")
    if (config := rescue.storage_of(blob_url, None, **blob)) is not None:
        return config
    if daemon is not None:
        return _of_daemon(daemon)
    profile = find_profile()
    if profile is not None and profile.rescue is not None:
        return profile.rescue.blob
    raise UsageError(
        "No storage account is known",
        cause="the profile names none" if profile is not None else "",
        action="Give --blob-url URL, the --config FILE of a server, or a profile with [rescue.blob].",
    )


def _of_daemon(file: Path) -> BlobConfig:
    from shared.daemon.service import load_config

    config = load_config(file, _Daemon).blob
    if config is None:
        raise ConfigError(
            f"Configuration file {file} names no storage account",
            cause="it has no `blob`, as an agent's has none",
            action="Give the configuration of a process server, a master target or a config server.",
        )
    return config


async def _check(config: BlobConfig) -> Report:
    from shared.blob.check import Aspect, check

    def tell(finding: Finding) -> None:
        progress.show(f"checking the storage account: {finding.name} {finding.state}")
        if finding.name is Aspect.REMOVAL:
            removal.append(finding)

    removal: list[Finding] = []
    with Progress() as progress:
        try:
            return await check(config, tell)
        except asyncio.CancelledError:
            for finding in removal:
                say(f"The check was interrupted: {finding.detail}. {finding.action}".rstrip())
            raise


def _page(report: Report) -> RenderableType:
    from rich.console import Group

    rows = []
    for (state, detail, _), alike in itertools.groupby(report.findings, _alike):
        first, *others = (finding.name for finding in alike)
        seen = f"{detail} (nor were {', '.join(others)})" if others else detail
        rows.append((first, line((state, _STYLES[state])), seen))
    place = f"{report.account}, container {report.container}"
    table = grid(f"Storage account {place}", ("check", "state", "what was found"), rows)
    todo = [finding for finding in report.findings if finding.action]
    return Group(table, *(_told(finding) for finding in todo))


def _alike(finding: Finding) -> tuple[str, str, str]:
    """What was not looked at for one reason is one line."""
    return finding.state, finding.detail, finding.action


def _told(finding: Finding) -> RenderableType:
    head = line(
        (finding.state, _STYLES[finding.state]),
        *(f" {word}" for word in (finding.code, finding.name) if word),
    )
    return told(head, "", finding.action)
