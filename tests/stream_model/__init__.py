"""The real stream, bios and catch-up over a random model of the kernel, the network, the process server and the agent's life.

    kernel.py   ring, bitmaps, open writes and disks, and what the disks can have been
    reader.py   what a round of catch-up reads of them, when the model wants
    model.py    the agent's life, the network and the process server; what is held against the stream

The kernel: two CPUs, each with a writer of chained writes over two disks, whose pieces interleave in a small ring; programs that are
busy, or fail half-way; bitmaps that are swapped under running programs; writes that reach the disk sector by sector. The rest: batches
lost with their connection, a process server that forgets what was not uploaded, one that is confused about where it stands or in which
epoch, an agent that is killed, new epochs.

Held against it: every ordered batch that is stored is a state that the disks can have had (each writer's writes up to some k, and no
write without those that it was issued after); a mark holds what had completed when it was asked for; at the end the target is equal.
"""
