"""What a reader makes of index lines, whatever order faulty storage or a stale writer puts them in."""

from __future__ import annotations

import pytest

from shared.batch import NO_DIGEST
from shared.errors import IndexDamagedError
from shared.log.index import Claim, Closed, Fold, IndexEntry, Line, decode_lines, encode_lines
from tests.epoch_ids import CLAIM, eid


def entry(first: int, last: int, *, term: int = 1, predecessor: str | None = None) -> IndexEntry:
    return IndexEntry(
        term=term,
        blob=f"b{first}",
        bytes=10,
        digest="00",
        plain_b=20,
        first=first,
        last=last,
        first_captured_ns=1,
        last_captured_ns=2,
        end_seq=last * 10,
        predecessor=predecessor or _digest(first - 1),
        last_digest=_digest(last),
        ordered=((first, last),),
        written_ns=3,
    )


def _digest(number: int) -> str:
    return NO_DIGEST.hex() if number == 0 else f"{number:032x}"


def claim(term: int) -> Claim:
    return Claim(term=term, epoch_claim=CLAIM, owner="ps", after=0, written_ns=1)


def fold(*lines: Line) -> Fold:
    folded = Fold("test", eid(1))
    for line in lines:
        folded.add(line)
    return folded


def test_entries_count_in_order() -> None:
    folded = fold(claim(1), entry(1, 3), entry(4, 4))
    assert (folded.last, folded.end_seq, folded.last_digest) == (4, 40, _digest(4))
    assert [e.first for e in folded.entries] == [1, 4]


def test_the_size_of_a_fold_does_not_grow_with_the_log() -> None:
    folded = fold(claim(1), *(entry(i, i) for i in range(1, 100)))
    assert (folded.last, folded.end_seq, folded.last_digest) == (99, 990, _digest(99))
    assert [e.first for e in folded.entries] == [96, 97, 98, 99]


def test_an_entry_of_a_lower_term_after_a_higher_one_is_ignored() -> None:
    folded = fold(claim(1), entry(1, 3), claim(2), entry(4, 6), entry(4, 5, term=2))
    assert [(e.term, e.last) for e in folded.entries] == [(1, 3), (2, 5)]


def test_a_stale_claim_and_a_stale_close_are_ignored() -> None:
    folded = fold(claim(3), claim(2), Closed(term=2, next=2))
    assert (folded.owner.number, folded.number) == (3, 1)


def test_closing_leads_to_the_next_blob() -> None:
    assert fold(claim(1), Closed(term=1, next=2)).number == 2


@pytest.mark.parametrize(
    "line", [entry(5, 6), entry(3, 6), entry(4, 3), entry(4, 5, predecessor=_digest(99))]
)
def test_a_gap_an_overlap_or_another_history_is_damage(line: IndexEntry) -> None:
    folded = fold(claim(1), entry(1, 3))
    with pytest.raises(IndexDamagedError):
        folded.add(line)
    with pytest.raises(IndexDamagedError):
        folded.expect([line])


def test_lines_survive_encoding() -> None:
    lines: list[Line] = [claim(1), entry(1, 3), Closed(term=1, next=2)]
    assert decode_lines(encode_lines(lines), "index") == lines
    assert decode_lines(b"", "index") == []


@pytest.mark.parametrize(
    "data",
    [
        b'{"kind":"claim"',
        b"{}\n",
        b'{"kind":"other","term":1}\n',
        b"\n",
        encode_lines([claim(1)]).replace(b"ps", b"\xff\xff"),
        encode_lines([claim(1)]).replace(b'"ps"', b"[" * 100_000),
    ],
)
def test_lines_that_are_not_whole_or_not_known_are_damage(data: bytes) -> None:
    with pytest.raises(IndexDamagedError, match="index-7"):
        decode_lines(data, "index-7")
