"""Fixtures of the crash tests."""

from __future__ import annotations

from tests.lab_places import disk, folder

__all__ = ["disk", "folder"]
