"""The session between an agent and a process server, as pure code: bytes in, events out; no socket, no clock.

    frames    header and limits: cuts a byte stream into frames, checks every length before any allocation
    messages  what is said: Hello, Welcome, Ack, Fault, Flush, Ping (a batch is its own format:
    shared/batch.py) protocol  Connection: who may say what when (a transition table), numbering, digests,
    credit

The I/O around it is shared/channel.py (asyncio, TLS, keepalive); the rules of a session live here and nowhere
else.
"""
