"""Reception: admits agents and takes their streams. Knows a machine's log only by the protocol in `session`.

receiver   connections in, one session per machine      the earlier session's last batches
session    wire events in, append and ACK out           nothing: appends are bounded by credit
boots      which boot of a machine another waits for   pure; one small file a machine
credit     how much a machine may send                  pure
"""
