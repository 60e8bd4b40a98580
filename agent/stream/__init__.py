"""The stream: from captured writes to batches in one order, sent and acknowledged. Imports capture, never the other way.

bios         ring records → whole bios in order                  pure
records      which bios are emitted, what the ring must keep     never blocks
catchup      rounds over what the stream misses                  pure
pending      chunks that were sent and are not uploaded          pure
sync_reader  reads the rounds' chunks with O_DIRECT              bounded buffers; each disk apart
lane         one disk's reads, and what keeps them from coming   never blocks
refusals     what a disk refuses: when that is believed          pure
spans        reads one chunk, block by block where that fails    blocks on the disk
disk_threads calls that block on one disk                        threads of that disk's own
unreadable   what of the source is missing in the target; when it is tried again   pure
unreadable_words   the set of these sectors, in words that survive a kill   pure
rounds       when rounds begin, bitmap swaps, what ends them     grace periods, in threads
marks        where recovery points may stand                     pure
uploading    the newest captured time that is in storage         pure
cutter       cuts batches; where the stream stands               never blocks
retention    what was sent: what may be freed, where to resume   never blocks
link         one connection, as awaitables                       blocks on the peer
servers      which process server the next session is with       pure
sender       sessions with the process server                    blocks on credit and the link
clock        boot clock and wall clock
state        what survives a kill, in a pinned map
"""
