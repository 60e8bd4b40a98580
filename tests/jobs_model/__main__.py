"""Lives of jobs for as long as one likes.

    python -m tests.jobs_model [--minutes 10] [--first SEED] [--on one-server|two-servers|postgresql …]

Tells of each seed that shows a problem, then in one line of JSON what was met on each database. The minutes are those of all. A seed
alone says what happens (on PostgreSQL, but for how its threads meet): `--first SEED --minutes 0 --on …` shows it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from tests.jobs_model.databases import Sqlite, Store
from tests.jobs_model.search import lives
from tests.jobs_model.served import Served
from tests.postgres import Postgres

SHARES: Final = {"one-server": 1, "two-servers": 1, "postgresql": 2}
"""Of the time."""


@contextmanager
def store_on(kind: str) -> Iterator[Store]:
    if kind != "postgresql":
        yield Sqlite(is_shared=kind == "two-servers")
        return
    server = Postgres()
    try:
        server.start()
        server.make_template()
        store = Served(server)
        yield store
        store.close()
    finally:
        server.remove()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jobs_model", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--on", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--until-one-fails", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    shares, results, failed = sum(SHARES[on] for on in options.on), {}, 0
    for on in options.on:
        with store_on(on) as store:
            end_s = time.monotonic() + options.minutes * 60 * SHARES[on] / shares
            found = lives(store, _until(end_s, options.first), until_one_fails=options.until_one_fails)
        for seed, problem in found.failed.items():
            print(f"{on}: seed {seed}: {problem}", flush=True)
        failed += len(found.failed)
        if failed and options.until_one_fails:
            break
        results[on] = {"examples": found.examples, "failed": len(found.failed), **found.met}
    print(json.dumps(results))
    return 1 if failed else 0


def _until(end_s: float, first: int) -> Iterator[int]:
    """One at least."""
    for seed in itertools.count(first):
        yield seed
        if time.monotonic() >= end_s:
            return


if __name__ == "__main__":
    sys.exit(main())
