"""Jobs, whatever happens to those who drive them: the program's own runner, janitor and journal, on both databases.

    host.py        a config server's host: its clocks, and whatever it asks of database and world, let go on by the model alone
    world.py       what jobs make, whose it is, requests that land late, and the steps that send them
    databases.py   SQLite, of which transactions come one after the other, and PostgreSQL, where they are let go statement by statement
    watch.py       what must hold at each moment, and at the end
    model.py       lives: who goes on, and what goes wrong
    mutants.py     the program with a line changed, each of which some test notices
    __main__.py    lives for hours, and what they met

What goes wrong: hosts are killed between any two statements and requests, stand still (with their clocks, or without) and wake, have slow
and sick databases and clocks that differ; requests land minutes after nobody waits for them any more; things cannot be made, or removed;
somebody else has the name; people cancel, twice, retry and abandon; the database is put back from a backup, under servers that go on.

What is promised, and so what does not go wrong: a request has its effect, or none, within `Kind.lasting_s` from when its owner lost its lease:
on its way, and in a host that stood still, together; hosts' wall clocks differ by less than two minutes; and no removal is on its way any
more when a database is put back (people need longer for that).
"""
