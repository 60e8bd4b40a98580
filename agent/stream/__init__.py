"""The stream: from captured writes to batches in one order, sent and acknowledged. Imports capture, never the other way.

bios         ring records → whole bios in order                  pure
records      which bios are emitted, what the ring must keep     never blocks
catchup      rounds over what the stream misses                  pure
sync_reader  reads the rounds' chunks with O_DIRECT              threads, bounded buffers
marks        where recovery points may stand                     pure
cutter       cuts batches; the stream's order and positions      never blocks
sender       TLS session with the process server                 blocks on credit and socket
state        what survives a kill, in a pinned map
"""
