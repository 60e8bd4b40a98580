"""What is remembered of an index gives the same answers as the whole index, at a size that does not grow with what was applied."""

from __future__ import annotations

import random

import pytest

from master_target.tail import EpochTail
from shared.log.index import IndexEntry


def index(rng: random.Random, count: int) -> tuple[list[IndexEntry], list[int]]:
    """Entries of one to five batches, and some marks."""
    entries: list[IndexEntry] = []
    for _ in range(count):
        first = entries[-1].last + 1 if entries else 1
        last = first + rng.randrange(5)
        entries.append(
            IndexEntry(
                term=1,
                blob=f"{first}.seg",
                bytes=100,
                digest="",
                plain_b=rng.randrange(1, 1000),
                first=first,
                last=last,
                first_captured_ns=first * 10,
                last_captured_ns=last * 10,
                end_seq=last,
                predecessor="",
                last_digest="",
                ordered=((first, last),),
                written_ns=0,
            )
        )
    return entries, sorted(rng.sample(range(1, entries[-1].last + 1), count // 2))


@pytest.mark.parametrize("seed", range(20))
def test_every_question_from_the_cursor_on_is_answered_as_by_the_whole_index(seed: int) -> None:
    rng = random.Random(seed)
    entries, marks = index(rng, 30)
    tail, known, cursor = EpochTail(), list[IndexEntry](), 0
    while known != entries or cursor < tail.last:
        new = entries[len(known) : len(known) + rng.randrange(4)]
        known += new
        tail.add(new, [m for m in marks if new and new[0].first <= m <= new[-1].last])
        cursor = rng.randint(cursor, tail.last)
        tail.forget(cursor)
        assert tail.last == (known[-1].last if known else 0)
        for batch in range(cursor, tail.last + 2):
            holding = [e for e in known if e.last >= batch]
            behind = [e for e in known if e.last > batch]
            rest = tail.behind(batch)
            assert tail.holding(batch) == (holding[0] if holding else None)
            assert rest == ((behind[0], behind[-1], sum(e.plain_b for e in behind)) if behind else None)
            assert tail.is_mark(batch) == (batch in marks and batch <= tail.last)
            until = rng.randint(batch, tail.last + 2)
            assert [e for e in tail.between(batch, until) if e.first <= until] == [
                e for e in behind if e.first <= until
            ]


def test_what_was_applied_is_forgotten() -> None:
    entries, marks = index(random.Random(0), 1000)
    tail = EpochTail()
    tail.add(entries, marks)
    for entry in entries[:-1]:
        tail.forget(entry.last)
    assert tail.holding(0) in entries[-2:]
    tail.forget_all()
    assert tail.holding(0) is None
    assert not any(tail.is_mark(mark) for mark in marks)
    assert tail.last == entries[-1].last
