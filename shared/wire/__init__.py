"""The session between an agent and a process server, as pure code: bytes in, events out; no socket, no clock.

    frames    header and limits: cuts a byte stream into frames, checks lengths before any allocation
    messages  what is said: Hello, Welcome, Ack, Fault, Flush, Ping (a batch: shared/batch.py)
    sequence  which batch may come next: numbers, digests, extents within the machine's disks
    events    what a Connection tells its user
    protocol  Connection: who may say what when (a transition table), versions, acknowledgements, credit

The rules of a session live here and nowhere else. The I/O around it is process_server/reception/channel.py and
agent/stream/sender.py. Byte layout: FORMAT.md.
"""
