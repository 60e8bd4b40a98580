"""The config server's database: functions of a transaction, SQL only. Whoever calls them decides when, and what follows.

database, reserve       SQLite in one thread, its schema; room that is kept for revocations on a full disk
inventory, policies     machines, what is wanted of them, the last report of every daemon; replication policies
deletions               machines that are to be deleted
tokens, revocation, taking_in   who may call, which certificates are refused, what storage tells of that
grants                  who was given to read a machine's container
commands, jobs          one-time acts for daemons; restores that somebody runs
events, audit           what went wrong or happened; who changed what
lasting_record          how long conditions have lasted, over a restart
incarnations, restored  which database this one was; what ends when it is put back from a backup
"""
