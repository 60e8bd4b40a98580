"""A roll that was lost, or set back, and is made from the documents of the points, where the log was set back before."""

from __future__ import annotations

import pytest

from master_target.follow import Follower
from master_target.points import PointMaker
from shared.recovery import point_store, points
from shared.recovery.catalog import Catalog
from shared.recovery.position import Position
from tests.lives import copied
from tests.machine_log import ModelMachine


async def owned(model: ModelMachine) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A new owner documents what it finds: points and set aside."""
    follower, maker = Follower(model.store, model.vault, model.name), PointMaker(model.store, model.name)
    await maker.take()
    found = await follower.refresh(maker.reads_from)
    await maker.document(found, follower.listed_ns, follower.digest)
    roll = await point_store.read_roll(model.store)
    assert roll is not None
    return roll.points, roll.aside


@pytest.mark.parametrize("lost", ["deleted", "set back"])
async def test_a_roll_that_is_made_from_documents_sets_aside_again_what_is_of_another_history(
    model: ModelMachine, lost: str
) -> None:
    """Points of the other history stand before present ones, and behind them; one is of a later epoch, which is gone."""
    await model.begin_epoch()
    model.write(mark="shared")
    await model.publish()
    older, as_it_was, writer = await copied(model.store), model.as_it_is(), model.writer
    for mark in ("old", "old again", None, "old last"):
        model.write(mark=mark)
    await model.publish()
    old_roll = (await owned(model), await model.store.read(points.ROLL))[1]
    await model.begin_epoch("rebooted")
    later = model.write(mark="later")
    await model.publish()
    await owned(model)
    model._writer = writer
    await model.set_back(older, as_it_was)
    model.write()
    model.write(mark="new")
    model.write(mark="newest")
    await model.publish()
    kept = ("1-4", "1-6", "1-7"), ("1-5", "1-8", str(later))
    assert await owned(model) == kept
    await model.store.delete(points.ROLL)
    if lost == "set back":
        await model.store.create(points.ROLL, old_roll)
    await PointMaker(model.store, model.name).take()  # and is killed before it looks at the log
    expected = kept if lost == "deleted" else (kept[0], kept[1][:2])  # nothing names the later one then
    for _ in range(2):
        assert await owned(model) == expected
    catalog = await Catalog.load(model.store, model.name)
    assert set(catalog.docs) == {Position.of(1, n) for n in (4, 6, 7)}
    # Once there are points of a newer epoch as well: the log is read from the oldest on.
    await model.begin_epoch("resynchronised", above=2)
    model.write(mark="newer epoch")
    await model.publish()
    await owned(model)
    await model.store.delete(points.ROLL)
    assert await owned(model) == ((*kept[0], str(later), "3-4"), kept[1][:2])


async def test_a_roll_that_is_made_from_documents_keeps_points_whose_log_is_gone(model: ModelMachine) -> None:
    """Of an epoch before the one that storage has: nothing contradicts them."""
    await model.begin_epoch()
    model.write(mark="old")
    await model.publish()
    await owned(model)
    await model.lose_log()
    await model.store.delete(points.ROLL)
    assert await owned(model) == (("1-4",), ())
    await model.begin_epoch("begun anew", above=1)
    model.write(mark="new")
    await model.publish()
    assert await owned(model) == (("1-4", "2-4"), ())
    await model.store.delete(points.ROLL)
    for _ in range(2):
        assert await owned(model) == (("1-4", "2-4"), ())
