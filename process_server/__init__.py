"""The process server: takes the streams of many machines, makes them durable, uploads them sealed.

    agent ──TLS 9443──► reception/ ──► spool/ ──► blob storage
                        receiver       sealed files   log index
                        session        writer
                           ▲           uploader
                           └── credit ◄── free cache, quota

    reception/   admits agents, one session per machine                its map: reception/__init__.py
    spool/       durable files, uploaded and listed in order           its map: spool/__init__.py
    config       the configuration file
    standing     where a machine's log stands, in the words of both
    machine_files  what lies beside a machine's spool for the next start; both rooms keep one
    setup        `python -m process_server setup`: this host becomes part of an installation
    deletions    machines that were deleted: what is here of them goes
    status       what the process server says of itself
    service      wiring

Imports go downwards only: service → deletions, status → reception, spool; the two rooms do not know each other.

Back-pressure runs the other way: storage is slow → the cache fills → credit shrinks to 0 → the agent waits,
its ring overflows, capture degrades to the bitmap. Nothing is lost, and no workload waits.
"""
