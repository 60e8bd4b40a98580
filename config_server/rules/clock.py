"""Time as people read it: RFC 3339 in UTC with nanoseconds, so that a printed time names the same batch when
given back."""

from __future__ import annotations

from typing import Final

from shared.recovery.position import format_ns as rfc3339

SECOND_NS: Final = 1_000_000_000

__all__ = ["SECOND_NS", "rfc3339"]
