"""The control plane: identity, inventory, health, events, commands and restore jobs, over REST on HTTPS.

    daemon ──mTLS──► listener ─► binding (who, may it) ─► identity, reporting, operations ─► database
    CLI ──token──►                   │                        │                   (one SQLite writer thread)
                          └ routes of shared/api.py      ├─► view      what the reports mean for a machine
                          (pure)
                                                         └─► storage   points and grants, read from blob
                                                         storage

Nothing here stands in the data path: replication, and a restore from storage and key alone, work while this
is down.

    config     the configuration file            ca          certificates
    database   SQLite in a thread, schema        tokens, inventory, commands, events, jobs, audit: one table
    each binding    routes → HTTP, authentication     handlers    what each route does
    presence   latest reports, what is wrong     view        a machine's state as people see it
    service    wiring                            cli/        the `understudy` command and labs

It blocks only in the database's thread (SQLite, fsync), in files of the CA at start, and on blob storage
when somebody asks for points.
"""
