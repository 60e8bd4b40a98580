"""Continuity: whether the stream still says all that was written, and what follows when it may not. Looks once a second.

auditor    the look: the audit of all disks, the capture's counts of what it may have missed; keeps the others going
presence   which disks are gone, back, exchanged, or have another size; whether capture still fits those that are there
hanging    which disks are there and do not answer; whether the others go on without them
refusing   which disk refuses more than there is room to name; whether the others go on without it
patience   for how long the others wait for these, and for those that capture could not be fitted to; outlives the agent
settling   which writes are in flight: those from before capture, and such as only seem to be
counting   whether the kernel counts what is written; whether a device over a disk hides writes to it
unaudited  disks that no look says anything of, since they are never idle
losses     a new epoch is wanted: its reason, since when points are suspect, and what people are shown

Imports: auditor → presence, hanging, refusing, settling, counting, unaudited → losses, patience. Nothing here waits, for no disk and no
queue.
"""
