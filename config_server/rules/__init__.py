"""What the config server judges, without doing anything: no I/O, no clock but what it is told.

machine, disks          a machine as it is wanted, and which of its disks could be protected
settling                what is kept of its disks after a report of its agent
wishes, wish_view       which of two acts for it is the later; what is wanted of it, as people see it
presence, twins         the latest report of every daemon, and two daemons under one name
facts, serving          what is known of a machine, and which of several process servers it is with
conditions, sights, lasting   what is not done and nobody complains of: which, how a look finds it, for how long
wrong, health, view     what is wrong with it, how bad that is, and how people see it
rpo                     how old the newest state in storage is
copies                  who was refused as a copy, and who is meant by a rebind
deletion, deletion_view when a machine may be deleted, and as people see it
certificates, renewals, revocations   of the CA: what holds for all, when one may be renewed, how one is refused
clock, words            times as people read them; how much is kept of what others say
"""
