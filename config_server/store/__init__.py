"""The config server's database: functions of a transaction, SQL only. Whoever calls them decides when, and what follows.

schema, migrations/     the data model; how a database comes to it
database                work in transactions, whichever database it is
sqlite, sqlite_dialect, sqlite_steps, reserve   a file, in one thread; its older versions; room that is kept for revocations on a full disk
postgresql, config      a database that several servers use, in PostgreSQL
impatient               a connection to it that does not wait for ever
statements, settings    what the statements share; what there is one of
inventory, policies     machines, what is wanted of them, the last report of every daemon; replication policies
deletions               machines that are to be deleted
operators · tokens      who may call, and who may enrol
certificates, revocation, taking_in   which there are, which of them are refused, what storage tells of that
grants                  who was given to read a machine's container
commands, jobs          one-time acts for daemons; restores that somebody runs
events, audit           what went wrong or happened; who changed what
lasting_record          how long conditions have lasted, over a restart
incarnations, restored  which database this one was; what ends when it is put back from a backup
"""
