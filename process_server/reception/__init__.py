"""Reception: admits agents and takes their streams. Knows a machine's log only by the protocol in `session`.

receiver   connections in, a session for each           nothing
admission  one session per machine, and its credit      the earlier session's last batches
session    wire events in, append and ACK out           nothing: appends are bounded by credit
machine    what is remembered of one machine            pure
boots      which boot of a machine another waits for   pure; one small file a machine
pace       how often a machine may ask                  pure
credit     how much a machine may send                  pure
"""
