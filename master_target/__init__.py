"""The master target: brings the log of each machine it claimed to that machine's seed disks, and cuts recovery points.

    config     the configuration file
    setup      `python -m master_target setup`: this host becomes part of an installation
    claim      one master target per machine: a lease on the blob `master`; leases: keeps one for as long as the work lasts
    follow     polls the log index (`poll_s`, once a second), reads segments, cuts them into intervals; an interval ends at each mark
    tail       what of an epoch's index is remembered: from the cursor on
    (coalesce) shared/recovery/coalesce.py: an interval becomes the fewest writes and clears; bridge: joined over short gaps
    apply      begin → writes → finish, on all disks of the machine; what a crash cut off is applied again first
    stepping   one step: the next interval, applied, with the snapshots of the point where it ends
    epochs     which epoch is applied, on which disks, and when the next one begins
    targets/   page blob (fixed VHD) or image file: own lease, cursor before and after, snapshots that name their position
    points     a document by position as soon as a mark is indexed; with snapshots once apply is there
    unreadable what of the source is missing on the disks, for the points
    roll       who owns the machine's points: no other master target's writes count
    retention  old points and orphan snapshots go

`machine` runs these for one machine: one task follows the index and writes documents, one applies. `service` runs a `machine` for
each machine that storage knows and reports status. It blocks on storage only; whatever fails is shown, and tried again.
"""
