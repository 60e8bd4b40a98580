"""The real stream, bios and catch-up over a random model of the kernel, the network, the process server and the agent's life.

    kernel.py        ring, bitmaps, open writes and disks, and what the disks can have been
    bad_sectors.py   what of the disks cannot be read
    reader.py        what a round of catch-up reads of them, when the model wants
    trials.py        what is asked for again, and what may be put to do of it
    kills.py         the agent's end at any line of agent/stream
    model.py         the agent's life, the network and the process server; what is held against the stream
    mutants.py       the stream with a line changed
    __main__.py      all of it for hours

The kernel: two CPUs, each with a writer of chained writes over two disks, whose pieces interleave in a small ring; programs that are
busy, or fail half-way; bitmaps that are swapped under running programs; writes that reach the disk sector by sector. The rest: batches
lost with their connection, a process server that forgets what was not uploaded, one that is confused about where it stands or in which
epoch, an agent that is killed, new epochs. If it is to be hard (`model.Hardships`): sectors that cannot be read, alone or many at once, and
can be again; little room to name them; trials that are given piece by piece, let go, and come back late; a pin that is gone; kills
between any two lines.

Held against it: every ordered batch that is stored is a state that the disks can have had (each writer's writes up to some k, and no
write without those that it was issued after), but for what is named unreadable; what the agent names is what is missing, or a round or the
ring brings it; nothing is put to do that no trial was given; a mark holds what had completed when it was asked for; at the end the target
is equal, and nothing is named.
"""
