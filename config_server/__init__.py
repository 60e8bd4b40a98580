"""The control plane: identity, inventory, health, events, commands and restore jobs, over REST on HTTPS.

    daemon ──mTLS──► listener ─► binding ─► operations ─► store (one SQLite writer)
    CLI ──token──►         web              │    │
                                            │    └─► rules      what the reports mean
                                            └─► storage, identity

Nothing here stands in the data path: replication, and a restore from storage and key alone, work while this
is down. Only a machine that is new to a process server or master target waits for its key.

Imports go downwards:

    setup/        `understudy init`: an installation begins
    service       wiring, and what happens every few seconds           config       the configuration file
    web/          the port, who calls, which operation answers which route
    operations/   what the API does: (who calls, request) → result
    jobs/         long operations as journals of steps: claimed, driven, undone
    data_folder/  database, CA and token as one folder: whole, locked, backed up, put back
    storage/      what is read and removed in blob storage
    identity/     the CA, certificates, revocations as storage holds them
    store/        the database: functions of a transaction
    rules/        what is judged without I/O: state, health, wishes, deletions, readings of reports

    cli/          the `understudy` command: a client of the API, which imports nothing of the server

It blocks only in the database's thread (SQLite, fsync), in files of the CA at start, and on blob storage: for
points, grants, revocations, records of vault keys, deletions, and whose a machine is.
"""
