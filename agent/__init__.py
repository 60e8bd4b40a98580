"""The agent: runs on the protected machine, captures every block write and streams it to a process server.

    kernel ──► capture/ ──► stream/ ──TLS 9443──► process server
               ring, dirty bitmap   batches, catch-up

    capture/     BPF programs and their maps: every write, copied at submission      its map: capture/__init__.py
    stream/      batches in one order, catch-up, the session                          its map: stream/__init__.py
    continuity/  runs the audit; what follows if a write went past capture                   its map: continuity/__init__.py
    traces       what of the agent's own lies on the disks that it captures
    config       agent.toml
    desired      what the config server wants, and what follows of it and the configuration; its file: desired.json
    machine_identity  what tells this machine from its copies
    host_note    tells other programs of this host which disks are protected
    lock         one agent, or one detach, at a time, for one capture; free when the agent is dead, whatever hangs
    preflight    could this disk be protected, and how well?
    pipeline     the parts of a running agent, put together
    setup        `python -m agent setup`: this machine becomes part of an installation
    status       what the agent says of itself
    telling      what it says last, when it ends because it must
    idle         the agent while it protects nothing
    attachment   capture attached to what is wanted, and the pipeline over it
    service      the daemon: one session after the other, each fitted to what is wanted and to the disks that are there

Imports go downwards only: service → attachment → idle → status → pipeline → continuity → stream → capture.

Memory: the ring, plus 24 MiB per protected TiB for the bitmaps, plus up to 264 MiB per TiB while a round runs over a disk that is
written everywhere (the set of sectors that a round must not read), plus 24 MiB for buffers and 4 MiB per disk that is read.
"""
