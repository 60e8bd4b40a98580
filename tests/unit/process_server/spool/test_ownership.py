"""What becomes of an epoch's files: each combination that matters, and why."""

from __future__ import annotations

import msgspec
import pytest

from process_server.spool.ownership import (
    Decision,
    LocalFile,
    Owner,
    Patience,
    Relation,
    View,
    chosen_run,
    decide,
    meeting_point,
    relate,
)
from shared.log.index import NO_TERM, Term

PATIENCE = Patience(silent_s=600.0, over_s=60.0)
OUR_TERM = Term(3, "c3")
OURS = Owner(term=OUR_TERM, name="a", holds=True, silent_s=0.0)
THEIRS = Owner(term=Term(4, "c4"), name="b", holds=True, silent_s=0.0)
SILENT = msgspec.structs.replace(THEIRS, silent_s=600.0)
RATHER_SILENT = msgspec.structs.replace(THEIRS, silent_s=60.0)
FINISHED = msgspec.structs.replace(THEIRS, holds=False)
SAME_NUMBER = msgspec.structs.replace(THEIRS, term=Term(3, "c3'"))
LOWER_NUMBER = msgspec.structs.replace(THEIRS, term=Term(2, "c2"))
NOBODY = Owner(term=NO_TERM, name="", holds=False, silent_s=0.0)
FILES = (LocalFile(6, 8, "d5", "d8"), LocalFile(9, 10, "d8", "d10"))


def view(
    owner: Owner, *, newest: int, last: int, here: str, there: str, files: tuple[LocalFile, ...]
) -> View:
    return View(
        epoch=1,
        newest=newest,
        us="a",
        taken=OUR_TERM,
        owner=owner,
        index_last=last,
        files=files,
        here=here,
        there=there,
    )


# (where the index ends, digest here, digest there): how FILES stand to it
CONTINUES = (5, "d5", "d5")
PARTLY_LISTED = (7, "d7", "d7")
LISTED = (10, "d10", "d10")
PASSED = (12, "d10", "d10")
CONTRADICTED = (7, "d7", "x7")
CONTRADICTED_LATER = (12, "d10", "x10")
UNTOLD = (12, "d10", "")
GAP = (4, "", "")


@pytest.mark.parametrize(
    ("owner", "newest", "index", "decision"),
    [
        # Ours and the newest: opened, whatever there is; opening sorts the files.
        (OURS, 1, CONTINUES, Decision.OPEN),
        (OURS, 1, LISTED, Decision.OPEN),
        (OURS, 1, CONTRADICTED, Decision.OPEN),
        (OURS, 1, GAP, Decision.OPEN),
        # Ours and over.
        (OURS, 2, CONTINUES, Decision.OPEN),
        (OURS, 2, PARTLY_LISTED, Decision.OPEN),
        (OURS, 2, LISTED, Decision.DELETE),
        (OURS, 2, PASSED, Decision.DELETE),
        (OURS, 2, CONTRADICTED, Decision.QUARANTINE),
        (OURS, 2, GAP, Decision.QUARANTINE),
        # Another's, and the newest.
        (THEIRS, 1, CONTINUES, Decision.WAIT),
        (THEIRS, 1, PARTLY_LISTED, Decision.WAIT),
        (RATHER_SILENT, 1, CONTINUES, Decision.WAIT),
        (SILENT, 1, CONTINUES, Decision.RETAKE),
        (SILENT, 1, PARTLY_LISTED, Decision.RETAKE),
        (FINISHED, 1, CONTINUES, Decision.WAIT),
        (THEIRS, 1, LISTED, Decision.DELETE),
        (THEIRS, 1, PASSED, Decision.DELETE),
        (THEIRS, 1, CONTRADICTED, Decision.QUARANTINE),
        (SILENT, 1, CONTRADICTED_LATER, Decision.QUARANTINE),
        (THEIRS, 1, UNTOLD, Decision.QUARANTINE),
        (SILENT, 1, GAP, Decision.WAIT),
        # Another's, and over.
        (THEIRS, 2, CONTINUES, Decision.WAIT),
        (RATHER_SILENT, 2, CONTINUES, Decision.RETAKE),
        (FINISHED, 2, CONTINUES, Decision.RETAKE),
        (FINISHED, 2, PARTLY_LISTED, Decision.RETAKE),
        (FINISHED, 2, PASSED, Decision.DELETE),
        (THEIRS, 2, CONTRADICTED, Decision.QUARANTINE),
        (FINISHED, 2, CONTRADICTED, Decision.QUARANTINE),
        (THEIRS, 2, GAP, Decision.WAIT),
        (RATHER_SILENT, 2, GAP, Decision.QUARANTINE),
        # Storage was set back within the epoch: another's are a term of our last one's number, and one of a lower.
        (SAME_NUMBER, 1, CONTINUES, Decision.WAIT),
        (SAME_NUMBER, 1, CONTRADICTED, Decision.QUARANTINE),
        (SAME_NUMBER, 2, CONTINUES, Decision.WAIT),
        (LOWER_NUMBER, 1, CONTINUES, Decision.WAIT),
        (LOWER_NUMBER, 2, GAP, Decision.WAIT),
        (NOBODY, 1, CONTINUES, Decision.OPEN),
        (NOBODY, 2, CONTINUES, Decision.OPEN),
        # Storage does not know the epoch.
        (OURS, 0, CONTINUES, Decision.WAIT),
        (SILENT, 0, GAP, Decision.WAIT),
    ],
)
def test_each_combination_has_one_answer(
    owner: Owner, newest: int, index: tuple[int, str, str], decision: Decision
) -> None:
    last, here, there = index
    verdict = decide(view(owner, newest=newest, last=last, here=here, there=there, files=FILES), PATIENCE)
    assert verdict.decision is decision, verdict.reason
    assert verdict.reason


@pytest.mark.parametrize(
    ("owner", "newest", "decision"),
    [
        (OURS, 1, Decision.OPEN),
        (OURS, 2, Decision.DELETE),
        (THEIRS, 1, Decision.DELETE),
        (THEIRS, 2, Decision.DELETE),
        (OURS, 0, Decision.WAIT),
    ],
)
def test_a_folder_without_files_goes_unless_its_log_is_ours_and_goes_on(
    owner: Owner, newest: int, decision: Decision
) -> None:
    empty = view(owner, newest=newest, last=5, here="", there="", files=())
    assert decide(empty, PATIENCE).decision is decision


def test_an_owner_with_our_name_is_us_although_the_folder_does_not_remember_its_term() -> None:
    owner = msgspec.structs.replace(THEIRS, name="a")
    mine = view(owner, newest=2, last=5, here="d5", there="d5", files=FILES)
    assert decide(mine, PATIENCE).decision is Decision.OPEN


@pytest.mark.parametrize(("last", "point"), [(4, None), (5, 5), (7, 7), (10, 10), (12, 10)])
def test_files_and_index_meet_at_the_last_batch_that_both_have(last: int, point: int | None) -> None:
    assert meeting_point(FILES, last) == point
    assert meeting_point((), last) is None


def test_equal_digests_at_the_meeting_point_decide() -> None:
    assert relate(FILES, 7, "d7", "d7") is Relation.CONTINUES
    assert relate(FILES, 7, "d7", "x7") is Relation.CONTRADICTED
    assert relate(FILES, 10, "d10", "d10") is Relation.LISTED
    assert relate(FILES, 4, "", "") is Relation.BEHIND_A_GAP
    assert relate((), 4, "", "") is Relation.LISTED


def test_of_several_runs_the_one_at_the_end_of_the_index_is_gone_on_with() -> None:
    runs = [(LocalFile(1, 2, "d0", "d2"),), FILES, (LocalFile(13, 14, "d12", "d14"),)]
    assert [chosen_run(runs, last) for last in (0, 2, 3, 5, 10, 11, 14, 20)] == [0, 0, 1, 1, 1, 2, 2, 2]
