"""A log that is set back again and again, owners of its points that come and go, and what is a point in the end."""

from __future__ import annotations

import random

import pytest

from master_target.follow import Follower
from master_target.points import PointMaker
from master_target.retention import Pruner, RetentionPolicy
from shared.recovery import point_store
from shared.recovery.catalog import Catalog
from tests.lives import copied
from tests.machine_log import ModelMachine
from tests.marks import some

STEPS = ("write", "mark", "publish", "copy", "set back", "same owner", "same owner", "new owner", "prune")


@pytest.mark.parametrize("seed", some(range(24), short=(13,)))
async def test_every_mark_of_the_log_that_is_there_is_a_point_of_it(model: ModelMachine, seed: int) -> None:
    rng = random.Random(seed)
    await model.begin_epoch()
    model.write()
    await model.publish()
    copies = [(await copied(model.store), model.as_it_is())]
    follower, maker = Follower(model.store, model.vault, model.name), PointMaker(model.store, model.name)
    await maker.take()
    done = []
    for n in range(20):
        step = rng.choice(STEPS)
        done.append(step)
        if step in ("write", "mark"):
            model.write(mark=f"m{n}" if step == "mark" else None)
        elif step == "publish":
            await model.publish(segments=rng.choice((1, 2)))
        elif step == "copy":
            await model.publish()
            copies.append((await copied(model.store), model.as_it_is()))
        elif step == "prune":
            await Pruner(model.store, model.name, RetentionPolicy()).prune(maker.roll, [])
        elif step == "set back":
            await model.set_back(*rng.choice(copies))
            for i in range(rng.randrange(3)):
                model.write(mark=f"m{n}-{i}")
            await model.publish()
        if step in ("set back", "new owner"):
            follower = Follower(model.store, model.vault, model.name)
            maker = PointMaker(model.store, model.name)
            await maker.take()
        if step in ("set back", "new owner", "same owner"):
            await maker.document(await follower.refresh(1), follower.listed_ns, follower.digest)
            catalog = await Catalog.load(model.store, model.name)
            end = max(run.last for run in catalog.runs)
            named = {doc.position: doc for doc in await point_store.list_docs(model.store, model.name)}
            for position in (position for position in model.marked if position <= end):
                assert position in maker.roll, done
                assert named[position].digest == await catalog.digest(position), done
                assert position in catalog.docs, done
