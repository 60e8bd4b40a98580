"""What the API does: (who calls, request) → result. Permission was checked before (web/binding.py); nothing here knows HTTP.

call, control           who calls; what all operations share: database, CA, storage, the latest reports, time
enrolment, revoking, keys     certificates: given, refused; machines' data keys, for daemons
reporting, sides, row_binding  reports of daemons, copies of machines that are refused, and who the machine is without storage
protecting, desired_state     what is wanted of a machine, and what its agent is told of that
machines, policies, replication, granting   what people see and ask for
deleting, deletion_sweep      machines that are to be deleted: by people, and by itself
"""
