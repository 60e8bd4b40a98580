"""`make bench`: ratios, each measured in one run against a stated limit or peer. Prints them and writes build/bench.json.

python -m tests.bench [PART…]
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.capture import cost_and_consumer
from tests.bench.latency import latency
from tests.bench.many_machines import many_machines
from tests.bench.peers import against_peers
from tests.bench.system import apply_speed, initial_replication, steady_load

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "capture": cost_and_consumer,
    "latency": latency,
    "initial-replication": initial_replication,
    "peers": against_peers,
    "steady-load": steady_load,
    "apply": apply_speed,
    "many-machines": many_machines,
}


def main(names: list[str]) -> int:
    if unknown := set(names) - set(PARTS):
        print(f"bench: unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    path = Path("build/bench.json")
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = {"kernel": platform.release(), "cpus": os.cpu_count()}
    for name in names or PARTS:
        print(f"{name}: measuring", flush=True)
        results[name] = PARTS[name]()
        print(json.dumps(results[name], indent=2), flush=True)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
