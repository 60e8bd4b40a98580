"""Jobs, whatever happens to those who drive them: the world is as after one run of each, or as if it had never been; what is left is
named, and what is others' is not touched (tests/jobs_model)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.jobs_model.databases import Sqlite
from tests.jobs_model.model import lived
from tests.jobs_model.search import MET, lives
from tests.jobs_model.served import Served
from tests.marks import examples
from tests.postgres import Postgres

SEEDS = st.integers(0, 1 << 32)
ALONE, SHARED = Sqlite(is_shared=False), Sqlite(is_shared=True)


@pytest.fixture(scope="module")
def served(postgres: Postgres) -> Iterator[Served]:
    store = Served(postgres)
    yield store
    store.close()


@settings(max_examples=examples(80))
@given(SEEDS)
def test_of_one_server_with_a_file(seed: int) -> None:
    assert lived(seed, ALONE).problems == []


@settings(max_examples=examples(150))
@given(SEEDS)
def test_of_two_servers_whose_transactions_come_one_after_the_other(seed: int) -> None:
    assert lived(seed, SHARED).problems == []


@settings(max_examples=examples(15))
@given(seed=SEEDS)
def test_of_two_servers_on_postgresql_between_any_two_statements(served: Served, seed: int) -> None:
    assert lived(seed, served).problems == []


def test_lives_meet_all_that_may_go_wrong() -> None:
    found = lives(SHARED, range(100))
    assert found.failed == {}
    assert [name for name in MET if not found.met[name]] == []
