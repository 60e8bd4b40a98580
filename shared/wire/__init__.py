"""The session between an agent and a process server. All but `transport` is pure code: bytes in, events out; no socket, no clock.

    frames    header and limits: cuts a byte stream into frames, checks lengths before any allocation
    messages  what is said: Hello, Welcome, Ack, Fault, Flush, Ping (a batch: shared/batch.py)
    sequence  which batch may come next: numbers, digests, extents within the machine's disks
    events    what a Connection tells its user
    protocol  Connection: who may say what when (a transition table), versions, acknowledgements, credit
    transport Channel: asyncio and TLS around a Connection, for both ends; keepalive, flow control

The rules of a session live here and nowhere else. Byte layout: FORMAT.md.
"""
