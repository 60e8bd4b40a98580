"""Lives of jobs that no run had before (tests/jobs_model), on both databases: killed at any point, cancelled, twice, leases lost, owners
that stand still and wake, replicas that take over, effects that land late, databases that are put back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Final

from tests.jobs_model.search import ALONE, MET
from tests.long.story import Result

_MINUTES: Final = 15
"""The budget. `python -m tests.jobs_model --minutes N` takes any other."""


def jobs() -> Result:
    first = random.randrange(1 << 32)
    command = [sys.executable, "-m", "tests.jobs_model", "--minutes", str(_MINUTES), "--first", str(first)]
    run = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise AssertionError(f"a seed shows it again (--first SEED --minutes 0 --on …): {run.stdout}")
    found = json.loads(run.stdout.splitlines()[-1])
    for on, met in found.items():
        never = [name for name in MET if not met[name] and not (on == "one-server" and name in ALONE)]
        if never:
            raise AssertionError(f"{on}: {met['examples']} lives never met {', '.join(never)}")
    return {"first": first, **found}
