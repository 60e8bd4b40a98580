"""The agent: runs on the protected machine, captures every block write and streams it to a process server.

Stages, in data-path order:

    kernel ring    bpf/capture.bpf.c   every write, copied at submission; the dirty bitmap when the ring is full
    ring           ring.py             the ring as numpy arrays                            never blocks
    bios           bios.py             ring records → whole bios in order                  pure
    records        records.py          which bios are emitted, what the ring must keep     never blocks
    catchup        catchup.py          rounds over what the stream misses                  pure
    sync_reader    sync_reader.py      reads the rounds' chunks with O_DIRECT              threads, bounded buffers
    stream         stream.py           cuts batches; the stream's order and positions      never blocks
    marks          marks.py            where recovery points may stand                     pure
    sender         sender.py           TLS session with the process server                 blocks on credit and socket

Beside it: `capture` with `attach` and `pins` (load, pin, attach, continue, detach), `calibrate` (how to find a page's data), `audit`
(nothing went past capture) and `continuity` (what follows if something did), `drain` (writes from before have ended), `disks` and
`preflight` (what a device is), `state` (what survives a kill, in a pinned map), `service` (wiring).

Memory: the ring, plus 24 MiB per protected TiB for the bitmaps, plus up to 264 MiB per TiB while a round runs over a disk that is
written everywhere (the set of sectors that a round must not read), plus 24 MiB for buffers.
"""
