"""The control plane: identity, inventory, health, events, commands and restore jobs, over REST on HTTPS.

    daemon ──mTLS──► listener ─► binding ─► identity, reporting, operations ─► database (one SQLite writer)
    CLI ──token──►              who, may it            │
                                                       ├─► presence, view   what the reports mean
                                                       └─► storage        points and grants

Nothing here stands in the data path: replication, and a restore from storage and key alone, work while this
is down. Only a machine that is new to a process server or master target waits for its key.

    config     the configuration file            ca          certificates                     clock    times as people read them
    database   SQLite in a thread, schema        reserve     room for revocations on a full disk
    tokens, revocation, inventory, policies, commands, events, jobs, audit: the database's tables
    listener   TLS connections                   renewals    when a certificate may be renewed (pure)
    binding    routes → HTTP, authentication, errors
    identity   tokens, certificates              reporting   status, commands, events, daemons, audit
    operations machines, points, restores        presence    the latest reports; twins   two daemons under one name (pure)
    facts      what is known of a machine (pure)  wrong      what is wrong with it (pure)    health   how bad that is
    conditions what is not done, and nobody complains of, as sights shows; lasting: ... for how long (all pure)
    lasting_record  ... and before this process
    protecting which machines and disks          policy_operations  replication policies          machines  what they share
    keys       machines' data keys, for daemons      disks       which could be protected, and why not (pure)
    wishes     which of two acts for a machine is the later (pure)      incarnations  of this database
    desired_state  what an agent is told, and what is adopted from it
    view, wish_view  a machine as people see it, and what is wanted of it (pure)          storage     what is read from blob storage
    own_certificate  of this server              lock        of its data folder
    rpo        how old the newest state in storage is (pure)
    sides      copies of machines, refused       serving     which of several process servers a machine is with
    revoking   in database and storage, in force at once   revocation_record   what storage holds of one
    taking_in  what storage tells, in order with what the database did
    copies     who was refused, and who is meant by a rebind (pure)
    granting   who may read a machine's container  grants     their table
    belonging  do CA, database, token belong together      ca_note     ... and is the CA the one that this installation had
    backup     the data folder as one file     restoring  ... and back     tools   the two, as commands
    deletion   when a machine may be deleted (pure)                     deletions   ... in the database
    deleting   what operators say of it    deletion_sweep  ... and what is done by itself     removal     ... in storage
    deletion_view  ... as people see it (pure)
    restored   what ends in a database that is put back, and that it was
    setup/     `understudy init`: an installation begins           first_operator  ... and who operates it
    service    wiring, and what happens every few seconds
    cli/       the `understudy` command: a client of the API, which imports nothing of the server

It blocks only in the database's thread (SQLite, fsync), in files of the CA at start, and on blob storage: for
points, grants, revocations, records of vault keys, deletions, and whose a machine is.
"""
