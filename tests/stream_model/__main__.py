"""The model for as long as one likes, with bad sectors and kills.

    python -m tests.stream_model [--minutes 60] [--first SEED] [--kills-within FUNCTION]

Tells of each seed that shows a problem; then what it met. A seed alone says all: `--first SEED --minutes 0` shows the problem again.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
import traceback

import structlog

from tests.stream_model.model import hard, ran


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stream_model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--kills-within", default="", metavar="FUNCTION", help="of agent/stream")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    end = time.monotonic() + options.minutes * 60
    failed, met, lines = 0, dict.fromkeys(("declared", "taken_back", "late", "more"), 0), set()
    for seed in itertools.count(options.first):
        try:
            model = ran(seed, hard(seed, options.kills_within))
        except Exception:  # noqa: BLE001 - the stream may fail in any way; that is the seed's result
            failed += 1
            print(f"seed {seed}: {traceback.format_exc()}", flush=True)
        else:
            if model.problems:
                failed += 1
                print(f"seed {seed}: {model.problems}", flush=True)
            lines |= model.kills.at
            met = {name: count + getattr(model, name) for name, count in met.items()}
        if time.monotonic() >= end:
            break
    print(f"{seed + 1 - options.first} seeds, {failed} failed; killed at {len(lines)} lines; met {met}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
