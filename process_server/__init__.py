"""The process server: takes the streams of many machines, makes them durable, uploads them sealed.

    agent ──TLS 9443──► receiver ──► session ──► spool ──► uploader ──► blob storage
                        (channel)    │   ▲       (sealed    (log index)
                                     ▼   │        files)
                                   credit ◄── free cache, quota

    stage      input                   output                       waits for
    receiver   connections             one session per machine      the earlier session's last batches
    session    wire events             append, ACK                  nothing: appends are bounded by credit
    spool      batches                 sealed segment files         fdatasync, in groups
    uploader   closed segment files    segment blobs, index entries storage, with retries

The spool, from the machine inwards: `machine_log` (which epoch, and whose; `machine_folder` on disk, `older_epochs` beside it), `epoch_log`
(the two ends of one epoch: `spool_writer`, `uploader`), `spool_file`, `reconcile`; `chore` is work that is tried until it is done.

Back-pressure runs the other way: storage is slow → the cache fills → credit shrinks to 0 → the agent waits,
its ring overflows, capture degrades to the bitmap. Nothing is lost, and no workload waits.
"""
