"""Capture: every write to the protected disks, seen by BPF programs that outlive the agent. Imports nothing of the stream.

bpf/capture.bpf.c   the programs: every write copied into the ring at submission; the dirty bitmap when the ring is full
libbpf, layout      loading them; the memory that they share with Python
attach, pins        attached afresh, continued, detached; where capture lives while no agent runs, and what the agent must know after a kill
members             disks join and leave, programs are upgraded, while capture goes on
protection          the door for the service: every configured disk that is there and well is captured    blocks for seconds
look                the decision: what stands, what is captured, why a disk cannot be                     blocks for seconds
fitting             the bringing about: what is pinned becomes the chosen disks; a new epoch is wanted before
watch               disks that are left out, looked for while the agent runs
available           all disks of the host, for people who choose           looked at in a thread
binding, bindings   which disk is which: pure; the file that remembers it
pinned_lines        which counts where the file and what is pinned differ: pure
put_back            … where the file is of an earlier boot: pure; put_back_file keeps it
identify            what identifies the disks of this machine
answer              whether a disk answers, and what it says: everything that may hang, in a program that is left behind (device_program)
calibrate           how a program finds a page's data, proved before it is used
maps                the door: ring, bitmaps, open writes, counters of an attached capture
ring                the ring as numpy arrays                            never blocks
disks, suitable     what a device is; whether it can be protected
audit               whether the kernel counted more than capture saw
"""
