"""`make test-long`: the long parts, each a story over a whole lab, each with a JSON result in build/long/.

    python -m tests.long [--again] [PART…]

A part that has passed at this commit is not run again, so an interrupted run goes on where it was; `--again` runs it all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.long.parts import PARTS

RESULTS = Path("build/long")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long", description=__doc__)
    parser.add_argument("--again", action="store_true", help="run parts that have passed already")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    failed = 0
    for name in options.parts or PARTS:
        result = RESULTS / f"{name}.json"
        if not options.again and _passed(result, commit):
            print(f"{name}: passed before at this commit")
            continue
        print(f"{name}: running", flush=True)
        began = time.monotonic()
        try:
            details, error = PARTS[name](), ""
        except Exception:  # noqa: BLE001 - a part may fail in any way; that is its result
            details, error = {}, traceback.format_exc()
        seconds = time.monotonic() - began
        failed += bool(error)
        outcome = {"part": name, "ok": not error, "commit": commit, "seconds": round(seconds, 1)}
        result.write_text(json.dumps({**outcome, "details": details, "error": error}, indent=2) + "\n")
        print(f"{name}: {'FAILED' if error else 'passed'} in {seconds:.0f} s {details}\n{error}", flush=True)
    print(f"{len(options.parts or PARTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _passed(result: Path, commit: str) -> bool:
    if not result.exists():
        return False
    outcome = json.loads(result.read_text())
    return bool(outcome["ok"]) and outcome["commit"] == commit


if __name__ == "__main__":
    sys.exit(main())
