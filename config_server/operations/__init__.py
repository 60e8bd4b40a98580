"""What the API does: (who calls, request) → result. Permission was checked before (web/binding.py); nothing here knows HTTP.

call, control           who calls; what all operations share: database, CA, storage, the latest reports, time
known_operators         whose token it is, also while the database is away
enrolment, revoking, keys     certificates: given, refused; machines' data keys, for daemons
replicas                other config servers on the same database
reporting, sides, row_binding  reports of daemons, copies of machines that are refused, and who the machine is without storage
protecting, desired_state     what is wanted of a machine, and what its agent is told of that
machines, policies, replication, granting   what people see and ask for
deleting, deletion_sweep      machines that are to be deleted: by people, and by itself
"""
