"""Lives of jobs for as long as one likes.

    python -m tests.jobs_model [--minutes 10] [--first SEED] [--on one-server|two-servers|postgresql]

Tells of each seed that shows a problem; then what was met. A seed alone says all: `--first SEED --minutes 0` shows it again.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from tests.jobs_model.databases import Served, Sqlite, Store
from tests.jobs_model.model import lived
from tests.postgres import Postgres

ON = ("one-server", "two-servers", "postgresql")


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
    parser.add_argument("--on", choices=ON, default="two-servers")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    end = time.monotonic() + options.minutes * 60
    failed, met = 0, collections.Counter[str]()
    with store_on(options.on) as store:
        for seed in itertools.count(options.first):
            try:
                watch = lived(seed, store)
            except Exception:  # noqa: BLE001 - the program may fail in any way; that is the seed's result
                failed += 1
                print(f"seed {seed}: {traceback.format_exc()}", flush=True)
            else:
                met += watch.met
                if watch.problems:
                    failed += 1
                    print(f"seed {seed}: {watch.problems[:3]}", flush=True)
            if time.monotonic() >= end:
                break
    print(json.dumps({"on": options.on, "examples": seed + 1 - options.first, "failed": failed, **met}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
