"""Many lives, and what all of them met."""

from __future__ import annotations

import collections
import traceback
from collections.abc import Iterable
from typing import Final

import msgspec

from tests.jobs_model.databases import Store
from tests.jobs_model.model import lived

MET: Final = (
    "steps", "claims", "takeovers", "kills", "hosts that stood still", "cancels", "second cancels", "late effects",
    "late effects of jobs that had ended", "rollbacks", "ended done", "ended cancelled", "ended failed", "ended abandoned",
    "leftovers that are named",
)  # fmt: skip
"""What lives without all of these would say nothing of."""
ALONE: Final = ("takeovers",)
"""What a server that is alone never meets: what it had is free at its start."""


class Lives(msgspec.Struct):
    examples: int
    failed: dict[int, str]
    """Seeds, and what was wrong."""
    met: collections.Counter[str]


def lives(store: Store, seeds: Iterable[int], *, until_one_fails: bool = False) -> Lives:
    found = Lives(0, {}, collections.Counter(dict.fromkeys(MET, 0)))
    for seed in seeds:
        found.examples += 1
        try:
            watch = lived(seed, store)
        except Exception:  # noqa: BLE001 - the program may fail in any way; that is the seed's result
            found.failed[seed] = traceback.format_exc()
        else:
            found.met.update(watch.met)
            if watch.problems:
                found.failed[seed] = "; ".join(watch.problems[:3])
        if found.failed and until_one_fails:
            break
    return found
