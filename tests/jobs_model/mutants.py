"""The program with a line changed, in a copy of its own: which tests notice.

    python -m tests.jobs_model.mutants [--minutes 0.3] [NAME…]

Each is run against lives on SQLite and against the tests of single functions. One that neither notices is an error.

Left out is what does no harm: a janitor that goes through the steps from the front needs one look more where one thing holds another.
"""

# ruff: noqa: E501 - what is changed stands here as it stands there

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

_JOURNAL: Final = "store/journal.py"
_RUNNER: Final = "jobs/runner.py"
_JANITOR: Final = "jobs/janitor.py"
_RULES: Final = "rules/steps.py"
_STATEMENTS: Final = "store/statements.py"
_UNCHECKED: Final = '_job(db.execute(select(jobs).where(_IT), {"it": held.id}).one())'
_TESTS: Final = (
    "tests/unit/config_server/jobs", "tests/unit/config_server/rules/test_steps.py", "tests/contract/test_store_journal.py",
)  # fmt: skip


class Mutant(NamedTuple):
    file: str
    """In config_server."""
    changes: tuple[tuple[str, str], ...]


def _one(file: str, old: str, new: str) -> Mutant:
    return Mutant(file, ((old, new),))


MUTANTS: Final = {
    "a step is written without renewal": _one(
        _JOURNAL,
        "    job = renew(db, held, lease_ns)\n    _write(db, held.id, step",
        f"    job = {_UNCHECKED}\n    _write(db, held.id, step",
    ),
    "a look without renewal": _one(
        _JOURNAL, "Look(job=renew(db, held, lease_ns),", f"Look(job={_UNCHECKED},"
    ),
    "doubt without renewal": _one(
        _JOURNAL, "job, known = renew(db, held, lease_ns), entries", f"job, known = {_UNCHECKED}, entries"
    ),
    "the end without renewal": _one(
        _RUNNER,
        "            if journal.renew(db, held, self._lease_ns).direction is not direction:\n                return False\n",
        "",
    ),
    "renewal by the term alone": _one(_JOURNAL, ', jobs.c.word == bindparam("my_word"))', ")"),
    "a claim raises no term": _one(
        _JOURNAL, "        term=jobs.c.term + 1,\n", "        term=jobs.c.term,\n"
    ),
    "a claim in a lease": _one(
        _JOURNAL,
        "    jobs.c.wake_ns <= _NOW,\n    jobs.c.lease_ns < _NOW,\n",
        "    jobs.c.wake_ns <= _NOW,\n",
    ),
    "a claim of what needs attention": _one(
        _JOURNAL,
        "    jobs.c.lease_ns < _NOW,\n    jobs.c.attention.is_(False),\n",
        "    jobs.c.lease_ns < _NOW,\n",
    ),
    "a claim before its time": _one(
        _JOURNAL,
        "    .where(_IT, _FOR_ANYBODY)",
        "    .where(_IT, _DRIVEN, jobs.c.lease_ns < _NOW, jobs.c.attention.is_(False))",
    ),
    "leases by the host's clock": Mutant(
        _JOURNAL,
        (
            ("import secrets\n", "import secrets\nimport time\n"),
            ('values(lease_ns=clock_ns() + bindparam("for_ns"))', 'values(lease_ns=bindparam("for_ns"))'),
            (
                '"my_word": held.word, "for_ns": lease_ns}',
                '"my_word": held.word, "for_ns": time.time_ns() + lease_ns}',
            ),
        ),
    ),
    "who waits keeps the word": _one(_JOURNAL, '"owner": "", "word": ""}', '"owner": ""}'),
    "a second cancel says who": _one(
        _JOURNAL,
        "turn_back = update(jobs).where(_IT, _DRIVEN, jobs.c.direction == Direction.FORWARD)",
        "turn_back = update(jobs).where(_IT, _DRIVEN)",
    ),
    "a cancel wakes nobody": _one(
        _JOURNAL, "            cancelled_by=who,\n            wake_ns=0,\n", "            cancelled_by=who,\n"
    ),
    "a retry counts on": _one(
        _JOURNAL, "    _forget_failures(db, id_)\n    return True\n", "    return True\n"
    ),
    "anything may be abandoned": _one(
        _JOURNAL,
        "        .where(_IT, _DRIVEN, jobs.c.attention.is_(True))\n",
        "        .where(_IT, _DRIVEN)\n",
    ),
    "put back, and its owners go on": Mutant(
        _JOURNAL,
        (
            (
                ".values(**_FREE, attention=True, in_doubt=True, waits=waits, term=jobs.c.term + 1)",
                ".values(attention=True, in_doubt=True, waits=waits)",
            ),
        ),
    ),
    "put back, and there is no doubt": _one(
        _JOURNAL, "attention=True, in_doubt=True, waits", "attention=True, waits"
    ),
    "in doubt is what was begun alone": _one(
        _JOURNAL, "    for name in names:\n", "    for name in list(known):\n"
    ),
    "doubt is left out": _one(_RUNNER, "        if look.job.in_doubt:\n", "        if False:\n"),
    "all that was undone is looked for": _one(
        _JOURNAL,
        "(JobState.CANCELLED, JobState.FAILED)), jobs.c.attention.is_(False)\n",
        "(JobState.CANCELLED, JobState.FAILED))\n",
    ),
    "a janitor ends another one's look": _one(
        _JOURNAL,
        "    if entries(db, id_).get(step) == before:\n",
        "    if entries(db, id_)[step].state is StepState.UNDONE:\n",
    ),
    "nothing is begun before it is done": _one(
        _RUNNER,
        "            lambda db: journal.put(db, held, self._lease_ns, name, entry, self._now_ns())\n",
        "            lambda db: journal.renew(db, held, self._lease_ns)\n",
    ),
    "a cancel is not seen before the step": _one(
        _RUNNER,
        "        if job.direction is not look.job.direction:\n            return True",
        "        if False:\n            return True",
    ),
    "a cancel is not seen by who waits": _one(
        _RUNNER,
        "        if journal.renew(db, held, self._lease_ns).direction is not direction:\n            return True\n",
        "        journal.renew(db, held, self._lease_ns)\n",
    ),
    "undone from the front": _one(_RULES, "Undo(left[-1])", "Undo(left[0])"),
    "undone is what was done alone": _one(
        _RULES, "journal.get(step, StepState.GONE) not in OVER]", "journal.get(step) is StepState.DONE]"
    ),
    "nothing stops at the fence": _one(
        _RULES, "    is_past = fence is not None and any", "    is_past = False and any"
    ),
    "in doubt nothing stops at the fence": _one(
        _RUNNER, "            {*look.journal, name},\n", "            {name},\n"
    ),
    "tried for ever": _one(_RULES, "    if tries < _TRIES and (", "    if ("),
    "tries are not counted": _one(_RUNNER, "tries=before.tries if before.state is begun else 0", "tries=0"),
    "an undo that fails does not back off": _one(
        _RULES, "(may_pass or direction is Direction.BACK)", "may_pass"
    ),
    "what came late is not looked for by who undoes": _one(
        _RUNNER, "            for step in again:\n", "            for step in ():\n"
    ),
    "the janitor has no time": _one(
        _JANITOR,
        "        elif begun_ns - entry.undone_ns > (kind.lasting_s + _CLOCKS_S) * SECOND_NS:",
        "        elif kind:",
    ),
    "the janitor trusts the hosts' clocks": _one(_JANITOR, "(kind.lasting_s + _CLOCKS_S)", "kind.lasting_s"),
    "the janitor finds, and does not begin anew": _one(
        _JANITOR, "tries=0, undone_ns=begun_ns)", "tries=0, undone_ns=entry.undone_ns)"
    ),
    "a step is never cut off": _one(
        _RUNNER, "asyncio.timeout_at(until_s) as until:", "asyncio.timeout_at(until_s + 1e9) as until:"
    ),
    "a step is cut off after its lease": _one(
        _RUNNER,
        "        until_s = leased_s + self._lease_s - self._margin_s\n",
        "        until_s = leased_s + self._lease_s + 9.0\n",
    ),
    "a renewed step is cut off after its lease": _one(
        _RUNNER,
        "                end_s = begun_s + self._lease_s - self._margin_s\n",
        "                end_s = clock() + self._lease_s + 9.0\n",
    ),
    "a lease is counted from its answer": Mutant(
        _RUNNER,
        (
            ("        leased_s = asyncio.get_running_loop().time()\n", ""),
            (
                '        crashpoints.reach(f"job.{begun}")\n',
                '        leased_s = asyncio.get_running_loop().time()\n        crashpoints.reach(f"job.{begun}")\n',
            ),
        ),
    ),
    "nobody renews": _one(
        _RUNNER, "asyncio.create_task(self._renew(held, at_work))", "asyncio.create_task(asyncio.sleep(0))"
    ),
    "who lost the lease goes on": _one(
        _RUNNER,
        "            except LostJobError:\n                end_s = clock()\n",
        "            except LostJobError:\n                end_s = clock() + 1e9\n",
    ),
    "what is too late is begun": _one(
        _RUNNER,
        "        if asyncio.get_running_loop().time() >= until_s:\n            return _CutOff.NOT_KEPT\n",
        "",
    ),
    "a bug is a person's no more": _one(
        _RUNNER, "goes_on = await self._unthought_of(held, exc, look.job.direction)\n", "return\n"
    ),
    "one that was turned at its end lies": _one(
        _RUNNER, "return not await self._end(", "return False and await self._end("
    ),
    "results of what is not done": _one(_RUNNER, " if known.state is StepState.DONE\n", "\n"),
    "the clock of the transaction": _one(
        _STATEMENTS, "EXTRACT(EPOCH FROM clock_timestamp())", "EXTRACT(EPOCH FROM now())"
    ),
}


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """The tree, with this change."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="understudy-mutant-") as name:
        folder = Path(name)
        for each in root.iterdir():
            if each.name not in ("config_server", ".git", ".hypothesis"):
                (folder / each.name).symlink_to(each)
        shutil.copytree(
            root / "config_server", folder / "config_server", ignore=shutil.ignore_patterns("__pycache__")
        )
        file = folder / "config_server" / mutant.file
        text = file.read_text(encoding="utf-8")
        for old, new in mutant.changes:
            assert text.count(old) == 1, f"{mutant.file} does not read so any more:\n{old}"
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")
        yield folder


def _notices(folder: Path, *command: str) -> str:
    """What it says, where it fails."""
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)},
    )  # fmt: skip
    said = [
        line
        for line in run.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR", "one-", "two-", "postgresql"))
    ]
    return "" if run.returncode == 0 else (said or [run.stderr[-200:]])[0][:200]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.jobs_model.mutants", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0.3, help="of lives, for each")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    missed = []
    for name in options.names or MUTANTS:
        with mutated(MUTANTS[name]) as folder:
            lives = _notices(
                folder, "tests.jobs_model", "--minutes", str(options.minutes), "--until-one-fails", "--on", "two-servers", "one-server"
            )  # fmt: skip
            # The contract holds on either database; what PostgreSQL alone reads needs it.
            chosen = [] if MUTANTS[name].file == _STATEMENTS else ["-k", "not postgresql"]
            pytest = [
                *chosen,
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "--basetemp",
                str(folder / "tmp"),
                *_TESTS,
            ]
            tests = _notices(folder, "pytest", *pytest)
        print(f"{name}\n    lives: {lives or '-'}\n    tests: {tests or '-'}", flush=True)
        if not lives and not tests:
            missed.append(name)
    print(f"{len(options.names or MUTANTS)} mutants; missed: {missed or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
